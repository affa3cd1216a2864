"""What a server asks of the agent's own model: its words alone are passed on; what would bring more in is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lockstep.journal.events import ModelSampled
from lockstep.model.port import AssistantMessage, UserMessage
from lockstep.tools.inputs import BadQuestion, parse, read_result
from lockstep.tools.samples import MAX_MESSAGES, MAX_TOKENS, for_model, read_sample, told
from lockstep.values import Digest


def said(text: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": {"type": "text", "text": text}}


def request(**more: Any) -> dict[str, Any]:
    return {"messages": [said("Capital of France?")], "maxTokens": 9, **more}


def test_the_prompt_is_what_the_server_said_and_nothing_else() -> None:
    talk = [said("Hi"), said("Hello", "assistant"), said("Capital?")]
    talk[0]["content"] = [talk[0]["content"], {"type": "text", "text": "there"}]
    sample = read_sample(request(messages=talk, systemPrompt="Be brief."))
    assert (sample.prompt.system, sample.prompt.tools, sample.prompt.for_server) == ("Be brief.", (), True)
    assert sample.prompt.messages == (
        UserMessage(text="Hi\nthere"),
        AssistantMessage(text="Hello"),
        UserMessage(text="Capital?"),
    )
    assert (sample.max_tokens, sample.ignored) == (9, ())


def test_another_prompt_has_another_digest() -> None:
    prompts = [
        request(),
        request(systemPrompt="x"),
        request(messages=[said("Other?")]),
        request(messages=[said("a"), said("b")]),
        request(messages=[said("a"), said("b", "assistant"), said("c")]),
    ]
    assert len({read_sample(each).prompt.digest for each in prompts}) == len(prompts)


def test_an_answer_is_no_longer_than_ours_may_be() -> None:
    assert read_sample(request(maxTokens=10**9)).max_tokens == MAX_TOKENS


def test_what_is_not_followed_is_named() -> None:
    more = {"includeContext": "allServers", "temperature": 0, "stopSequences": [], "modelPreferences": {}, "x": 1}
    assert read_sample(request(**more)).ignored == ("includeContext", "temperature")
    assert read_sample(request(includeContext="none")).ignored == ()


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (request(tools=[{"name": "t", "inputSchema": {}}]), "gives the model tools"),
        (request(toolChoice={"mode": "required"}), "gives the model tools"),
        (request(toolChoice=7), "gives the model tools"),
        (request(messages=[]), "no messages"),
        (request(messages={}), "no messages"),
        (request(messages=[said("x")] * (MAX_MESSAGES + 1)), "more than 100"),
        (request(messages=[said("x", "assistant")]), "the model's own"),
        (request(messages=[said("x", "system")]), "neither user nor assistant"),
        (request(messages=[said("")]), "no words"),
        (request(messages=[{"role": "user", "content": []}]), "no words"),
        (request(messages=[{"content": {"type": "text", "text": "x"}}]), "neither user nor assistant"),
        (request(messages=[said(7)]), "shows the model text"),
        (request(messages=["x"]), "shows the model nothing"),
        (request(messages=[{"role": "user", "content": {"type": "image", "data": ""}}]), "shows the model image"),
        (request(messages=[{"role": "user", "content": [{"type": "tool_result"}]}]), "shows the model tool_result"),
        (request(maxTokens=0), "how long"),
        (request(maxTokens=True), "how long"),
        (request(maxTokens="9"), "how long"),
        ({"messages": [said("x")]}, "how long"),
        (request(systemPrompt=["x"]), "system prompt is no text"),
    ],
)
def test_what_cannot_be_asked_in_words_alone_is_refused(params: dict[str, Any], why: str) -> None:
    with pytest.raises(BadQuestion, match=why):
        read_sample(params)


def test_tools_that_are_none_are_no_tools() -> None:
    for trivial in ({"tools": []}, {"tools": None}, {"toolChoice": {"mode": "none"}}, {"toolChoice": {"mode": "auto"}}):
        assert read_sample(request(**trivial)) == read_sample(request())


def test_of_a_question_the_model_has_its_part_and_others_theirs() -> None:
    may = ("elicitation", "sampling", "roots")
    form = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {"type": "object"}}}
    asks = {"think": {"method": "sampling/createMessage", "params": request()}, "who": form}
    asks["see"] = {"method": "sampling/createMessage", "params": request(messages=[])}
    plain = read_result({"inputRequests": asks}, may)
    assert plain.for_model == ()
    asked = parse(for_model(plain).text)
    assert [each.key for each in asked.for_model] == ["think"]
    assert [each.key for each in asked.open] == ["who"]
    assert "no messages" in asked.unanswerable
    assert asked == for_model(plain)
    assert asked.digest != plain.digest


def test_what_is_refused_for_another_reason_stays_so() -> None:
    asked = read_result({"inputRequests": {"m": {"method": "sampling/createMessage", "params": request()}}}, ())
    assert for_model(asked) == asked


@pytest.mark.parametrize(
    ("finish", "stop"), [("stop", "endTurn"), ("length", "maxTokens"), ("", "endTurn"), ("content_filter",) * 2]
)
def test_a_server_is_told_the_words_and_whose_they_are(finish: str, stop: str) -> None:
    event = ModelSampled(
        call="1.0", input="q", key="k", digest=Digest("1" * 64), text="Paris", model="m-1", finish_reason=finish
    )
    assert told(event) == {
        "role": "assistant",
        "content": {"type": "text", "text": "Paris"},
        "model": "m-1",
        "stopReason": stop,
    }
