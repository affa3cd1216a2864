"""Whose a session is, and which one is meant by who names none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from inprocess import Functions, ListedModel, driver_of, locked_agent, started

from lockstep.errors import AgentStopped
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.stops import StopBook
from lockstep.runtime import calling
from lockstep.runtime.calling import Caller, Desk
from lockstep.values import now_ms

ADA, EVE = Caller(principal="ada", client="test"), Caller(principal="eve", client="test")
BA1 = {"flight": "BA1"}


@dataclass(kw_only=True)
class World:
    desk: Desk
    tools: Functions
    stops: StopBook


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[World]:
    journal, tools = SQLiteJournal.open(path), Functions()
    desk = Desk(driver_of(journal, ListedModel(), tools, locked_agent()), journal, started(""))
    try:
        yield World(desk=desk, tools=tools, stops=StopBook.open(journal.directory))
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
        monkeypatch.setattr(calling, "MAX_SESSIONS", 3)
        async with opened(tmp_path) as world:
            again = await world.desk.call(ADA, "book", BA1)
            assert again.calls[0].duplicate_of == f"{first.run}/1.0"
            assert world.tools.calls == []

    run(work)
