"""What is wrong with a tool's effects is said before a run, in words that name the key."""

from __future__ import annotations

from typing import Any

import pytest
from inprocess import locked_tool

from lockstep.agent.effect_spec import ProbeSection, ReleaseRule
from lockstep.agent.locked import LockedTool
from lockstep.gate.effect_checks import effect_problems
from lockstep.values import Effect, JsonObject

BOOKING: JsonObject = {
    "type": "object",
    "properties": {
        "flight": {"type": "string"},
        "seats": {"type": "array", "items": {"type": "object", "properties": {"row": {"type": "integer"}}}},
        "more": {"type": "object"},
    },
}
CANCELLING: JsonObject = {"type": "object", "properties": {"id": {"type": "string"}}}


def problems(tool: LockedTool, *others: LockedTool) -> list[str]:
    return list(effect_problems(tool, {each.name: each for each in (tool, *others)}))


def book(effect: Effect = Effect.ONCE, **said: Any) -> LockedTool:
    return locked_tool("book", effect, schema=BOOKING, **said)


CANCEL = locked_tool("cancel", Effect.ONCE, schema=CANCELLING)
FIND = locked_tool("find", schema=BOOKING)


def test_what_fits_is_silent() -> None:
    tool = book(
        dedupe_on=("/flight", "/seats/*/row", "/seats/0/row", "/more/anything"),
        again=True,
        released_by=(ReleaseRule(tool="cancel", where={"/id": "result:/booking/id"}),),
        probe=ProbeSection(tool="find", arguments={"flight": "arguments:/flight", "more": "key"}, found="/bookings"),
    )
    assert problems(tool, CANCEL, FIND) == []


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"dedupe_on": ("/fligth",)}, "dedupe_on names '/fligth', which is not one of its arguments"),
        ({"dedupe_on": ("/seats/*/col",)}, "dedupe_on names '/seats/*/col'"),
        ({"dedupe_on": ()}, "dedupe_on names nothing"),
        ({"again": True, "effect": Effect.READ}, "its calls may be repeated as they are"),
        ({"released_by": (ReleaseRule(tool="undo", where={"/id": "result:/id"}),)}, "tool 'undo', which this agent"),
        (
            {"released_by": (ReleaseRule(tool="cancel", where={"/no": "result:/id"}),)},
            "'/no', which is not an argument",
        ),
        ({"released_by": (ReleaseRule(tool="cancel", where={"/id": "arguments:/x"}),)}, "refers to 'arguments:/x'"),
        ({"probe": ProbeSection(tool="seek", found="/x")}, "probe names the tool 'seek'"),
        ({"probe": ProbeSection(tool="cancel", found="/x")}, "probe names cancel, which is once"),
        ({"probe": ProbeSection(tool="find", found="/x"), "effect": Effect.IDEMPOTENT}, "this one is idempotent"),
        ({"probe": ProbeSection(tool="find", arguments={"no": "key"}, found="/x")}, "probe.arguments names 'no'"),
        (
            {"probe": ProbeSection(tool="find", arguments={"flight": "result:/id"}, found="/x")},
            "a call whose reply was lost has no result",
        ),
        (
            {"probe": ProbeSection(tool="find", arguments={"flight": "arguments:/x"}, found="/x")},
            "probe.arguments.flight refers to 'arguments:/x'",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_a_sentence(said: dict[str, Any], sentence: str) -> None:
    (found,) = problems(book(**said), CANCEL, FIND)
    assert sentence in found


def test_again_needs_its_name_for_itself() -> None:
    schema: JsonObject = {"type": "object", "properties": {"again": {"type": "boolean"}}}
    (found,) = problems(locked_tool("book", Effect.ONCE, schema=schema, again=True))
    assert "an argument 'again' of its own" in found
