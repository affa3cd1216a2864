"""What every journal promises. Each implementation gives a `Store` here and is held to the whole suite.

The second half asks what only a store in one SQLite file can be asked: other processes, a full disk, a broken file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from lockstep.errors import FenceConflict, JournalCorrupt, StoreBusy, StoreDamaged, StoreError, StoreFull
from lockstep.journal import codec, migrations
from lockstep.journal import events as ev
from lockstep.journal.port import Entry, Journal
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.sqlite_file import DATABASE
from lockstep.values import Digest, RunId

WAIT_S = 60
T = TypeVar("T")


class Store(Protocol):
    """A place that journals of one kind are opened on, and an enemy who edits it behind their back."""

    def open(self) -> Journal: ...

    def edit(self, statement: str, *values: object) -> None:
        """Run one SQL statement on what is stored: `events (run, seq, at, type, body, hash)`, `blobs`, `runs`, ..."""


class SQLiteStore:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> SQLiteJournal:
        return SQLiteJournal.open(self.directory)

    def edit(self, statement: str, *values: object) -> None:
        with sqlite3.connect(self.directory / DATABASE) as connection:
            assert connection.execute(statement, values).rowcount > 0, "the statement changed nothing"
        connection.close()


IMPLEMENTATIONS: list[Callable[[Path], Store]] = [SQLiteStore]


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda kind: kind.__name__)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.param(tmp_path / "store")


@pytest.fixture
def sqlite_store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "store")


def during(store: Store, work: Callable[[Journal], Awaitable[T]]) -> T:
    """Open, work, close."""

    async def bounded() -> T:
        journal = store.open()
        try:
            return await asyncio.wait_for(work(journal), WAIT_S)
        finally:
            await journal.close()

    return asyncio.run(bounded())


def begun(session: str = "s1", **changes: str) -> ev.RunStarted:
    base = ev.RunStarted(
        agent="travel",
        lock=Digest("1" * 64),
        lock_text="{}",
        directory="/travel",
        principal="ada",
        session=session,
        input="Book it.",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def at(*events: ev.Event, from_ms: int = 1000) -> list[Entry]:
    return [(from_ms + place, event) for place, event in enumerate(events)]


def events_of(recorded: Sequence[ev.Recorded]) -> list[ev.Event]:
    return [item.event for item in recorded]


CONTEXT = ev.ContextBuilt(step=1, digest=Digest("2" * 64))
FINISHED = ev.RunFinished(stop_reason="completed", output="done")
EVERY_EVENT: tuple[ev.Event, ...] = (
    replace(begun(), previous=(RunId("r0"),), unlocked=True, drift=("prompt: prompt.md",), model="x:y", approve="all"),
    CONTEXT,
    ev.ModelFailed(step=1, attempt=1, kind="timeout", message="no", transient=True, status=504, retry_after_s=1.5),
    ev.ModelReplied(
        step=1,
        text="Let me look.",
        calls=(ev.Asked(id="1.0", provider_id="c1", name="book", arguments='{"flight": "BA1"'),),
        model="m",
        provider="p",
        finish_reason="tool_call",
        latency_ms=12.5,
        input_tokens=1,
        output_tokens=2,
        cache_read_tokens=3,
        cache_write_tokens=4,
        reasoning_tokens=5,
        cost_usd="0.0001",
        price_book="b",
    ),
    ev.CallJudged(
        call="1.0",
        verdict="ask",
        digest=Digest("3" * 64),
        effect="once",
        policies=("a", "b"),
        reasons=("why",),
        error_type="x",
        note="n",
        question="Book?",
        dedupe_key="4" * 64,
        dedupe_until_ms=2**41,
        duplicate_of="r0/1.0",
        frees=("5" * 64,),
        again=True,
    ),
    ev.ApprovalAsked(call="1.0", approval="a1", digest=Digest("3" * 64), question="Book?", expires_at_ms=2**41),
    ev.ApprovalGiven(call="1.0", approval="a1", digest=Digest("3" * 64), by="ada"),
    ev.ApprovalRefused(call="1.0", approval="a1", digest=Digest("3" * 64), by="ada", because="no"),
    ev.EffectIntended(call="1.0", permit="p1", digest=Digest("3" * 64), key="k"),
    ev.EffectSettled(
        call="1.0",
        outcome="ok",
        text="booked",
        detail="trace",
        tier="gvisor",
        queue_ms=1.0,
        start_ms=2.0,
        run_ms=3.0,
        cpu_s=0.0,
        peak_memory_bytes=0,
        fee_usd="1.5",
        egress=({"method": "GET", "status": 200, "allowed": True, "note": None, "ms": 1.5},),
        freed_by=("5" * 64,),
        late=True,
    ),
    ev.EffectRetried(
        call="1.0", attempt=1, outcome="timeout", why="slow", delay_ms=500, heard=True, detail="d", run_ms=1.0
    ),
    ev.InputAsked(
        call="1.0",
        input="q1",
        asked='{"requests":{}}',
        digest=Digest("3" * 64),
        expires_at_ms=2**41,
        live=True,
        acted=True,
        tier="gvisor",
        run_ms=1.0,
        egress=({"allowed": True},),
    ),
    ev.InputGiven(call="1.0", input="q1", digest=Digest("3" * 64), by="ada", responses="{}", because="no", login="ada"),
    ev.TaskBegun(call="1.0", task="t-1", elsewhere=True),
    ev.ModelSampled(
        call="1.0",
        input="q1",
        key="m",
        digest=Digest("3" * 64),
        ignored=("temperature",),
        text="Paris",
        model="m",
        cost_usd="0.5",
        failure="timeout",
        message="no",
        transient=True,
        retry_after_s=1.5,
    ),
    ev.EffectProbed(call="1.0", tool="find", outcome="not_found", text="{}", again_at_ms=2**41),
    ev.EffectDoubted(call="1.0", why="lost", detail="d", tier="gvisor", run_ms=1.0, egress=({"allowed": False},)),
    ev.EffectReconciled(call="1.0", happened=True, by="ada", text="it did"),
    ev.RunSuspended(reason="approval", call="1.0", message="waits"),
    ev.RunResumed(by="ada", after_crash=True),
    ev.RunFinished(stop_reason="completed", output="bye", message="m", steps=1, calls=1, cost_usd="0.1"),
    ev.DoubtSettled(call="1.0", happened=True, by="ada", text="it did", freed_by=("5" * 64,)),
)


# --- appending and reading ---


def test_every_type_of_event_reads_back_as_it_was_written(store: Store) -> None:
    assert {type(event) for event in EVERY_EVENT} == set(ev.EVENT_TYPES.values())

    async def work(journal: Journal) -> list[ev.Recorded]:
        await journal.append(RunId("r1"), 1, at(*EVERY_EVENT))
        return await journal.read(RunId("r1"))

    recorded = during(store, work)
    assert events_of(recorded) == list(EVERY_EVENT)
    assert [item.seq for item in recorded] == list(range(1, len(EVERY_EVENT) + 1))
    assert [item.at_ms for item in recorded] == [1000 + place for place in range(len(EVERY_EVENT))]
    assert len({item.hash for item in recorded}) == len(EVERY_EVENT)


def test_events_are_read_in_the_order_of_their_appends_and_after_a_number(store: Store) -> None:
    contexts = [replace(CONTEXT, step=step) for step in range(1, 6)]

    async def work(journal: Journal) -> tuple[list[ev.Recorded], list[ev.Recorded], list[ev.Recorded]]:
        run = RunId("r1")
        await journal.append(run, 1, at(begun()))
        await journal.append(run, 2, at(*contexts[:3]))
        await journal.append(run, 5, at(*contexts[3:]))
        return await journal.read(run), await journal.read(run, 4), await journal.read(RunId("nobody"))

    whole, rest, none = during(store, work)
    assert events_of(whole) == [begun(), *contexts]
    assert events_of(rest) == contexts[3:]
    assert none == []


def test_what_was_appended_is_there_after_reopening_and_goes_on_from_there(store: Store) -> None:
    async def first(journal: Journal) -> list[ev.Recorded]:
        await journal.append(RunId("r1"), 1, at(begun(), CONTEXT))
        return await journal.read(RunId("r1"))

    async def second(journal: Journal) -> list[ev.Recorded]:
        await journal.append(RunId("r1"), 3, at(FINISHED))
        assert (await journal.verify(RunId("r1"))).broken_seq is None
        return await journal.read(RunId("r1"))

    before, after = during(store, first), during(store, second)
    assert after[:2] == before
    assert events_of(after) == [begun(), CONTEXT, FINISHED]


def test_closing_waits_for_what_was_appended_and_refuses_what_comes_later(store: Store) -> None:
    async def work() -> None:
        journal = store.open()
        first = asyncio.create_task(journal.append(RunId("r1"), 1, at(begun())))
        await asyncio.sleep(0)
        await asyncio.wait_for(journal.close(), WAIT_S)
        await asyncio.wait_for(first, WAIT_S)
        with pytest.raises(StoreError):
            await asyncio.wait_for(journal.append(RunId("r1"), 2, at(CONTEXT)), WAIT_S)
        await journal.close()

    asyncio.run(work())
    assert len(during(store, lambda journal: journal.read(RunId("r1")))) == 1


# --- the fence ---


@pytest.mark.parametrize("first_seq", [1, 2, 4, 17])
def test_an_append_that_is_not_the_next_event_conflicts_and_writes_nothing(store: Store, first_seq: int) -> None:
    entries = at(begun()) if first_seq == 1 else at(CONTEXT, CONTEXT)

    async def work(journal: Journal) -> list[ev.Recorded]:
        await journal.append(RunId("r1"), 1, at(begun(), CONTEXT))
        with pytest.raises(FenceConflict, match="r1"):
            await journal.append(RunId("r1"), first_seq, entries)
        await journal.append(RunId("r1"), 3, at(FINISHED))
        return await journal.read(RunId("r1"))

    assert events_of(during(store, work)) == [begun(), CONTEXT, FINISHED]


def test_of_many_writers_of_the_same_event_exactly_one_wins(store: Store) -> None:
    contexts = [replace(CONTEXT, step=step) for step in range(1, 21)]

    async def work(journal: Journal) -> tuple[list[Any], list[ev.Recorded]]:
        await journal.append(RunId("r1"), 1, at(begun()))
        writers = (journal.append(RunId("r1"), 2, at(context)) for context in contexts)
        return list(await asyncio.gather(*writers, return_exceptions=True)), await journal.read(RunId("r1"))

    outcomes, recorded = during(store, work)
    assert [type(each) for each in outcomes if each is not None] == [FenceConflict] * 19
    assert events_of(recorded) == [begun(), contexts[outcomes.index(None)]]


def test_appends_that_conflict_do_no_harm_to_others_committed_with_them(store: Store) -> None:
    async def work(journal: Journal) -> tuple[list[Any], list[int]]:
        runs = [RunId(f"r{number}") for number in range(10)]
        await asyncio.gather(*(journal.append(run, 1, at(begun(run))) for run in runs))
        good = [journal.append(run, 2, at(CONTEXT)) for run in runs]
        bad = [journal.append(run, 9, at(CONTEXT)) for run in runs]
        mixed = [each for pair in zip(bad, good, strict=True) for each in pair]
        outcomes = list(await asyncio.gather(*mixed, return_exceptions=True))
        assert all([(await journal.verify(run)).broken_seq is None for run in runs])
        return outcomes, [len(await journal.read(run)) for run in runs]

    outcomes, lengths = during(store, work)
    assert [type(each) for each in outcomes] == [FenceConflict, type(None)] * 10
    assert lengths == [2] * 10


def test_a_run_begins_with_run_started_and_only_begins_once(store: Store) -> None:
    async def work(journal: Journal) -> list[ev.Recorded]:
        for first_seq, entries in ((1, at(CONTEXT)), (1, at(begun(), begun())), (1, []), (2, at(begun()))):
            with pytest.raises(StoreError):
                await journal.append(RunId("r1"), first_seq, entries)
        with pytest.raises(FenceConflict):
            await journal.append(RunId("r1"), 2, at(CONTEXT))
        return await journal.read(RunId("r1"))

    assert during(store, work) == []


@pytest.mark.parametrize("reopened", [False, True])
def test_nothing_can_follow_the_end_of_a_run(store: Store, reopened: bool) -> None:
    async def finish(journal: Journal) -> None:
        await journal.append(RunId("r1"), 1, at(begun(), FINISHED))
        if not reopened:
            await more(journal)

    async def more(journal: Journal) -> None:
        with pytest.raises(FenceConflict, match="has finished"):
            await journal.append(RunId("r1"), 3, at(CONTEXT))

    during(store, finish)
    if reopened:
        during(store, more)


@pytest.mark.parametrize("field", ["session", "principal", "agent"])
def test_a_name_that_is_not_text_is_refused_and_the_journal_goes_on(store: Store, field: str) -> None:
    async def work(journal: Journal) -> int:
        with pytest.raises(StoreError, match=f"The name of the {field}"):
            await journal.append(RunId("r1"), 1, at(begun(**{field: "\udcff"})))
        await journal.append(RunId("r1"), 1, at(begun()))
        return len(await journal.read(RunId("r1")))

    assert during(store, work) == 1


def test_what_the_store_cannot_hold_is_refused_and_the_journal_goes_on(store: Store) -> None:
    async def work(journal: Journal) -> None:
        await journal.append(RunId("r1"), 1, at(begun()))
        with pytest.raises(StoreError):
            await asyncio.wait_for(journal.append(RunId("r1"), 2, at(CONTEXT, from_ms=2**70)), WAIT_S)
        await asyncio.wait_for(journal.append(RunId("r1"), 2, at(CONTEXT)), WAIT_S)
        assert (await journal.verify(RunId("r1"))).events == 2

    during(store, work)


def test_many_runs_at_once_each_read_back_whole(store: Store) -> None:
    runs = [RunId(f"r{number:03}") for number in range(120)]

    async def one(journal: Journal, run: RunId) -> None:
        await journal.append(run, 1, at(begun(run)))
        for step in range(1, 9):
            await journal.append(run, 2 * step, at(replace(CONTEXT, step=step), ev.ModelReplied(step=step, text=run)))
        await journal.append(run, 18, at(FINISHED))

    async def work(journal: Journal) -> None:
        await asyncio.gather(*(one(journal, run) for run in runs))
        for run in runs:
            recorded = await journal.read(run)
            replies = [item.event.text for item in recorded if isinstance(item.event, ev.ModelReplied)]
            assert replies == [run] * 8
            assert (await journal.verify(run)).broken_seq is None

    during(store, work)


# --- bodies ---

TEXTS = {
    "empty": "",
    "short": "booked",
    "long": "x" * 100_000,
    "long, not compressible": "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(50_000)),
    "just inline": "y" * codec.INLINE_BYTES,
    "just out of line": "y" * (codec.INLINE_BYTES + 1),
    "bytes make it large": "ü" * (codec.INLINE_BYTES // 2 + 1),
    "NUL first": "\0",
    "a forged reference": "\0blob:" + "a" * 64,
    "NUL inside": "a\0b",
    "beyond the basic plane": "✈️ 🛫 𝕏 \U0010ffff",
    "half a pair, high": "cut \ud83d",
    "half a pair, low": "\udeeb cut",
    "half a pair, long": "\ud83d" * 5000,
    "halves in the wrong order": "\udeeb\ud83d",
    "looks escaped": "\\ud83d \\u0000 \\\\",
    "quotes and breaks": '"}\n\r\t\u2028\u2029\x7f',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_text_reads_back_as_it_was_and_verifies(store: Store, text: str) -> None:
    call = ev.Asked(id="1.0", provider_id=text, name=text, arguments=text)
    events: tuple[ev.Event, ...] = (
        replace(begun(), input=text, drift=(text,)),
        ev.ModelReplied(step=1, text=text, calls=(call,)),
        ev.CallJudged(call="1.0", verdict="allow", note=text, reasons=(text,)),
        ev.EffectSettled(call="1.0", outcome="ok", text=text, detail=text, egress=({text: text},)),
        ev.RunFinished(stop_reason="completed", output=text),
    )

    async def work(journal: Journal) -> list[ev.Recorded]:
        await journal.append(RunId("r1"), 1, at(*events))
        assert (await journal.verify(RunId("r1"))).problem == ""
        return await journal.read(RunId("r1"))

    assert events_of(during(store, work)) == list(events)


# --- the list of runs ---


def test_runs_are_listed_newest_first_with_the_newest_event_of_each(store: Store) -> None:
    async def work(journal: Journal) -> None:
        for number, session in enumerate(("a", "b", "a")):
            run = RunId(f"r{number}")
            await journal.append(run, 1, at(begun(session, principal=f"p{number}"), from_ms=10 * number))
        await journal.append(RunId("r0"), 2, at(CONTEXT, FINISHED, from_ms=500))
        rows = await journal.runs()
        assert [row.run for row in rows] == ["r2", "r1", "r0"]
        assert [(row.last, row.last_at_ms, row.events) for row in rows[1:]] == [
            ("run.started", 10, 1),
            ("run.finished", 501, 3),
        ]
        assert (rows[2].session, rows[2].principal, rows[2].agent, rows[2].started_at_ms) == ("a", "p0", "travel", 0)
        assert [row.run for row in await journal.runs(session="a")] == ["r2", "r0"]
        assert [row.run for row in await journal.runs(session="a", limit=1)] == ["r2"]
        assert [row.run for row in await journal.runs(limit=2)] == ["r2", "r1"]
        assert [row.run for row in await journal.runs(principal="p1")] == ["r1"]
        assert [row.run for row in await journal.runs(agent="travel", limit=2)] == ["r2", "r1"]
        assert [row.run for row in await journal.runs("a", principal="p0", agent="travel")] == ["r0"]
        assert await journal.runs(principal="p1", agent="nobody's") == []
        assert await journal.runs(session="nobody's") == []
        assert await journal.runs(session="' OR 1=1 --") == []

    during(store, work)


def test_runs_are_found_by_the_beginning_of_their_id_newest_first_ten_at_most(store: Store) -> None:
    async def work(journal: Journal) -> None:
        for number in range(12):
            await journal.append(RunId(f"rab{number:02}"), 1, at(begun()))
        await journal.append(RunId("rxy"), 1, at(begun()))
        assert await journal.find("rx") == ["rxy"]
        assert await journal.find("rab") == [f"rab{number:02}" for number in range(11, 1, -1)]
        assert await journal.find("rab03") == ["rab03"]
        assert await journal.find("%") == []
        assert await journal.find("ab") == []

    during(store, work)


def test_events_stand_in_the_order_of_their_appends_whatever_their_run(store: Store) -> None:
    async def work(journal: Journal) -> None:
        for run in ("r0", "r1"):
            await journal.append(RunId(run), 1, at(begun()))
        await journal.append(RunId("r1"), 2, at(CONTEXT, CONTEXT))
        await asyncio.gather(
            journal.append(RunId("r0"), 2, at(CONTEXT, from_ms=1)), journal.append(RunId("r1"), 4, at(FINISHED))
        )
        order = [("r0", 1), ("r1", 1), ("r1", 2), ("r1", 3), ("r0", 2), ("r1", 4)]
        places = [await journal.position(RunId(run), seq) for run, seq in order]
        assert places[:4] == sorted(set(places[:4]))
        assert min(places[4:]) > places[3]
        assert places[4] != places[5]
        for run, seq in (("r0", 3), ("r0", 0), ("r9", 1)):
            with pytest.raises(StoreError, match=f"Run {run} has no event {seq}"):
                await journal.position(RunId(run), seq)

    during(store, work)


# --- what is kept of the runs of a session ---

EXTRACT = b'{"receipts":{}}'


async def three_runs(journal: Journal) -> None:
    """r0 and r2 of a session have finished, r1 has not; r3 is of another."""
    for number, events in enumerate(((begun(), FINISHED), (begun(),), (begun(), CONTEXT, FINISHED), (begun("s2"),))):
        await journal.append(RunId(f"r{number}"), 1, at(*events))


def test_the_runs_of_a_session_are_given_oldest_first_with_what_was_kept_of_each(store: Store) -> None:
    async def work(journal: Journal) -> None:
        await three_runs(journal)
        assert [(row.run, row.finished, row.extract) for row in await journal.session("s1")] == [
            ("r0", True, None),
            ("r1", False, None),
            ("r2", True, None),
        ]
        large = b'{"text":"%b"}' % (b"x" * 100_000)
        await journal.keep({RunId("r0"): EXTRACT, RunId("r2"): large})
        assert [row.extract for row in await journal.session("s1")] == [EXTRACT, None, large]
        await journal.keep({RunId("r2"): EXTRACT})
        assert [row.extract for row in await journal.session("s1")] == [EXTRACT, None, EXTRACT]
        assert [row.run for row in await journal.session("s1", before=RunId("r2"))] == ["r0", "r1"]
        assert await journal.session("s1", before=RunId("r0")) == []
        assert await journal.session("nobody's") == []

    during(store, work)
    kept = [row.extract for row in during(store, lambda journal: journal.session("s1"))]
    assert kept == [EXTRACT, None, EXTRACT]


def test_nothing_is_kept_of_a_run_that_has_not_finished_or_is_not_there(store: Store) -> None:
    async def work(journal: Journal) -> None:
        await three_runs(journal)
        await journal.keep({RunId("r1"): EXTRACT, RunId("nobody"): EXTRACT})
        assert [row.extract for row in await journal.session("s1")] == [None, None, None]
        await journal.append(RunId("r1"), 2, at(FINISHED))
        assert [row.extract for row in await journal.session("s1")] == [None, None, None]

    during(store, work)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM extracts WHERE run = 1",
        "UPDATE extracts SET body = '{}' WHERE run = 1",
        "UPDATE extracts SET body = x'ff' WHERE run = 1",
        "UPDATE extracts SET body = 7 WHERE run = 1",
        "UPDATE extracts SET hash = zeroblob(32) WHERE run = 1",
        "UPDATE extracts SET hash = (SELECT hash FROM extracts WHERE run = 3) WHERE run = 1",
        "UPDATE events SET hash = zeroblob(32) WHERE run = 1 AND seq = 2",
        "DELETE FROM events WHERE run = 1 AND seq = 2",
        "UPDATE events SET type = 'run.resumed' WHERE run = 1 AND seq = 2",
    ],
)
def test_what_was_kept_is_not_given_when_it_is_not_that_of_the_run_as_it_is(store: Store, statement: str) -> None:
    async def work(journal: Journal) -> None:
        await three_runs(journal)
        await journal.keep({RunId("r0"): EXTRACT, RunId("r2"): EXTRACT})

    during(store, work)
    store.edit(statement)
    assert [row.extract for row in during(store, lambda journal: journal.session("s1"))] == [None, None, EXTRACT]


# --- verifying ---

LONG_TEXT = "a flight " * 1000
TRAIL = (begun(), CONTEXT, ev.ModelReplied(step=1, text=LONG_TEXT), replace(CONTEXT, step=2), FINISHED)
TAMPERED = {
    "body": (3, "hash does not follow", "UPDATE events SET body = ? WHERE seq = 3", (b'{"step":1,"text":"no"}',)),
    "body as text": (3, "hash does not follow", "UPDATE events SET body = ? WHERE seq = 3", ("{}",)),
    "body emptied": (2, "hash does not follow", "UPDATE events SET body = x'' WHERE seq = 2", ()),
    "time": (2, "hash does not follow", "UPDATE events SET at = at + 1 WHERE seq = 2", ()),
    "time as text": (2, "hash does not follow", "UPDATE events SET at = 'noon' WHERE seq = 2", ()),
    "type": (5, "hash does not follow", "UPDATE events SET type = 'run.resumed' WHERE seq = 5", ()),
    "type as bytes": (5, "hash does not follow", "UPDATE events SET type = x'ff00' WHERE seq = 5", ()),
    "hash": (4, "hash does not follow", "UPDATE events SET hash = zeroblob(32) WHERE seq = 4", ()),
    "first deleted": (1, "event 1 is missing", "DELETE FROM events WHERE seq = 1", ()),
    "middle deleted": (3, "event 3 is missing", "DELETE FROM events WHERE seq = 3", ()),
    "all deleted": (1, "event 1 is missing", "DELETE FROM events", ()),
    "blob changed": (3, "was changed", "UPDATE blobs SET body = x'00'", ()),
    "blob deleted": (3, "is missing from the store", "DELETE FROM blobs", ()),
    "session of the list": (1, "the list of runs says", "UPDATE runs SET session = 's2'", ()),
    "principal of the list": (1, "the list of runs says", "UPDATE runs SET principal = 'eve'", ()),
}


def write_trail(store: Store) -> str:
    async def work(journal: Journal) -> str:
        await journal.append(RunId("r1"), 1, at(*TRAIL))
        return (await journal.verify(RunId("r1"))).head

    return during(store, work)


def test_a_whole_run_verifies_and_its_head_is_the_hash_of_its_last_event(store: Store) -> None:
    head = write_trail(store)

    async def work(journal: Journal) -> None:
        seen = await journal.verify(RunId("r1"))
        assert (seen.events, seen.broken_seq, seen.problem) == (len(TRAIL), None, "")
        assert seen.head == (await journal.read(RunId("r1")))[-1].hash.hex() == head

    during(store, work)


@pytest.mark.parametrize("broken_seq, problem, statement, values", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_changed_past_is_found_at_its_first_broken_event(
    store: Store, broken_seq: int, problem: str, statement: str, values: tuple[object, ...]
) -> None:
    write_trail(store)
    store.edit(statement, *values)
    seen = during(store, lambda journal: journal.verify(RunId("r1")))
    assert seen.broken_seq == broken_seq
    assert problem in seen.problem


def test_two_events_that_changed_places_are_found(store: Store) -> None:
    write_trail(store)
    for old, new in ((2, -1), (4, 2), (-1, 4)):
        store.edit("UPDATE events SET seq = ? WHERE seq = ?", new, old)
    assert during(store, lambda journal: journal.verify(RunId("r1"))).broken_seq == 2


def test_events_of_another_run_do_not_pass_for_those_of_this_one(store: Store) -> None:
    async def work(journal: Journal) -> None:
        await journal.append(RunId("r1"), 1, at(*TRAIL))
        await journal.append(RunId("r2"), 1, at(*TRAIL))

    during(store, work)
    store.edit("DELETE FROM events WHERE run = 2 AND seq = 2")
    store.edit("UPDATE events SET run = 2 WHERE run = 1 AND seq = 2")
    assert during(store, lambda journal: journal.verify(RunId("r2"))).broken_seq == 2


def test_a_run_cut_short_is_told_by_its_head_and_by_not_being_finished(store: Store) -> None:
    head = write_trail(store)
    store.edit("DELETE FROM events WHERE seq = 5")

    async def work(journal: Journal) -> None:
        seen = await journal.verify(RunId("r1"))
        assert (seen.broken_seq, seen.events) == (None, 4)
        assert seen.head != head
        assert (await journal.runs())[0].last != "run.finished"

    during(store, work)


def test_an_event_after_the_end_of_a_run_is_found_though_its_hash_follows(store: Store) -> None:
    write_trail(store)
    seen = during(store, lambda journal: journal.verify(RunId("r1")))
    body = codec.encode(CONTEXT).body
    forged = codec.link(bytes.fromhex(seen.head), RunId("r1"), 6, 7, CONTEXT.TYPE, body)
    store.edit("INSERT INTO events VALUES (1, 6, 7, ?, ?, ?)", CONTEXT.TYPE, body, forged)
    seen = during(store, lambda journal: journal.verify(RunId("r1")))
    assert seen.broken_seq == 6
    assert "the run had finished" in seen.problem


def test_only_a_doubt_may_be_settled_after_the_end_and_only_then(store: Store) -> None:
    write_trail(store)
    settled = ev.DoubtSettled(call="1.0", happened=True, by="ada", text="it did")

    async def work(journal: Journal) -> None:
        with pytest.raises(FenceConflict, match="has finished"):
            await journal.append(RunId("r1"), 6, [(8, settled), (9, CONTEXT)])
        await journal.append(RunId("r1"), 6, [(8, settled)])
        assert (await journal.verify(RunId("r1"))).broken_seq is None
        with pytest.raises(FenceConflict, match="has finished"):
            await journal.append(RunId("r1"), 7, [(9, CONTEXT)])
        await journal.append(RunId("r2"), 1, [(1, begun()), (2, settled)])
        assert (await journal.verify(RunId("r2"))).problem == "event 2 is doubt.settled, and the run had not finished"
        assert [row.run for row in await journal.runs(with_event=ev.DoubtSettled.TYPE)] == ["r2", "r1"]
        assert await journal.runs(with_event=ev.EffectDoubted.TYPE, session="s1") == []

    during(store, work)


@pytest.mark.parametrize(
    "kind, body, sentence",
    [
        ("moon.rose", b"{}", "Use a newer Lockstep"),
        ("context.built", b'{"step":1}', "does not parse"),
        ("context.built", b'{"step":"one","digest":""}', "does not parse"),
        ("context.built", b"not deflated", "does not parse"),
        ("context.built", b'{"step":1,"digest":"\\ud83d"', "does not parse"),
        ("effect.reconciled", b'{"call":"1.0","happened":1,"by":"x","text":"\\ud83d"}', "does not parse"),
    ],
)
def test_an_event_that_nobody_can_read_is_corrupt_not_a_crash(
    store: Store, kind: str, body: bytes, sentence: str
) -> None:
    write_trail(store)
    store.edit("UPDATE events SET type = ?, body = ? WHERE seq = 2", kind, body)
    with pytest.raises(JournalCorrupt, match=f"Event 2 of run r1 cannot be read: .*{sentence}"):
        during(store, lambda journal: journal.read(RunId("r1")))
    assert during(store, lambda journal: journal.verify(RunId("r1"))).broken_seq == 2


@pytest.mark.parametrize(
    "statement, broken_seq",
    [
        ("UPDATE events SET body = x'ff' WHERE seq = 2", 2),
        ("UPDATE events SET body = x'ff' WHERE seq = 1", 1),
        ("UPDATE events SET hash = 'moon' WHERE seq = 4", 4),
    ],
)
def test_a_run_that_cannot_be_read_can_be_ended_and_what_was_broken_stays_so(
    store: Store, statement: str, broken_seq: int
) -> None:
    during(store, lambda journal: journal.append(RunId("r1"), 1, at(*TRAIL[:-1])))
    store.edit(statement)

    async def work(journal: Journal) -> None:
        await journal.append(RunId("r1"), 5, at(FINISHED))
        (row,) = await journal.runs()
        assert (row.last, row.events) == ("run.finished", 5)
        assert (await journal.verify(RunId("r1"))).broken_seq == broken_seq

    during(store, work)


def test_a_field_that_a_later_version_added_is_no_obstacle(store: Store) -> None:
    write_trail(store)
    store.edit("UPDATE events SET body = ? WHERE seq = 2", b'{"step":1,"digest":"x","moon":"full"}')
    recorded = during(store, lambda journal: journal.read(RunId("r1")))
    assert recorded[1].event == replace(CONTEXT, digest=Digest("x"))


# --- SQLite: one process writes ---

HOLDER = """
import asyncio, sys
from pathlib import Path
from lockstep.journal.sqlite import SQLiteJournal
journal = SQLiteJournal.open(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
WRITER = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal import CONTEXT, at, begun
from lockstep.journal.sqlite import SQLiteJournal

async def one(journal, run):
    await journal.append(run, 1, at(begun(run)))
    print(run, 1, flush=True)
    for step in range(2, 100_000):
        await journal.append(run, step, at(replace(CONTEXT, step=step)))
        print(run, step, flush=True)

async def main():
    journal = SQLiteJournal.open(Path(sys.argv[1]))
    await asyncio.gather(*(one(journal, f"r{n}") for n in range(4)))

asyncio.run(main())
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(sqlite_store: SQLiteStore) -> Iterator[subprocess.Popen[str]]:
    with python(HOLDER, sqlite_store.directory) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_which_process_holds_the_store(
    sqlite_store: SQLiteStore, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(StoreBusy) as caught:
        sqlite_store.open()
    assert f"is in use by process {holder.pid}" in caught.value.message
    assert "--store" in caught.value.remedy
    holder.kill()
    holder.wait(WAIT_S)
    during(sqlite_store, lambda journal: journal.append(RunId("r1"), 1, at(begun())))


def test_a_second_opening_in_the_same_process_is_refused_until_the_first_closes(sqlite_store: SQLiteStore) -> None:
    async def work(journal: Journal) -> None:
        with pytest.raises(StoreBusy, match=str(os.getpid())):
            sqlite_store.open()

    during(sqlite_store, work)
    during(sqlite_store, work)


def test_another_process_reads_while_one_writes_and_cannot_write(sqlite_store: SQLiteStore) -> None:
    async def work(journal: Journal) -> None:
        await journal.append(RunId("r1"), 1, at(begun()))
        reader = SQLiteJournal.open_readonly(sqlite_store.directory)
        assert len(await reader.read(RunId("r1"))) == 1
        await journal.append(RunId("r1"), 2, at(CONTEXT))
        assert len(await reader.read(RunId("r1"))) == 2
        assert (await reader.verify(RunId("r1"))).broken_seq is None
        with pytest.raises(StoreError, match="read only"):
            await reader.append(RunId("r1"), 3, at(CONTEXT))
        await reader.close()
        await journal.append(RunId("r1"), 3, at(CONTEXT))

    during(sqlite_store, work)


def test_kill_9_in_the_middle_of_writing_loses_nothing_that_was_acknowledged(sqlite_store: SQLiteStore) -> None:
    with python(WRITER, sqlite_store.directory, Path(__file__).parent) as process:
        assert process.stdout is not None
        acknowledged: dict[str, int] = {}
        for _ in range(400):
            run, seq = process.stdout.readline().split()
            acknowledged[run] = int(seq)
        process.send_signal(signal.SIGKILL)
        for line in process.stdout.read().splitlines():  # what it still said before it died
            if len(said := line.split()) == 2:
                acknowledged[said[0]] = int(said[1])
        process.wait(WAIT_S)
    assert len(acknowledged) == 4

    async def look(journal: Journal) -> None:
        for run, seq in acknowledged.items():
            recorded = await journal.read(RunId(run))
            assert len(recorded) >= seq
            assert (await journal.verify(RunId(run))).broken_seq is None

    async def look_first_without_writing() -> None:
        reader = SQLiteJournal.open_readonly(sqlite_store.directory)
        await look(reader)
        await reader.close()

    async def go_on(journal: Journal) -> None:
        await look(journal)
        for row in await journal.runs():
            await journal.append(row.run, row.events + 1, at(FINISHED))

    asyncio.run(look_first_without_writing())
    during(sqlite_store, go_on)


# --- SQLite: no space ---

BIG = ev.EffectSettled(call="1.0", outcome="ok", text="".join(chr(0x4E00 + n * 7919 % 20000) for n in range(200_000)))


def test_a_full_disk_fails_the_append_whole_and_the_journal_is_usable_when_there_is_space(
    sqlite_store: SQLiteStore,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    async def work(journal: Journal) -> None:
        run = RunId("r1")
        await journal.append(run, 1, at(begun()))
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        with pytest.raises(StoreFull) as caught:
            await journal.append(run, 2, at(CONTEXT, BIG))
        assert "Free some space" in caught.value.remedy
        assert len(await journal.read(run)) == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await journal.append(run, 2, at(CONTEXT, BIG))
        assert events_of(await journal.read(run)) == [begun(), CONTEXT, BIG]
        assert (await journal.verify(run)).broken_seq is None

    try:
        during(sqlite_store, work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(during(sqlite_store, lambda journal: journal.read(RunId("r1")))) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this container may not mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def test_no_space_left_on_the_device_keeps_what_was_there(small_disk: Path) -> None:
    store, run = SQLiteStore(small_disk / "store"), RunId("r1")

    async def fill(journal: Journal) -> int:
        await journal.append(run, 1, at(begun()))
        for seq in range(2, 1000):
            try:
                await journal.append(run, seq, at(replace(BIG, text=BIG.text[seq : seq + 3000])))
            except StoreFull:
                return seq
        raise AssertionError("512 KiB held 1000 bodies")

    refused = during(store, fill)
    with pytest.raises(StoreError):
        SQLiteJournal.open(small_disk / "store" / "other")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)

    async def go_on(journal: Journal) -> None:
        assert len(await journal.read(run)) == refused - 1
        await journal.append(run, refused, at(BIG))
        assert (await journal.verify(run)).broken_seq is None

    during(store, go_on)


# --- SQLite: broken and foreign files ---


@pytest.mark.parametrize("content", [b"\x8f" * 8192, b"SQLite format 3\0" + b"\x11" * 4096], ids=["noise", "header"])
def test_a_file_that_is_no_database_is_damaged_and_the_sentence_names_the_store(
    sqlite_store: SQLiteStore, content: bytes
) -> None:
    sqlite_store.directory.mkdir()
    (sqlite_store.directory / DATABASE).write_bytes(content)
    for opening in (SQLiteJournal.open, SQLiteJournal.open_readonly):
        with pytest.raises(JournalCorrupt) as caught:
            opening(sqlite_store.directory)
        assert f"The store {sqlite_store.directory} is damaged" in caught.value.message
        assert "Restore it from a copy" in caught.value.remedy


def test_a_truncated_database_is_damaged_when_it_is_read(sqlite_store: SQLiteStore) -> None:
    async def work(journal: Journal) -> None:
        for number in range(20):
            await journal.append(RunId(f"r{number}"), 1, at(begun(), replace(BIG, text=BIG.text[:9000])))

    during(sqlite_store, work)
    database = sqlite_store.directory / DATABASE
    os.truncate(database, database.stat().st_size // 3 // 4096 * 4096)

    async def read_all(journal: Journal) -> None:
        for number in range(20):
            await journal.read(RunId(f"r{number}"))

    with pytest.raises(JournalCorrupt, match=r"is damaged|is missing"):
        during(sqlite_store, read_all)


def pages_of(path: Path, name: str) -> tuple[int, list[int]]:
    """The size of a page, and the leaves of a table or index."""
    connection = sqlite3.connect(path)
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    connection.close()
    data = path.read_bytes()
    page = data[(root - 1) * size : root * size]
    if page[0] in (10, 13):
        return size, [root]
    cells = [int.from_bytes(page[12 + 2 * n : 14 + 2 * n]) for n in range(int.from_bytes(page[3:5]))]
    return size, [int.from_bytes(page[cell : cell + 4]) for cell in cells] + [int.from_bytes(page[8:12])]


@pytest.mark.parametrize("number_of_runs", [3, 300])
@pytest.mark.parametrize("where", ["runs", "runs_by_session", "sqlite_autoindex_runs_1"])
@pytest.mark.parametrize("which", [0, -1], ids=["first page", "last page"])
@pytest.mark.parametrize("how", ["emptied", "one cell less", "zeroed"])
def test_a_damaged_page_of_the_list_of_runs_hides_none_of_them(
    sqlite_store: SQLiteStore, number_of_runs: int, where: str, which: int, how: str
) -> None:
    async def work(journal: Journal) -> None:
        runs = (journal.append(RunId(f"r{number:03}"), 1, at(begun())) for number in range(number_of_runs))
        await asyncio.gather(*runs)

    during(sqlite_store, work)
    path = sqlite_store.directory / DATABASE
    size, leaves = pages_of(path, where)
    start = (leaves[which] - 1) * size
    data = bytearray(path.read_bytes())
    if how == "zeroed":
        data[start : start + size] = bytes(size)
    else:
        cells = int.from_bytes(data[start + 3 : start + 5])
        data[start + 3 : start + 5] = (0 if how == "emptied" else cells - 1).to_bytes(2)
    path.write_bytes(data)
    for opening in (SQLiteJournal.open, SQLiteJournal.open_readonly):
        with pytest.raises(StoreDamaged, match="is damaged") as caught:
            opening(sqlite_store.directory)
        assert "Restore it from a copy" in caught.value.remedy


def test_a_run_that_was_taken_out_of_the_list_is_missed(sqlite_store: SQLiteStore) -> None:
    write_trail(sqlite_store)
    sqlite_store.edit("DELETE FROM runs")
    with pytest.raises(StoreDamaged, match="of its 1 runs only 0 can be found"):
        sqlite_store.open()


def test_a_database_that_is_no_store_is_damaged(sqlite_store: SQLiteStore) -> None:
    sqlite_store.directory.mkdir()
    with sqlite3.connect(sqlite_store.directory / DATABASE) as connection:
        connection.execute(f"PRAGMA user_version = {len(migrations.MIGRATIONS)}")
    connection.close()
    with pytest.raises(JournalCorrupt, match="no such table"):
        during(sqlite_store, lambda journal: journal.runs())


def test_a_store_of_a_newer_version_is_refused_in_words(sqlite_store: SQLiteStore) -> None:
    write_trail(sqlite_store)
    with sqlite3.connect(sqlite_store.directory / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for opening in (SQLiteJournal.open, SQLiteJournal.open_readonly):
        with pytest.raises(StoreError, match=r"newer version \(99\)") as caught:
            opening(sqlite_store.directory)
        assert type(caught.value) is StoreError
    with pytest.raises(StoreError, match="newer version"):
        sqlite_store.open()  # the refused opening let go of the lock


def test_migrations_go_forward_by_number_and_keep_what_is_there(
    sqlite_store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trail(sqlite_store)
    more = ("CREATE TABLE second (x INTEGER)", "ALTER TABLE second ADD COLUMN y TEXT; INSERT INTO second VALUES (1, 2)")
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, *more))
    assert len(during(sqlite_store, lambda journal: journal.read(RunId("r1")))) == len(TRAIL)
    during(sqlite_store, lambda journal: journal.runs())  # nothing is done twice
    with sqlite3.connect(sqlite_store.directory / DATABASE) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations.MIGRATIONS),)
        assert connection.execute("SELECT x, y FROM second").fetchall() == [(1, "2")]
    connection.close()


def test_a_store_of_the_first_schema_is_read_as_it_is_and_brought_forward_by_writing(
    sqlite_store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:1])
        write_trail(sqlite_store)

    async def look() -> None:
        reader = SQLiteJournal.open_readonly(sqlite_store.directory)
        assert len(await reader.read(RunId("r1"))) == len(TRAIL)
        assert [row.extract for row in await reader.session("s1")] == [None]
        await reader.close()

    asyncio.run(look())
    during(sqlite_store, lambda journal: journal.keep({RunId("r1"): EXTRACT}))
    assert [row.extract for row in during(sqlite_store, lambda journal: journal.session("s1"))] == [EXTRACT]
    asyncio.run(look_kept(sqlite_store))


async def look_kept(store: SQLiteStore) -> None:
    reader = SQLiteJournal.open_readonly(store.directory)
    assert [row.extract for row in await reader.session("s1")] == [EXTRACT]
    with pytest.raises(StoreError, match="read only"):
        await reader.keep({RunId("r1"): EXTRACT})
    await reader.close()


def test_a_migration_that_fails_leaves_the_store_as_it_was(
    sqlite_store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trail(sqlite_store)
    with monkeypatch.context() as patched:
        failing = "CREATE TABLE half (x); INSERT INTO nowhere VALUES (1)"
        patched.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, failing))
        with pytest.raises(StoreError, match="nowhere"):
            sqlite_store.open()
    with sqlite3.connect(sqlite_store.directory / DATABASE) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    connection.close()
    assert len(during(sqlite_store, lambda journal: journal.read(RunId("r1")))) == len(TRAIL)


