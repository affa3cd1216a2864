"""JSON pointers, with `*` for every item."""

from __future__ import annotations

import pytest

from lockstep.agent.pointers import Missing, check, select
from lockstep.values import Json

BOOKING: Json = {
    "user": "mia",
    "flights": [{"number": "A1", "date": "05-20"}, {"number": "A2", "date": "05-21", "stops": [{"at": "X"}]}],
    "a/b": {"m~n": 1},
    "none": None,
    "*": "a star",
}


@pytest.mark.parametrize(
    "pointer, found",
    [
        ("/user", "mia"),
        ("/none", None),
        ("/flights/1/number", "A2"),
        ("/flights/*/number", ["A1", "A2"]),
        ("/flights/1/stops/*/at", ["X"]),
        ("/a~1b/m~0n", 1),
        ("/*", "a star"),
    ],
)
def test_a_pointer_leads_to_what_stands_there(pointer: str, found: Json) -> None:
    assert select(BOOKING, pointer) == found


@pytest.mark.parametrize(
    "pointer",
    [
        "/nobody",
        "/flights/2",
        "/flights/-1",
        "/flights/01x",
        "/flights/*/stops",
        "/user/*",
        "/user/0",
        "/flights/number",
    ],
)
def test_where_nothing_stands_is_missing_even_in_one_item_of_many(pointer: str) -> None:
    with pytest.raises(Missing):
        select(BOOKING, pointer)


def test_no_item_is_an_empty_list() -> None:
    assert select({"flights": []}, "/flights/*/number") == []


@pytest.mark.parametrize("given, kept", [("/a/*/b", "/a/*/b"), ("flight", "/flight"), ("a/b~", "/a~1b~0")])
def test_a_plain_name_is_kept_as_the_pointer_to_it(given: str, kept: str) -> None:
    assert check(given) == kept


@pytest.mark.parametrize("pointer", ["", "/a~2", "/~"])
def test_what_is_no_pointer_is_refused(pointer: str) -> None:
    with pytest.raises(ValueError, match="JSON pointer"):
        check(pointer)
