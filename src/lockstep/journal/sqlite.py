"""The embedded journal: one SQLite file in WAL mode with full synchronisation, written by one thread.

One process per store, by flock: a second process would drive the same runs. Readers in other processes are welcome.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lockstep.errors import JournalCorrupt, StoreError
from lockstep.journal.codec import GENESIS, decode, encode, link, seal, unpack
from lockstep.journal.events import ENDED, DoubtSettled, Event, Recorded, RunStarted
from lockstep.journal.migrations import OLDEST_READABLE, check_version, migrate
from lockstep.journal.port import AgentRun, Entry, RunRow, SessionRun, Stop, Verification
from lockstep.journal.sqlite_file import DATABASE, connect, hold, require_all_runs, translate
from lockstep.journal.sqlite_writer import Append, GroupWriter, Keep
from lockstep.journal.stops import newest
from lockstep.values import Digest, RunId, sha256

# Cast, because SQLite lets anybody who edits the file put any type into any column.
_EVENTS = (
    "SELECT CAST(seq AS INTEGER), CAST(at AS INTEGER), CAST(type AS BLOB), CAST(body AS BLOB), CAST(hash AS BLOB)"
    " FROM events WHERE run = (SELECT number FROM runs WHERE run_id = ?) AND seq > ? ORDER BY seq"
)
_RUNS = (
    "SELECT r.run_id, r.session, r.principal, r.agent, r.started_at, e.type, e.at, e.seq FROM runs r JOIN events e"
    " ON e.run = r.number AND e.seq = (SELECT max(seq) FROM events WHERE run = r.number)"
    " {where} ORDER BY r.number DESC LIMIT ?"
)
_WITH_EVENT = "r.number IN (SELECT run FROM events WHERE type = ?)"
_POSITION = "SELECT rowid FROM events WHERE run = (SELECT number FROM runs WHERE run_id = ?) AND seq = ?"
_NUMBER = "SELECT number FROM runs WHERE run_id = ?"
_SESSION = (
    "SELECT r.run_id, e.type, CAST(e.hash AS BLOB), CAST(x.body AS BLOB), CAST(x.hash AS BLOB) FROM runs r"
    " JOIN events e ON e.run = r.number AND e.seq = (SELECT max(seq) FROM events WHERE run = r.number)"
    " LEFT JOIN {extracts} x ON x.run = r.number WHERE r.session = ? AND r.number < ? ORDER BY r.number"
)
_OF_AGENT = (
    "SELECT r.run_id, r.session, r.principal, r.started_at, e.type, CAST(e.hash AS BLOB), CAST(x.body AS BLOB),"
    " CAST(x.hash AS BLOB) FROM runs r"
    " JOIN events e ON e.run = r.number AND e.seq = (SELECT max(seq) FROM events WHERE run = r.number)"
    " LEFT JOIN {extracts} x ON x.run = r.number"
    " WHERE r.agent = ? AND (r.session = ? OR r.principal = ? OR r.started_at >= ?) ORDER BY r.number"
)
_NO_EXTRACTS = "(SELECT 0 AS run, x'' AS body, x'' AS hash)"
_ALL_NUMBERS = 2**63 - 1


class SQLiteJournal:
    """A journal in `directory`. Use `open` to write, `open_readonly` to look while another process writes."""

    def __init__(self, directory: Path, *, lock_fd: int | None, full_sync: bool = True) -> None:
        self.directory = directory
        self._full_sync = full_sync
        self._lock_fd = lock_fd
        self._reader = connect(directory / DATABASE, readonly=lock_fd is None)
        self._writer: GroupWriter | None = None
        self._closed = False

    @classmethod
    def open(cls, directory: Path, *, full_sync: bool = True) -> Self:
        """Open for writing, creating and migrating the store as needed. Without `full_sync` a power cut, though no
        end of the process, may cost the newest events.

        Raises:
            StoreBusy: another process holds the store.
            StoreError: the directory cannot be written, or the file is of a newer version or no database.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock_fd = hold(directory)
        except OSError as error:
            raise StoreError(
                f"The store {directory} cannot be opened: {error.strerror}.", remedy="Choose another with --store."
            ) from error
        try:
            migrate(directory / DATABASE)
            return cls(directory, lock_fd=lock_fd, full_sync=full_sync)._whole()
        except BaseException:
            os.close(lock_fd)
            raise

    @classmethod
    def open_readonly(cls, directory: Path) -> Self:
        """Open to read what is there, also while another process writes.

        Raises:
            StoreError: there is no store, or it is of another version.
        """
        path = directory / DATABASE
        if not path.exists():
            raise StoreError(
                f"There is no store at {directory}.", remedy="Run an agent first, or name it with --store."
            )
        journal = cls(directory, lock_fd=None)
        try:
            version = check_version(journal._reader, path)
            if not version and not journal._query("SELECT 1 FROM sqlite_master", ()):  # whoever began it got no further
                raise StoreError(f"The store {directory} holds nothing yet.", remedy="A command that writes makes it.")
            if version < OLDEST_READABLE:
                raise StoreError(
                    f"The store {directory} is of an older version.", remedy="A command that writes brings it forward."
                )
        except sqlite3.Error as error:
            journal._reader.close()
            raise translate(error, directory) from error
        except StoreError:
            journal._reader.close()
            raise
        return journal._whole()

    def _whole(self) -> Self:
        try:
            require_all_runs(self._reader, self.directory)
        except StoreError:
            self._reader.close()
            raise
        return self

    async def append(self, run: RunId, first_seq: int, entries: Sequence[Entry]) -> None:
        started = _beginning(run, first_seq, entries)
        rows = [(at_ms, encode(event)) for at_ms, event in entries]
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._writing().submit(Append(run, first_seq, started, rows, done, loop))
        await done

    async def read(self, run: RunId, after_seq: int = 0) -> list[Recorded]:
        return [
            Recorded(seq=seq, at_ms=at, event=self._event(run, seq, _name(kind), body), hash=digest)
            for seq, at, kind, body, digest in self._query(_EVENTS, (run, after_seq))
        ]

    async def runs(
        self,
        session: str | None = None,
        limit: int | None = None,
        with_event: str | None = None,
        *,
        principal: str | None = None,
        agent: str | None = None,
    ) -> list[RunRow]:
        wanted = {
            "r.session = ?": session,
            "r.principal = ?": principal,
            "r.agent = ?": agent,
            _WITH_EVENT: with_event,
        }
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        rows = self._query(_RUNS.format(where=where), (*given.values(), -1 if limit is None else limit))
        return [
            RunRow(run=r, session=s, principal=p, agent=a, started_at_ms=started, last=kind, last_at_ms=at, events=seq)
            for r, s, p, a, started, kind, at, seq in rows
        ]

    async def position(self, run: RunId, seq: int) -> int:
        # One writer at a time, nothing is ever removed: SQLite's own number of a row grows with every append.
        rows = self._query(_POSITION, (run, seq))
        if not rows:
            raise StoreError(f"Run {run} has no event {seq}.")
        return int(rows[0][0])

    async def find(self, prefix: str) -> list[RunId]:
        rows = self._query(
            "SELECT run_id FROM runs WHERE substr(run_id, 1, ?) = ? ORDER BY number DESC LIMIT 10",
            (len(prefix), prefix),
        )
        return [RunId(run) for (run,) in rows]

    async def keep(self, extracts: Mapping[RunId, bytes]) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._writing().submit(Keep(extracts, done, loop))
        await done

    async def session(self, session: str, *, before: RunId | None = None) -> list[SessionRun]:
        end = _ALL_NUMBERS
        if before is not None:
            end = next((number for (number,) in self._query(_NUMBER, (before,))), 0)
        return [
            SessionRun(run=RunId(run), finished=kind in ENDED, extract=_holding(kind, head, body, sealed))
            for run, kind, head, body, sealed in self._query(self._with_extracts(_SESSION), (session, end))
        ]

    async def of_agent(
        self, agent: str, *, session: str | None = None, principal: str | None = None, since_ms: int | None = None
    ) -> list[AgentRun]:
        return [
            AgentRun(
                run=RunId(run),
                session=of,
                principal=whose,
                started_at_ms=started,
                finished=kind in ENDED,
                extract=_holding(kind, head, body, sealed),
            )
            for run, of, whose, started, kind, head, body, sealed in self._query(
                self._with_extracts(_OF_AGENT), (agent, session, principal, since_ms)
            )
        ]

    def _with_extracts(self, sql: str) -> str:
        return sql.format(extracts="extracts" if self._query("PRAGMA table_info(extracts)", ()) else _NO_EXTRACTS)

    async def verify(self, run: RunId) -> Verification:
        rows = self._query(_EVENTS, (run, 0))
        head, expected, problem, before = GENESIS, 1, "", ""
        for seq, at, kind, body, digest in rows:
            if seq != expected:
                problem = f"event {expected} is missing"
            elif link(head, run, seq, at, _name(kind), body) != digest:
                problem = f"event {seq} ({_name(kind)}) was changed after it was written: its hash does not follow"
            else:
                problem = self._problem(run, seq, _name(kind), body) or _order(seq, before, _name(kind))
            if problem:
                break
            head, expected, before = digest, expected + 1, _name(kind)
        if not rows:
            problem = "event 1 is missing"
        broken = expected if problem else None
        return Verification(run=run, events=len(rows), head=head.hex(), broken_seq=broken, problem=problem)

    def stop_of(self, agent: str) -> Stop | None:
        return newest(self._reader, self.directory, agent)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            await self._writer.stop()
        self._reader.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)

    def _writing(self) -> GroupWriter:
        if self._lock_fd is None:
            raise StoreError("The store was opened to read only.")
        if self._closed:
            raise StoreError("The store is closed.")
        if self._writer is None:
            self._writer = GroupWriter(self.directory, full_sync=self._full_sync)
        return self._writer

    def _event(self, run: RunId, seq: int, kind: str, body: bytes) -> Event:
        try:
            return decode(kind, body, self._blob)
        except JournalCorrupt as error:
            remedy = error.remedy or f"`lockstep verify {run}` says where its record stops holding."
            raise JournalCorrupt(f"Event {seq} of run {run} cannot be read: {error.message}", remedy=remedy) from error

    def _problem(self, run: RunId, seq: int, kind: str, body: bytes) -> str:
        """What is wrong with one event whose hash holds: its body, or that the list of runs says otherwise."""
        try:
            event = decode(kind, body, self._blob)
        except JournalCorrupt as error:
            return f"event {seq} ({kind}): {error.message}"
        if seq > 1:
            return ""
        if not isinstance(event, RunStarted):
            return f"event 1 is {kind}, not run.started"
        listed = self._query("SELECT session, principal, agent FROM runs WHERE run_id = ?", (run,))[0]
        told = (event.session, event.principal, event.agent)
        return "" if listed == told else f"the list of runs says {listed!r} where run.started says {told!r}"

    def _query(self, sql: str, values: tuple[object, ...]) -> list[Any]:
        try:
            return self._reader.execute(sql, values).fetchall()
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise translate(error, self.directory) from error

    def _blob(self, digest: Digest) -> bytes:
        rows = self._query("SELECT CAST(body AS BLOB) FROM blobs WHERE digest = ?", (digest,))
        if not rows:
            raise JournalCorrupt(f"The body {digest[:12]} is missing from the store.")
        data: bytes = rows[0][0]
        if sha256(data) != digest:
            raise JournalCorrupt(f"The body {digest[:12]} was changed after it was written.")
        return data


