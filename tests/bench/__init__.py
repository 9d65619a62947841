"""The yardstick: DESIGN's table of what to beat, ours only, as ratios to floors measured in the same run.

`python -m tests.bench` (`nox -s bench`) as root. Absolute times say more about the machine than about the
program, so that every row of time is a multiple of what the kernel needs to hand over the same flows.
"""
