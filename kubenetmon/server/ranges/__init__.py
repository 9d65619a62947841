"""Cloud ranges: which provider, region and service a public address belongs to.

`parse` reads the providers' own files, `resolve` decides between claims, `table` is the immutable
longest-prefix match made of them, `fetch`
downloads, `cache` keeps last good copies on disk, `keeper` is the component that owns the table in use.
"""

from kubenetmon.server.ranges.keeper import RangeKeeper, RangesConfig, download
from kubenetmon.server.ranges.parse import PROVIDERS, Label
from kubenetmon.server.ranges.table import RangeTable

__all__ = ["PROVIDERS", "Label", "RangeKeeper", "RangeTable", "RangesConfig", "download"]
