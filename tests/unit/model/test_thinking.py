"""Reasoning written into the text is cut out, whole or in pieces of any size."""

from __future__ import annotations

import pytest

from lockstep.model.thinking import ThinkingFilter, without_thinking

CASES = [
    ("Hello.", "Hello."),
    ("<think>secret</think>Hello.", "Hello."),
    ("<think>\nsecret\n</think>\n\nHello.", "Hello."),
    ("Well. <think>secret</think>Hello. <think>more secret</think>Bye.", "Well. Hello. Bye."),
    ("<think>secret that never ends", ""),
    ("1 < 2 and <thin> is no tag", "1 < 2 and <thin> is no tag"),
]


@pytest.mark.parametrize(("text", "told"), CASES)
def test_what_stands_between_the_tags_is_not_told(text: str, told: str) -> None:
    assert without_thinking(text) == told


def test_a_closing_tag_alone_ends_reasoning_that_began_before_the_text() -> None:
    assert without_thinking("secret</think>\nHello.") == "Hello."


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("text", "told"), CASES)
def test_pieces_of_any_size_tell_no_more_than_the_whole(text: str, told: str, size: int) -> None:
    thinking = ThinkingFilter()
    shown = "".join(thinking.feed(text[at : at + size]) for at in range(0, len(text), size)) + thinking.end()
    assert shown.strip() == told
