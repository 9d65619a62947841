"""`kubenetmon schema print|apply|check`, every option, as an operator uses it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kubenetmon.__main__ import main
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from tests.beds.clickhouse_server import clickhouse_server
from tests.clickhouse.conftest import schema_command

pytestmark = pytest.mark.chdb

OPTIONS = "--database flows --table bytes --ipv6 --fsync --ttl-days 30 --nodes 200 --report-interval 30s"


async def test_it_prints_applies_and_checks_with_all_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with clickhouse_server(tmp_path) as server:
        await prints_applies_and_checks(server.endpoint, capsys)


@pytest.mark.parametrize(("blocks", "window"), [(600, 10_000), (1200, 20_000)], ids=["little", "much"])
def test_apply_lengthens_the_window_by_the_rate_that_the_table_has_seen(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    blocks: int,
    window: int,
) -> None:
    """With a tenth of the least window: 600 blocks in a day are 5,250 a week with a margin, 1,200 are 10,500,
    rounded up to ten thousands."""
    monkeypatch.setattr("kubenetmon.clickhouse.window.LEAST_WINDOW", 10_000)
    setting = "non_replicated_deduplication_window = "

    def schema(action: str) -> tuple[int, str]:
        code = main(["schema", action, "--set", f"clickhouse_endpoint=chdb:{tmp_path}"])
        said = capsys.readouterr()
        return code, said.out + said.err

    async def fill() -> None:
        engine = EmbeddedSink(tmp_path)
        for _ in range(blocks // 600):
            await engine.query(
                "INSERT INTO default.network_flows_0 (date, intervalStartTime, bytes) "
                "SETTINGS max_block_size = 1, min_insert_block_size_rows = 1, max_insert_block_size = 1, "
                "max_insert_threads = 1 SELECT yesterday(), yesterday() + 1, 1 FROM numbers(600)"
            )
            await engine.query("OPTIMIZE TABLE default.network_flows_0 FINAL")
        await engine.close()

    code, made = schema("apply")
    assert code == 0
    assert f"{setting}10000" in made
    asyncio.run(fill())
    code, said = schema("check")
    assert (code == 2) == (window > 10_000)
    assert (f"not of {window} for a week" in said) == (window > 10_000)
    code, said = schema("apply")
    assert code == 0
    if window > 10_000:
        assert said == f"ALTER TABLE `default`.`network_flows_0` MODIFY SETTING {setting}{window};\n"
    else:
        assert said == "default.network_flows_0 is as it should be\n"
    assert schema("check") == (0, "")
    assert schema("apply") == (0, "default.network_flows_0 is as it should be\n")


async def prints_applies_and_checks(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def schema(action: str, options: str = OPTIONS) -> tuple[int, str]:
        return await schema_command(endpoint, capsys, action, options)

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
