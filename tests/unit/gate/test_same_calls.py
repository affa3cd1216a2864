"""When two calls are the same one: fields, scopes, windows, releases, and calls that an adapter emits again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from inprocess import BOOK, LOOK, NOTE, gate_of, locked_agent, locked_tool, started

from lockstep.agent.effect_spec import ReleaseRule, Repeats
from lockstep.agent.locked import LockedAgent, LockedTool
from lockstep.gate.effects import READ_STANDS_S, freed_by, frees
from lockstep.journal.events import CallJudged
from lockstep.kernel.apply import apply, start
from lockstep.kernel.state import CallState, Emitted, Phase, Receipt, State
from lockstep.kernel.transcript import opening
from lockstep.values import Effect, JsonObject, RunId

NOW = 1_000_000
FLIGHTS = ("/flights/*/number", "/flights/*/date")


def booking(**repeats: Any) -> LockedTool:
    return replace(BOOK, repeats=Repeats(**repeats))


def state_of(agent: LockedAgent, *, run: str = "r1", session: str = "s1", principal: str = "ada", **more: Any) -> State:
    begun = apply(start(RunId(run), opening(agent)), replace(started(session=session), principal=principal), NOW)
    return replace(begun, **more)


def called(name: str, arguments: JsonObject, provider_id: str = "p", at_ms: int = NOW) -> CallState:
    return CallState(id="2.0", provider_id=provider_id, name=name, arguments=json.dumps(arguments), asked_at_ms=at_ms)


def judge(tool: LockedTool, arguments: JsonObject, *others: LockedTool, **of: Any) -> CallJudged:
    agent = locked_agent(tool, *others)
    return gate_of(agent).judge(state_of(agent, **of), called(tool.name, arguments))


# --- fields ---


@pytest.mark.parametrize(
    "arguments, same",
    [
        ({"flights": [{"number": "A1", "date": "20"}, {"number": "A2", "date": "21"}], "bags": 3}, True),
        ({"flights": [{"number": "a1", "date": " 20 "}, {"number": "A2", "date": "21", "price": 9}]}, True),
        ({"flights": [{"number": "A1", "date": "21"}, {"number": "A2", "date": "20"}]}, False),
        ({"flights": [{"number": "A2", "date": "21"}, {"number": "A1", "date": "20"}]}, False),
        ({"flights": [{"number": "A1", "date": "20"}]}, False),
        ({"flights": []}, False),
        ({}, False),
    ],
    ids=["another-field", "written-otherwise", "dates-swapped", "order", "fewer", "none", "absent"],
)
def test_every_item_counts_in_its_place(arguments: JsonObject, same: bool) -> None:
    tool = locked_tool("book", Effect.ONCE, dedupe_on=FLIGHTS)
    first: JsonObject = {"flights": [{"number": "A1", "date": "20"}, {"number": "A2", "date": "21"}]}
    assert (judge(tool, arguments).dedupe_key == judge(tool, first).dedupe_key) is same


# --- scopes ---


@pytest.mark.parametrize(
    "scope, other, same",
    [
        ("run", {"run": "r2"}, False),
        ("session", {"run": "r2"}, True),
        ("session", {"session": "s2"}, False),
        ("principal", {"run": "r2", "session": "s2"}, True),
        ("principal", {"principal": "eve"}, False),
    ],
)
def test_a_scope_says_how_far_the_same_call_reaches(scope: str, other: dict[str, str], same: bool) -> None:
    tool = booking(scope=scope)
    here, there = judge(tool, {"flight": "BA1"}), judge(tool, {"flight": "BA1"}, **other)
    assert (here.dedupe_key == there.dedupe_key) is same


def test_the_scope_none_keeps_no_receipt_and_serves_none() -> None:
    assert judge(booking(scope="none"), {"flight": "BA1"}).dedupe_key == ""


# --- windows ---


@pytest.mark.parametrize("later_ms, stands", [(0, True), (9_999, True), (10_000, False)])
def test_a_receipt_stands_for_its_window(later_ms: int, stands: bool) -> None:
    tool = booking(window_s=10.0)
    first = judge(tool, {"flight": "BA1"})
    assert first.dedupe_until_ms == NOW + 10_000
    receipt = Receipt(where="r0/1.0", at_ms=NOW, text="Booked.", until_ms=first.dedupe_until_ms)
    again = judge(tool, {"flight": "BA1"}, receipts={first.dedupe_key: receipt}, last_at_ms=NOW + later_ms)
    assert (again.duplicate_of == "r0/1.0") is stands


def test_a_doubt_outlives_its_window() -> None:
    tool = booking(window_s=10.0)
    key = judge(tool, {"flight": "BA1"}).dedupe_key
    receipt = Receipt(where="r0/1.0", at_ms=NOW, text="", in_doubt=True, until_ms=NOW)
    assert judge(tool, {"flight": "BA1"}, receipts={key: receipt}, last_at_ms=NOW * 2).error_type == "in_doubt"


# --- releases ---

CANCEL = locked_tool("cancel", Effect.ONCE)
CANCELLED = ReleaseRule(tool="cancel", where={"/id": "result:/booking/id"})
MOVE = replace(
    locked_tool("move", Effect.ONCE),
    repeats=Repeats(released_by=(ReleaseRule(tool="move", where={"/id": "arguments:/id", "/who": "arguments:/who"}),)),
)


@pytest.mark.parametrize(
    "cancelled, result, freed",
    [
        ({"id": "B1"}, '{"booking": {"id": "B1"}}', True),
        ({"id": "B2"}, '{"booking": {"id": "B1"}}', False),
        ({}, '{"booking": {"id": "B1"}}', False),
        ({"id": "B1"}, '{"booking": {}}', False),
        ({"id": "B1"}, "Booked B1.", False),
        ({"id": None}, "null", False),
    ],
    ids=["this-one", "another", "none-named", "no-id", "no-json", "null"],
)
def test_a_release_is_of_what_the_rule_names_and_of_nothing_else(
    cancelled: JsonObject, result: str, freed: bool
) -> None:
    tool = booking(released_by=(CANCELLED,))
    ends = frees({"book": tool, "cancel": CANCEL}, CANCEL, cancelled)
    assert bool(set(ends) & set(freed_by(tool, {"flight": "BA1"}, result))) is freed


def test_all_places_of_a_rule_must_agree() -> None:
    ends = frees({"move": MOVE}, MOVE, {"id": 1, "who": "mia", "to": "X"})
    assert ends == freed_by(MOVE, {"id": 1, "who": "mia", "to": "Y"}, "moved")
    assert not set(ends) & set(freed_by(MOVE, {"id": 1, "who": "omar"}, "moved"))


def test_within_one_reply_the_same_call_is_made_once_whatever_stands_between() -> None:
    """A, B, A in one reply: B frees A, but nobody had seen that when the second A was asked for."""
    agent = locked_agent(MOVE)
    key = gate_of(agent).judge(state_of(agent), called("move", {"id": 1, "to": "A"})).dedupe_key
    done = CallState(
        id="1.0",
        provider_id="p0",
        name="move",
        arguments="{}",
        asked_at_ms=NOW,
        phase=Phase.DONE,
        outcome="ok",
        text="moved",
        dedupe_key=key,
    )
    asked = called("move", {"id": 1, "to": "A"}, "p2")
    gate = gate_of(agent)
    assert gate.judge(state_of(agent, calls=(done, asked)), asked).duplicate_of == "r1/1.0"
    assert gate.judge(state_of(agent, settled=(done,), calls=(asked,)), asked).duplicate_of == ""
    failed = replace(done, outcome="tool_error")
    assert gate.judge(state_of(agent, calls=(failed, asked)), asked).duplicate_of == ""


# --- calls that are emitted again ---


def emitted(tool: LockedTool, effects_seen: int = 0) -> dict[str, tuple[Emitted, ...]]:
    earlier = Emitted(
        where="r0/1.0",
        name=tool.name,
        arguments='{"to": "SFO", "n": 1}',
        text="first",
        asked_at_ms=NOW,
        effects_seen=effects_seen,
    )
    return {"p": (earlier,)}


def again(tool: LockedTool, arguments: JsonObject, provider_id: str = "p", at_ms: int = NOW, **of: Any) -> CallJudged:
    agent = locked_agent(LOOK, NOTE, BOOK)
    state = state_of(agent, **{"emitted": emitted(tool), **of})
    return gate_of(agent).judge(state, called(tool.name, arguments, provider_id, at_ms))


@pytest.mark.parametrize("tool", [LOOK, NOTE, BOOK], ids=lambda tool: tool.effect.value)
def test_the_same_id_tool_and_arguments_get_the_first_result(tool: LockedTool) -> None:
    verdict = again(tool, {"n": 1, "to": "SFO"})
    assert verdict.duplicate_of == "r0/1.0"
    assert verdict.note.startswith("first\n\n[This call was already made (r0/1.0)")


@pytest.mark.parametrize("tool", [LOOK, NOTE], ids=lambda tool: tool.effect.value)
def test_an_id_alone_says_nothing(tool: LockedTool) -> None:
    assert again(tool, {"to": "LAX", "n": 1}).duplicate_of == ""
    assert again(tool, {"to": "SFO", "n": 1}, provider_id="q").duplicate_of == ""
    assert again(tool, {"to": "SFO", "n": 1}, provider_id="").duplicate_of == ""
    assert again(NOTE if tool is LOOK else LOOK, {"to": "SFO", "n": 1}, emitted=emitted(tool)).duplicate_of == ""


def test_a_read_is_made_again_once_something_was_changed_and_after_a_while() -> None:
    same: JsonObject = {"to": "SFO", "n": 1}
    assert again(LOOK, same, effects=1).duplicate_of == ""
    assert again(LOOK, same, effects=1, emitted=emitted(LOOK, effects_seen=1)).duplicate_of == "r0/1.0"
    until = NOW + int(READ_STANDS_S * 1000)
    assert again(LOOK, same, at_ms=until - 1).duplicate_of == "r0/1.0"
    assert again(LOOK, same, at_ms=until).duplicate_of == ""
    assert again(NOTE, same, at_ms=until, effects=1).duplicate_of == "r0/1.0", "what changes something is not"
