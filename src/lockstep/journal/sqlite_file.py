"""The store's files: connections, the lock that makes one process its only writer, SQLite's errors in our words."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from lockstep.errors import StoreBusy, StoreDamaged, StoreError, StoreFull
from lockstep.journal.inbox import Inbox

DATABASE = "journal.db"
_WHILE_A_GATEWAY = (
    "Meanwhile `approve`, `refuse`, `answer`, `allow`, `revoke`, `stop` and all that only reads can be used; for"
    " anything else end it first, or use another store with --store."
)
_ELSEWHERE = "Restore it from a copy, or use another with --store."
_RUNS_THERE = (
    "SELECT (SELECT count(*) FROM runs NOT INDEXED), (SELECT coalesce(max(number), 0) FROM runs NOT INDEXED),"
    " (SELECT count(*) FROM runs INDEXED BY runs_by_session WHERE session >= ''),"
    " (SELECT count(*) FROM runs INDEXED BY sqlite_autoindex_runs_1 WHERE run_id >= ''),"
    " (SELECT coalesce(max(run), 0) FROM events)"
)
_NO_FILES_BESIDE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
_DAMAGED_SAID = ("no such table", "no such index", "Could not decode to UTF-8")
_DAMAGED = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}
)


def connect(path: Path, *, readonly: bool) -> sqlite3.Connection:
    """A connection to a store that exists; every commit of it is on disk before it returns.

    Raises:
        StoreError: the file cannot be opened, or not without writing beside it.
    """
    try:
        return _connect_to_read(path) if readonly else _connect(path, "mode=rw")
    except sqlite3.Error as error:
        raise translate(error, path.parent) from error


def _connect(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?{how}", uri=True, isolation_level=None, check_same_thread=False, timeout=10
    )
    try:
        connection.execute("PRAGMA synchronous=FULL")  # also the first look at the file
        connection.execute("PRAGMA cell_size_check=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Beside a writer, as SQLite does it; where it may make no files for that, the database as it lies there."""
    try:
        return _connect(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _NO_FILES_BESIDE:
            raise
    if _holds_anything(path.with_name(f"{path.name}-wal")):
        raise StoreError(
            f"The newest events of the store {path.parent} are in {path.name}-wal, which is not read without writing.",
            remedy="Copy the store to where you may write and name the copy with --store.",
        )
    return _connect(path, "immutable=1")  # nobody changes it: who writes to a store has a -wal


def _holds_anything(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def require_all_runs(connection: sqlite3.Connection, directory: Path) -> None:
    """Runs are numbered from 1 without a gap and none is ever removed, so one that a damaged page hides is missed.

    Raises:
        StoreDamaged: the list of runs, one of its indexes or both hold fewer than there are.
    """
    try:
        listed, last, in_session, by_id, with_events = connection.execute(_RUNS_THERE).fetchone()
    except sqlite3.Error as error:
        raise translate(error, directory) from error
    there = max(last, with_events)
    if (found := min(listed, in_session, by_id)) != there:
        raise StoreDamaged(
            f"The store {directory} is damaged: of its {there} runs only {found} can be found.", remedy=_ELSEWHERE
        )


def hold(directory: Path) -> int:
    """Take the store's lock for this process; the file says who holds it. Closing the descriptor lets go.

    Raises:
        StoreBusy: another process holds it.
        OSError: the lock file cannot be made.
    """
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 64, 0).decode(errors="replace").strip() or "unknown"
            gateway = Inbox(directory).is_attended()
            raise StoreBusy(
                f"The store {directory} is in use by process {holder}{', a gateway' if gateway else ''}.",
                remedy=_WHILE_A_GATEWAY if gateway else "Wait until it ends, or use another store with --store.",
            ) from None
        os.truncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def translate(error: Exception, directory: Path) -> StoreError:
    """What a failure of SQLite means for the user of the store."""
    code = getattr(error, "sqlite_errorcode", 0)  # absent when Python's own layer refused
    kind = code & 0xFF
    if code in _DAMAGED or kind in _DAMAGED or any(said in str(error) for said in _DAMAGED_SAID):
        return StoreDamaged(f"The store {directory} is damaged: {error}.", remedy=_ELSEWHERE)
    if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreFull(
            f"The store {directory} could not be written: {error}.", remedy="Free some space, then `lockstep resume`."
        )
    return StoreError(f"The store {directory} failed: {error}.", remedy="Choose another with --store.")
