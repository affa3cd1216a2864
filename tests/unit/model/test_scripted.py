"""The scripted model: positions, placeholders, and the errors of a script."""

from __future__ import annotations

import asyncio
import json
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
    ToolMessage,
    Usage,
    UserMessage,
)
from lockstep.model.scripted import ScriptedModel, read_script
from lockstep.values import Digest, JsonObject


def model(tmp_path: Path, *lines: object, name: str = "trip.jsonl") -> ScriptedModel:
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return ScriptedModel(read_script(path))


def ask(model: ScriptedModel, *messages: Message) -> Reply | Failure:
    prompt = Prompt(system="s", tools=(), messages=messages, digest=Digest("0" * 64))
    return asyncio.run(model.reply(prompt, Settings()))


def user(text: str = "go") -> UserMessage:
    return UserMessage(text=text)


def asked(*names: str) -> AssistantMessage:
    return AssistantMessage(
        text="", calls=tuple(AskedCall(provider_id="x", name=name, arguments="{}") for name in names)
    )


def result(name: str, value: object, *, is_error: bool = False) -> ToolMessage:
    text = value if isinstance(value, str) else json.dumps(value)
    return ToolMessage(provider_id="x", name=name, text=text, is_error=is_error)


def reply_of(answer: Reply | Failure) -> Reply:
    assert isinstance(answer, Reply), answer
    return answer


def failure_of(answer: Reply | Failure) -> Failure:
    assert isinstance(answer, Failure), answer
    return answer


FLIGHTS = {"flights": [{"id": "SF1", "price": 420.5, "direct": True}, {"id": "SF2", "price": 480}]}


def test_replies_come_in_order_and_the_same_prompt_brings_the_same_reply(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"call": {"name": "f", "arguments": {"a": 1}}}, {"say": "done"})
    first = reply_of(ask(scripted, user()))
    assert [(call.name, json.loads(call.arguments)) for call in first.calls] == [("f", {"a": 1})]
    assert (first.text, first.finish_reason) == ("", "tool_call")
    assert reply_of(ask(scripted, user())) == first
    last = reply_of(ask(scripted, user(), asked("f"), result("f", 1)))
    assert (last.text, last.calls, last.finish_reason) == ("done", (), "stop")


def test_it_is_free_unless_the_script_says_otherwise(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "a"}, {"say": "b", "usage": {"input_tokens": 7}, "cost_usd": 0.25})
    free = reply_of(ask(scripted, user()))
    assert (free.usage, free.cost_usd) == (Usage(), Decimal(0))
    dear = reply_of(ask(scripted, user(), asked()))
    assert (dear.usage, dear.cost_usd) == (Usage(input_tokens=7), Decimal("0.25"))


def test_its_name_is_the_files(tmp_path: Path) -> None:
    assert model(tmp_path, {"say": "a"}).name == "scripted:trip"


def test_provider_ids_differ_within_a_conversation(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"calls": [{"name": "f"}, {"name": "f"}]}, {"call": {"name": "f"}})
    first = reply_of(ask(scripted, user()))
    second = reply_of(ask(scripted, user(), asked("f", "f")))
    ids = [call.provider_id for call in (*first.calls, *second.calls)]
    assert len(set(ids)) == 3


def test_by_default_each_user_message_starts_the_script_anew(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "one"}, {"say": "two"})
    assert reply_of(ask(scripted, user(), asked("f"), user())).text == "one"
    assert reply_of(ask(scripted, user(), asked("f"), user(), asked("f"))).text == "two"


def test_per_session_counts_through_all_runs(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"script": 1, "per": "session"}, {"say": "one"}, {"say": "two"})
    assert reply_of(ask(scripted, user(), asked(), user())).text == "two"


def test_a_json_array_is_a_script_too(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('[\n {"script": 1, "per": "session"},\n {"say": "one"},\n {"say": "two"}\n]')
    assert reply_of(ask(ScriptedModel(read_script(path)), user(), asked(), user())).text == "two"


def test_a_whole_placeholder_keeps_its_json_type(tmp_path: Path) -> None:
    arguments = {
        "id": "${search.flights[0].id}",
        "price": "${search.flights[0].price}",
        "direct": "${search.flights[0].direct}",
        "last": "${search.flights[-1]}",
        "nested": [{"price": "${search.flights[1].price}"}],
    }
    scripted = model(tmp_path, {"call": {"name": "book", "arguments": arguments}})
    (call,) = reply_of(ask(scripted, result("search", FLIGHTS), user())).calls
    assert json.loads(call.arguments) == {
        "id": "SF1",
        "price": 420.5,
        "direct": True,
        "last": {"id": "SF2", "price": 480},
        "nested": [{"price": 480}],
    }


def test_a_placeholder_inside_text_is_inserted_as_text(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "${s.flights[0].id} for ${s.flights[0].price}, direct: ${s.flights[0].direct}"})
    assert reply_of(ask(scripted, result("s", FLIGHTS), user())).text == "SF1 for 420.5, direct: true"


def test_the_latest_result_and_the_latest_user_message_count(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "${user} ${f.n}"})
    messages = (user("old"), result("f", {"n": 1}), result("f", {"n": 2}), user("new"))
    assert reply_of(ask(scripted, *messages)).text == "new 2"


def test_a_tool_name_may_hold_dots_and_the_longest_name_wins(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "${air.search.n}"})
    messages = (result("air.search", {"n": 1}), result("air", {"search": {"n": 2}}), user())
    assert reply_of(ask(scripted, *messages)).text == "1"


def test_a_result_that_is_not_json_can_be_taken_as_a_whole(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "it said: ${f}"})
    assert reply_of(ask(scripted, result("f", "plain words"), user())).text == "it said: plain words"


