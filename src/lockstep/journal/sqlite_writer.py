"""The one thread that writes. Appends of concurrent runs share a transaction and so an fsync (group commit)."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from lockstep.errors import FenceConflict, LockstepError
from lockstep.journal.codec import GENESIS, Encoded, link, pack, seal
from lockstep.journal.events import ENDED, DoubtSettled, RunStarted
from lockstep.journal.sqlite_file import DATABASE, connect, translate
from lockstep.values import RunId

GROUP_LIMIT = 512
"""Appends in one transaction at most; bounds how long the first of a group waits for the last."""
_REFUSED = (sqlite3.Error, ValueError, OverflowError, MemoryError)


@dataclass(frozen=True, slots=True)
class Append:
    """Rows (time, event) for one run; `started` is the first of them when they begin it."""

    run: RunId
    first_seq: int
    started: RunStarted | None
    rows: Sequence[tuple[int, Encoded]]
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True)
class Keep:
    """What was drawn from runs that have finished."""

    extracts: Mapping[RunId, bytes]
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True)
class _Head:
    """Where a run's next event goes, and the hash it follows."""

    number: int
    next_seq: int
    hash: bytes
    finished: bool


class GroupWriter:
    """Commits what is submitted, in order; each append learns of its own outcome.

    Raises:
        StoreError: the database cannot be opened to write.
    """

    def __init__(self, directory: Path, *, full_sync: bool = True) -> None:
        """Without `full_sync` a commit survives the end of the process, but the last ones not that of the machine."""
        self._directory = directory
        self._connection = connect(directory / DATABASE, readonly=False)
        if not full_sync:
            self._connection.execute("PRAGMA synchronous=NORMAL")
        self._heads: dict[RunId, _Head] = {}
        """Of runs that were written to and have not finished."""
        self._queue: SimpleQueue[Append | Keep | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_forever, name="lockstep-journal", daemon=True)
        self._thread.start()

    def submit(self, item: Append | Keep) -> None:
        self._queue.put(item)

    async def stop(self) -> None:
        """Commit what was submitted and end the thread. Nothing may be submitted any more."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _write_forever(self) -> None:
        while group := self._next_group():
            items = [item for item in group if item is not None]
            if items:
                self._commit(items)
            if len(items) < len(group):
                break
        with contextlib.suppress(sqlite3.Error):  # what stays in the WAL is read from there
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _next_group(self) -> list[Append | Keep | None]:
        """Wait for one append, then take whatever else has come in meanwhile. None says stop."""
        group = [self._queue.get()]
        while len(group) < GROUP_LIMIT and not self._queue.empty():  # the only consumer, so `get` cannot block
            group.append(self._queue.get())
        return group

    def _commit(self, group: list[Append | Keep]) -> None:
        failures: dict[int, LockstepError] = {}
        touched: dict[RunId, _Head] = {}
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for place, item in enumerate(group):
                if isinstance(item, Keep):
                    self._keep(item)
                    continue
                try:
                    touched[item.run] = self._insert(item, touched.get(item.run) or self._head(item.run))
                except FenceConflict as error:
                    failures[place] = error
            self._connection.execute("COMMIT")
        except _REFUSED as error:
            failure = translate(error, self._directory)
            failures = dict.fromkeys(range(len(group)), failure)
            with contextlib.suppress(sqlite3.Error):  # of some errors SQLite has rolled back already
                self._connection.execute("ROLLBACK")
        else:
            self._keep_heads(touched)
        _tell(group, failures)

    def _keep_heads(self, touched: dict[RunId, _Head]) -> None:
        self._heads.update(touched)
        for run, head in touched.items():
            if head.finished:
                del self._heads[run]

    def _keep(self, item: Keep) -> None:
        for run, extract in item.extracts.items():
            head = self._head(run)
            if head is not None and head.finished:
                row = (head.number, pack(extract), seal(head.hash, extract))
                self._connection.execute("INSERT OR REPLACE INTO extracts VALUES (?, ?, ?)", row)

    def _insert(self, item: Append, head: _Head | None) -> _Head:
        if head is None and item.started is None:
            raise FenceConflict(f"Run {item.run} has no event yet, so event {item.first_seq} cannot be written.")
        next_seq = 1 if head is None else head.next_seq
        if item.first_seq != next_seq:
            raise FenceConflict(f"Event {item.first_seq} of run {item.run} is already written; the next is {next_seq}.")
        if head is None:
            head = self._new_run(item)
        elif head.finished and any(encoded.type != DoubtSettled.TYPE for _, encoded in item.rows):
            raise FenceConflict(f"Run {item.run} has finished: nothing follows event {next_seq - 1}.")
        previous = head.hash
        rows = []
        for seq, (at_ms, encoded) in enumerate(item.rows, next_seq):
            if encoded.blobs:
                self._connection.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", encoded.blobs)
            previous = link(previous, item.run, seq, at_ms, encoded.type, encoded.body)
            rows.append((head.number, seq, at_ms, encoded.type, encoded.body, previous))
        self._connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
        finished = item.rows[-1][1].type in ENDED
        return _Head(head.number, next_seq + len(rows), previous, finished)

    def _new_run(self, item: Append) -> _Head:
        assert item.started is not None
        values = (item.run, item.started.session, item.started.principal, item.started.agent, item.rows[0][0])
        cursor = self._connection.execute(
            "INSERT INTO runs (run_id, session, principal, agent, started_at) VALUES (?, ?, ?, ?, ?)", values
        )
        assert cursor.lastrowid is not None
        return _Head(cursor.lastrowid, 1, GENESIS, False)

    def _head(self, run: RunId) -> _Head | None:
        known = self._heads.get(run)
        if known is not None:
            return known
        row = self._connection.execute(
            "SELECT e.run, CAST(e.seq AS INTEGER), CAST(e.hash AS BLOB), e.type FROM events e JOIN runs r"
            " ON r.number = e.run WHERE r.run_id = ? ORDER BY e.seq DESC LIMIT 1",
            (run,),
        ).fetchone()
        return _Head(row[0], row[1] + 1, row[2], row[3] in ENDED) if row else None


def _tell(group: Sequence[Append | Keep], failures: dict[int, LockstepError]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[None], LockstepError | None]]] = {}
    for place, item in enumerate(group):
        by_loop.setdefault(item.loop, []).append((item.done, failures.get(place)))
    for loop, outcomes in by_loop.items():
        with contextlib.suppress(RuntimeError):  # that loop was closed: nobody is left to tell
            loop.call_soon_threadsafe(_resolve, outcomes)


def _resolve(outcomes: list[tuple[asyncio.Future[None], LockstepError | None]]) -> None:
    for done, failure in outcomes:
        if done.done():
            continue
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)
