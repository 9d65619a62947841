"""What the HTTP/2 stack does with a frame beside reading it."""

from __future__ import annotations

import hyperframe.frame
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived

import kubenetmon.server.transport

REQUEST = [(":method", "POST"), (":scheme", "http"), (":authority", "server"), (":path", "/")]
DATA = b"x" * 10_000


def test_data_that_comes_is_not_put_into_hexadecimal_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kubenetmon.server.transport, "which sees to it"
    written: list[bytes | None] = []

    def write(data: bytes | None) -> str:
        written.append(data)
        return ""

    monkeypatch.setattr(hyperframe.frame, "_raw_data_repr", write)
    client = H2Connection(H2Configuration(client_side=True))
    server = H2Connection(H2Configuration(client_side=False))
    client.initiate_connection()
    client.send_headers(1, REQUEST)
    client.send_data(1, DATA)
    events = server.receive_data(client.data_to_send())
    assert [event.data for event in events if isinstance(event, DataReceived)] == [DATA]
    assert DATA not in written
