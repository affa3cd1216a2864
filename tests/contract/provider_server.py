"""A provider's API on a loopback port, and how OpenAI's looks on the wire: what is said is up to the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import certifi
import pytest

CANARY = "canary-7f3a-nobody-may-see-this"
WAIT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False
    """Promise more than is sent, then close the connection."""
    hang: bool = False
    """Do not answer until the test is over."""


class Provider:
    """A provider's API on a loopback port: gives its answers in order and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.over = threading.Event()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                provider._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        self.requests.append(json.loads(body))
        self.paths.append(handler.path)
        answer = self.reply(handler.path)
        handler.close_connection = True
        if answer.hang:
            self.over.wait(WAIT_S)
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(answer.body) + (1000 if answer.cut else 0)))
        handler.end_headers()
        handler.wfile.write(answer.body)

    def reply(self, path: str) -> Answer:
        return self.answers.pop(0)

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(WAIT_S)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a test's provider says, before it is put into a wire format."""

    text: str = ""
    calls: Sequence[tuple[str, str, str]] = ()
    """Call id, tool name, raw arguments."""
    reasoning: str = CANARY


def sse(*events: tuple[str | None, object]) -> bytes:
    lines = [
        (f"event: {name}\n" if name else "")
        + f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n"
        for name, data in events
    ]
    return "".join(lines).encode()


def pieces(text: str) -> list[str]:
    third = max(1, len(text) // 3)
    return [text[at : at + third] for at in range(0, len(text), third)]


OPENAI_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 30,
    "total_tokens": 130,
    "prompt_tokens_details": {"cached_tokens": 40},
    "completion_tokens_details": {"reasoning_tokens": 12},
}


def openai_plain(said: Said) -> bytes:
    message = {
        "role": "assistant",
        "content": said.text or None,
        "reasoning_content": said.reasoning,
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in said.calls
        ]
        or None,
    }
    finish = "tool_calls" if said.calls else "stop"
    return json.dumps(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "gpt-4o-2024-08-06",
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": OPENAI_USAGE,
        }
    ).encode()


def openai_events(said: Said) -> list[tuple[str | None, object]]:
    def chunk(delta: Mapping[str, object], finish: str | None = None) -> tuple[None, object]:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return None, {**shell, "choices": choices}

    shell = {"id": "c1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "gpt-4o-2024-08-06"}
    events = [chunk({"role": "assistant", "content": ""})]
    events += [chunk({"reasoning_content": piece}) for piece in pieces(said.reasoning)]
    events += [chunk({"content": piece}) for piece in pieces(said.text)]
    for index, (call_id, name, arguments) in enumerate(said.calls):
        start = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        events.append(chunk({"tool_calls": [start]}))
        for piece in pieces(arguments):
            events.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
    events.append(chunk({}, "tool_calls" if said.calls else "stop"))
    return [*events, (None, {**shell, "choices": [], "usage": OPENAI_USAGE}), (None, "[DONE]")]


def responses_plain(said: Said) -> bytes:
    """What OpenAI's newer API answers, the one its own agents speak."""
    output: list[dict[str, object]] = [
        {"type": "function_call", "id": f"fc_{call_id}", "call_id": call_id, "name": name, "arguments": arguments}
        for call_id, name, arguments in said.calls
    ]
    if said.text:
        content = [{"type": "output_text", "text": said.text, "annotations": []}]
        output.append(
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
        )
    return json.dumps(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1_700_000_000,
            "status": "completed",
            "model": "gpt-4o-2024-08-06",
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 100,
                "output_tokens": 30,
                "total_tokens": 130,
                "input_tokens_details": {"cached_tokens": 40},
                "output_tokens_details": {"reasoning_tokens": 12},
            },
        }
    ).encode()


@pytest.fixture(autouse=True, scope="module")
def one_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A single root to trust in place of all, which every client loads anew: that takes longer than its requests, and
    no request here is encrypted."""
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    root = tmp_path_factory.mktemp("trusted") / "root.pem"
    root.write_text(first + end)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(root))
        yield
