"""Runs read back: one that cannot be read hides no other, and can be ended."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from inprocess import (
    ASK_BOOK,
    BOOK,
    LOOK,
    Functions,
    ListedModel,
    answer,
    call,
    driver_of,
    locked_agent,
    lost,
    ok,
    reply,
    started,
)
from test_driver import BA1, during, run_of

from lockstep.agent.locked import LockedTool
from lockstep.errors import JournalCorrupt, RunError
from lockstep.journal import events as ev
from lockstep.journal.port import Journal
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.state import Left, Receipt, State, Status
from lockstep.kernel.usage import Usage
from lockstep.runtime import driver, live
from lockstep.runtime.answers import cancel, settle
from lockstep.runtime.driver import Driver
from lockstep.runtime.extracts import extract_of, left_in
from lockstep.runtime.reading import Unreadable, read_row, unfinished, verify_run, waiting
from lockstep.values import RunId, now_ms

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
            await answer(journal, "a0000", given=True, by="ada")
        await answer(journal, item.call.approval, given=True, by="ada")
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
    for module in (driver, live):
        monkeypatch.setattr(module, "now_ms", lambda: clock[0])
    state = during(path, lambda journal: run_of(driver_of(journal, ListedModel(reply()), Functions())))
    assert clock[0] > 1_000_000, "the history was read"
    assert state.active_ms(clock[0]) == 0


# --- what is kept of it ---

LOSSES = {
    "nothing": "",
    "all of it": "DELETE FROM extracts",
    "one run": "DELETE FROM extracts WHERE run = 1",
    "a body": "UPDATE extracts SET body = x'ff'",
    "to say nothing": """UPDATE extracts SET body = '{"schema":1,"receipts":{}}'""",
    "its seals": "UPDATE extracts SET hash = zeroblob(32)",
    "its order": "UPDATE extracts SET body = (SELECT body FROM extracts WHERE run = 2)",
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("how", ["ok", "in doubt"])
def test_whatever_becomes_of_what_was_kept_nothing_is_booked_twice(path: Path, loss: str, how: str) -> None:
    tools = Functions(book=lambda _: ok("Booked.") if how == "ok" else lost())

    async def first(journal: SQLiteJournal) -> RunId:
        state = await run_of(booking(journal, tools, 0))
        if how == "in doubt":
            await cancel(journal, state.run, by="ada")
        for _ in range(3):
            await run_of(driver_of(journal, ListedModel(reply()), Functions(), locked_agent(window_runs=0)))
        assert [row.extract is not None for row in await journal.session("s1")] == [True, True, True, False]
        return state.run

    async def again(journal: SQLiteJournal) -> None:
        state = await run_of(booking(journal, tools, 0))
        (asked,) = state.all_calls
        assert (asked.duplicate_of, asked.outcome) == ((f"{run}/1.0", "ok") if how == "ok" else ("", "in_doubt"))
        assert [row.extract is not None for row in await journal.session("s1")] == [*[True] * 4, False]
        assert (await verify_run(journal, run)).problem == ""

    run = during(path, first)
    edit(path, loss)
    during(path, again)
    assert tools.count("book") == 1


@pytest.mark.parametrize("window_runs", [0, 3])
def test_a_session_of_many_runs_reads_the_window_and_what_is_new(
    path: Path, window_runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(journal: SQLiteJournal) -> None:
        seen: list[RunId] = []

        async def counted(run: RunId, after_seq: int = 0) -> list[ev.Recorded]:
            seen.append(run)
            return await read(run, after_seq)

        read = journal.read
        monkeypatch.setattr(journal, "read", counted)
        runs = [(await run_of(booking(journal, Functions(), window_runs))).run for _ in range(12)]
        seen.clear()
        new = await run_of(booking(journal, Functions(), window_runs))
        assert seen == [*runs[-max(window_runs, 1) :], new.run]

    during(path, work)


def test_a_run_in_the_middle_that_has_not_finished_is_read_each_time_and_known_in_doubt(path: Path) -> None:
    tools = Functions(book=lambda _: lost())

    async def work(journal: SQLiteJournal) -> None:
        doubted = await run_of(booking(journal, tools))
        run = RunId("r-later")
        await journal.append(run, 1, [(now_ms(), started()), (now_ms(), ev.RunFinished(stop_reason="completed"))])
        for _ in range(2):
            (again,) = (await run_of(booking(journal, tools, 0))).all_calls
            assert again.outcome == "in_doubt"
        kept = {row.run: row.extract is not None for row in await journal.session("s1")}
        assert (kept[doubted.run], kept[run]) == (False, True)
        await settle(journal, doubted.run, happened=True, by="ada", result="Booked.")
        (settled,) = (await run_of(booking(journal, tools, 0))).all_calls
        assert settled.duplicate_of == f"{doubted.run}/1.0"

    during(path, work)
    assert tools.count("book") == 1


def test_kept_receipts_that_the_events_do_not_bear_out_are_found_by_verifying(path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(booking(journal, Functions()))
        await journal.keep({state.run: extract_of(Left(receipts={}))})
        seen = await verify_run(journal, state.run)
        assert seen.broken_seq == seen.events
        assert "kept of it are not those of its events" in seen.problem
        await run_of(booking(journal, Functions()))
        assert (await verify_run(journal, state.run)).problem == "", "it was in the window, and drawn again"

    during(path, work)


@pytest.mark.parametrize("text", ["Booked.", "", "\0", "cut \ud83d", "\u2708" * 5000])
def test_receipts_read_back_as_they_were_or_not_at_all(text: str) -> None:
    run = RunId("r1")
    receipts = {
        "k2": Receipt(where="r1/1.0", at_ms=4, text=text, until_ms=5, freed_by=("t1", "t2"), freed=True),
        "k1": Receipt(where="r1/2.0", at_ms=6, text="", in_doubt=True),
    }
    used = Usage(runs=1, steps=3, tokens=40, cost_usd=Decimal("0.0125"), cost_known=False, by_tool={"book": 2})
    left = Left(receipts=receipts, freed={"t3": 6}, used=used)
    extract = extract_of(left)
    assert left_in(run, extract) in ((None,) if "\ud83d" in text else (left,))
    assert left_in(RunId("r2"), extract) is None
    for other in (None, b"", b"{}", b"\xff", extract[:-1], extract.replace(b'"schema":5', b'"schema":6')):
        assert left_in(run, other) is None
    empty = Left(receipts={}, used=Usage(runs=1))
    assert left_in(run, extract_of(empty)) == empty
