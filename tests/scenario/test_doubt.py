"""A careless tool: it books, then fails over the reply. Whatever it raises, the call is in doubt and never repeated."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commandline import FINISHED, SUSPENDED, Agent

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
]

TOOL = '''
import json, os
from lockstep import NotDone, tool


@tool
def book(flight: str) -> str:
    """Book a flight."""
    from urllib.request import Request, urlopen
    request = Request(os.environ["SERVICE"] + "/bookings", data=flight.encode(), method="POST")
    with urlopen(request, timeout=10) as reply:
        said = reply.read().decode()
    if "known" in said:
        raise NotDone("the service undid it")
    return json.loads(said)["booking"]["id"]
'''


class Service(ThreadingHTTPServer):
    """Books on every POST, whatever it then answers: `status` and `body`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bookings: list[str] = []
        self.status = 201
        self.body = ""
        self.may_finish = threading.Event()
        """Cleared, a reply stops after its head."""
        self.may_finish.set()


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        self.server.bookings.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        data = self.server.body.encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.flush()
        self.server.may_finish.wait(60)
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


SERVER = """
import json, os, sys
from urllib.request import Request, urlopen
SCHEMA = {"type": "object", "properties": {"flight": {"type": "string"}}, "required": ["flight"]}
TOOL = {"name": "book", "description": "Book a flight.", "inputSchema": SCHEMA}
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "b", "version": "1"}}
    if asked["method"] == "tools/list":
        result = {"tools": [TOOL]}
    answer = {"result": result}
    if asked["method"] == "tools/call":
        data = asked["params"]["arguments"]["flight"].encode()
        request = Request(os.environ["SERVICE"] + "/bookings", data=data, method="POST")
        said = urlopen(request, timeout=10).read().decode()
        answer = {"result": {"content": [{"type": "text", "text": said}]}}
        if said == "trip":
            answer = {"error": {"code": -32603, "message": "gateway timeout"}}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}), flush=True)
"""


def test_an_mcp_server_reaches_its_endpoint_and_only_that(tmp_path: Path, service: Service) -> None:
    service.body = "booked"
    code, shown = _run(tmp_path, service, mcp=True)
    first, second = (call["result"] for call in shown["calls"])
    assert (code, first, service.bookings) == (0, "booked", ["BA1"])
    assert second.startswith("booked\n\n[This call was already made")


def test_an_mcp_error_after_a_request_that_may_have_booked_is_a_doubt(tmp_path: Path, service: Service) -> None:
    service.body = "trip"
    code, shown = _run(tmp_path, service, mcp=True)
    assert (code, shown["stop_reason"]) == (SUSPENDED, "in_doubt"), shown
    assert service.bookings == ["BA1"]


def _run(directory: Path, service: Service, *, mcp: bool = False) -> tuple[int, dict[str, Any]]:
    source = (
        'mcp = { command = ["/usr/bin/python3", "server.py"] }\ncode = ["server.py"]' if mcp else 'python = "tools.py"'
    )
    address = f"127.0.0.1:{service.server_port}"
    call = {"call": {"name": "book", "arguments": {"flight": "BA1"}}}
    files = {
        "agent.toml": f"""
[agent]
name = "careless"
[model]
name = "scripted:script.jsonl"
[prompt]
file = "prompt.md"
[[tools]]
{source}
effect = "once"
egress = ["{address} POST /bookings"]
env = {{ SERVICE = "http://{address}" }}
[policy]
files = ["policy.cedar"]
""",
        "tools.py": TOOL,
        "server.py": SERVER,
        "prompt.md": "Book.",
        "policy.cedar": "permit (principal, action, resource);",
        "script.jsonl": "\n".join(json.dumps(line) for line in (call, call, {"say": "Booked."})),
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    agent = Agent(directory=directory, store=directory / ".lockstep")
    assert agent("lock", directory).code == FINISHED
    done = agent.run("Book BA1.")
    return done.code, done.json


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (201, '{"booking": {"ident": "B1"}}'),
        (201, "<html>Booked</html>"),
        (201, '{"booking": {"id": "B1"'),
        (408, "too slow"),
        (429, "later"),
        (503, "oops"),
    ],
    ids=["renamed field", "HTML", "cut JSON", "408 after booking", "429 after booking", "503 after booking"],
)
def test_an_exception_after_a_request_that_may_have_booked_is_a_doubt(
    tmp_path: Path, service: Service, status: int, body: str
) -> None:
    service.status, service.body = status, body
    code, shown = _run(tmp_path, service)
    assert (code, shown["stop_reason"]) == (SUSPENDED, "in_doubt"), shown
    assert service.bookings == ["BA1"]


def test_a_tool_that_fails_over_the_head_of_a_reply_is_in_doubt_before_the_reply_has_ended(
    tmp_path: Path, service: Service
) -> None:
    service.status, service.body = 408, "too slow"
    service.may_finish.clear()
    try:
        code, shown = _run(tmp_path, service)
    finally:
        service.may_finish.set()
    assert (code, shown["stop_reason"]) == (SUSPENDED, "in_doubt"), shown
    assert service.bookings == ["BA1"]


def test_a_plain_refusal_is_an_error_the_model_may_react_to(tmp_path: Path, service: Service) -> None:
    service.status, service.body = 422, "no such flight"
    code, shown = _run(tmp_path, service)
    assert code == 0
    assert [call["outcome"] for call in shown["calls"]] == ["tool_error", "tool_error"]


def test_a_tool_that_knows_its_effect_did_not_happen_is_believed(tmp_path: Path, service: Service) -> None:
    service.body = "known: rolled back"
    code, shown = _run(tmp_path, service)
    assert code == 0
    assert "the service undid it" in shown["calls"][0]["result"]
