"""From inside a real sandbox: a tool that asks over https with Python's own client, with a secret it never sees."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lockstep.sandbox.egress_ca import EgressCA

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
]

VALUE = "sk-live-5e1f0c7d-that-only-the-host-knows"
TOML = """\
[agent]
name = "flights"

[model]
name = "scripted:script.jsonl"

[prompt]
file = "prompt.md"

[[tools]]
python = "tools.py"
effect = "read"
egress = ["https://localhost:PORT GET /v1"]
secrets = [{ env = "FLIGHTS_KEY", from = "env:API_KEY", host = "localhost:PORT", header = "Authorization" }]

[policy]
files = ["policy.cedar"]
"""
TOOLS = '''\
import os
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lockstep import tool


def fetch(url: str, **headers: str) -> list:
    try:
        with urlopen(Request(url, headers=headers), timeout=20) as reply:
            return [reply.status, reply.read().decode()]
    except HTTPError as error:
        return [error.code, error.read().decode()]


@tool(read_only=True)
def flights() -> dict:
    """List flights."""
    base, key = "https://localhost:PORT", os.environ["FLIGHTS_KEY"]
    with open(os.environ["SSL_CERT_FILE"]) as roots:
        trusted = roots.read()
    return {
        "placed": fetch(f"{base}/v1/flights", Authorization=f"Bearer {key}"),
        "other_path": fetch(f"{base}/admin", Authorization=f"Bearer {key}"),
        "in_query": fetch(f"{base}/v1/flights?key={key}"),
        "other_header": fetch(f"{base}/v1/flights", Cookie=key),
        "key": key,
        "environment": sorted(os.environ),
        "has_a_private_key": "PRIVATE" in trusted,
        "roots": os.listdir("/egress"),
    }
'''


@contextmanager
def service(folder: Path) -> Iterator[tuple[int, list[tuple[str, str]], Path]]:
    """An https service that echoes the Authorization it got: its port, what it saw, and the roots to trust it by."""
    seen: list[tuple[str, str]] = []
    upstream = EgressCA(folder / "upstream")

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization", "")
            seen.append((self.path, sent))
            body = json.dumps({"flights": ["LS1"], "you sent": sent}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.socket = upstream.server("localhost").wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, seen, upstream.roots()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def lockstep(*arguments: str | Path, roots: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LOCKSTEP_RUNSC") if name in os.environ}
    environment = {**kept, "SSL_CERT_FILE": str(roots), **extra}
    command = [sys.executable, "-m", "lockstep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_a_tool_uses_a_secret_over_https_and_never_sees_it(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.mkdir()
    with service(tmp_path) as (port, seen, roots):
        script = [{"call": {"name": "flights", "arguments": {}}}, {"say": "done"}]
        files = {
            "agent.toml": TOML,
            "tools.py": TOOLS,
            "prompt.md": "You list flights.\n",
            "policy.cedar": '@id("all")\npermit (principal, action, resource);\n',
            "script.jsonl": "\n".join(map(json.dumps, script)),
        }
        for name, text in files.items():
            (agent / name).write_text(text.replace("PORT", str(port)))
        locked = lockstep("lock", agent, roots=roots)
        assert locked.returncode == 0, locked.stderr

        without = lockstep("run", agent, "List flights.", "--json", roots=roots)
        assert without.returncode == 2
        assert "The secret FLIGHTS_KEY cannot be had from 'env:API_KEY': there is nothing." in without.stderr
        assert "Traceback" not in without.stderr
        assert seen == []

        done = lockstep("run", agent, "List flights.", "--json", roots=roots, API_KEY=VALUE)
        assert done.returncode == 0, done.stderr
        traced = lockstep("trace", "last", "--store", agent / ".lockstep", roots=roots)
    call = json.loads(done.stdout)["calls"][0]
    assert call["outcome"] == "ok", call
    found: dict[str, Any] = json.loads(call["result"])
    assert seen == [("/v1/flights", f"Bearer {VALUE}")]

    placeholder = found["key"]
    assert placeholder.startswith("lockstep-placeholder-")
    assert found["placed"] == [200, json.dumps({"flights": ["LS1"], "you sent": f"Bearer {placeholder}"})]
    assert found["other_path"][0] == 403
    assert "permitted: https://localhost" in found["other_path"][1]
    for misplaced in ("in_query", "other_header"):
        assert found[misplaced] == [403, "The placeholder of a secret stands where the secret may not go.\n"]
    assert {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"} <= {*found["environment"]}
    assert "API_KEY" not in found["environment"]
    assert found["has_a_private_key"] is False
    assert found["roots"] == ["roots.pem"]

    assert traced.returncode == 0, traced.stderr
    assert traced.stdout.count("(secret_misplaced)") == 2
    assert VALUE not in done.stdout + done.stderr + traced.stdout + (agent / "agent.lock").read_text()
    kept = [path for path in (agent / ".lockstep").rglob("*") if path.is_file()]
    assert kept
    assert all(VALUE.encode() not in path.read_bytes() for path in kept)
    assert [path.stat().st_mode & 0o777 for path in kept if path.name == "authority.pem"] == [0o600]
