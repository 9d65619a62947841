"""`kubenetmon explain`: asks a running server what it knows of an address, and shows the answer.

Contract: one GET on the server's metrics port over loopback, bounded in time and size; raises
`KubenetmonError` with one line that says what to do when there is no answer.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kubenetmon.config.duration import parse_duration
from kubenetmon.errors import ConfigurationError, KubenetmonError, printable

PATH = "/debug/explain"
_SECONDS = 10.0
_MOST_BYTES = 4 << 20


class Question(NamedTuple):
    """An address, a port (0: none), a Unix second, and 1 where the Kubernetes API is to be asked as well."""

    address: str
    port: int
    at: int
    check: int


def parse_endpoint(text: str) -> tuple[str, int]:
    """`IP`, `IP:PORT` or `[IPv6]:PORT`; port 0 where none is given. Raises `ConfigurationError`."""
    found = re.fullmatch(r"\[([^\]]+)\](?::([0-9]{1,5}))?|([0-9.]+)(?::([0-9]{1,5}))?|([0-9A-Fa-f:.]+)", text)
    if found is not None:
        address = found[1] or found[3] or found[5]
        port = int(found[2] or found[4] or 0)
        try:
            if port <= 0xFFFF:
                return str(ipaddress.ip_address(address)), port
        except ValueError:
            pass
    raise ConfigurationError(f"{text!r:.80} is not IP, IP:PORT or [IPv6]:PORT")


def parse_moment(text: str, now: float) -> int:
    """Unix seconds, a time as 2026-01-31T12:00[:00][Z] (UTC), or how long ago, as 5m. Raises
    `ConfigurationError`."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return int(now - parse_duration(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"--at {text!r:.40}: give a time (2026-01-31T12:00, UTC), Unix seconds, or how long ago (5m)"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def explain(
    endpoint: str, at: str, server: str, *, check: bool = False, as_json: bool, now: float | None = None
) -> str:
    """The answer as text; `server` is HOST:PORT of the metrics port. Raises `KubenetmonError`.

    `check`: the server asks the Kubernetes API too whether it says the same, now.
    """
    address, port = parse_endpoint(endpoint)
    moment = time.time() if now is None else now
    question = Question(address, port, parse_moment(at, moment) if at else int(moment), int(check))
    answer = _ask(server, question)
    return json.dumps(answer, indent=1) if as_json else render(answer)


def _ask(server: str, question: Question) -> dict[str, Any]:
    query = urllib.parse.urlencode(question._asdict())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{server}{PATH}?{query}", timeout=_SECONDS) as response:
            body = response.read(_MOST_BYTES)
        answer: dict[str, Any] = json.loads(body)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode(errors="replace").strip()
        raise KubenetmonError(f"the server at {server} says: {said or error.reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise KubenetmonError(
            f"no answer from a server at {server} ({reason}): run this beside a running server "
            "(kubectl exec), or reach its metrics_port with kubectl port-forward and --server"
        ) from None
    return answer


def render(answer: dict[str, Any]) -> str:
    """The server's answer for people."""
    return "\n".join(map(printable, [*_known(answer), *_checked(answer.get("check"))]))


def _known(answer: dict[str, Any]) -> list[str]:
    remote = answer["as_remote"]
    port = f" port {answer['port']}" if answer["port"] else ""
    lines = [f"{answer['address']}{port} at {answer['at']}, as cluster {answer['cluster']} knows it", ""]
    lines += _section("pods", [_tenure(one) for one in answer["history"]] or ["none known"])
    for protocol, tenures in answer["host_ports"].items():
        lines += _section(f"{protocol} port", [_tenure(one) for one in tenures])
    for name, tenures in answer["peers"].items():
        lines += _section(f"in {name}", [_tenure(one) for one in tenures])
    lines += _section("pod network", [f"of node {name}" for name in answer["pod_network_of"]])
    lines += _section(
        "prefixes",
        [
            f"{one['prefix']}  {one['cloud']} {one['region'] or '(no region)'} {one['service']}".rstrip()
            for one in answer["prefixes"]
        ],
    )
    if "ignored" in remote:
        return [*lines, *_section("ignored", [f"node {remote['node']}: {remote['because']}"])]
    who = [
        f"{name} {remote[name]}"
        for name in ("namespace", "pod", "app", "node", "zone", "cloud", "region", "service", "cluster")
        if remote[name]
    ]
    lines += _section("as remote", [remote["connection_class"], ", ".join(who)])
    lines += _section("flags", [", ".join(remote["flags"])] if remote["flags"] else [])
    return lines + _section("decided by", [f"{remote['rule']}: {remote['because']}"])


def _checked(check: dict[str, Any] | None) -> list[str]:
    if check is None:
        return []
    texts = [_object(one) for one in check["objects"]]
    if check["left_out"]:
        texts.append(f"{check['left_out']} more have the address and are not checked")
    if "note" in check:
        texts.append(check["note"])
    return _section("check", texts)


def _object(one: dict[str, Any]) -> str:
    """`pod default/client of blue: the API says the same: …, uid …, resourceVersion …`."""
    name = f"{one['namespace']}/{one['name']}" if one["namespace"] else one["name"]
    version = f", uid {one['uid']}, resourceVersion {one['resource_version']}" if "uid" in one else ""
    return f"{one['kind']} {name} of {one['cluster']}: {one['because']}{version}"


def _section(title: str, texts: list[str]) -> list[str]:
    return [f"{title if index == 0 else '':<13}{text}" for index, text in enumerate(texts)]


def _tenure(one: dict[str, Any]) -> str:
    """`2026-… to now  default/pod on node (zone), app x`."""
    name = f"{one.get('namespace', '')}/{one['pod']}" if "pod" in one else "node"
    place = f" on {one['node']}" if "node" in one else ""
    zone = f" ({one['zone']})" if "zone" in one else ""
    app = f", app {one['app']}" if "app" in one else ""
    return f"{one['from'] or 'ever'} to {one['until'] or 'now'}  {name}{place}{zone}{app}"
