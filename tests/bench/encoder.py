"""The Native encoder: rows per CPU second, and beside asynch's own row path on the same rows."""

from __future__ import annotations

from kubenetmon.clickhouse.block import encode
from tests.bench.line import Line
from tests.clickhouse.test_encoder_speed import ROWS, asynch_rows, cpu_seconds, realistic_columns, table


def measure() -> list[Line]:
    """Encode the same ten thousand rows both ways; the least of several times each."""
    columns, schema = realistic_columns(), table()
    ours = cpu_seconds(lambda: encode(columns, schema, ROWS), 15)
    ratio = cpu_seconds(asynch_rows(columns), 3) / ours
    per_second = ROWS / ours
    return [
        Line(
            "encoder, rows per CPU second",
            f"{per_second:,.0f}",
            "1,000,000",
            "",
            per_second >= 1_000_000,
        ),
        Line(
            "encoder, against asynch's row path on the same rows", f"{ratio:.1f} x", "10 x", "", ratio >= 10
        ),
    ]
