"""The recorded model, its file, and recordings built from plain conversations."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from lockstep.errors import ModelError
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
from lockstep.model.recorded import RecordedModel, Recording, Turn, from_messages, read_recording, write_recording
from lockstep.model.recording import digest_system, digest_tools
from lockstep.values import Digest, Json

CALL = AskedCall(provider_id="call_1", name="weather", arguments='{"city": "Genoa"')
FULL = Reply(
    text="Let me see… 🌦",
    calls=(CALL,),
    usage=Usage(input_tokens=120, output_tokens=9, cache_read_tokens=100, cache_write_tokens=3, reasoning_tokens=4),
    cost_usd=Decimal("0.000000725"),
    price_book="genai-prices 0.2.3",
    model="gpt-4o-2024-08-06",
    provider="openai",
    finish_reason="tool_call",
)
RECORDING = Recording(
    model="openai:gpt-4o",
    agent="weather",
    lock=Digest("1" * 64),
    system_digest=Digest("2" * 64),
    tools_digest=Digest("3" * 64),
    turns=(
        Turn(expects=(UserMessage(text="Rain in Genoa?"),), reply=FULL),
        Turn(
            expects=(ToolMessage(provider_id="call_1", name="weather", text='{"rain": true}', is_error=True),),
            reply=Reply(text="Yes."),
        ),
        Turn(expects=(UserMessage(text="And tomorrow?"),), reply=Reply(text="No.", provider="openai")),
    ),
    unanswered=(UserMessage(text="Thanks\nbye"),),
)


def ask(recording: Recording, *messages: Message) -> Reply | Failure:
    prompt = Prompt(system="s", tools=(), messages=messages, digest=Digest("0" * 64))
    return asyncio.run(RecordedModel(recording).reply(prompt, Settings()))


def failure_of(answer: Reply | Failure) -> Failure:
    assert isinstance(answer, Failure), answer
    return answer


def conversation(recording: Recording) -> list[Message]:
    messages: list[Message] = []
    for turn in recording.turns:
        messages += [*turn.expects, AssistantMessage(text=turn.reply.text, calls=turn.reply.calls)]
    return [*messages, *recording.unanswered]


def replayed(recording: Recording) -> list[Reply]:
    """Every reply, asked for as a loop would ask."""
    messages: list[Message] = []
    replies: list[Reply] = []
    for turn in recording.turns:
        messages += turn.expects
        answer = ask(recording, *messages)
        assert isinstance(answer, Reply), answer
        replies.append(answer)
        messages.append(AssistantMessage(text=answer.text, calls=answer.calls))
    return replies


def test_a_recording_gives_its_replies_again_with_usage_and_cost() -> None:
    first, second, _ = replayed(RECORDING)
    assert (first.text, first.calls, first.usage, first.cost_usd) == (FULL.text, FULL.calls, FULL.usage, FULL.cost_usd)
    assert (first.model, first.provider, first.price_book) == (
        "gpt-4o-2024-08-06",
        "recorded:openai",
        "genai-prices 0.2.3",
    )
    assert (second.cost_usd, second.provider) == (None, "recorded")
    assert RecordedModel(RECORDING).name == "recorded:openai:gpt-4o"


def test_provider_ids_and_error_marks_are_not_compared() -> None:
    messages = conversation(RECORDING)[:2]
    answer = ask(RECORDING, *messages, ToolMessage(provider_id="other", name="weather", text='{"rain": true}'))
    assert isinstance(answer, Reply)


@pytest.mark.parametrize(
    ("messages", "difference"),
    [
        (
            [UserMessage(text="Rain in Genua?")],
            "message 1, the user's, differs from character 12: recorded …'ain in Genoa?', now …'ain in Genua?'",
        ),
        ([], "1 messages were recorded and 0 came"),
        ([UserMessage(text="Rain in Genoa?"), UserMessage(text="?")], "1 messages were recorded and 2 came"),
        (
            [ToolMessage(provider_id="", name="weather", text="")],
            "message 1 was the user's and is the result of weather",
        ),
    ],
)
def test_a_prompt_that_differs_is_a_mismatch_with_the_first_difference(
    messages: list[Message], difference: str
) -> None:
    failure = failure_of(ask(RECORDING, *messages))
    assert failure.kind is FailureKind.RECORDING_MISMATCH
    assert failure.message == (
        f"The conversation left the recording of openai:gpt-4o before reply 1 of 3: {difference}."
    )


def test_another_tools_result_is_a_mismatch() -> None:
    messages = conversation(RECORDING)[:2]
    failure = failure_of(ask(RECORDING, *messages, ToolMessage(provider_id="call_1", name="time", text="{}")))
    assert "before reply 2 of 3: message 1 was the result of weather and is the result of time" in failure.message


def test_a_long_difference_is_abbreviated() -> None:
    recording = from_messages(
        [{"role": "user", "content": "a" * 9_000 + "b" * 9_000}, {"role": "assistant", "content": "ok"}], model="m"
    )
    failure = failure_of(ask(recording, UserMessage(text="a" * 18_000)))
    assert "differs from character 9001: recorded …'aaaaaaaaaabbbb" in failure.message
    assert len(failure.message) < 300


def test_a_recording_that_has_ended_says_so() -> None:
    failure = failure_of(ask(RECORDING, *conversation(RECORDING)))
    assert failure.kind is FailureKind.RECORDING_ENDED
    assert "has 3 replies and was asked for reply 4" in failure.message


def test_messages_nobody_answered_are_still_compared() -> None:
    failure = failure_of(ask(RECORDING, *conversation(RECORDING)[:-1], UserMessage(text="More")))
    assert failure.kind is FailureKind.RECORDING_MISMATCH


def test_streamed_text_is_the_replys_text() -> None:
    pieces: list[str] = []
    prompt = Prompt(system="", tools=(), messages=RECORDING.turns[0].expects, digest=Digest("0" * 64))
    asyncio.run(RecordedModel(RECORDING).reply(prompt, Settings(), on_text=pieces.append))
    assert "".join(pieces) == FULL.text


# --- the file ----------------------------------------------------------------


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_recording(path, RECORDING)
    assert read_recording(path) == RECORDING
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.jsonl"]


def test_what_servers_were_told_is_found_by_what_they_asked(tmp_path: Path) -> None:
    recording = replace(RECORDING, to_servers={Digest("4" * 64): replace(FULL, calls=()), Digest("5" * 64): FULL})
    write_recording(tmp_path / "r.jsonl", recording)
    again = read_recording(tmp_path / "r.jsonl")
    assert again == recording

    def asks(digest: str) -> Reply | Failure:
        asked = (UserMessage(text="Capital of France?"),)
        prompt = Prompt(system="", tools=(), messages=asked, digest=Digest(digest), for_server=True)
        return asyncio.run(RecordedModel(again).reply(prompt, Settings()))

    assert asks("4" * 64) == replace(FULL, calls=(), provider="recorded:openai")
    assert "has no reply to a server that asks 'Capital of France?'" in failure_of(asks("6" * 64)).message
    assert [each.text for each in replayed(again)] == [each.text for each in replayed(RECORDING)]


def test_half_a_surrogate_pair_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    call = AskedCall(provider_id="1", name="f", arguments='{"a": "\ud83d"}')
    turn = Turn(expects=(UserMessage(text="Hi \udcff \U0001f600"),), reply=Reply(text="\ud83d", calls=(call,)))
    recording = Recording(model="m", turns=(turn,), unanswered=(UserMessage(text="\udc00"),))
    write_recording(path, recording)
    assert read_recording(path) == recording


def test_the_file_is_one_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_recording(path, RECORDING)
    header, first, *_, last = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert header == {
        "recording": 1,
        "model": "openai:gpt-4o",
        "agent": "weather",
        "lock": "1" * 64,
        "system_digest": "2" * 64,
        "tools_digest": "3" * 64,
    }
    assert first["expects"] == [{"role": "user", "text": "Rain in Genoa?"}]
    assert first["reply"]["cost_usd"] == "0.000000725"
    assert first["reply"]["calls"] == [{"name": "weather", "arguments": '{"city": "Genoa"', "provider_id": "call_1"}]
    assert last == {"expects": [{"role": "user", "text": "Thanks\nbye"}]}


def test_a_rerun_can_be_recorded_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    again = Turn(expects=RECORDING.turns[0].expects, reply=replayed(RECORDING)[0])
    write_recording(path, Recording(model=RECORDING.model, turns=(again,)))
    assert read_recording(path).turns[0].reply.provider == "openai"


HEADER = b'{"recording": 1, "model": "m"}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"not json", "line 1: JSON is malformed"),
        (b'{"expects": [], "reply": {}}', "line 1"),
        (b'{"recording": 2, "model": "m"}', "has version 2; this Lockstep reads version 1"),
        (HEADER + b'{"expects": [{"role": "user", "text": "a"}], "reply": {"te', "line 2: Input data was truncated"),
        (HEADER + b'\n{"expects": [{"role": "system", "text": "a"}], "reply": {}}', "line 3: Invalid enum value"),
        (HEADER + b'{"reply": {}}', "line 2: Object missing required field `expects`"),
        (HEADER + b'{"expects": [], "reply": {"cost_usd": "NaN"}}', "line 2: cost_usd is NaN"),
        (HEADER + b'{"expects": [], "reply": {"cost_usd": "much"}}', "line 2"),
        (HEADER + b'{"expects": [], "reply": {"thinking": "x"}}', "unknown field `thinking`"),
        (HEADER + b'{"expects": []}\n{"expects": [], "reply": {}}', "line 3: it follows a line without a reply"),
        (HEADER + b"\xff\xfe", "line 2"),
        (HEADER + b"[" * 100_000, "line 2"),
    ],
)
def test_a_corrupt_recording_names_file_line_and_remedy(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_recording(path)
    assert "broken.jsonl" in caught.value.message
    assert says in caught.value.message
    assert caught.value.remedy


def test_a_recording_that_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_recording(tmp_path / "none.jsonl")
    with pytest.raises(ModelError, match="cannot be written: No such file"):
        write_recording(tmp_path / "none" / "r.jsonl", RECORDING)
    with pytest.raises(ModelError, match="cannot be written"):
        write_recording(Path("/"), RECORDING)


def test_digests_are_of_the_prompts_text_and_the_tools_definitions() -> None:
    tool = ToolDefinition(name="f", description="d", input_schema={"type": "object"})
    other = ToolDefinition(name="f", description="d", input_schema={"type": "object", "required": []})
    assert digest_tools([tool]) != digest_tools([other])
    assert digest_system("a") != digest_system("b")


# --- plain conversations -----------------------------------------------------


PLAIN: list[dict[str, Json]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": "Hi, how can I help?"},
    {"role": "user", "content": "Two cities"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "same", "name": "weather", "args": {"city": "Genoa"}},
            {"id": "same", "name": "time", "args": "{not json"},
        ],
    },
    {"role": "tool", "content": "rain", "tool_call_id": "same", "name": "weather"},
    {"role": "tool", "content": "", "tool_call_id": "same", "name": "time", "error": "ValueError: no"},
    {"role": "assistant", "content": "Rain."},
    {"role": "assistant", "content": "Time unknown."},
    {"role": "user", "content": "###STOP###"},
]


def test_a_plain_conversation_becomes_a_recording() -> None:
    recording = from_messages(PLAIN, model="openai:gpt-4o", agent="weather")
    first, second = recording.turns
    assert recording.system_digest == digest_system("Be brief.")
    assert first.expects == (UserMessage(text="Two cities"),)
    assert [(call.provider_id, call.name, call.arguments) for call in first.reply.calls] == [
        ("same", "weather", '{"city": "Genoa"}'),
        ("same", "time", "{not json"),
    ]
    assert (first.reply.model, first.reply.provider, first.reply.cost_usd) == ("gpt-4o", "openai", None)
    assert second.expects == (
        ToolMessage(provider_id="same", name="weather", text="rain"),
        ToolMessage(provider_id="same", name="time", text="ValueError: no", is_error=True),
    )
    assert second.reply.text == "Rain.\nTime unknown."
    assert recording.unanswered == (UserMessage(text="###STOP###"),)
    assert len(replayed(recording)) == 2


def test_a_tools_name_is_found_by_the_id_of_its_call() -> None:
    messages = [{key: value for key, value in message.items() if key != "name"} for message in PLAIN[2:5]]
    assert from_messages(messages, model="m").unanswered == (
        ToolMessage(provider_id="same", name="weather", text="rain"),
    )


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "robot", "content": "x"}, "Message 1 of the conversation: Invalid enum value 'robot'"),
        ({"role": "user", "content": [1]}, "Message 1 of the conversation: Expected `str | null`, got `array`"),
        ({"role": "tool", "content": "x", "tool_call_id": "y"}, "the result of a call nobody asked for"),
    ],
)
def test_a_message_that_is_none_names_its_position(message: dict[str, Json], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        from_messages([message], model="m")
