"""The query settings that go with an INSERT, so that its token decides, once.

Contract: pure. Settings that a server does not know it ignores (the native protocol sends them as not
important), so that one list serves all versions.

Facts: from 26.2 on `deduplicate_insert` supersedes `insert_deduplicate` and `async_insert_deduplicate`; a
profile that sets it to `disable` would make every repeated insert count twice. Tokens of blocks on their way
through materialized views count from then on for asynchronous inserts too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from kubenetmon.clickhouse.sinks import Settings
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.errors import ConfigurationError

_DECIDING: Mapping[str, str | int] = {
    "insert_deduplicate": 1,
    "async_insert_deduplicate": 1,
    "deduplicate_insert": "enable",
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "wait_for_async_insert": 1,
    "max_insert_threads": 1,
}
_OURS = frozenset(_DECIDING) | {
    "async_insert",
    "insert_deduplication_token",
    "insert_shard_id",
    "distributed_foreground_insert",
    "insert_distributed_sync",
    "insert_distributed_one_random_shard",
    "max_insert_block_size",
}


def check_own(settings: Settings) -> None:
    """Raise `ConfigurationError` where an operator's settings would take exactness away."""
    for name in settings:
        if name in _OURS:
            raise ConfigurationError(
                f"clickhouse_insert_settings: {name} decides whether rows count once and is kubenetmon's "
                "to set; remove it (clickhouse_async_insert switches asynchronous inserts on)"
            )


def insert_settings(
    schema: TableSchema | None, token: str, own: Settings, *, asynchronous: bool = False
) -> Settings:
    """The settings for one block; `own` are the operator's."""
    settings = {**own, **_DECIDING, "async_insert": int(asynchronous)}
    if schema is not None and schema.shards:
        # The whole batch on one shard, the same at every attempt: that shard knows the token.
        settings["distributed_foreground_insert"] = 1
        settings["insert_distributed_sync"] = 1  # its name before 23.11
        settings["insert_shard_id"] = 1 + zlib.crc32(token.encode()) % schema.shards
    return settings
