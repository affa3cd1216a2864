"""Runs read back: one that cannot be read hides no other, and can be ended."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from inprocess import ASK_BOOK, BOOK, LOOK, Functions, ListedModel, call, driver_of, locked_agent, reply, started
from test_driver import BA1, during, run_of

from lockstep.agent.locked import LockedTool
from lockstep.errors import JournalCorrupt, RunError
from lockstep.journal import events as ev
from lockstep.journal.port import Journal
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.state import State, Status
from lockstep.runtime import driver
from lockstep.runtime.answers import answer_approval, cancel
from lockstep.runtime.driver import Driver
from lockstep.runtime.reading import Unreadable, read_row, unfinished, waiting
from lockstep.values import RunId

BROKEN = {
    "a body": "UPDATE events SET body = x'ff' WHERE run = 1 AND seq = 2",
    "the first body": "UPDATE events SET body = x'ff' WHERE run = 1 AND seq = 1",
    "the last body": "UPDATE events SET body = x'ff' WHERE run = 1 AND type = 'run.suspended'",
    "a type": "UPDATE events SET type = 'moon.rose' WHERE run = 1 AND seq = 3",
    "a verdict's effect": """UPDATE events SET body = '{"call":"1.0","verdict":"ask","effect":"magic"}'"""
    " WHERE run = 1 AND type = 'call.judged'",
    "the first event": "DELETE FROM events WHERE run = 1 AND seq = 1",
    "the last hash": "UPDATE events SET hash = 'moon', body = x'ff' WHERE run = 1 AND type = 'run.suspended'",
    "its name": "UPDATE runs SET run_id = 'r-elsewhere' WHERE number = 1; UPDATE events SET body = x'ff' WHERE run = 1",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=BROKEN.values(), ids=BROKEN.keys())
def broken(request: pytest.FixtureRequest, path: Path) -> Path:
    """A store of two runs that wait for an approval; of the first, something cannot be read."""
    during(path, lambda journal: run_of(asking(journal), session="s1"))
    during(path, lambda journal: run_of(asking(journal), session="s2"))
    edit(path, request.param)
    return path


def edit(path: Path, statements: str) -> None:
    with closing(sqlite3.connect(path / "journal.db")) as connection:
        connection.executescript(statements)


def asking(journal: Journal) -> Driver:
    model = ListedModel(reply(call("book", BA1)), reply(text="Booked."))
    return driver_of(journal, model, Functions(), locked_agent(policy=ASK_BOOK))


def test_a_run_that_cannot_be_read_hides_no_other_and_says_why(broken: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        second, first = [await read_row(journal, row) for row in await journal.runs()]
        assert isinstance(first, Unreadable)
        assert first.why
        assert not first.finished
        assert isinstance(second, State)
        (item,) = waiting(await unfinished(journal))
        assert item.state == second
        with pytest.raises(RunError, match=f"What waits in {first.row.run} cannot be read"):
            await answer_approval(journal, "a0000", given=True, by="ada")
        await answer_approval(journal, item.call.approval, given=True, by="ada")
        assert (await asking(journal).resume(second.run, by="ada")).stop_reason == "completed"

    during(broken, work)


def test_a_run_that_cannot_be_read_is_ended_by_cancel_and_its_chain_goes_on(broken: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        row = (await journal.runs())[1]
        head = (await journal.verify(row.run)).broken_seq
        state = await cancel(journal, row.run, by="ada")
        assert (state.status, state.stop_reason, state.totals.cost_usd) == (Status.FINISHED, "cancelled", None)
        assert state.message.startswith("Cancelled by ada. What it did is not known: ")
        ended = (await journal.runs())[1]
        assert (ended.last, ended.events) == (ev.RunFinished.TYPE, row.events + 1)
        assert (await journal.verify(row.run)).broken_seq == head, "what was broken is so still, and nothing else is"
        assert len(await unfinished(journal)) == 1
        with pytest.raises(RunError, match="has finished already, and cannot be read"):
            await cancel(journal, row.run, by="ada")

    during(broken, work)


# --- the history of a session ---


def booking(journal: Journal, tools: Functions, window_runs: int = 20) -> Driver:
    model = ListedModel(reply(call("book", BA1)), reply(text="Booked."))
    return driver_of(journal, model, tools, locked_agent(window_runs=window_runs))


@pytest.mark.parametrize("tools, window_runs", [((BOOK,), 0), ((LOOK,), 20)], ids=["its receipts", "its messages"])
def test_a_session_with_a_run_that_counts_and_cannot_be_read_takes_no_other_and_says_the_way_out(
    path: Path, tools: tuple[LockedTool, ...], window_runs: int
) -> None:
    async def work(journal: SQLiteJournal) -> None:
        agent = locked_agent(*tools, window_runs=window_runs)
        driving = driver_of(journal, ListedModel(reply()), Functions(), agent)
        (broken,) = [row.run for row in await journal.runs()]
        with pytest.raises(JournalCorrupt, match=f"'s1' cannot go on, because what its run {broken} did") as caught:
            await driving.start(started())
        assert "Begin another session" in caught.value.remedy
        assert len(await journal.runs()) == 1, "nothing of the refused run is on record"
        assert (await run_of(driving, session="s2")).stop_reason == "completed"

    during(path, lambda journal: run_of(driver_of(journal, ListedModel(reply()), Functions())))
    edit(path, "UPDATE events SET body = x'ff' WHERE seq = 2")
    during(path, work)


def test_reading_the_history_costs_a_run_none_of_its_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000_000]

    async def slowly(self: SQLiteJournal, run: RunId, after_seq: int = 0) -> list[ev.Recorded]:
        recorded = await read(self, run, after_seq)
        clock[0] += 60_000 * any(item.event.TYPE == ev.RunFinished.TYPE for item in recorded)
        return recorded

    read = SQLiteJournal.read
    during(path, lambda journal: run_of(booking(journal, Functions())))
    monkeypatch.setattr(SQLiteJournal, "read", slowly)
    monkeypatch.setattr(driver, "now_ms", lambda: clock[0])
    state = during(path, lambda journal: run_of(driver_of(journal, ListedModel(reply()), Functions())))
    assert clock[0] > 1_000_000, "the history was read"
    assert state.active_ms(clock[0]) == 0
