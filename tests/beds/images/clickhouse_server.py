#!/usr/bin/python3
"""ClickHouse's server out of the embedded engine, on the ports that its image has.

As tests/beds/clickhouse_server.py does it. The engine's own statements need the user `default` without a
password; so whatever password a client brings is taken.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

HOME = Path("/tmp/clickhouse")
HOME.mkdir()
(HOME / "config.xml").write_text(
    "<clickhouse><listen_host>0.0.0.0</listen_host><tcp_port>9000</tcp_port><http_port>8123</http_port>"
    f"<logger><level>information</level><console>1</console></logger><users_config>{HOME}/users.xml</users_config>"
    "</clickhouse>"
)
(HOME / "users.xml").write_text(
    "<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users><default><no_password/>"
    "<networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota></default></users></clickhouse>"
)
os.chdir(HOME)
spec = importlib.util.spec_from_file_location("_chdb", "/opt/engine/chdb/_chdb.abi3.so")
assert spec is not None
assert spec.loader is not None
engine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(engine)
waiting, _ = os.pipe()  # nothing ever comes out of it
result = engine.query(
    "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; "
    f"SELECT count() FROM file('/dev/fd/{waiting}', 'LineAsString')",
    "CSV",
    path=str(HOME / "data"),
)
raise SystemExit(result.error_message())