def test_where_no_store_can_be_the_sentence_says_so(sqlite_store: SQLiteStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        SQLiteJournal.open_readonly(sqlite_store.directory)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        SQLiteJournal.open(tmp_path / "file")
    (sqlite_store.directory / DATABASE).mkdir(parents=True)
    with pytest.raises(StoreError, match="unable to open"):
        sqlite_store.open()


def test_a_store_that_was_begun_and_holds_nothing_is_not_called_damaged(sqlite_store: SQLiteStore) -> None:
    sqlite_store.directory.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(sqlite_store.directory / DATABASE)) as begun_only:
        begun_only.execute("PRAGMA journal_mode=WAL")  # its maker was killed here
    with pytest.raises(StoreError, match="holds nothing yet") as caught:
        SQLiteJournal.open_readonly(sqlite_store.directory)
    assert not isinstance(caught.value, StoreDamaged)
    assert during(sqlite_store, lambda journal: journal.runs()) == []
    SQLiteJournal.open_readonly(sqlite_store.directory)


# --- SQLite: a store that may only be read ---


@pytest.fixture
def frozen(sqlite_store: SQLiteStore) -> Iterator[Callable[[], Path]]:
    """Makes the store one that nobody may write to, and says where it is."""
    place = sqlite_store.directory

    def freeze() -> Path:
        if os.geteuid() != 0:
            for path in (*place.iterdir(), place):
                path.chmod(0o500 if path == place else 0o400)
            return place
        for mount in (["--bind", place, place], ["-o", "remount,ro,bind", place]):
            if subprocess.run(["mount", *mount], check=False).returncode == 0:
                continue
            pytest.skip("this container may not mount anything")
        return place

    yield freeze
    if os.geteuid() == 0:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)
    else:
        place.chmod(0o700)


