"""The kill switch while runs are driven: what is under way is broken off, in doubt or run again, and the run waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inprocess import (
    ASK_BOOK,
    BOOK,
    Functions,
    ListedModel,
    answer,
    call,
    driver_of,
    locked_agent,
    ok,
    reply,
    started,
    types_of,
)

from lockstep.agent.effect_spec import Repeats
from lockstep.agent.locked import LockedTool
from lockstep.errors import AgentStopped, StoreError
from lockstep.gate.permit import Permit
from lockstep.journal import events as ev
from lockstep.journal.port import Stop
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.stops import StopBook
from lockstep.kernel.state import Phase, State, Status
from lockstep.runtime.answers import settle
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import now_ms

WAIT_S = 30


class World:
    """A store, a driver on it, and a second hand at the kill switch."""

    def __init__(self, journal: SQLiteJournal, model: Any, tools: Functions, *kept: LockedTool, **agent: Any) -> None:
        self.journal = journal
        self.tools = tools
        self.driver = driver_of(journal, model, tools, locked_agent(*kept, **agent))
        self.book = StopBook.open(journal.directory)

    def stop(self) -> None:
        self.book.stop("traveller", by="ada", because="it books twice", at_ms=now_ms())

    def start(self) -> None:
        self.book.start("traveller", by="ada", because="", at_ms=now_ms())


def during(tmp_path: Path, work: Callable[[SQLiteJournal], Any]) -> Any:
    async def bounded() -> Any:
        journal = SQLiteJournal.open(tmp_path)
        try:
            return await asyncio.wait_for(work(journal), WAIT_S)
        finally:
            await journal.close()

    return asyncio.run(bounded())


class Slow:
    """A tool that stops the agent while it runs, and would never end; the second time it answers."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.broken_off = 0

    async def __call__(self, asked: PermittedCall) -> Outcome:
        if self.broken_off:
            return ok("done at last")
        assert self.world is not None
        self.world.stop()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        raise AssertionError("never")


@pytest.mark.parametrize("tool", ["look", "note", "pay"])
def test_a_call_that_may_be_repeated_is_broken_off_and_runs_again_after_the_start(tmp_path: Path, tool: str) -> None:
    async def work(journal: SQLiteJournal) -> tuple[State, State, int]:
        slow = Slow()
        tools = Functions(**{tool: slow})
        world = slow.world = World(journal, ListedModel(reply(call(tool)), reply(text="well")), tools)
        run = await world.driver.start(started())
        waiting = await world.driver.advance(run)
        assert tools.ended, "what was kept for the run is destroyed before its suspension is recorded"
        world.start()
        return waiting, await world.driver.resume(run, by="ada"), tools.count(tool)

    waiting, done, ran = during(tmp_path, work)
    assert (waiting.status, waiting.suspended_for) == (Status.SUSPENDED, "agent_stopped")
    assert "stopped by ada" in waiting.message
    assert "it books twice" in waiting.message
    assert f"lockstep resume {waiting.run}" in waiting.message
    assert (done.stop_reason, done.output, ran, done.crashes) == ("completed", "well", 2, 0)


