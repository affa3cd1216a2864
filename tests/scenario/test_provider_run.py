"""A whole run with a real provider SDK: the CLI, the OpenAI wire format from a local server, a sandboxed tool.

The server answers 429, then a tool call with reasoning beside it, then 503, then the answer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commandline import bounded

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
]

CANARY = "reasoning-canary-81c2"
KEY = "sk-local-key-that-must-not-be-stored"


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-2024-08-06",
        "choices": [choice],
    }


def _usage(reasoning: int) -> dict[str, Any]:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1100,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "prompt_tokens_details": {"cached_tokens": 400},
    }
    return {**_chunk({}), "choices": [], "usage": usage}


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
ANSWERS: list[tuple[int, dict[str, str], list[dict[str, Any]]]] = [
    (429, {"Retry-After": "0"}, []),
    (
        200,
        {},
        [
            _chunk({"role": "assistant", "reasoning_content": f"Let me think. {CANARY}"}),
            _chunk({"tool_calls": [CALL]}),
            _chunk({}, "tool_calls"),
            _usage(40),
        ],
    ),
    (503, {"Retry-After": "0"}, []),
    (200, {}, [_chunk({"role": "assistant", "content": "2 + 2 "}), _chunk({"content": "is 4."}, "stop"), _usage(0)]),
]


class Provider(ThreadingHTTPServer):
    """Answers the n-th request with the n-th of `ANSWERS`; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(json.loads(body))
        status, headers, chunks = ANSWERS[min(len(self.server.requests), len(ANSWERS)) - 1]
        if status == 200:
            data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            headers = {**headers, "Content-Type": "text/event-stream"}
        else:
            data, headers = json.dumps({"error": {"message": "busy"}}), {**headers, "Content-Type": "application/json"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def _lockstep(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MY_KEY": KEY}
    environment.pop("LOCKSTEP_STORE", None)
    command = [sys.executable, "-m", "lockstep", *arguments]
    return bounded(command, cwd=directory, env=environment)


@pytest.fixture
def agent(tmp_path: Path, provider: Provider) -> Path:
    assert _lockstep(tmp_path, "init", "sums").returncode == 0
    toml = tmp_path / "sums/agent.toml"
    address = f"http://127.0.0.1:{provider.server_port}/v1"
    model = f'name = "openai:gpt-4o"\nbase_url = "{address}"\napi_key_env = "MY_KEY"\ntemperature = 0'
    toml.write_text(toml.read_text().replace('name = "scripted:script.jsonl"', model) + "cost_usd = 1.0\n")
    assert _lockstep(tmp_path, "lock", "sums").returncode == 0
    return tmp_path


def test_a_real_sdk_drives_a_sandboxed_tool_through_errors_to_an_answer(agent: Path, provider: Provider) -> None:
    done = _lockstep(agent, "run", "sums", "What is 2 + 2?")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rate_limited" in done.stdout
    assert "overloaded" in done.stdout
    assert "2 + 2 is 4." in done.stdout

    shown = json.loads(_lockstep(agent / "sums", "show", "last", "--json").stdout)
    assert [(call["tool"], call["outcome"], call["tier"]) for call in shown["calls"]] == [("add", "ok", "gvisor")]
    # gpt-4o's list price: (600 fresh + 400 cached at half) x 2.50 + 100 x 10 dollars a million, twice
    assert shown["cost_usd"] == pytest.approx(2 * (600 * 2.5 + 400 * 1.25 + 100 * 10) / 1e6)
    assert shown["output"] == "2 + 2 is 4."

    last = provider.requests[-1]["messages"]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "tool"]
    assert last[-1]["content"] == "4"
    assert {request["temperature"] for request in provider.requests} == {0}


def test_neither_reasoning_nor_the_key_is_in_any_record(agent: Path) -> None:
    done = _lockstep(agent, "run", "sums", "What is 2 + 2?", "--json")
    assert done.returncode == 0, done.stderr
    assert _lockstep(agent / "sums", "record", "last", "../kept.jsonl").returncode == 0
    readings = done.stdout + done.stderr
    for command in (["show", "last"], ["show", "last", "--json"], ["trace", "last"]):
        readings += _lockstep(agent / "sums", *command).stdout
    kept = [path.read_bytes() for path in agent.rglob("*") if path.is_file()]
    from lockstep.journal.codec import unpack

    bodies = [unpack(body) for body in _bodies(agent / "sums/.lockstep/journal.db")]
    for secret in (CANARY, KEY):
        assert secret not in readings
        assert not any(secret.encode() in data for data in (*kept, *bodies))


def test_a_run_is_kept_and_run_again_without_the_provider(agent: Path, provider: Provider) -> None:
    first = json.loads(_lockstep(agent, "run", "sums", "What is 2 + 2?", "--json").stdout)
    assert _lockstep(agent / "sums", "record", "last", "../kept.jsonl").returncode == 0
    asked = len(provider.requests)
    again = _lockstep(agent, "run", "sums", "What is 2 + 2?", "--json", "--model", "recorded:kept.jsonl")
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout)
    assert len(provider.requests) == asked
    assert (second["output"], second["cost_usd"]) == (first["output"], first["cost_usd"])
    assert second["unlocked"] is True
    other = _lockstep(agent, "run", "sums", "What is 3 + 3?", "--json", "--model", "recorded:kept.jsonl")
    assert other.returncode == 2
    assert json.loads(other.stdout)["stop_reason"] == "recording_mismatch"


def _bodies(database: Path) -> list[bytes]:
    import sqlite3

    with sqlite3.connect(database) as connection:
        return [bytes(body) for (body,) in connection.execute("SELECT body FROM events")]
