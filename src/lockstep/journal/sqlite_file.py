"""The store's files: connections, the lock that makes one process its only writer, SQLite's errors in our words."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from lockstep.errors import StoreBusy, StoreDamaged, StoreError, StoreFull

DATABASE = "journal.db"
_ELSEWHERE = "Restore it from a copy, or use another with --store."
_DAMAGED = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}
)


def connect(path: Path, *, readonly: bool) -> sqlite3.Connection:
    """A connection to a store that exists; every commit of it is on disk before it returns.

    Raises:
        StoreError: the file cannot be opened.
    """
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={'ro' if readonly else 'rw'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=10,
        )
        connection.execute("PRAGMA synchronous=FULL")
        return connection
    except sqlite3.Error as error:
        raise translate(error, path.parent) from error


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
            raise StoreBusy(
                f"The store {directory} is in use by process {holder}.",
                remedy="Wait until it ends, or use another store with --store.",
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
    if code in _DAMAGED or kind in _DAMAGED or "no such table" in str(error):
        return StoreDamaged(f"The store {directory} is damaged: {error}.", remedy=_ELSEWHERE)
    if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreFull(
            f"The store {directory} could not be written: {error}.", remedy="Free some space, then `lockstep resume`."
        )
    return StoreError(f"The store {directory} failed: {error}.", remedy="Choose another with --store.")
