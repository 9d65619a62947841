"""On the search path of measured processes: what only our tests install is not there, as when shipped.

betterproto2 imports pydantic where it finds it, 4 MB that nobody uses.
"""

raise ImportError("pydantic is not among kubenetmon's dependencies")
