"""Lost replies, late ones, failures that pass: what the driver repeats, what it asks after, what waits for a person."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from inprocess import (
    ALLOW_ALL,
    Functions,
    ListedModel,
    call,
    driver_of,
    locked_agent,
    locked_tool,
    lost,
    ok,
    reply,
    started,
    types_of,
)
from test_driver import BA1, during, run_of

from lockstep.agent.effect_spec import ProbeSection
from lockstep.agent.locked import Budget, LockedAgent, LockedTool
from lockstep.journal import events as ev
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.state import Phase, State, Status
from lockstep.runtime.answers import cancel, settle
from lockstep.runtime.driver import Driver
from lockstep.runtime.reading import doubts, read_run, read_state
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import Effect

ANY_FLIGHT = {"type": "object", "properties": {"flight": {"type": "string"}}}
BUSY = Outcome(kind="tool_error", text="503 Service Unavailable", transient=True)
FIND = locked_tool("find", schema=ANY_FLIGHT)


class Waits:
    """Stands in for sleeping, and remembers for how long."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waited.append(round(seconds, 1))
        await asyncio.sleep(min(seconds, 0.02))


def asking(*names: str, agent: LockedAgent, journal: SQLiteJournal, tools: Functions, **more: Any) -> Driver:
    """A driver whose model asks for these one after another, then ends."""
    replies = [reply(call(name, BA1)) for name in names]
    return driver_of(journal, ListedModel(*replies, reply(text="ok")), tools, agent, **more)


def failing(times: int, outcome: Outcome = BUSY) -> Callable[[PermittedCall], Outcome]:
    """Fails so often, then answers."""
    left = [outcome] * times
    return lambda _: left.pop() if left else ok("there it is")


def retried(recorded: Iterable[ev.Recorded]) -> list[ev.EffectRetried]:
    return [item.event for item in recorded if isinstance(item.event, ev.EffectRetried)]


@pytest.mark.parametrize("effect", [Effect.READ, Effect.IDEMPOTENT, Effect.KEYED])
def test_a_failure_that_may_pass_is_repeated_where_that_does_no_harm(tmp_path: Path, effect: Effect) -> None:
    tools, waits = Functions(get=failing(2)), Waits()

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(locked_tool("get", effect))
        state = await run_of(asking("get", agent=agent, journal=journal, tools=tools, sleep=waits))
        assert (state.stop_reason, state.all_calls[0].text) == ("completed", "there it is")
        attempts = retried(await read_run(journal, state.run))
        assert [(each.attempt, each.outcome, each.why) for each in attempts] == [
            (1, "tool_error", BUSY.text),
            (2, "tool_error", BUSY.text),
        ]

    during(tmp_path, work)
    assert tools.count("get") == 3
    assert len({each.key for each in tools.calls}) == 1
    assert len({permit.id for permit in tools.permits}) == 3
    assert waits.waited == [0.5, 1.0]


def test_what_must_not_be_repeated_is_not_and_what_will_not_pass_neither(tmp_path: Path) -> None:
    broken = Outcome(kind="tool_error", text="no such flight")
    tools = Functions(book=failing(1), get=failing(1, broken))

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(locked_tool("book", Effect.ONCE), locked_tool("get"))
        state = await run_of(asking("book", "get", agent=agent, journal=journal, tools=tools))
        assert [each.text for each in state.all_calls] == [BUSY.text, broken.text]
        assert retried(await read_run(journal, state.run)) == []

    during(tmp_path, work)
    assert (tools.count("book"), tools.count("get")) == (1, 1)


def test_the_last_failure_is_told_when_the_attempts_or_the_time_are_used_up(tmp_path: Path) -> None:
    tools = Functions(get=failing(9), look=failing(9))

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(locked_tool("get", retries=1))
        state = await run_of(asking("get", agent=agent, journal=journal, tools=tools, sleep=Waits()))
        assert state.all_calls[0].text == BUSY.text

        async def slow(_: PermittedCall) -> Outcome:
            await asyncio.sleep(0.05)
            return BUSY

        tools.functions["look"] = slow
        hurried = locked_agent(locked_tool("look"), budget=Budget(wall_s=0.04))
        state = await run_of(asking("look", agent=hurried, journal=journal, tools=tools), session="s2")
        assert state.all_calls[0].text == BUSY.text
        assert state.stop_reason == "budget_wall"

    during(tmp_path, work)
    assert (tools.count("get"), tools.count("look")) == (2, 1)


