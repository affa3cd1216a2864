"""The canonical form of JSON is the library's, byte for byte."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockstep.values import Effect, canonical

NUMBERS = st.integers() | st.integers(min_value=2**53 - 3, max_value=2**53 + 3) | st.floats()
TEXTS = (
    st.text()
    | st.text(st.sampled_from('aZ"\\/\b\f\n\r\t\x00\x1f\x7f\x80\u2028\ud7ff\ue000\uffff\ud800\udfff😀'))
    | st.text(st.characters(min_codepoint=0xD000))
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


def by_the_library(value: Any) -> bytes | None:
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return None


def by_us(value: Any) -> bytes | None:
    try:
        return canonical(value)
    except ValueError:
        return None


@settings(max_examples=150, deadline=None)
@given(VALUES)
@example({"\ue000": 1, "😀": 2, "é": 3, "z": 4})
@example({"\ud800": 1})
@example([0.0, -0.0, 5.0, -5.5, 1e15, 1e16, 123456789012345680.0, 1e20, 1e21, 1e22, 1e-4, 1e-5, 1e-6, 1e-7, 5e-324])
@example([2**53 - 1, -(2**53) + 1])
@example([2**53])
@example([-(2**53)])
@example([float("nan")])
@example([float("inf")])
def test_the_canonical_form_is_the_librarys(value: Any) -> None:
    assert by_us(value) == by_the_library(value)


class Number(IntEnum):
    ONE = 1


class Named(dict[str, Any]):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Effect.ONCE,
        Number.ONE,
        Named(b=1, a=[Effect.READ]),
        {Effect.READ: True},
        {1: 2},
        {None: 1, "a": 2},
        {1, 2},
        b"x",
    ],
    ids=repr,
)
def test_other_types_are_taken_or_refused_as_the_library_does(value: Any) -> None:
    assert by_us(value) == by_the_library(value)


def test_what_is_nested_deeply_is_taken_as_far_as_by_the_library() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"a": [deep]}
    assert canonical(deep) == rfc8785.dumps(deep)
