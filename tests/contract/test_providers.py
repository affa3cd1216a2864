"""Providers behind the port, through their real SDKs, against a local server that speaks their wire formats."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from provider_server import (
    CANARY,
    WAIT_S,
    Answer,
    Provider,
    Said,
    one_root,  # noqa: F401 - a fixture that is there for all of them
    openai_events,
    openai_plain,
    pieces,
    sse,
)

from lockstep.model.port import (
    AskedCall,
    AssistantMessage,
    Failure,
    FailureKind,
    Message,
    Prompt,
    Reply,
    Settings,
    ToolDefinition,
    ToolMessage,
    Usage,
    UserMessage,
)
from lockstep.model.prices import read_prices
from lockstep.model.providers import ProviderModel, open_provider
from lockstep.values import Attachment, Digest, Json

pytest.importorskip("pydantic_ai", reason="needs pydantic-ai-slim")
pytest.importorskip("openai", reason="needs the openai extra")
pytest.importorskip("anthropic", reason="needs the anthropic extra")
pytest.importorskip("google.genai", reason="needs the google extra")

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider()
    yield server
    server.close()


# --- wire formats ------------------------------------------------------------

ANTHROPIC_USAGE = {
    "input_tokens": 50,
    "cache_read_input_tokens": 40,
    "cache_creation_input_tokens": 10,
    "output_tokens": 30,
    "output_tokens_details": {"thinking_tokens": 12},
}


def anthropic_plain(said: Said) -> bytes:
    content: list[object] = [{"type": "thinking", "thinking": said.reasoning, "signature": "c2ln"}]
    content += [{"type": "text", "text": said.text}] if said.text else []
    content += [
        {"type": "tool_use", "id": call_id, "name": name, "input": json.loads(arguments)}
        for call_id, name, arguments in said.calls
    ]
    return json.dumps(
        {
            "id": "m1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-6",
            "content": content,
            "stop_reason": "tool_use" if said.calls else "end_turn",
            "stop_sequence": None,
            "usage": ANTHROPIC_USAGE,
        }
    ).encode()


def anthropic_events(said: Said) -> list[tuple[str | None, object]]:
    def event(kind: str, **data: object) -> tuple[str, object]:
        return kind, {"type": kind, **data}

    message: dict[str, object] = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**ANTHROPIC_USAGE, "output_tokens": 1},
    }
    blocks: list[tuple[object, Sequence[object]]] = [
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [{"type": "thinking_delta", "thinking": piece} for piece in pieces(said.reasoning)]
            + [{"type": "signature_delta", "signature": "c2ln"}],
        ),
        ({"type": "redacted_thinking", "data": said.reasoning}, []),
    ]
    if said.text:
        blocks.append(
            ({"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces(said.text)])
        )
    for call_id, name, arguments in said.calls:
        inputs = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces(arguments)]
        blocks.append(({"type": "tool_use", "id": call_id, "name": name, "input": {}}, inputs))
    events: list[tuple[str | None, object]] = [event("message_start", message=message), event("ping")]
    for index, (block, deltas) in enumerate(blocks):
        events.append(event("content_block_start", index=index, content_block=block))
        events += [event("content_block_delta", index=index, delta=delta) for delta in deltas]
        events.append(event("content_block_stop", index=index))
    stop = {"stop_reason": "tool_use" if said.calls else "end_turn", "stop_sequence": None}
    return [*events, event("message_delta", delta=stop, usage=ANTHROPIC_USAGE), event("message_stop")]


def google_body(said: Said) -> dict[str, object]:
    parts: list[object] = [{"text": said.reasoning, "thought": True}] if said.reasoning else []
    parts += [{"text": said.text}] if said.text else []
    parts += [
        {"functionCall": {"id": call_id, "name": name, "args": json.loads(arguments)}}
        for call_id, name, arguments in said.calls
    ]
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {
            "promptTokenCount": 100,
            "cachedContentTokenCount": 40,
            "candidatesTokenCount": 18,
            "thoughtsTokenCount": 12,
            "totalTokenCount": 130,
        },
        "modelVersion": "gemini-2.5-flash",
    }


def google_plain(said: Said) -> bytes:
    return json.dumps(google_body(said)).encode()


def google_events(said: Said) -> list[tuple[str | None, object]]:
    events: list[tuple[str | None, object]] = []
    for text in pieces(said.text):
        events.append((None, google_body(Said(text=text))))
    return [*events, (None, google_body(Said(calls=said.calls)))]


@dataclass(frozen=True, kw_only=True)
class Wire:
    """One provider's wire format, and what our port must make of it."""

    name: str
    model: str
    finish_with_calls: str
    provider: str
    error_body: Callable[[int, str], object]
    plain: Callable[[Said], bytes]
    events: Callable[[Said], list[tuple[str | None, object]]]
    usage: Usage
    path: str = ""

    def answer(self, said: Said, *, streamed: bool) -> Answer:
        if streamed:
            return Answer(headers={"content-type": "text/event-stream"}, body=sse(*self.events(said)))
        return Answer(headers={"content-type": "application/json"}, body=self.plain(said))