def test_parallel_reads_are_repeated_one_by_one_as_they_need_it(tmp_path: Path) -> None:
    tools = Functions(get=failing(1), look=lambda _: ok("seen"))

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(locked_tool("get"), locked_tool("look"))
        model = ListedModel(reply(call("look"), call("get"), call("look")), reply(text="ok"))
        state = await run_of(driver_of(journal, model, tools, agent, sleep=Waits()))
        assert [each.text for each in state.all_calls] == ["seen", "there it is", "seen"]

    during(tmp_path, work)
    assert (tools.count("look"), tools.count("get")) == (2, 2)


def test_a_lost_reply_of_a_keyed_call_is_asked_for_again_with_its_key_and_then_in_doubt(tmp_path: Path) -> None:
    tools = Functions(pay=lambda _: lost())

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(locked_tool("pay", Effect.KEYED))
        driving = asking("pay", agent=agent, journal=journal, tools=tools, sleep=Waits())
        state = await run_of(driving)
        assert (state.status, state.calls[0].phase) == (Status.SUSPENDED, Phase.DOUBTED)

    during(tmp_path, work)
    assert tools.count("pay") == 3
    assert len({each.key for each in tools.calls}) == 1


def test_a_late_result_settles_the_doubt_that_its_deadline_made(tmp_path: Path) -> None:
    booking = locked_tool("book", Effect.ONCE, dedupe_on=("/flight",), timeout_s=0.05, late_s=5.0)

    async def work(journal: SQLiteJournal) -> None:
        async def slow(asked: PermittedCall) -> Outcome:
            await asyncio.sleep(0.15)
            durable = await read_state(journal, asked.run)
            assert durable.calls[0].phase is Phase.DOUBTED, "past its deadline it is in doubt for everybody"
            return ok("Booked BA1.")

        tools = Functions(book=slow)
        agent = locked_agent(booking)
        state = await run_of(asking("book", "book", agent=agent, journal=journal, tools=tools))
        first, second = state.all_calls
        assert (state.stop_reason, first.text) == ("completed", "Booked BA1.")
        assert second.duplicate_of == f"{state.run}/{first.id}"
        kinds = types_of(await read_run(journal, state.run))
        assert kinds.index("effect.doubted") + 1 == kinds.index("effect.settled")
        assert tools.count("book") == 1

    during(tmp_path, work)


def probed(settles_after_s: float | None = None) -> LockedTool:
    probe = ProbeSection(
        tool="find", arguments={"flight": "arguments:/flight"}, found="/bookings", settles_after_s=settles_after_s
    )
    return locked_tool("book", Effect.ONCE, dedupe_on=("/flight",), probe=probe)


def bookings(*found: Any) -> Outcome:
    return ok(json.dumps({"bookings": list(found)}))


def test_a_probe_that_finds_it_settles_a_lost_reply(tmp_path: Path) -> None:
    tools = Functions(book=lambda _: lost(), find=lambda _: bookings({"id": "BK-1"}))

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(probed(), FIND)
        state = await run_of(asking("book", "book", agent=agent, journal=journal, tools=tools))
        first, second = state.all_calls
        assert (first.outcome, "BK-1" in first.text, "find found it" in first.text) == ("ok", True, True)
        assert second.duplicate_of == f"{state.run}/{first.id}"

    during(tmp_path, work)
    assert (tools.count("book"), tools.count("find")) == (1, 1)
    assert tools.calls[1].arguments == BA1


def test_not_found_means_that_it_did_not_happen_only_once_it_cannot_happen_any_more(tmp_path: Path) -> None:
    tools, waits = Functions(book=failing(1, lost()), find=lambda _: bookings()), Waits()

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(probed(settles_after_s=0.1), FIND)
        state = await run_of(asking("book", "book", agent=agent, journal=journal, tools=tools, sleep=waits))
        first, second = state.all_calls
        assert (first.outcome, second.outcome, second.duplicate_of) == ("did_not_happen", "ok", "")
        kinds = types_of(await read_run(journal, state.run))
        assert kinds.index("effect.probed") < kinds.index("effect.reconciled")

    during(tmp_path, work)
    assert tools.count("book") == 2


