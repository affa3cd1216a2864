"""Replies that real providers once sent, served again by a local server: our `Reply` must hold what the body says.

The cassettes are pydantic-ai's own test recordings. They stay outside the repository; LOCKSTEP_DATA names their place.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from provider_server import one_root  # noqa: F401 - a fixture that is there for all of them

from lockstep.model.port import Failure, FailureKind, Prompt, Reply, Settings, UserMessage
from lockstep.model.providers import open_provider
from lockstep.values import Digest

pytest.importorskip("pydantic_ai", reason="needs pydantic-ai-slim")
yaml = pytest.importorskip("yaml", reason="needs PyYAML to read cassettes")
zstandard = pytest.importorskip("zstandard", reason="needs zstandard to read cassettes")

DATA = Path(os.environ.get("LOCKSTEP_DATA") or Path(__file__).parents[3] / "shared" / "data")
CASSETTES = DATA / "wire_cassettes_pydantic-ai.jsonl.zst"
pytestmark = [
    pytest.mark.skipif(not CASSETTES.is_file(), reason=f"needs {CASSETTES.name} (set LOCKSTEP_DATA)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
WAIT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """Exchanges of one wire format: where they went, and which of our names speaks it."""

    address: str
    provider: str
    at_least: int
    """Exchanges the file is known to hold; fewer means that this test reads it wrongly."""


FAMILIES = {
    "openai chat": Family(address=r"api\.openai\.com/v1/chat/completions$", provider="openai", at_least=55),
    "openai responses": Family(address=r"api\.openai\.com/v1/responses$", provider="openai-responses", at_least=140),
    "openai-compatible": Family(
        address=r"(openrouter|mistral|groq|deepseek)\.(ai|com)/.*chat/completions$", provider="openai", at_least=50
    ),
    "anthropic": Family(address=r"api\.anthropic\.com/v1/messages$", provider="anthropic", at_least=95),
    "google": Family(address=r"googleapis\.com/.*:(stream)?[gG]enerateContent$", provider="google", at_least=95),
}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    cassette: str
    model: str
    streamed: bool
    status: int
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a body says, read without any SDK."""

    text: str = ""
    calls: tuple[tuple[str, str, object], ...] = ()
    """Call id, tool name, arguments as JSON (or their text)."""
    failed: bool = False


# --- reading -----------------------------------------------------------------


@pytest.fixture(scope="module")
def exchanges() -> dict[str, list[Exchange]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, list[Exchange]] = {name: [] for name in FAMILIES}
    with zstandard.open(CASSETTES, "rb") as file:
        for line in io.TextIOWrapper(file, encoding="utf-8"):
            record = json.loads(line)
            for interaction in yaml.load(record["yaml"], loader)["interactions"]:
                uri = interaction["request"]["uri"].split("?")[0]
                for name, family in FAMILIES.items():
                    if interaction["request"]["method"] == "POST" and re.search(family.address, uri):
                        found[name].append(_exchange(record["path"], uri, interaction))
    return found


def _exchange(cassette: str, uri: str, interaction: dict[str, Any]) -> Exchange:
    request, response = interaction["request"], interaction["response"]
    asked = request.get("parsed_body") or {}
    if "parsed_body" in response:
        body = json.dumps(response["parsed_body"]).encode()
    else:
        text = response["body"]["string"]
        body = text if isinstance(text, bytes) else text.encode()
    in_address = re.search(r"/models/([^/:]+):", uri)
    return Exchange(
        cassette=cassette,
        model=in_address.group(1) if in_address else asked["model"],
        streamed=bool(asked.get("stream")) or "streamGenerateContent" in uri,
        status=response["status"]["code"],
        body=body,
    )


def said(family: str, exchange: Exchange) -> Said:
    """What the body of an exchange says."""
    if exchange.status >= 400:
        return Said(failed=True)
    if not exchange.streamed or not exchange.body.lstrip().startswith((b"data:", b"event:", b":")):
        parts = [json.loads(exchange.body)]
    else:
        lines = [line[5:].strip() for line in exchange.body.decode().splitlines() if line.startswith("data:")]
        parts = [json.loads(line) for line in lines if line and line != "[DONE]"]
    read = {"anthropic": _anthropic, "google": _google, "openai responses": _responses}.get(family, _chat)
    return read(parts)


def _parsed(arguments: str) -> object:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def _chat(parts: list[Any]) -> Said:
    text, calls = "", dict[int, list[str]]()
    for part in parts:
        if part.get("error"):
            return Said(failed=True)
        for choice in (part.get("choices") or [])[:1]:
            message = choice.get("message") or choice.get("delta") or {}
            content = message.get("content") or ""
            if isinstance(content, list):
                content = "".join(piece.get("text", "") for piece in content if piece["type"] == "text")
            text += content
            for place, call in enumerate(message.get("tool_calls") or []):
                entry = calls.setdefault(call.get("index", place), ["", "", ""])
                function = call.get("function") or {}
                for at, piece in enumerate((call.get("id"), function.get("name"), function.get("arguments"))):
                    entry[at] += piece or ""
    return Said(text=text, calls=tuple((i, name, _parsed(arguments)) for i, name, arguments in calls.values()))


