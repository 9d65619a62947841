"""`kubenetmon schema print|apply|check`, every option, as an operator uses it."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

import pytest

from kubenetmon.__main__ import main
from tests.beds.clickhouse_server import clickhouse_server

pytestmark = pytest.mark.chdb

OPTIONS = "--database flows --table bytes --ipv6 --fsync --ttl-days 30 --nodes 200 --report-interval 30s"


async def test_it_prints_applies_and_checks_with_all_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with clickhouse_server(tmp_path) as server:
        await prints_applies_and_checks(server.endpoint, capsys)


async def prints_applies_and_checks(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def schema(action: str, options: str = OPTIONS) -> tuple[int, str]:
        where = [f"clickhouse_endpoint={endpoint}", "clickhouse_disable_tls=true"]
        arguments = [part for setting in where for part in ("--set", setting)] + shlex.split(options)
        code = await asyncio.to_thread(main, ["schema", action, *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, lacks = await schema("check")
    assert code == 2
    assert "flows.bytes does not exist" in lacks
    printed = (await schema("print"))[1]
    assert "non_replicated_deduplication_window = 5040000" in printed
    code, done = await schema("apply", "--database flows --table bytes")
    assert code == 0
    assert "CREATE DATABASE" in done
    assert (await schema("apply", "--database flows --table bytes"))[1] == "flows.bytes is as it should be\n"
    code, missing = await schema("check")
    assert code == 2
    for what in ("IPv6", "5040000", "disk", "90 days"):
        assert what in missing
    code, done = await schema("apply")
    assert code == 0
    assert "TTL" not in done, "30 days would destroy rows"
    left = await schema("check")
    assert left[0] == 2
    assert left[1].count("\n") == 1
    assert "if rows may go, ALTER TABLE `flows`.`bytes` MODIFY TTL" in left[1]
    assert (await schema("apply"))[1] == "flows.bytes is as it should be\n"
    assert await schema("check", OPTIONS.replace("30 ", "90 ", 1)) == (0, "")