@pytest.mark.parametrize(
    "answer",
    [bookings(), BUSY, ok("no JSON"), ok("[1"), lost()],
    ids=["not found, for ever unsettled", "busy", "text", "half", "lost"],
)
def test_a_probe_that_decides_nothing_leaves_it_to_a_person(tmp_path: Path, answer: Outcome) -> None:
    tools = Functions(book=lambda _: lost(), find=lambda _: answer)

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(probed(), FIND)
        driving = asking("book", agent=agent, journal=journal, tools=tools, sleep=Waits())
        state = await run_of(driving)
        assert (state.status, state.calls[0].phase) == (Status.SUSPENDED, Phase.DOUBTED)
        asked = tools.count("find")
        assert asked == 4
        tools.functions["find"] = lambda _: bookings("BK-1")
        state = await driving.resume(state.run, by="ada")
        assert (state.stop_reason, state.all_calls[0].outcome) == ("completed", "ok")
        assert tools.count("find") == asked + 1

    during(tmp_path, work)
    assert tools.count("book") == 1


def test_a_probe_passes_the_gate_too(tmp_path: Path) -> None:
    policy = ALLOW_ALL + 'forbid (principal, action == Action::"find", resource);'
    tools = Functions(book=lambda _: lost(), find=lambda _: bookings("BK-1"))

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(probed(), FIND, policy=policy)
        state = await run_of(asking("book", agent=agent, journal=journal, tools=tools))
        assert state.status is Status.SUSPENDED
        probes = [item.event for item in await read_run(journal, state.run) if isinstance(item.event, ev.EffectProbed)]
        assert [(each.outcome, each.again_at_ms) for each in probes] == [("not_permitted", None)]
        assert "forbids it" in probes[0].text

    during(tmp_path, work)
    assert tools.count("find") == 0


@pytest.mark.parametrize("happened", [True, False], ids=["did", "did not"])
def test_a_doubt_of_a_cancelled_run_is_listed_and_settled_for_the_next(tmp_path: Path, happened: bool) -> None:
    tools = Functions(book=failing(1, lost()))

    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(locked_tool("book", Effect.ONCE, dedupe_on=("/flight",)))
        driving = asking("book", agent=agent, journal=journal, tools=tools)
        first = await run_of(driving)
        await cancel(journal, first.run, by="ada")
        refused = await run_of(driving)
        assert [each.outcome for each in refused.all_calls] == ["in_doubt"]
        (item,) = await doubts(journal)
        assert (item.state.run, item.call.id) == (first.run, "1.0")  # type: ignore[union-attr]
        await settle(journal, first.run, "1.0", happened=happened, by="ada", result="BA1 it was" if happened else "")
        assert await doubts(journal) == []
        assert (await journal.verify(first.run)).broken_seq is None
        again = await run_of(driving)
        assert (again.all_calls[0].duplicate_of == f"{first.run}/1.0") == happened

    during(tmp_path, work)
    assert tools.count("book") == (1 if happened else 2)


@pytest.mark.parametrize("how", ["lost", "killed"])
def test_a_keyed_call_whose_first_attempt_may_have_happened_is_in_doubt_when_the_next_fails(
    tmp_path: Path, how: str
) -> None:
    """The failure of one attempt says nothing about another."""

    def pay(asked: PermittedCall) -> Outcome:
        attempts.append(asked.key)
        if len(attempts) > 1:
            return Outcome(kind="tool_error", text="the card was refused")
        if how == "killed":
            raise ConnectionError("the process ended here")
        return lost()

    attempts: list[str] = []
    keyed = locked_tool("pay", Effect.KEYED)

    async def work(journal: SQLiteJournal) -> State:
        driving = asking("pay", agent=locked_agent(keyed), journal=journal, tools=Functions(pay=pay), sleep=Waits())
        run = await driving.start(started())
        try:
            return await driving.advance(run)
        except ConnectionError:
            return await driving.resume(run, by="ada")

    state = during(tmp_path, work)
    assert (state.status, state.calls[0].phase) == (Status.SUSPENDED, Phase.DOUBTED)
    assert state.calls[0].why_doubted.endswith("the card was refused")
    assert len(attempts) == 2
    assert len(set(attempts)) == 1
