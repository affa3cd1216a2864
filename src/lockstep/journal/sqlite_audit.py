"""A SQLite store as the source of an audit record: raw rows, one snapshot, nothing held in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from lockstep.journal.audit import Chain, Row
from lockstep.journal.audit_check import BESIDE
from lockstep.journal.sqlite_file import DATABASE, connect, require_all_runs, translate
from lockstep.values import Digest, RunId

# Cast, because SQLite lets anybody who edits the file put any type into any column.
_COLUMNS = "CAST(seq AS INTEGER), CAST(at AS INTEGER), CAST(type AS BLOB), CAST(body AS BLOB), CAST(hash AS BLOB)"
_EVENTS = f"SELECT {_COLUMNS} FROM events WHERE run = (SELECT number FROM runs WHERE run_id = ?) ORDER BY seq"
_RUNS = (
    "SELECT r.run_id, r.session, r.principal, r.agent, e.seq, CAST(e.hash AS BLOB) FROM runs r JOIN events e"
    " ON e.run = r.number AND e.seq = (SELECT max(seq) FROM events WHERE run = r.number) {where} ORDER BY r.number"
)


class SQLiteAudit:
    """What is to be exported of a store: one run, a session, or everything with what stands beside the runs."""

    def __init__(self, directory: Path, *, run: RunId | None = None, session: str | None = None) -> None:
        self._directory = directory
        self._run, self._session = run, session
        self._connection = connect(directory / DATABASE, readonly=True)
        require_all_runs(self._connection, directory)

    def __enter__(self) -> Self:
        self._connection.execute("BEGIN")  # with the first look it becomes a snapshot
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def runs(self) -> Sequence[Chain]:
        where = ""
        values: tuple[str, ...] = ()
        if self._run is not None:
            where, values = "WHERE r.run_id = ?", (self._run,)
        elif self._session is not None:
            where, values = "WHERE r.session = ?", (self._session,)
        return [
            Chain(run=run, session=session, principal=principal, agent=agent, events=events, head=head.hex())
            for run, session, principal, agent, events, head in self._query(_RUNS.format(where=where), values)
        ]

    def beside(self) -> Sequence[Chain]:
        if self._run is not None or self._session is not None:
            return []
        found = []
        for table in BESIDE:  # the chain is called as its table; an old store has none
            if list(self._query(f"PRAGMA table_info({table})", ())):
                last = f"SELECT seq, CAST(hash AS BLOB) FROM {table} ORDER BY seq DESC LIMIT 1"
                found += [Chain(run=table, events=seq, head=head.hex()) for seq, head in self._query(last, ())]
        return found

    def rows(self, run: str) -> Iterator[Row]:
        query = (f"SELECT {_COLUMNS} FROM {run} ORDER BY seq", ()) if run in BESIDE else (_EVENTS, (run,))
        for seq, at_ms, kind, body, digest in self._query(*query):
            yield Row(seq, at_ms, kind.decode(errors="replace"), body, digest)

    def blob(self, digest: Digest) -> bytes | None:
        for (body,) in self._query("SELECT CAST(body AS BLOB) FROM blobs WHERE digest = ?", (digest,)):
            return bytes(body)
        return None

    def _query(self, sql: str, values: tuple[object, ...]) -> Iterator[Any]:
        try:
            yield from self._connection.execute(sql, values)
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise translate(error, self._directory) from error
