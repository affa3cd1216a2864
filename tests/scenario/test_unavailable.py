"""A service that is down for one request: what left the sandbox says so, whatever the tool makes of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commandline import SANDBOX, SUSPENDED, call, make_agent

pytestmark = SANDBOX
CODE = '''\
import os
from urllib.request import Request, urlopen

from lockstep import tool


def _ask(method: str, path: str) -> str:
    try:
        with urlopen(Request(os.environ["SERVICE"] + path, method=method), timeout=10) as reply:
            return reply.read().decode()
    except OSError:
        raise RuntimeError("no luck") from None


@tool
def look() -> str:
    """Look."""
    return _ask("GET", "/look")


@tool
def seek() -> str:
    """Look for what is not there."""
    return _ask("GET", "/seek")


@tool
def order() -> str:
    """Order by a request that should change nothing."""
    return _ask("GET", "/order")


@tool
def book() -> str:
    """Book."""
    return _ask("POST", "/book")
'''
TOOL = """
[[tools]]
python = "tools.py"
include = ["{name}"]
effect = "{effect}"
egress = ["{address} {method} /{name}"]
env = {{ SERVICE = "http://{address}" }}
"""
TOOLS = {"look": ("read", "GET"), "seek": ("read", "GET"), "order": ("once", "GET"), "book": ("once", "POST")}


class Service(ThreadingHTTPServer):
    """Answers the first request for each path with 503, or with 404 for what is not there; later ones with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        first = self.server.asked[self.path] == 1
        self.send_response((404 if self.path == "/seek" else 503) if first else 200)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"here I am")

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def test_after_a_503_a_read_is_made_again_and_what_is_done_once_never(tmp_path: Path, service: Service) -> None:
    address = f"127.0.0.1:{service.server_port}"
    tools = "".join(
        TOOL.format(name=name, effect=effect, method=method, address=address)
        for name, (effect, method) in TOOLS.items()
    )
    agent = make_agent(tmp_path / "clerk", code=CODE, tools=tools, script=[call(name) for name in TOOLS])
    done = agent.run("Look, then book.")
    assert done.code == SUSPENDED, done.all
    assert service.asked == {"/look": 2, "/seek": 1, "/order": 1, "/book": 1}
    assert {each["tool"]: each["outcome"] for each in done.json["calls"]} == {
        "look": "ok",
        "seek": "tool_error",
        "order": "tool_error",
        "book": "doubted",
    }
