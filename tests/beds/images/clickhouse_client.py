#!/usr/bin/python3
"""As much of clickhouse-client as deploy/kind/run uses: --user, --password, --query; over HTTP."""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request

parser = argparse.ArgumentParser()
for name in ("--user", "--password", "--query"):
    parser.add_argument(name, required=True)
options = parser.parse_args()
headers = {
    "X-ClickHouse-User": options.user,
    "X-ClickHouse-Key": options.password,
    "X-ClickHouse-Format": "TabSeparated",
}
request = urllib.request.Request("http://localhost:8123/", options.query.encode(), headers)
try:
    with urllib.request.urlopen(request, timeout=30) as answer:
        sys.stdout.buffer.write(answer.read())
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode())