WIRES = [
    Wire(
        name="openai:gpt-4o",
        model="gpt-4o-2024-08-06",
        provider="openai",
        path="/v1",
        plain=openai_plain,
        events=openai_events,
        finish_with_calls="tool_call",
        error_body=lambda status, text: {"error": {"message": text, "type": "x", "code": None}},
        usage=Usage(input_tokens=100, output_tokens=30, cache_read_tokens=40, reasoning_tokens=12),
    ),
    Wire(
        name="anthropic:claude-sonnet-4-6",
        model="claude-sonnet-4-6",
        provider="anthropic",
        plain=anthropic_plain,
        events=anthropic_events,
        finish_with_calls="tool_call",
        error_body=lambda status, text: {"type": "error", "error": {"type": "x_error", "message": text}},
        usage=Usage(
            input_tokens=100, output_tokens=30, cache_read_tokens=40, cache_write_tokens=10, reasoning_tokens=12
        ),
    ),
    Wire(
        name="google:gemini-2.5-flash",
        model="gemini-2.5-flash",
        provider="google",
        plain=google_plain,
        events=google_events,
        finish_with_calls="stop",
        error_body=lambda status, text: {"error": {"code": status, "message": text, "status": "X"}},
        usage=Usage(input_tokens=100, output_tokens=30, cache_read_tokens=40, reasoning_tokens=12),
    ),
]
OPENAI, ANTHROPIC, GOOGLE = WIRES
wires = pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.provider)
both_ways = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])

# --- asking ------------------------------------------------------------------

