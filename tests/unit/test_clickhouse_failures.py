"""Which errors are tried again soon, which wait for an operator, and what is said of each."""

from __future__ import annotations

import pytest

from kubenetmon.clickhouse.failures import advice, code, needs_an_operator
from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError
from kubenetmon.errors import ConfigurationError, KubenetmonError

PASSING = {
    "NETWORK_ERROR": 210,
    "TOO_MANY_PARTS": 252,
    "TABLE_IS_READ_ONLY": 242,
    "TIMEOUT_EXCEEDED": 159,
    "MEMORY_LIMIT_EXCEEDED": 241,
    "KEEPER_EXCEPTION": 999,
    "NO_ZOOKEEPER": 225,
    "TOO_FEW_LIVE_REPLICAS": 285,
    "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE": 286,
    "ALL_CONNECTION_TRIES_FAILED": 279,
    "UNKNOWN_STATUS_OF_INSERT": 319,
    "TOO_MANY_SIMULTANEOUS_QUERIES": 202,
    "NOT_ENOUGH_SPACE": 243,
    "QUERY_WAS_CANCELLED": 394,
}
LASTING = {
    "UNKNOWN_TABLE": 60,
    "UNKNOWN_DATABASE": 81,
    "NO_SUCH_COLUMN_IN_TABLE": 16,
    "TYPE_MISMATCH": 53,
    "ACCESS_DENIED": 497,
    "AUTHENTICATION_FAILED": 516,
    "QUOTA_EXCEEDED": 201,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again(name: str) -> None:
    error = ClickHouseError(PASSING[name], f"DB::Exception: words. ({name}) (version 26.9.2.1)")
    assert (error.name, error.message) == (name, "words")
    assert not needs_an_operator(error)
    assert advice(error).endswith("; trying again")


@pytest.mark.parametrize("name", LASTING)
def test_what_cannot_pass_says_what_to_do(name: str) -> None:
    error = ClickHouseError(LASTING[name], "words\nand more")
    assert needs_an_operator(error)
    assert "trying again" not in advice(error)
    assert "\n" not in advice(error)
    assert str(LASTING[name]) in advice(error)


def test_errors_without_a_code() -> None:
    unreachable = ClickHouseUnreachableError("host:9000: Connection refused")
    assert not needs_an_operator(unreachable)
    assert code(unreachable) == 0
    assert "clickhouse_endpoint" in advice(unreachable)
    assert needs_an_operator(ConfigurationError("clickhouse_ca is missing"))
    assert not needs_an_operator(KubenetmonError("anything else"))


def test_a_long_message_is_cut() -> None:
    error = ClickHouseError(1, "x" * 10_000 + " Stack trace: 0. main")
    assert len(error.message) == 500