def test_what_a_tool_returned_is_never_itself_a_placeholder(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "${f}"})
    assert reply_of(ask(scripted, result("f", "${user} ${g}"), user("secret"))).text == "${user} ${g}"


def test_two_dollars_write_a_plain_placeholder(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "$${user}", "call": {"name": "f", "arguments": {"a": "$${user}"}}})
    reply = reply_of(ask(scripted, user()))
    assert (reply.text, json.loads(reply.calls[0].arguments)) == ("${user}", {"a": "${user}"})


def test_arguments_given_as_text_are_sent_as_they_are(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"call": {"name": "f", "arguments": '{"broken": ${user}'}})
    assert reply_of(ask(scripted, user("x"))).calls[0].arguments == '{"broken": x'


def test_streamed_text_is_the_replys_text(tmp_path: Path) -> None:
    pieces: list[str] = []
    prompt = Prompt(system="", tools=(), messages=(user(),), digest=Digest("0" * 64))
    asyncio.run(model(tmp_path, {"say": "hello"}).reply(prompt, Settings(), on_text=pieces.append))
    assert "".join(pieces) == "hello"


def test_a_server_that_asks_is_told_what_fits_and_that_is_no_reply_of_the_run(tmp_path: Path) -> None:
    paris: JsonObject = {"for_server": "France", "say": "Paris, ${user}", "cost_usd": 0.5}
    scripted = model(tmp_path, {"say": "one"}, paris, {"for_server": "", "say": "Hm."}, {"say": "two"})

    def asks(words: str) -> Reply:
        prompt = Prompt(system="", tools=(), messages=(user(words),), digest=Digest("0" * 64), for_server=True)
        return reply_of(asyncio.run(scripted.reply(prompt, Settings())))

    assert [reply_of(ask(scripted, user(), *[asked("x")] * n)).text for n in (0, 1)] == ["one", "two"]
    assert (asks("Capital of France?").text, asks("Other?").text) == ("Paris, ${user}", "Hm.")
    assert asks("Capital of France?").cost_usd == Decimal("0.5")


def test_a_server_that_asks_what_no_line_fits_is_told_nothing(tmp_path: Path) -> None:
    scripted = model(tmp_path, {"say": "one"}, {"for_server": "France", "say": "Paris"})
    prompt = Prompt(system="", tools=(), messages=(user("Spain?"),), digest=Digest("0" * 64), for_server=True)
    failure = asyncio.run(scripted.reply(prompt, Settings()))
    assert isinstance(failure, Failure)
    assert failure.message == "scripted:trip has no reply for a server that asks 'Spain?'."


def test_a_script_that_has_ended_says_so(tmp_path: Path) -> None:
    failure = failure_of(ask(model(tmp_path, {"say": "one"}), user(), asked()))
    assert failure.kind is FailureKind.RECORDING_ENDED
    assert failure.message == "scripted:trip has 1 replies and was asked for reply 2."


@pytest.mark.parametrize(
    ("placeholder", "because"),
    [
        ("g.x", "no such tool has answered yet"),
        ("f.nothing", "nothing at '.nothing' in the latest result of f"),
        ("f.flights[2]", "nothing at '.flights[2]' in the latest result of f"),
        ("f.flights.id", "nothing at '.flights.id' in the latest result of f"),
        ("f.flights[x]", "'[x]' is not a path into the result of f"),
        ("t.x", "the latest result of t is not JSON"),
        ("e.x", "nothing at '.x' in the latest result of e (an error)"),
        ("", "no such tool has answered yet"),
    ],
)
def test_a_placeholder_without_a_value_is_named(tmp_path: Path, placeholder: str, because: str) -> None:
    scripted = model(tmp_path, {"say": f"see ${{{placeholder}}}"})
    results = (result("f", FLIGHTS), result("t", "not json"), result("e", {"error": "no"}, is_error=True))
    failure = failure_of(ask(scripted, user(), *results))
    assert failure.kind is FailureKind.BAD_REPLY
    assert failure.message == f"scripted:trip, reply 1: ${{{placeholder}}} has no value: {because}."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no reply"),
        (b'{"script": 1}\n', "holds no reply"),
        (b'{"script": 2}\n{"say": "a"}', "line 1: the script has version 2"),
        (b'{"script": 1, "per": "day"}\n{"say": "a"}', "line 1: Invalid enum value 'day'"),
        (b'{"say": "a"}\n\n{"says": "b"}', "line 3: Object contains unknown field `says`"),
        (b'{"say": "a"}\nnot json', "line 2: JSON is malformed"),
        (b'{"say": 1}', "line 1: Expected `str`, got `int`"),
        (b"{}", "line 1: it neither says nor calls anything"),
        (b'{"call": {"name": "f"}, "calls": [{"name": "g"}]}', "both `call` and `calls`"),
        (b'{"call": {"arguments": {}}}', "missing required field `name`"),
        (b'{"say": "a", "cost_usd": "-1"}', "cost_usd is -1"),
        (b'{"say": "a", "cost_usd": "dear"}', "cost_usd is dear"),
        (b'{"say": "\xff"}', "line 1"),
        (b"[" * 100_000, "recursion"),
        (b'[{"say": "a"}, 3]', "entry 2: Expected `object`, got `int`"),
    ],
)
def test_a_broken_script_names_file_line_and_remedy(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_script(path)
    assert "broken.jsonl" in caught.value.message
    assert says in caught.value.message
    assert caught.value.remedy


def test_a_missing_script_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.jsonl cannot be read: No such file"):
        read_script(tmp_path / "nowhere.jsonl")
