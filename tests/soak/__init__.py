"""Server and agents under steady mixed traffic for an hour: exact to the end, and no larger than before.

`python -m tests.soak --minutes 60` (`nox -s soak`) as root. It ends with a line of figures, and with exit
code 0 only when ClickHouse holds exactly what the nodes' packet counters saw, by workload, protocol and
direction, and no process has grown.
"""
