#!/usr/bin/python3
"""As much of curl as the kind overlay's visitor uses: curl -s -d DATA URL."""

from __future__ import annotations

import sys
import urllib.request

silent, flag, data, url = sys.argv[1:]
assert (silent, flag) == ("-s", "-d")
with urllib.request.urlopen(url, data.encode(), timeout=10) as answer:
    sys.stdout.buffer.write(answer.read())