PLAIN = Settings(
    timeout_s=WAIT_S, max_tokens=1000
)  # without a limit pydantic-ai streams Anthropic's long answers itself
SCHEMA: dict[str, Json] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "title": "Weather",
    "properties": {"city": {"type": "string", "minLength": 1, "default": "Genoa"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOL = ToolDefinition(name="get_weather", description="Weather of a city.", input_schema=SCHEMA)


def opened(provider: Provider, wire: Wire, **options: Any) -> ProviderModel:
    return open_provider(wire.name, base_url=provider.url + wire.path, api_key_env="KEY", env={"KEY": KEY}, **options)


def prompt(*messages: Message) -> Prompt:
    said = messages or (UserMessage(text="Rain in Genoa?"),)
    return Prompt(system="Be brief.", tools=(TOOL,), messages=said, digest=Digest("0" * 64))


def ask(
    model: ProviderModel,
    asked: Prompt | None = None,
    *,
    streamed: bool = False,
    settings: Settings | None = None,
    heard: list[str] | None = None,
) -> Reply | Failure:
    async def run() -> Reply | Failure:
        listener = (heard if heard is not None else []).append
        try:
            return await model.reply(asked or prompt(), settings or PLAIN, on_text=listener if streamed else None)
        finally:
            await model.close()

    return asyncio.run(asyncio.wait_for(run(), WAIT_S))


def reply_of(answer: Reply | Failure) -> Reply:
    assert isinstance(answer, Reply), answer
    return answer


def failure_of(answer: Reply | Failure) -> Failure:
    assert isinstance(answer, Failure), answer
    assert KEY not in answer.message
    return answer


CALLS = [("call_a", "get_weather", '{"city": "Genoa", "days": 2}'), ("call_b", "get_weather", '{"city": "Rome"}')]


@wires
@both_ways
def test_text_usage_cost_and_model_come_through(provider: Provider, wire: Wire, streamed: bool) -> None:
    provider.answers.append(wire.answer(Said(text="Yes, bring an ümbrella."), streamed=streamed))
    heard: list[str] = []
    reply = reply_of(ask(opened(provider, wire), streamed=streamed, heard=heard))
    assert (reply.text, reply.calls, reply.finish_reason) == ("Yes, bring an ümbrella.", (), "stop")
    assert (reply.usage, reply.model, reply.provider) == (wire.usage, wire.model, wire.provider)
    assert reply.cost_usd is not None
    assert reply.cost_usd > 0
    assert reply.price_book.startswith("genai-prices ")
    assert "".join(heard) == (reply.text if streamed else "")


@wires
@both_ways
def test_tool_calls_come_through_with_their_ids(provider: Provider, wire: Wire, streamed: bool) -> None:
    provider.answers.append(wire.answer(Said(text="Let me look.", calls=CALLS), streamed=streamed))
    reply = reply_of(ask(opened(provider, wire), streamed=streamed))
    assert reply.text == "Let me look."
    assert [(call.provider_id, call.name, json.loads(call.arguments)) for call in reply.calls] == [
        ("call_a", "get_weather", {"city": "Genoa", "days": 2}),
        ("call_b", "get_weather", {"city": "Rome"}),
    ]
    assert reply.finish_reason == wire.finish_with_calls


@wires
def test_plain_and_streamed_replies_are_the_same(provider: Provider, wire: Wire) -> None:
    said = Said(text="Let me look.", calls=CALLS)
    provider.answers += [wire.answer(said, streamed=False), wire.answer(said, streamed=True)]
    model = opened(provider, wire)
    assert ask(model) == ask(model, streamed=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_long_answer_of_anthropic_is_streamed_even_when_nobody_listens(provider: Provider) -> None:
    provider.answers.append(ANTHROPIC.answer(Said(text="Yes.", calls=CALLS), streamed=True))
    reply = reply_of(ask(opened(provider, ANTHROPIC), settings=Settings(timeout_s=WAIT_S)))
    assert provider.requests[0]["stream"] is True
    assert (reply.text, len(reply.calls)) == ("Yes.", 2)


@wires
@both_ways
def test_reasoning_never_leaves_the_adapter(provider: Provider, wire: Wire, streamed: bool) -> None:
    provider.answers.append(wire.answer(Said(text="Yes.", calls=CALLS), streamed=streamed))
    heard: list[str] = []
    reply = reply_of(ask(opened(provider, wire), streamed=streamed, heard=heard))
    assert reply.usage.reasoning_tokens == 12
    assert CANARY not in repr(reply)
    assert CANARY not in "".join(heard)


@both_ways
def test_reasoning_inside_the_text_is_cut_out(provider: Provider, streamed: bool) -> None:
    answer = OPENAI.answer(Said(text=f"<think>\n{CANARY}\n</think>\n\nYes."), streamed=False)
    if streamed:  # servers of open models send the tags as tokens of their own
        (start, *rest) = openai_events(Said(reasoning=""))
        shell: Any = start[1]
        tokens = ("<think>", "\n", CANARY, "\n", "</think>", "\n\n", "Yes.")
        chunks = [{**shell, "choices": [{"index": 0, "delta": {"content": token}}]} for token in tokens]
        events = [start, *((None, chunk) for chunk in chunks), *rest]
        answer = Answer(headers={"content-type": "text/event-stream"}, body=sse(*events))
    provider.answers.append(answer)
    heard: list[str] = []
    reply = reply_of(ask(opened(provider, OPENAI), streamed=streamed, heard=heard))
    assert reply.text.strip() == "Yes."
    assert CANARY not in repr(reply) + "".join(heard)


MALFORMED = [
    '{"city": "Genoa"',
    "{'city': 'Genoa'}",
    "city=Genoa",
    '{"city": NaN}',
    "[1, 2]",
    '"text"',
    '{"city": "a"}{"city": "b"}',
]


@both_ways
@pytest.mark.parametrize("arguments", MALFORMED)
def test_malformed_arguments_stay_the_text_they_are(provider: Provider, streamed: bool, arguments: str) -> None:
    said = Said(calls=[("call_a", "get_weather", arguments)])
    provider.answers.append(OPENAI.answer(said, streamed=streamed))
    assert reply_of(ask(opened(provider, OPENAI), streamed=streamed)).calls[0].arguments == arguments


@pytest.mark.parametrize("arguments", MALFORMED[:3])
def test_malformed_arguments_streamed_by_anthropic_stay_the_text_they_are(provider: Provider, arguments: str) -> None:
    said = Said(calls=[("call_a", "get_weather", arguments)])
    provider.answers.append(ANTHROPIC.answer(said, streamed=True))
    assert reply_of(ask(opened(provider, ANTHROPIC), streamed=True)).calls[0].arguments == arguments


@both_ways
def test_half_a_surrogate_pair_becomes_a_character_a_record_can_hold(provider: Provider, streamed: bool) -> None:
    provider.answers.append(OPENAI.answer(Said(text="ab"), streamed=streamed))
    body = provider.answers[0].body.replace(b'"ab"', b'"a\\ud83d"').replace(b'"content": "b"', b'"content": "\\ud83d"')
    provider.answers[0] = Answer(headers=provider.answers[0].headers, body=body)
    reply = reply_of(ask(opened(provider, OPENAI), streamed=streamed))
    assert reply.text == "a\ufffd"
    reply.text.encode()


@both_ways
def test_empty_and_repeated_call_ids_are_tolerated(provider: Provider, streamed: bool) -> None:
    said = Said(calls=[("same", "get_weather", "{}"), ("same", "get_weather", "{}"), ("", "get_weather", "{}")])
    provider.answers.append(OPENAI.answer(said, streamed=streamed))
    calls = reply_of(ask(opened(provider, OPENAI), streamed=streamed)).calls
    assert [call.name for call in calls] == ["get_weather"] * 3
    assert [call.provider_id for call in calls[:2]] == ["same", "same"]


@both_ways
def test_a_call_without_arguments_is_an_empty_object(provider: Provider, streamed: bool) -> None:
    provider.answers.append(OPENAI.answer(Said(calls=[("a", "get_weather", "")]), streamed=streamed))
    assert reply_of(ask(opened(provider, OPENAI), streamed=streamed)).calls[0].arguments == "{}"


@both_ways
def test_a_cost_is_unknown_when_the_model_or_the_usage_is(provider: Provider, streamed: bool) -> None:
    answer = OPENAI.answer(Said(text="Yes."), streamed=streamed)
    unknown = Answer(headers=answer.headers, body=answer.body.replace(b"gpt-4o-2024-08-06", b"house-model"))
    provider.answers += [unknown, Answer(headers=answer.headers, body=answer.body.replace(b'"usage"', b'"other"'))]
    model = opened(provider, OPENAI)
    for _ in range(2):
        reply = reply_of(ask(model, streamed=streamed))
        assert (reply.cost_usd, reply.price_book) == (None, "")


def test_stated_prices_stand_instead_of_the_book(provider: Provider) -> None:
    provider.answers.append(OPENAI.answer(Said(text="Yes."), streamed=False))
    prices = read_prices({"input": 2, "output": 10, "cache_read": 1})
    reply = reply_of(ask(opened(provider, OPENAI, prices=prices)))
    assert (str(reply.cost_usd), reply.price_book) == ("0.00046", "agent.toml")


# --- what is sent ------------------------------------------------------------

HISTORY = (
    UserMessage(text="Rain in Genoa?"),
    AssistantMessage(
        text="Let me look.",
        calls=(
            AskedCall(provider_id="same", name="get_weather", arguments='{"city": "Genoa"}'),
            AskedCall(provider_id="same", name="get_weather", arguments='{"city": "Rome"}'),
        ),
    ),
    ToolMessage(provider_id="same", name="get_weather", text='{"rain": true}'),
    ToolMessage(provider_id="same", name="get_weather", text="no such city", is_error=True),
    AssistantMessage(text="", calls=(AskedCall(provider_id="same", name="get_weather", arguments='{"city": '),)),
    ToolMessage(provider_id="same", name="get_weather", text="the arguments are not JSON", is_error=True),
)
SETTINGS = Settings(temperature=0.2, top_p=0.9, max_tokens=77, seed=5, parallel_tool_calls=False, timeout_s=WAIT_S)


def request_of(provider: Provider, wire: Wire) -> dict[str, Any]:
    provider.answers.append(wire.answer(Said(text="ok"), streamed=False))
    reply_of(ask(opened(provider, wire), prompt(*HISTORY), settings=SETTINGS))
    return provider.requests[0]


def test_openai_is_sent_the_conversation_the_schema_and_the_settings(provider: Provider) -> None:
    request = request_of(provider, OPENAI)
    assert provider.paths == ["/v1/chat/completions"]
    assert [message["role"] for message in request["messages"]] == [
        *("system", "user", "assistant", "tool", "tool", "assistant", "tool")
    ]
    first, second = request["messages"][2]["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {"city": "Genoa"}
    assert request["messages"][3]["tool_call_id"] == first["id"] == "same"
    assert request["messages"][4]["tool_call_id"] == second["id"] == "same_2"
    assert request["messages"][3]["content"] == '{"rain": true}'
    assert json.loads(request["messages"][4]["content"]) == {"error": "no such city"}
    assert '{\\"city\\": ' in request["messages"][5]["tool_calls"][0]["function"]["arguments"]
    assert request["tools"] == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Weather of a city.", "parameters": SCHEMA}
            | ({"strict": False} if "strict" in request["tools"][0]["function"] else {}),
        }
    ]
    expected = {"temperature": 0.2, "top_p": 0.9, "max_completion_tokens": 77, "seed": 5, "parallel_tool_calls": False}
    assert {key: request[key] for key in expected} == expected


def test_anthropic_is_sent_the_conversation_the_schema_and_the_settings(provider: Provider) -> None:
    request = request_of(provider, ANTHROPIC)
    assert provider.paths[0].startswith("/v1/messages")
    assert request["system"][0]["text"] if isinstance(request["system"], list) else request["system"] == "Be brief."
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    results = request["messages"][2]["content"]
    assert [(block["type"], block["tool_use_id"], block["is_error"]) for block in results] == [
        ("tool_result", "same", False),
        ("tool_result", "same_2", True),
    ]
    assert request["tools"][0]["input_schema"] == SCHEMA
    assert (request["temperature"], request["max_tokens"]) == (0.2, 77)
    assert "cache_control" in json.dumps(request)


@pytest.mark.filterwarnings("ignore:The `parallel_tool_calls` setting is not supported")
def test_google_is_sent_the_conversation_and_the_settings(provider: Provider) -> None:
    request = request_of(provider, GOOGLE)
    assert provider.paths[0].endswith("/models/gemini-2.5-flash:generateContent")
    assert request["systemInstruction"]["parts"][0]["text"] == "Be brief."
    assert [content["role"] for content in request["contents"]] == ["user", "model", "user", "model", "user"]
    config = request["generationConfig"]
    assert (config["temperature"], config["maxOutputTokens"], config["seed"]) == (0.2, 77, 5)
    declaration = request["tools"][0]["functionDeclarations"][0]
    assert declaration["name"] == "get_weather"
    assert set(declaration["parameters_json_schema"]["properties"]) == {"city", "days"}


PIXELS = b"\x89PNG\r\n\x1a\n pixels IEND\xaeB`\x82"
IN_BASE64 = base64.b64encode(PIXELS).decode()
PLOT = Attachment(name="plot.png", mime_type="image/png", data=PIXELS, shown=True)
SEEN = (
    *HISTORY[:2],
    ToolMessage(provider_id="same", name="get_weather", text="plot.png:\n[image: image/png]", images=(PLOT,)),
    ToolMessage(provider_id="same", name="get_weather", text="failed halfway", is_error=True, images=(PLOT, PLOT)),
)


def images_in(value: Any) -> int:
    """How often the image's bytes stand in a request."""
    if isinstance(value, dict):
        return sum(map(images_in, value.values()))
    if isinstance(value, list):
        return sum(map(images_in, value))
    return isinstance(value, str) and value.replace("-", "+").replace("_", "/").endswith(IN_BASE64)


def request_with_images(provider: Provider, wire: Wire, settings: Settings = PLAIN) -> dict[str, Any]:
    provider.answers.append(wire.answer(Said(text="ok"), streamed=False))
    reply_of(ask(opened(provider, wire), prompt(*SEEN), settings=settings))
    return provider.requests[-1]


@wires
def test_the_images_of_a_result_are_in_the_request(provider: Provider, wire: Wire) -> None:
    request = request_with_images(provider, wire)
    assert images_in(request) == 3
    assert "plot.png" in json.dumps(request)


@wires
def test_a_model_that_takes_no_images_is_sent_the_words_for_them(provider: Provider, wire: Wire) -> None:
    request = request_with_images(provider, wire, Settings(timeout_s=WAIT_S, max_tokens=1000, images=False))
    assert images_in(request) == 0
    assert "[image: image/png]" in json.dumps(request)


def test_openai_is_sent_images_in_a_message_after_the_results(provider: Provider) -> None:
    messages = request_with_images(provider, OPENAI)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool", "user"]
    said, reference = json.loads(messages[3]["content"])  # the image is named here and framed with that name below
    assert (said, reference[:9]) == ("plot.png:\n[image: image/png]", "See file ")
    parts = [part for part in messages[5]["content"] if part["type"] == "image_url"]
    assert [part["image_url"]["url"] for part in parts] == [f"data:image/png;base64,{IN_BASE64}"] * 3


def test_anthropic_is_sent_images_inside_the_results(provider: Provider) -> None:
    first, second = request_with_images(provider, ANTHROPIC)["messages"][2]["content"]
    for result, count in ((first, 1), (second, 2)):
        assert [block["type"] for block in result["content"]] == ["text", *["image"] * count]
        source = {"type": "base64", "media_type": "image/png", "data": IN_BASE64}
        assert [block["source"] for block in result["content"][1:]] == [source] * count
    assert (first["is_error"], second["is_error"]) == (False, True)


# --- failures ----------------------------------------------------------------


def failing(wire: Wire, status: int, text: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps(wire.error_body(status, text)).encode()
    return Answer(status=status, headers={"content-type": "application/json", **named}, body=body)


@wires
@both_ways
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, FailureKind.RATE_LIMITED),
        (500, FailureKind.OVERLOADED),
        (503, FailureKind.OVERLOADED),
        (529, FailureKind.OVERLOADED),
        (400, FailureKind.REFUSED),
        (401, FailureKind.REFUSED),
        (404, FailureKind.REFUSED),
    ],
)
def test_an_error_status_is_one_attempt_and_a_named_failure(
    provider: Provider, wire: Wire, streamed: bool, status: int, kind: FailureKind
) -> None:
    provider.answers.append(failing(wire, status, f"Not now with {KEY}. Try later."))
    failure = failure_of(ask(opened(provider, wire), streamed=streamed))
    assert (failure.kind, failure.status) == (kind, status)
    assert failure.message.startswith(wire.name.partition(":")[0])
    assert failure.message.endswith(f"({status}): Not now with [key].")
    assert len(provider.requests) == 1


