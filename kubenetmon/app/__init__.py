"""The composition root: the only place that joins parts into a process.

`agent`, `server` and `single` (both in one process) each read a configuration, build the parts in the order
they depend on each other and hand them to `Lifecycle`. `schema` serves the command of that name.
"""
