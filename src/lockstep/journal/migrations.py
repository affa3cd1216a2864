"""The store's schema, forward by number: `PRAGMA user_version` counts the migrations a file has had."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from lockstep.errors import StoreBusy, StoreError
from lockstep.journal.sqlite_file import DATABASE, connect, hold, translate

MIGRATIONS: tuple[str, ...] = (
    # A run's number stands for its id in the events: 16 bytes less in each row and in each entry of the index.
    """
    CREATE TABLE runs (
        number INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, session TEXT NOT NULL, principal TEXT NOT NULL,
        agent TEXT NOT NULL, started_at INTEGER NOT NULL
    );
    CREATE INDEX runs_by_session ON runs (session);
    CREATE TABLE events (
        run INTEGER NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL,
        hash BLOB NOT NULL, PRIMARY KEY (run, seq)
    );
    CREATE TABLE blobs (digest TEXT NOT NULL PRIMARY KEY, body BLOB NOT NULL);
    """,
    # Nothing in it is the truth: what is not there, or does not hold, is read from the events and put back.
    """
    CREATE TABLE extracts (run INTEGER PRIMARY KEY, body BLOB NOT NULL, hash BLOB NOT NULL);
    """,
    # Who stopped which agent and let it go on: a chain of its own, which every process of the store may lengthen.
    """
    CREATE TABLE stops (
        seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, type TEXT NOT NULL, agent TEXT NOT NULL, body BLOB NOT NULL,
        hash BLOB NOT NULL
    );
    CREATE INDEX stops_by_agent ON stops (agent, seq);
    """,
    # Standing approvals: a chain of its own, which every process of the store may lengthen.
    """
    CREATE TABLE standing (
        seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL, hash BLOB NOT NULL
    );
    """,
)
_HOLDER_S = 10.0
OLDEST_READABLE = 1
"""A store with this many migrations can be read as it is; only writing brings it forward."""


def migrate(path: Path) -> None:
    """Bring the file at `path` (made when missing) to the newest schema; each migration is one transaction.

    Raises:
        StoreError: the file is of a newer version, damaged, no database, or cannot be written.
    """
    with contextlib.suppress(OSError):  # SQLite says why below, in its own words
        path.touch(mode=0o600)  # conversations: for the user alone; the WAL gets the same mode
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            _apply(connection, path)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translate(error, path.parent) from error


def bring_forward(directory: Path, needed: str) -> None:
    """Make or migrate the store where nobody holds it; else wait until its holder has done so.

    Raises:
        StoreBusy: its holder is of a version that knows nothing of what is `needed` here.
        StoreError: it cannot be opened or migrated.
    """
    until = time.monotonic() + _HOLDER_S
    while not _is_newest(directory / DATABASE):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock_fd = hold(directory)
        except StoreBusy as busy:
            if time.monotonic() > until:
                what = f"{busy.message} It is of a version that knows no {needed}."
                raise StoreBusy(what, remedy="End that process itself.") from busy
            time.sleep(0.05)
            continue
        except OSError as error:
            raise StoreError(f"The store {directory} cannot be opened: {error.strerror}.") from error
        try:
            migrate(directory / DATABASE)
        finally:
            os.close(lock_fd)


def _is_newest(path: Path) -> bool:
    if not path.exists():
        return False
    connection = connect(path, readonly=True)
    try:
        return check_version(connection, path) == len(MIGRATIONS)
    except sqlite3.Error as error:
        raise translate(error, path.parent) from error
    finally:
        connection.close()


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """How many migrations the file has had.

    Raises:
        StoreError: more than this version knows.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StoreError(f"The store {path.parent} is of a newer version ({version}).", remedy="Use a newer Lockstep.")
    return version


def _apply(connection: sqlite3.Connection, path: Path) -> None:
    version = check_version(connection, path)
    if version == len(MIGRATIONS):
        return
    connection.execute("PRAGMA journal_mode=WAL")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