def _anthropic(parts: list[Any]) -> Said:
    text, calls = "", list[list[str]]()
    if parts[0].get("type") == "message":
        blocks = parts[0]["content"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        used = [block for block in blocks if block["type"] == "tool_use"]
        return Said(text=text, calls=tuple((block["id"], block["name"], block["input"]) for block in used))
    kinds: dict[int, str] = {}
    for part in parts:
        if part["type"] == "error":
            return Said(failed=True)
        if part["type"] == "content_block_start":
            block = part["content_block"]
            kinds[part["index"]] = block["type"]
            text += block.get("text", "") if block["type"] == "text" else ""
            if block["type"] == "tool_use":
                calls.append([block["id"], block["name"], ""])
        elif part["type"] == "content_block_delta":
            kind, delta = kinds[part["index"]], part["delta"]
            text += delta.get("text", "") if kind == "text" else ""
            if kind == "tool_use":
                calls[-1][2] += delta.get("partial_json", "")
    return Said(text=text, calls=tuple((i, name, _parsed(arguments)) for i, name, arguments in calls))


def _google(parts: list[Any]) -> Said:
    text, calls = "", list[tuple[str, str, object]]()
    for part in parts:
        for candidate in (part.get("candidates") or [])[:1]:
            for piece in (candidate.get("content") or {}).get("parts") or []:
                if not piece.get("thought"):
                    text += piece.get("text") or ""
                if call := piece.get("functionCall"):
                    calls.append((call.get("id", ""), call["name"], call.get("args") or {}))
    return Said(text=text, calls=tuple(calls))


def _responses(parts: list[Any]) -> Said:
    last = parts[-1].get("response", parts[-1])
    if last.get("status") == "failed" or last.get("error"):
        return Said(failed=True)
    text, calls = "", list[tuple[str, str, object]]()
    for item in last["output"]:
        if item["type"] == "message":
            text += "".join(piece["text"] for piece in item["content"] if piece["type"] == "output_text")
        elif item["type"] == "function_call":
            calls.append((item["call_id"], item["name"], _parsed(item["arguments"])))
    return Said(text=text, calls=tuple(calls))


# --- serving -----------------------------------------------------------------


class Replay:
    """Answers every request with the exchange that is set."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        replay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                assert replay.exchange is not None
                kind = "text/event-stream" if replay.exchange.streamed else "application/json"
                self.send_response(replay.exchange.status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(replay.exchange.body)))
                self.end_headers()
                self.wfile.write(replay.exchange.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(WAIT_S)


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    server = Replay()
    yield server
    server.close()


async def replies(replay: Replay, family: Family, exchanges: list[Exchange]) -> list[Reply | Failure]:
    """Our reply to each exchange, asked the way it was recorded: streamed or plain."""
    url = f"http://127.0.0.1:{replay.server.server_address[1]}"
    base_url = url + "/v1" if family.provider.startswith("openai") else url
    prompt = Prompt(system="", tools=(), messages=(UserMessage(text="Hi"),), digest=Digest("0" * 64))
    models = {
        model: open_provider(f"{family.provider}:{model}", base_url=base_url, api_key_env="KEY", env={"KEY": "sk-none"})
        for model in {exchange.model for exchange in exchanges}
    }
    answers = []
    for exchange in exchanges:
        replay.exchange = exchange
        listener = (lambda _: None) if exchange.streamed else None
        # A small limit keeps pydantic-ai from streaming what was recorded plain.
        settings = Settings(timeout_s=WAIT_S, max_tokens=100)
        answers.append(await models[exchange.model].reply(prompt, settings, on_text=listener))
    for model in models.values():
        await model.close()
    return answers


def difference(expected: Said, answer: Reply | Failure) -> str:
    """How the answer differs from what the body says; empty when it does not."""
    if isinstance(answer, Failure):
        return "" if expected.failed else f"failure {answer.kind}: {answer.message}"
    calls = tuple((call.provider_id, call.name, _parsed(call.arguments)) for call in answer.calls)
    wanted = re.sub(r"<think>.*?</think>", "", expected.text, flags=re.S)
    if expected.failed:
        return f"an error became the reply {answer.text[:60]!r}"
    if answer.text.strip() != wanted.strip():
        return f"text {answer.text[:80]!r} is not {wanted[:80]!r}"
    # Google often sends no call id, and pydantic-ai makes one up.
    wanted_calls = tuple(
        (call_id or made_up, *rest)
        for (call_id, *rest), (made_up, *_) in zip(expected.calls, calls, strict=len(calls) == len(expected.calls))
    )
    return (
        "" if calls == wanted_calls and len(calls) == len(expected.calls) else f"calls {calls!r}, not {wanted_calls!r}"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recorded_reply_comes_through_as_its_body_says(
    exchanges: dict[str, list[Exchange]], replay: Replay, family: str
) -> None:
    recorded = exchanges[family]
    assert len(recorded) >= FAMILIES[family].at_least
    answers = asyncio.run(asyncio.wait_for(replies(replay, FAMILIES[family], recorded), 300))
    differences = [
        f"{exchange.cassette} ({exchange.model}, {'streamed' if exchange.streamed else 'plain'}): {found}"
        for exchange, answer in zip(recorded, answers, strict=True)
        if (found := difference(said(family, exchange), answer))
    ]
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_errors_are_failures_with_their_status(
    exchanges: dict[str, list[Exchange]], replay: Replay, family: str
) -> None:
    refused = [exchange for exchange in exchanges[family] if exchange.status >= 400]
    answers = asyncio.run(asyncio.wait_for(replies(replay, FAMILIES[family], refused), 60))
    for exchange, answer in zip(refused, answers, strict=True):
        assert isinstance(answer, Failure)
        kind = FailureKind.RATE_LIMITED if exchange.status == 429 else FailureKind.REFUSED
        assert (answer.status, answer.kind) == (exchange.status, kind)
        assert answer.message.count("\n") == 0
        assert len(answer.message) < 320
