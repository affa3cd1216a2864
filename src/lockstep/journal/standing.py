"""Standing approvals: who let which calls go beforehand, who took that back, and each use that was made of it.

They lie in the store beside the runs, as a hash chain of their own that is checked whenever it is read. Unlike events
they may be written while another process holds the store: whoever takes one back must not wait for the run it serves.
Refuses to say whether a call is covered; that is the gate's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lockstep.errors import StoreDamaged
from lockstep.journal.codec import GENESIS, link
from lockstep.journal.migrations import bring_forward
from lockstep.journal.sqlite_file import DATABASE, connect, translate
from lockstep.values import Digest, RunId

CHAIN = RunId("standing")
"""What stands for a run's id in this chain's hashes; a run's begins with `r`."""
GIVEN, REVOKED, USED = "standing.given", "standing.revoked", "standing.used"
_ALL = "SELECT seq, at, type, CAST(body AS BLOB), CAST(hash AS BLOB) FROM standing ORDER BY seq"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What somebody lets go beforehand, and no more: calls of one tool, under one lock, for a time."""

    id: str
    agent: str
    directory: str
    lock: Digest
    tool: str
    where: tuple[tuple[str, str], ...] = ()
    """JSON pointers into the arguments, and the JSON that must stand there."""
    principal: str = ""
    """Only for runs on this one's behalf; empty is anybody's."""
    from_ms: int
    until_ms: int
    times: int | None = None
    by: str
    login: str = ""
    because: str = ""
    used: int = 0
    revoked_by: str = ""
    revoked_because: str = ""

    def ended(self, at_ms: int) -> str:
        """Why it no longer stands; empty while it does."""
        if self.revoked_by:
            return f"revoked by {self.revoked_by}"
        if at_ms >= self.until_ms:
            return "expired"
        return "used up" if self.times is not None and self.used >= self.times else ""


class StandingBook:
    """The standing approvals of one store. Every method opens it anew, so that each sees what all processes wrote."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def all(self) -> list[Standing]:
        """Each that was ever given, oldest first, with what was made of it.

        Raises:
            StoreDamaged: the chain does not hold; none of them counts then.
            StoreError: the store cannot be read.
        """
        if not (self._directory / DATABASE).exists():
            return []
        with self._connected(readonly=True) as connection:
            if not connection.execute("PRAGMA table_info(standing)").fetchall():
                return []
            return list(self._read(connection).standing.values())

    def give(self, standing: Standing) -> None:
        """Record it, durably."""
        said = asdict(standing)
        for outcome in ("used", "revoked_by", "revoked_because"):
            del said[outcome]
        self._write(standing.from_ms, lambda _: (GIVEN, said))

    def revoke(self, standing: str, *, by: str, because: str, at_ms: int) -> Standing | None:
        """Take one back; as it stood, or None when there is none of this name that still stands."""
        before: list[Standing] = []

        def entry(book: _Book) -> tuple[str, dict[str, Any]] | None:
            found = book.standing.get(standing)
            if found is None or found.ended(at_ms):
                return None
            before.append(found)
            return REVOKED, {"id": standing, "by": by, "because": because}

        self._write(at_ms, entry)
        return before[0] if before else None

    def use(self, standing: str, *, run: RunId, call: str, at_ms: int) -> bool:
        """Spend one use of it on this call; whether it still stood. Asked again for the same call, nothing is spent."""
        spent: list[bool] = []

        def entry(book: _Book) -> tuple[str, dict[str, Any]] | None:
            found, again = book.standing.get(standing), (standing, run, call) in book.uses
            if found is not None and again:
                found = replace(found, used=found.used - 1)
            spent.append(found is not None and not found.ended(max(at_ms, book.last_ms)))
            return (USED, {"id": standing, "run": run, "call": call}) if spent[0] and not again else None

        self._write(at_ms, entry)
        return spent[0]

    def _write(self, at_ms: int, entry: Callable[[_Book], tuple[str, dict[str, Any]] | None]) -> None:
        """Append what `entry` says to what stands there, in one transaction."""
        bring_forward(self._directory, "approval given beforehand")
        with self._connected(readonly=False) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                book = self._read(connection)
                new = entry(book)
                if new is not None:
                    kind, said = new
                    body = json.dumps(said, sort_keys=True).encode()
                    at_ms = max(at_ms, book.last_ms)
                    digest = link(book.head, CHAIN, book.seq + 1, at_ms, kind, body)
                    row = (book.seq + 1, at_ms, kind, body, digest)
                    connection.execute("INSERT INTO standing VALUES (?, ?, ?, ?, ?)", row)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    def _read(self, connection: sqlite3.Connection) -> _Book:
        book = _Book()
        for seq, at_ms, kind, body, digest in connection.execute(_ALL):
            if seq != book.seq + 1 or link(book.head, CHAIN, seq, at_ms, kind, body) != digest:
                raise StoreDamaged(
                    f"The standing approvals of the store {self._directory} were changed: entry {seq} does not hold.",
                    remedy="Restore it from a copy. Until then every call that asks needs a person.",
                )
            book.head, book.seq, book.last_ms = digest, seq, at_ms
            book.add(kind, json.loads(body))
        return book

    @contextmanager
    def _connected(self, *, readonly: bool) -> Iterator[sqlite3.Connection]:
        connection = connect(self._directory / DATABASE, readonly=readonly)
        try:
            yield connection
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise translate(error, self._directory) from error
        finally:
            connection.close()


class _Book:
    """What the entries say so far, and where the next goes."""

    def __init__(self) -> None:
        self.standing: dict[str, Standing] = {}
        self.uses: set[tuple[str, str, str]] = set()
        self.head, self.seq, self.last_ms = GENESIS, 0, 0

    def add(self, kind: str, said: dict[str, Any]) -> None:
        if kind == GIVEN:
            where = tuple((str(pointer), str(value)) for pointer, value in said.pop("where"))
            self.standing[said["id"]] = Standing(**said, where=where)
            return
        found = self.standing[said["id"]]
        if kind == REVOKED:
            found = replace(found, revoked_by=said["by"], revoked_because=said["because"])
        else:
            self.uses.add((said["id"], said["run"], said["call"]))
            found = replace(found, used=found.used + 1)
        self.standing[said["id"]] = found
