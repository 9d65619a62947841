"""The agent's environment: the original's works unchanged, mistakes are named."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.config.agent import SETTINGS, AgentConfig, from_environment
from kubenetmon.errors import ConfigurationError

ORIGINAL = {
    "NODE_NAME": "ip-10-0-1-17.eu-west-1.compute.internal",
    "COLLECTION_INTERVAL": "5s",
    "KUBENETMON_SERVER_SERVICE_HOST": "kubenetmon-server.kubenetmon-server.svc.cluster.local",
    "KUBENETMON_SERVER_SERVICE_PORT": "8884",
    "SKIP_CONNTRACK_SANITY_CHECK": "false",
    "UPTIME_WAIT_DURATION": "300s",
    "METRICS_PORT": "8883",
}


def test_the_originals_environment_works_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    config = from_environment(ORIGINAL)
    assert config == AgentConfig(
        node_name="ip-10-0-1-17.eu-west-1.compute.internal",
        server_host="kubenetmon-server.kubenetmon-server.svc.cluster.local",
    )
    assert not caplog.records


def test_an_empty_environment_gives_the_defaults_of_the_table() -> None:
    config = from_environment({})
    assert config == AgentConfig(node_name=socket.gethostname())
    assert (config.collection_interval, config.report_interval) == (5, 60)


def test_a_variable_set_to_nothing_counts_as_not_set() -> None:
    assert from_environment(dict.fromkeys(ORIGINAL, "")) == from_environment({})


def test_every_variable_of_ours_is_read() -> None:
    config = from_environment(
        {
            "NODE_NAME": "a",
            "COLLECTION_INTERVAL": "1s",
            "KUBENETMON_REPORT_INTERVAL": "2m",
            "KUBENETMON_SERVER_SERVICE_HOST": "[2001:db8::1]",
            "KUBENETMON_SERVER_SERVICE_PORT": "1",
            "METRICS_PORT": "0",
            "KUBENETMON_METRICS_HOST": "[::1]",
            "SKIP_CONNTRACK_SANITY_CHECK": "T",
            "UPTIME_WAIT_DURATION": "0",
            "KUBENETMON_SET_SYSCTLS": "1",
            "KUBENETMON_COUNT_EXISTING": "true",
            "KUBENETMON_EVENT_BUFFER": "65536",
            "KUBENETMON_TLS_CA": "/ca.pem",
            "KUBENETMON_TLS_CERT": "/cert.pem",
            "KUBENETMON_TLS_KEY": "/key.pem",
            "KUBENETMON_TOKEN_FILE": "/token",
        }
    )
    assert config == AgentConfig(
        node_name="a",
        collection_interval=1,
        report_interval=120,
        server_host="2001:db8::1",
        server_port=1,
        metrics_port=0,
        metrics_host="::1",
        skip_conntrack_sanity_check=True,
        uptime_wait_duration=0,
        set_sysctls=True,
        count_existing=True,
        event_buffer=65_536,
        tls_ca=Path("/ca.pem"),
        tls_cert=Path("/cert.pem"),
        tls_key=Path("/key.pem"),
        token_file=Path("/token"),
    )


def test_the_table_has_one_line_for_each_field() -> None:
    assert len({setting.name for setting in SETTINGS}) == len(dataclasses.fields(AgentConfig))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("COLLECTION_INTERVAL", "5", "a duration such as"),
        ("COLLECTION_INTERVAL", "1ms", "between 100ms and 1h"),
        ("KUBENETMON_REPORT_INTERVAL", "1500ms", "whole seconds"),
        ("KUBENETMON_REPORT_INTERVAL", "0", "whole seconds"),
        ("KUBENETMON_REPORT_INTERVAL", "2h", "whole seconds"),
        ("KUBENETMON_REPORT_INTERVAL", "4s", "shorter than COLLECTION_INTERVAL"),
        ("KUBENETMON_SERVER_SERVICE_PORT", "tcp://10.0.0.1:8884", "write 8884"),
        ("METRICS_PORT", "tcp://10.0.0.1:80", "write 80"),
        ("METRICS_PORT", "65536", "0 to 65535"),
        ("KUBENETMON_METRICS_HOST", "metrics.local", "an address to listen on"),
        ("KUBENETMON_SERVER_SERVICE_PORT", "0", "1 to 65535"),
        ("KUBENETMON_SERVER_SERVICE_PORT", "٣", "1 to 65535"),
        ("KUBENETMON_SERVER_SERVICE_HOST", "server:8884", "KUBENETMON_SERVER_SERVICE_PORT"),
        ("KUBENETMON_SERVER_SERVICE_HOST", "http://server", "a host name or an address"),
        ("SKIP_CONNTRACK_SANITY_CHECK", "yes", "true or false"),
        ("SKIP_CONNTRACK_SANITY_CHECK", "tRUE", "true or false"),
        ("KUBENETMON_SET_SYSCTLS", "2", "true or false"),
        ("KUBENETMON_EVENT_BUFFER", "8MiB", "a number of bytes from 65536 to 268435456"),
        ("KUBENETMON_EVENT_BUFFER", "65535", "a number of bytes from 65536 to 268435456"),
        ("KUBENETMON_EVENT_BUFFER", "268435457", "a number of bytes from 65536 to 268435456"),
        ("UPTIME_WAIT_DURATION", "-5s", "a duration such as"),
        ("NODE_NAME", "a b", "the name of a node"),
        ("NODE_NAME", "x" * 254, "the name of a node"),
        ("NODE_NAME", "caf\udce9", "the name of a node"),
        ("KUBENETMON_TLS_CERT", "/cert.pem", "go together"),
        ("KUBENETMON_TLS_KEY", "/key.pem", "go together"),
        ("KUBENETMON_TLS_CA", "a\tb", "a path"),
    ],
)
def test_a_bad_value_is_one_line_with_the_variable_and_the_form(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        from_environment({name: value})
    message = str(refusal.value)
    assert name in message
    assert said in message
    assert "\n" not in message
    assert len(message) < 250


def test_a_long_collection_interval_alone_lengthens_the_reports_default() -> None:
    assert from_environment({"COLLECTION_INTERVAL": "90500ms"}).report_interval == 91


@pytest.mark.parametrize("value", ["1", "t", "T", "TRUE", "true", "True"])
def test_gos_forms_of_true(value: str) -> None:
    assert from_environment({"SKIP_CONNTRACK_SANITY_CHECK": value}).skip_conntrack_sanity_check


@pytest.mark.parametrize("value", ["0", "f", "F", "FALSE", "false", "False"])
def test_gos_forms_of_false(value: str) -> None:
    assert not from_environment({"SKIP_CONNTRACK_SANITY_CHECK": value}).skip_conntrack_sanity_check


def test_an_unknown_variable_is_named_with_the_nearest_known(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        from_environment(
            {
                "KUBENETMON_REPORT_INTERVALL": "5s",
                "KUBENETMON_SERVER_SERVICE_HOTS": "x",
                "KUBENETMON_TOKEN": "x",
            }
        )
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "KUBENETMON_REPORT_INTERVALL" in said[0]
    assert "did you mean KUBENETMON_REPORT_INTERVAL?" in said[0]
    assert "did you mean KUBENETMON_SERVER_SERVICE_HOST?" in said[1]
    assert "did you mean KUBENETMON_TOKEN_FILE?" in said[2]


def test_the_variables_that_kubernetes_makes_of_services_are_not_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    injected = {
        "KUBENETMON_SERVER_SERVICE_PORT_GRPC": "8884",
        "KUBENETMON_SERVER_PORT": "tcp://10.0.0.1:8884",
        "KUBENETMON_SERVER_PORT_8884_TCP": "tcp://10.0.0.1:8884",
        "KUBENETMON_SERVER_PORT_8884_TCP_PROTO": "tcp",
        "KUBENETMON_SERVER_PORT_8884_TCP_PORT": "8884",
        "KUBENETMON_SERVER_PORT_8884_TCP_ADDR": "10.0.0.1",
        "KUBENETMON_AGENT_SERVICE_HOST": "10.0.0.2",
        "KUBENETMON_AGENT_SERVICE_PORT": "8883",
    }
    with caplog.at_level(logging.WARNING):
        from_environment(injected)
    assert not caplog.records


def test_a_token_without_tls_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        from_environment({"KUBENETMON_TOKEN_FILE": "/token"})
    assert "without TLS" in caplog.text


@given(st.dictionaries(st.sampled_from([setting.name for setting in SETTINGS]), st.text(max_size=40)))
def test_any_environment_gives_a_config_or_a_configuration_error(environ: dict[str, str]) -> None:
    with contextlib.suppress(ConfigurationError):
        from_environment(environ)
