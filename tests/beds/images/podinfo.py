#!/usr/bin/python3
"""As much of podinfo as the kind overlay uses: --port, --backend-url, POST /echo.

Without a backend it answers with what it was sent; with one it sends that on and answers with what comes
back.
"""

from __future__ import annotations

import argparse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=9898)
parser.add_argument("--backend-url", default="")
options = parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if options.backend_url:
            with urllib.request.urlopen(options.backend_url, content, timeout=10) as answer:
                content = answer.read()
        self.send_response(202)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


ThreadingHTTPServer(("", options.port), Handler).serve_forever()
