"""Permits for a scratch world: for exactly one call with valid arguments, and worth nothing elsewhere."""

from __future__ import annotations

import pytest
from inprocess import locked_tool

from lockstep.errors import PermitError
from lockstep.gate.arguments import Malformed
from lockstep.gate.trial import Trying
from lockstep.values import Effect, now_ms

BOOK = locked_tool("book", Effect.ONCE, schema={"type": "object", "required": ["flight"]})


def test_a_permit_is_for_one_call_of_one_trial() -> None:
    trying = Trying({"book": BOOK})
    permit, digest = trying.permit(BOOK, "book.1", {"flight": "BA1"})
    _, other = trying.permit(BOOK, "book.2", {"flight": "BA1"})
    assert digest != other
    permit.redeem(digest, now_ms())
    with pytest.raises(PermitError, match="is spent"):
        permit.redeem(digest, now_ms())


def test_arguments_that_the_tool_does_not_take_get_no_permit() -> None:
    with pytest.raises(Malformed, match="flight"):
        Trying({"book": BOOK}).permit(BOOK, "book.1", {})
    with pytest.raises(Malformed, match="cannot be used"):
        Trying({"book": BOOK}).permit(BOOK, "book.1", {"flight": float("nan")})
