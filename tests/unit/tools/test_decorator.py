"""`@tool` marks and changes nothing."""

from __future__ import annotations

import functools

import pytest

from lockstep import OutcomeUnknown, tool
from lockstep.tools.decorator import marking_of


def test_a_marked_function_is_the_same_function_and_still_callable() -> None:
    def double(number: int) -> int:
        return 2 * number

    assert tool(double) is double
    assert double(4) == 8


def test_bare_marking_says_nothing_of_the_tool() -> None:
    @tool
    def look() -> None: ...

    marking = marking_of(look)
    assert marking is not None
    assert (marking.name, marking.title, marking.hints) == (None, None, {})


def test_only_the_hints_that_were_given_are_kept_also_when_false() -> None:
    @tool(name="book_flight", title="Book a flight", read_only=False, destructive=True)
    def book() -> None: ...

    marking = marking_of(book)
    assert marking is not None
    assert (marking.name, marking.title) == ("book_flight", "Book a flight")
    assert marking.hints == {"readOnlyHint": False, "destructiveHint": True}


def test_all_four_hints_have_their_names_in_mcp() -> None:
    @tool(read_only=True, destructive=False, idempotent=True, open_world=False)
    def look() -> None: ...

    marking = marking_of(look)
    assert marking is not None
    assert marking.hints == {
        "readOnlyHint": True,
        "destructiveHint": False,
        "idempotentHint": True,
        "openWorldHint": False,
    }


def test_a_function_without_the_decorator_is_no_tool() -> None:
    def helper() -> None: ...

    assert marking_of(helper) is None
    assert marking_of(object()) is None


def test_the_mark_survives_a_decorator_that_wraps() -> None:
    def twice(function):  # type: ignore[no-untyped-def]
        @functools.wraps(function)
        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
            return function(*args, **kwargs)

        return wrapper

    @twice
    @tool
    def look() -> None: ...

    assert marking_of(look) is not None


def test_a_class_cannot_be_a_tool() -> None:
    class Thing: ...

    with pytest.raises(TypeError, match="is not one"):
        tool(Thing)


def test_a_method_cannot_be_a_tool_and_the_sentence_says_where_to_put_it() -> None:
    namespace: dict[str, object] = {"tool": tool}
    with pytest.raises(TypeError, match=r"Thing\.look is a method\. Move it"):
        exec("class Thing:\n    @tool\n    def look(self) -> None: ...\n", namespace)


def test_outcome_unknown_is_an_exception_with_a_message() -> None:
    assert str(OutcomeUnknown("the reply was lost")) == "the reply was lost"
    assert issubclass(OutcomeUnknown, Exception)
