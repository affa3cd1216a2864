"""Prompts out and failures in: ids made unique, messages cut to a sentence without keys."""

from __future__ import annotations

import pytest

from lockstep.model.failures import one_sentence
from lockstep.model.port import AskedCall, AssistantMessage, Message, ToolMessage, UserMessage
from lockstep.model.translation import clean, unique_ids


def asked(*calls: tuple[str, str]) -> AssistantMessage:
    return AssistantMessage(
        text="", calls=tuple(AskedCall(provider_id=call_id, name=name, arguments="{}") for call_id, name in calls)
    )


def result(call_id: str, name: str = "f") -> ToolMessage:
    return ToolMessage(provider_id=call_id, name=name, text="{}")


@pytest.mark.parametrize(
    ("messages", "ids"),
    [
        ([asked(("a", "f"), ("b", "g")), result("a"), result("b", "g")], [("a", "b"), ("a",), ("b",)]),
        ([asked(("a", "f")), result("a"), asked(("a", "f")), result("a")], [("a",), ("a",), ("a_2",), ("a_2",)]),
        ([asked(("a", "f"), ("a", "f")), result("a"), result("a")], [("a", "a_2"), ("a",), ("a_2",)]),
        ([asked(("a", "f"), ("a", "g")), result("a", "g"), result("a")], [("a", "a_2"), ("a_2",), ("a",)]),
        ([asked(("", "f"), ("", "g")), result("", "g"), result("")], [("call_1", "call_2"), ("call_2",), ("call_1",)]),
        ([asked(("a_2", "f"), ("a", "f"), ("a", "f"))], [("a_2", "a", "a_3")]),
        ([UserMessage(text="x"), result("lost")], [(), ("lost",)]),
    ],
)
def test_every_call_has_an_id_of_its_own_and_its_result_the_same(messages: list[Message], ids: list[object]) -> None:
    assert unique_ids(messages) == ids


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Too fast. Wait a while.", "Too fast."),
        ("no stop", "no stop."),
        ("", ""),
        ("two\nlines  here", "two lines here."),
        ("Incorrect API key provided: sk-proj-abcdef1234567890. You can find it", "Incorrect API key provided: [key]."),
        ("key AIzaSyA1234567890abcdef is bad", "key [key] is bad."),
        ("header was Bearer abc.def-ghi", "header was [key]."),
        ("your hush-hush is wrong", "your [key] is wrong."),
        ("use e.g. 'openai/gpt'", "use e.g. 'openai/gpt'."),
    ],
)
def test_a_providers_words_become_one_sentence_without_keys(text: str, sentence: str) -> None:
    assert one_sentence(text, secret="hush-hush") == sentence


def test_a_long_sentence_is_cut() -> None:
    assert len(one_sentence("word " * 1000)) == 200


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert clean("a\ud83d😀") == "a\ufffd😀"