@wires
def test_retry_after_is_read_as_seconds_and_as_a_date(provider: Provider, wire: Wire) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    provider.answers += [
        failing(wire, 429, "slow down", retry_after="7"),
        failing(wire, 429, "slow down", retry_after=later),
        failing(wire, 429, "slow down", retry_after="soon"),
    ]
    model = opened(provider, wire)
    first, second, third = (failure_of(ask(model)).retry_after_s for _ in range(3))
    assert (first, third) == (7.0, None)
    assert second is not None
    assert 30 < second <= 90


def test_a_used_up_quota_is_refused_because_waiting_does_not_help(provider: Provider) -> None:
    body = {
        "error": {"message": "You exceeded your quota.", "type": "insufficient_quota", "code": "insufficient_quota"}
    }
    provider.answers.append(
        Answer(status=429, headers={"content-type": "application/json"}, body=json.dumps(body).encode())
    )
    failure = failure_of(ask(opened(provider, OPENAI)))
    assert (failure.kind, failure.status) == (FailureKind.REFUSED, 429)


@wires
@both_ways
def test_a_silent_provider_is_a_timeout(provider: Provider, wire: Wire, streamed: bool) -> None:
    provider.answers.append(Answer(hang=True))
    failure = failure_of(ask(opened(provider, wire), streamed=streamed, settings=Settings(timeout_s=0.3)))
    assert failure.kind is FailureKind.TIMEOUT
    assert len(provider.requests) == 1


