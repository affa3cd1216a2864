"""Whose a session is, and which one is meant by who names none."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from inprocess import (
    ASK_BOOK,
    Functions,
    ListedModel,
    answer,
    call,
    driver_of,
    locked_agent,
    ok,
    reply,
    started,
)

from lockstep.agent.locked import LockedAgent
from lockstep.errors import AgentStopped, RunError, StoreFull
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.stops import StopBook
from lockstep.kernel.state import Phase, Status
from lockstep.runtime import calling, sessions
from lockstep.runtime.calling import Desk
from lockstep.runtime.reading import doubts, unfinished
from lockstep.runtime.sessions import Caller
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import now_ms

ADA, EVE = Caller(principal="ada", client="test"), Caller(principal="eve", client="test")
BA1 = {"flight": "BA1"}


@dataclass(kw_only=True)
class World:
    desk: Desk
    tools: Functions
    stops: StopBook
    journal: SQLiteJournal


@asynccontextmanager
async def opened(
    path: Path, agent: LockedAgent | None = None, model: Any = None, **functions: Any
) -> AsyncIterator[World]:
    journal, tools = SQLiteJournal.open(path), Functions(**functions)
    desk = Desk(driver_of(journal, model or ListedModel(), tools, agent or locked_agent()), journal, started(""))
    try:
        yield World(desk=desk, tools=tools, stops=StopBook.open(journal.directory), journal=journal)
    finally:
        await desk.close(5)
        await journal.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


async def nothing_begins(world: World, caller: Caller) -> None:
    """A call of which nothing is recorded, although its session was opened."""
    world.stops.stop("traveller", by="ada", because="", at_ms=now_ms())
    with pytest.raises(AgentStopped):
        await world.desk.call(caller, "book", BA1)
    world.stops.start("traveller", by="ada", because="", at_ms=now_ms())


def test_two_principals_do_not_come_to_share_a_session_before_anything_is_recorded_of_it(tmp_path: Path) -> None:
    async def work() -> None:
        ada, eve = replace(ADA, session="s1"), replace(EVE, session="s1")
        async with opened(tmp_path) as world:
            await nothing_begins(world, ada)
            assert (await world.desk.call(eve, "book", BA1)).session != "s1"
            assert (await world.desk.call(ada, "book", BA1)).session == "s1"
            assert world.tools.count("book") == 2
        async with opened(tmp_path) as world:
            assert (await world.desk.call(eve, "book", BA1)).session != "s1"
            assert world.tools.count("book") == 0

    run(work)


def test_a_session_is_found_again_however_much_others_did_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world:
            first = await world.desk.call(ADA, "book", BA1)
            for _ in range(4):
                await world.desk.call(EVE, "look", {})
        monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
        async with opened(tmp_path) as world:
            again = await world.desk.call(ADA, "book", BA1)
            assert again.calls[0].duplicate_of == f"{first.run}/1.0"
            assert world.tools.calls == []

    run(work)


# --- a store that fails while a call is driven ---


class Disk:
    """Nothing can be written to any file of this process while it is full."""

    def __init__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def full_once_it_runs(self, call: PermittedCall) -> Outcome:
        """A tool that does what it is asked to, and nobody can write down that it did."""
        self.full()
        return ok("booked")


@pytest.fixture
def disk() -> Iterator[Disk]:
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    disk = Disk()
    try:
        yield disk
    finally:
        disk.free()
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("again", [BA1, {**BA1, "seat": "3A"}], ids=["the same", "the same effect"])
def test_a_call_whose_outcome_could_not_be_written_down_is_in_doubt_and_not_made_again(
    tmp_path: Path, disk: Disk, again: dict[str, str]
) -> None:
    async def work() -> None:
        async with opened(tmp_path, book=disk.full_once_it_runs) as world:
            with pytest.raises(RunError, match="Nobody knows yet"):
                await world.desk.call(ADA, "book", BA1)
            with pytest.raises(RunError, match="an earlier call of this session"):
                await world.desk.call(ADA, "book", again)
            disk.free()
            told = await world.desk.call(ADA, "book", again)
            assert told.calls[0].phase is Phase.DOUBTED or told.calls[0].outcome == "in_doubt"
            assert world.tools.count("book") == 1
            (doubt,) = await doubts(world.journal)
            assert doubt.call.name == "book"

    run(work)


def test_who_waited_behind_such_a_call_does_not_make_it_either(tmp_path: Path, disk: Disk) -> None:
    may_end = asyncio.Event()

    async def book(call: PermittedCall) -> Outcome:
        await may_end.wait()
        return disk.full_once_it_runs(call)

    async def work() -> None:
        async with opened(tmp_path, book=book) as world:
            both = [asyncio.create_task(world.desk.call(ADA, "book", BA1)) for _ in range(2)]
            may_end.set()
            first, second = await asyncio.gather(*both, return_exceptions=True)
            assert (type(first), type(second)) == (RunError, RunError)
            assert world.tools.count("book") == 1

    run(work)


def test_it_is_settled_though_nobody_asks_again(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "MEND_S", (0.01,))

    async def work() -> None:
        async with opened(tmp_path, book=disk.full_once_it_runs) as world:
            with pytest.raises(RunError):
                await world.desk.call(ADA, "book", BA1)
            disk.free()
            found = await doubts(world.journal)
            while not found:
                await asyncio.sleep(0.01)
                found = await doubts(world.journal)
            assert len(found) == 1
            assert (await world.desk.call(ADA, "look", {})).status is Status.FINISHED

    run(work)


def test_an_idempotent_call_whose_outcome_was_lost_is_made_again_and_told_to_who_asks(
    tmp_path: Path, disk: Disk
) -> None:
    async def work() -> None:
        async with opened(tmp_path, note=disk.full_once_it_runs) as world:
            with pytest.raises(RunError):
                await world.desk.call(ADA, "note", {"text": "x"})
            disk.free()
            world.tools.functions.pop("note")
            told = await world.desk.call(ADA, "note", {"text": "x"})
            assert (told.calls[0].outcome, world.tools.count("note")) == ("ok", 2)
            assert len(await world.journal.runs()) == 1
            assert await unfinished(world.journal) == []

    run(work)


def test_a_call_that_could_not_even_be_intended_was_not_made_and_is_made_when_it_is_asked_for_again(
    tmp_path: Path, disk: Disk
) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world:
            await world.desk.call(ADA, "look", {})
            disk.full()
            with pytest.raises(StoreFull):
                await world.desk.call(ADA, "book", BA1)
            disk.free()
            assert (await world.desk.call(ADA, "book", BA1)).calls[0].outcome == "ok"
            assert world.tools.count("book") == 1
            assert await unfinished(world.journal) == []

    run(work)


def test_a_run_of_the_agent_that_broke_off_leaves_its_session_what_it_let_go(tmp_path: Path, disk: Disk) -> None:
    async def work() -> None:
        model = ListedModel(reply(call("book", BA1)), reply())
        async with opened(tmp_path, model=model, book=disk.full_once_it_runs) as world:
            with pytest.raises(RunError, match="Nobody knows yet"):
                await world.desk.ask(ADA, "Book it.")
            disk.free()
            told = await world.desk.call(ADA, "book", BA1)
            assert (told.calls[0].outcome, world.tools.count("book")) == ("in_doubt", 1)

    run(work)


def test_a_gateway_that_begins_while_its_agent_is_stopped_settles_what_was_let_go_once_it_goes_on(
    tmp_path: Path,
) -> None:
    class Killed(BaseException):
        """The process died here."""

    def dies(call: PermittedCall) -> Outcome:
        raise Killed

    async def work() -> None:
        async with opened(tmp_path, book=dies) as world:
            with pytest.raises(Killed):
                await world.desk.call(ADA, "book", BA1)
            world.stops.stop("traveller", by="ada", because="", at_ms=now_ms())
        async with opened(tmp_path) as world:
            await world.desk.recover()
            with pytest.raises(AgentStopped):
                await world.desk.call(ADA, "book", BA1)
            world.stops.start("traveller", by="ada", because="", at_ms=now_ms())
            assert await doubts(world.journal) == []
            told = await world.desk.call(ADA, "book", {**BA1, "seat": "3A"})
            assert (told.calls[0].outcome, world.tools.count("book")) == ("in_doubt", 0)
            assert len(await doubts(world.journal)) == 1

    run(work)


# --- runs of one session that wait beside one another ---


def test_of_two_questions_about_one_effect_both_answered_yes_one_is_made(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, locked_agent(policy=ASK_BOOK)) as world:
            waits = [await world.desk.call(ADA, "book", {**BA1, "seat": seat}) for seat in ("1A", "2A")]
            assert [each.suspended_for for each in waits] == ["approval", "approval"]
            second, first = [
                (await _approved(world, each.run, each.calls[0].approval)).calls[0] for each in reversed(waits)
            ]
            assert (second.outcome, first.outcome) == ("ok", "joined")
            assert "was not run again" in first.text
            assert world.tools.count("book") == 1
            again = await world.desk.call(ADA, "book", BA1)
            assert again.calls[0].duplicate_of == f"{waits[1].run}/1.0"

    run(work)


async def _approved(world: World, run: Any, approval: str) -> Any:
    await answer(world.journal, approval, given=True, by="grace")
    return await world.desk.go_on(run, by="grace", fetched=False)


def test_a_run_that_was_left_behind_does_not_make_what_its_session_made_since(tmp_path: Path) -> None:
    async def work() -> None:
        model = ListedModel(reply(call("book", BA1)), reply())
        async with opened(tmp_path, model=model) as world:
            left = await driver_of(world.journal, model, world.tools).start(started(session="s1"))  # and died
            made = await world.desk.call(replace(ADA, session="s1"), "book", BA1)
            state = await driver_of(world.journal, model, world.tools).resume(left, by="grace")
            (booked,) = state.all_calls
            assert (booked.outcome, made.calls[0].outcome, world.tools.count("book")) == ("joined", "ok", 1)

    run(work)
