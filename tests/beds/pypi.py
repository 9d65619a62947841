"""PyPI's JSON API on loopback, with a certificate for pypi.org, behind a proxy that takes every CONNECT.

Contract: `with Pypi(directory) as pypi` serves until the block ends; `pypi.environment` makes a process that
honours HTTPS_PROXY and REQUESTS_CA_BUNDLE ask here instead of pypi.org. `known` holds what is answered under
`vulnerabilities`, by name and version; versions in `missing` (all, where `knows_nothing`) are answered with
404, as a mirror without this API does. `asked` is what was asked, in order.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme

HOST = "pypi.org"
_LEFT_OUT = {"no_proxy", "https_proxy", "http_proxy", "all_proxy", "curl_ca_bundle", "requests_ca_bundle"}

Version = tuple[str, str]


def vulnerability(identity: str, alias: str, summary: str, *mended: str) -> dict[str, Any]:
    """An entry as PyPI has it."""
    return {
        "aliases": [alias],
        "details": f"# {summary}\nMore of it.",
        "fixed_in": list(mended),
        "id": identity,
        "link": f"https://osv.dev/vulnerability/{identity}",
        "source": "osv",
        "summary": summary,
        "withdrawn": None,
    }


class Pypi:
    """See the module."""

    def __init__(self, directory: Path) -> None:
        self.known: dict[Version, list[dict[str, Any]]] = {}
        self.missing: set[Version] = set()
        self.knows_nothing = False
        self.asked: list[Version] = []
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "pypi-ca.crt"))
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(HOST).configure_cert(self.tls)
        self._directory = directory
        bed = self

        class Handler(_Handler):
            pypi = bed

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def environment(self) -> Mapping[str, str]:
        """This process's environment, with pypi.org here and nothing remembered from before."""
        return {
            **{key: value for key, value in os.environ.items() if key.lower() not in _LEFT_OUT},
            "HTTPS_PROXY": f"http://127.0.0.1:{self._server.server_port}",
            "REQUESTS_CA_BUNDLE": str(self._directory / "pypi-ca.crt"),
            "XDG_CACHE_HOME": str(self._directory / "cache"),
        }

    def answer(self, name: str, version: str) -> dict[str, Any] | None:
        """The body for one version; None: not found."""
        self.asked.append((name, version))
        if self.knows_nothing or (name, version) in self.missing:
            return None
        return {
            "info": {"name": name, "version": version, "yanked": False},
            "last_serial": 1,
            "urls": [],
            "vulnerabilities": self.known.get((name, version), []),
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """The proxy, and behind its CONNECT the server, on one connection."""

    pypi: Pypi
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self) -> None:
        if self.path != f"{HOST}:443":
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        self.connection = self.pypi.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def do_GET(self) -> None:
        match self.path.split("/"):
            case ["", "pypi", name, version, "json"]:
                body = self.pypi.answer(name, version)
            case _:
                body = None
        content = json.dumps(body or {"message": "Not Found"}).encode()
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