def test_a_store_that_may_only_be_read_is_read(sqlite_store: SQLiteStore, frozen: Callable[[], Path]) -> None:
    head = write_trail(sqlite_store)
    place = frozen()
    before = sorted(place.iterdir())

    async def look() -> None:
        reader = SQLiteJournal.open_readonly(place)
        assert [row.run for row in await reader.runs()] == ["r1"]
        assert len(await reader.read(RunId("r1"))) == len(TRAIL)
        assert (await reader.verify(RunId("r1"))).head == head
        await reader.close()

    asyncio.run(look())
    with pytest.raises(StoreError, match="cannot be opened"):
        SQLiteJournal.open(place)
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize("index", ["with its index", "without"])
def test_a_store_whose_writer_died_is_read_whole_or_not_at_all(
    sqlite_store: SQLiteStore, frozen: Callable[[], Path], index: str
) -> None:
    with python(WRITER, sqlite_store.directory, Path(__file__).parent) as process:
        assert process.stdout is not None
        for _ in range(8):
            process.stdout.readline()
        process.kill()
        process.wait(WAIT_S)
    assert (sqlite_store.directory / f"{DATABASE}-wal").stat().st_size > 0
    if index == "without":
        (sqlite_store.directory / f"{DATABASE}-shm").unlink()
    place = frozen()

    async def look() -> None:
        reader = SQLiteJournal.open_readonly(place)
        assert sum(row.events for row in await reader.runs()) >= 8
        await reader.close()

    if index == "without":
        with pytest.raises(StoreError, match="The newest events of the store") as caught:
            asyncio.run(look())
        assert "Copy the store" in caught.value.remedy
    else:
        asyncio.run(look())