def test_a_once_call_that_was_broken_off_is_in_doubt_and_never_repeated(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> tuple[State, State, State, list[str], int]:
        slow = Slow()
        tools = Functions(book=slow)
        world = slow.world = World(journal, ListedModel(reply(call("book")), reply(text="well")), tools)
        run = await world.driver.start(started())
        waiting = await world.driver.advance(run)
        types = types_of(await journal.read(run))
        world.start()
        still = await world.driver.resume(run, by="ada")
        await settle(journal, run, happened=True, by="ada")
        return waiting, still, await world.driver.resume(run, by="ada"), types, tools.count("book")

    waiting, still, done, types, ran = during(tmp_path, work)
    assert types[-3:] == ["effect.intended", "effect.doubted", "run.suspended"]
    assert waiting.calls[0].phase is Phase.DOUBTED
    assert "in doubt" in waiting.message
    assert still.status is Status.SUSPENDED
    assert (done.stop_reason, ran) == ("completed", 1)


def test_a_model_that_is_thinking_is_broken_off(tmp_path: Path) -> None:
    class Thinking(ListedModel):
        async def reply(self, *asked: Any, **how: Any) -> Any:
            if not self.prompts:
                self.prompts.append(asked[0])
                world.stop()
                await asyncio.Event().wait()
            return await super().reply(*asked, **how)

    world: World

    async def work(journal: SQLiteJournal) -> tuple[State, State]:
        nonlocal world
        world = World(journal, Thinking(reply(text="well")), Functions())
        run = await world.driver.start(started())
        waiting = await world.driver.advance(run)
        world.start()
        return waiting, await world.driver.resume(run, by="ada")

    waiting, done = during(tmp_path, work)
    assert waiting.suspended_for == "agent_stopped"
    assert (done.stop_reason, done.totals.steps) == ("completed", 1)


def test_every_run_of_the_driver_is_broken_off_by_one_stop(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> list[State]:
        both = asyncio.Barrier(2)

        async def wait(asked: PermittedCall) -> Outcome:
            await both.wait()
            world.stop()
            await asyncio.Event().wait()
            raise AssertionError("never")

        world = World(journal, ListedModel(reply(call("look"))), Functions(look=wait))
        runs = [await world.driver.start(started(session=name)) for name in ("s1", "s2")]
        return await asyncio.gather(*map(world.driver.advance, runs))

    assert [state.suspended_for for state in during(tmp_path, work)] == ["agent_stopped"] * 2


def test_a_stopped_agent_gets_no_permit_for_what_was_allowed_before(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> tuple[State, int]:
        async def answer(*asked: Any, **how: Any) -> Any:
            world.stop()  # after the last look, before the gate lets the call go
            return reply(call("book"))

        model = ListedModel()
        model.reply = answer  # type: ignore[method-assign]
        world = World(journal, model, Functions())
        state = await world.driver.advance(await world.driver.start(started()))
        return state, world.tools.count("book")

    state, ran = during(tmp_path, work)
    assert (state.suspended_for, state.calls[0].phase, ran) == ("agent_stopped", Phase.ALLOWED, 0)


def test_nothing_begins_goes_on_or_is_approved_while_it_is_stopped_but_may_be_refused(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> State:
        model = ListedModel(reply(call("book")), reply(text="well"))
        world = World(journal, model, Functions(), policy=ASK_BOOK)
        run = await world.driver.start(started())
        waiting = await world.driver.advance(run)
        approval = waiting.calls[0].approval
        world.stop()
        with pytest.raises(AgentStopped):
            await world.driver.start(started(session="s2"))
        with pytest.raises(AgentStopped):
            await world.driver.resume(run, by="ada")
        with pytest.raises(AgentStopped):
            await answer(journal, approval, given=True, by="ada")
        await answer(journal, approval, given=False, by="ada")
        world.start()
        return await world.driver.resume(run, by="ada")

    assert during(tmp_path, work).all_calls[0].outcome == "approval_refused"


class Blind(SQLiteJournal):
    """A journal whose stops can be read only so often."""

    looks = 10**9

    def stop_of(self, agent: str) -> Stop | None:
        self.looks -= 1
        if self.looks < 0:
            raise StoreError("The store failed.")
        return super().stop_of(agent)


def test_where_stops_cannot_be_read_nothing_is_let_go_and_what_runs_is_broken_off(tmp_path: Path) -> None:
    async def work() -> tuple[list[str], int]:
        journal = Blind.open(tmp_path)

        async def wait(asked: PermittedCall) -> Outcome:
            journal.looks = 0
            await asyncio.Event().wait()
            raise AssertionError("never")

        world = World(journal, ListedModel(reply(call("look"))), Functions(look=wait))
        run = await world.driver.start(started())
        with pytest.raises(StoreError):
            await world.driver.advance(run)
        with pytest.raises(StoreError):
            await world.driver.resume(run, by="ada")
        types = types_of(await journal.read(run))
        await journal.close()
        return types, world.tools.count("look")

    types, ran = asyncio.run(asyncio.wait_for(work(), WAIT_S))
    assert (types[-1], ran) == ("call.judged", 1)


def test_a_stop_recorded_before_the_first_step_costs_no_model_call(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> tuple[State, int]:
        model = ListedModel(reply(text="well"))
        world = World(journal, model, Functions())
        run = await world.driver.start(started())
        world.stop()
        return await world.driver.advance(run), len(model.prompts)

    state, asked = during(tmp_path, work)
    assert (state.suspended_for, asked) == ("agent_stopped", 0)


def test_the_suspension_says_its_reason_in_the_record(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> ev.Event:
        world = World(journal, ListedModel(reply(text="well")), Functions())
        run = await world.driver.start(started())
        world.stop()
        await world.driver.advance(run)
        return (await journal.read(run))[-1].event

    event = during(tmp_path, work)
    assert isinstance(event, ev.RunSuspended)
    assert (event.reason, event.call) == ("agent_stopped", "")


def test_a_late_call_that_is_broken_off_is_in_doubt_from_then_on_and_not_from_its_deadline(tmp_path: Path) -> None:
    """A probe that does not find it decides only some time after it has ended."""
    late = replace(BOOK, repeats=Repeats(late_s=60.0))

    class Waited(Functions):
        async def call(
            self, asked: PermittedCall, permit: Permit, on_overdue: Callable[[], None], *more: Any
        ) -> Outcome:  # type: ignore[override]
            on_overdue()
            return await super().call(asked, permit)

    async def work(journal: SQLiteJournal) -> tuple[State, list[str]]:
        slow = Slow()
        world = slow.world = World(journal, ListedModel(reply(call("book"))), Waited(book=slow), late)
        state = await world.driver.advance(await world.driver.start(started()))
        return state, types_of(await journal.read(state.run))

    state, types = during(tmp_path, work)
    assert types[-3:] == ["effect.doubted", "effect.doubted", "run.suspended"]
    assert "did not answer within" in state.calls[0].why_doubted
