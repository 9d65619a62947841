"""Server and agents under mixed traffic for an hour, 100 agents killed at random: exact, and no larger.

`python -m tests.soak` (`nox -s soak`) as root; `--help` lists what a run can be given: its length, the kills,
a time without a server, more short connections. It says on the way how it goes, and ends with a line of
figures. The exit code is 0 only when ClickHouse holds exactly what the nodes' packet counters saw, in bytes
and packets, by workload, protocol and direction; when the conservation identity held in every scrape of
every process; when no agent was ever larger than 80 MB; and when no process has grown, neither within one of
its lives nor from life to life.
"""