@wires
@both_ways
def test_nobody_listening_is_a_connection_failure(provider: Provider, wire: Wire, streamed: bool) -> None:
    model = opened(provider, wire)
    provider.close()
    assert failure_of(ask(model, streamed=streamed)).kind is FailureKind.CONNECTION


@wires
@both_ways
def test_a_connection_cut_in_the_middle_is_a_connection_failure(provider: Provider, wire: Wire, streamed: bool) -> None:
    whole = wire.answer(Said(text="A long answer about the rain in Genoa.", calls=CALLS), streamed=streamed)
    half = Answer(headers=whole.headers, body=whole.body[: len(whole.body) * 2 // 3], cut=True)
    provider.answers.append(half)
    failure = failure_of(ask(opened(provider, wire), streamed=streamed))
    assert failure.kind is FailureKind.CONNECTION
    assert CANARY not in failure.message
    assert len(provider.requests) == 1


@wires
@both_ways
@pytest.mark.parametrize(
    "body", [b"", b"not json", b"<html>gateway</html>", b"[]", b"{}", b'{"choices": 3, "content": 3, "candidates": 3}']
)
def test_a_body_nobody_can_parse_is_a_bad_reply(provider: Provider, wire: Wire, streamed: bool, body: bytes) -> None:
    kind = "text/event-stream" if streamed else "application/json"
    data = b"data: " + body + b"\n\n" if streamed else body
    provider.answers.append(Answer(headers={"content-type": kind}, body=data))
    answer = ask(opened(provider, wire), streamed=streamed)
    if isinstance(answer, Reply):
        assert (answer.text, answer.calls) == ("", ())  # nothing was said, which the kernel judges
    else:
        assert answer.kind in (FailureKind.BAD_REPLY, FailureKind.CONNECTION)
    assert len(provider.requests) == 1


def test_an_error_in_the_middle_of_a_stream_is_the_error_it_names(provider: Provider) -> None:
    overloaded = ("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    body = sse(*anthropic_events(Said(text="Yes."))[:4], overloaded)
    provider.answers.append(Answer(headers={"content-type": "text/event-stream"}, body=body))
    failure = failure_of(ask(opened(provider, ANTHROPIC), streamed=True))
    assert failure.kind is FailureKind.OVERLOADED


def test_the_listeners_own_error_is_not_the_providers(provider: Provider) -> None:
    provider.answers.append(OPENAI.answer(Said(text="Yes."), streamed=True))

    def broken(_: str) -> None:
        raise BrokenPipeError("the terminal is gone")

    model = opened(provider, OPENAI)

    async def run() -> None:
        try:
            await model.reply(prompt(), Settings(timeout_s=WAIT_S), on_text=broken)
        finally:
            await model.close()

    with pytest.raises(BrokenPipeError):
        asyncio.run(run())


def test_one_model_serves_many_requests_at_once(provider: Provider) -> None:
    provider.answers += [OPENAI.answer(Said(text="Yes."), streamed=False)] * 8
    model = opened(provider, OPENAI)

    async def run() -> list[Reply | Failure]:
        try:
            return await asyncio.gather(*(model.reply(prompt(), Settings(timeout_s=WAIT_S)) for _ in range(8)))
        finally:
            await model.close()

    assert [reply_of(answer).text for answer in asyncio.run(run())] == ["Yes."] * 8
