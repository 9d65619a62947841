"""Which ClickHouse: the sink that the configuration names."""

from __future__ import annotations

from typing import Literal, cast

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.sinks_tcp import MOST_VALUES, TcpConfig, TcpSink, TlsConfig
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config.server import ServerConfig

EMBEDDED_PREFIX = "chdb:"


def make_sink(config: ServerConfig, *, most_values: int = MOST_VALUES) -> Sink:
    """The embedded engine or a server over TCP, whose answers have at most so many values.

    Raises `MachineError` when chdb is not installed.
    """
    if config.clickhouse_endpoint.startswith(EMBEDDED_PREFIX):
        from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink

        return EmbeddedSink(config.clickhouse_endpoint.removeprefix(EMBEDDED_PREFIX))
    tls = TlsConfig(
        ca=str(config.clickhouse_ca or ""),
        certificate=str(config.clickhouse_cert or ""),
        key=str(config.clickhouse_key or ""),
        insecure_skip_verify=config.clickhouse_insecure_skip_verify,
    )
    return TcpSink(
        TcpConfig(
            endpoints=tuple(part.strip() for part in config.clickhouse_endpoint.split(",")),
            tls=None if config.clickhouse_disable_tls else tls,
            credentials_dir=str(config.clickhouse_credentials_dir),
            compression=cast(Literal["lz4", "zstd", "none"], config.clickhouse_compression),
            dial_timeout=config.clickhouse_dial_timeout,
            max_idle_connections=config.clickhouse_max_idle_connections,
            most_values=most_values,
        ),
        clock=SYSTEM_CLOCK,
    )