def _beginning(run: RunId, first_seq: int, entries: Sequence[Entry]) -> RunStarted | None:
    """The run.started of an append that begins a run; refuses what would break the store's own columns."""
    if not entries:
        raise StoreError(f"Nothing to append to run {run}.")
    first = entries[0][1]
    if isinstance(first, RunStarted) != (first_seq == 1) or any(isinstance(e, RunStarted) for _, e in entries[1:]):
        raise StoreError(f"Run {run} must begin with run.started, once.")
    if not isinstance(first, RunStarted):
        return None
    names = {"run": run, "session": first.session, "principal": first.principal, "agent": first.agent}
    for what, text in names.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise StoreError(f"The name of the {what} is not Unicode text: {text!r}.") from None
    return first


def _holding(kind: str, head: bytes, body: bytes | None, sealed: bytes | None) -> bytes | None:
    """An extract that is of this run as it is now, whole; None otherwise."""
    if body is None or kind not in ENDED:
        return None
    try:
        extract = unpack(body)
    except zlib.error:
        return None
    return extract if seal(head, extract) == sealed else None


def _order(seq: int, before: str, kind: str) -> str:
    if before in ENDED and kind != DoubtSettled.TYPE:
        return f"event {seq} is {kind}, and the run had finished"
    if kind == DoubtSettled.TYPE and before not in ENDED:
        return f"event {seq} is {kind}, and the run had not finished"
    return ""


def _name(kind: bytes) -> str:
    return kind.decode(errors="replace")
