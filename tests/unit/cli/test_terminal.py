"""What other people's text may do to a terminal: nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lockstep.cli.show import print_result
from lockstep.cli.terminal import console, count, one_line, plain, printable
from lockstep.kernel.apply import start
from lockstep.kernel.state import State, Status
from lockstep.kernel.transcript import Transcript
from lockstep.values import RunId


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("pay bob\rpay eve", "pay bob\\x0dpay eve"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("abc\u202ecba\u2066", "abc\\u202ecba\\u2066"),
        ("half \ud83d", "half \\ud83d"),
        ("two\r\nlines\tand a tab", "two\nlines\tand a tab"),
        ("grüße 你好 👋", "grüße 你好 👋"),
    ],
)
def test_what_steers_a_terminal_is_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["[red]no[/red]", "[/]", "ends with \\", ":warning:", "[link=x]y[/link]"])
def test_markup_of_others_is_printed_as_it_is(text: str) -> None:
    out = _console()
    out.print(plain(text) + "[bold]![/]")
    assert out.file.getvalue() == f"{text}!\n"  # type: ignore[attr-defined]


def test_json_is_shown_on_one_line_whatever_its_spaces() -> None:
    assert one_line('{"to": "bob",\n\n\n   "cents": 5}') == '{"to": "bob", "cents": 5}'


def test_what_looks_like_json_and_is_not_is_shown_all_the_same() -> None:
    assert one_line('{"to":\n bob') == '{"to": bob'


def test_a_long_line_is_cut_only_where_a_limit_is_given() -> None:
    assert one_line("x" * 300) == "x" * 300
    assert one_line("x" * 300, 10) == "x" * 9 + "…"


def test_numbers_agree_with_their_words() -> None:
    assert [count(number, "step") for number in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]


def test_an_answer_is_never_broken_into_lines_of_our_making() -> None:
    out = _console(width=20)
    print_result(out, _finished("a line of forty characters and some more " * 3))
    assert "a line of forty characters and some more " * 3 in out.file.getvalue()  # type: ignore[attr-defined]


def test_an_answer_that_was_just_seen_is_not_printed_again() -> None:
    out = _console()
    print_result(out, _finished("It is 4."), answered=True)
    assert "It is 4." not in out.file.getvalue()  # type: ignore[attr-defined]


def _console(width: int = 80) -> Console:
    out = console()
    out.file = io.StringIO()
    out.width = width
    return out


def _finished(output: str) -> State:
    from dataclasses import replace

    state = start(RunId("r1"), Transcript((), b""))
    return replace(state, status=Status.FINISHED, stop_reason="completed", output=output)


def test_the_spaces_inside_a_calls_arguments_are_shown_as_they_are() -> None:
    assert one_line('{"to":\n "a  b\\u00a0c"}') == '{"to": "a  b\u00a0c"}'
    assert one_line('{"to":  half') == '{"to": half'
