"""A cluster of any size against the real server and the real engine, on one machine: what it costs, and that
nothing is lost.

`python -m tests.simulate --agents 50 --flows 10000 --interval 5 --seconds 60` (`nox -s simulate -- …`). No
root: agents are all of an agent but the kernel, in this process; servers and ClickHouse are processes of
their own. With `--outage` ClickHouse is away for so long in the middle. It ends with a table of figures, and
with exit code 0 only when ClickHouse holds exactly what the agents sealed and no server took more
memory than it may.
"""
