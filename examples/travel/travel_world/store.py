"""Bookings, calendar entries and the request log, in one SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import cast

from travel_world.flights import Offer
from travel_world.request import Record, Refusal

_SCHEMA = """
CREATE TABLE IF NOT EXISTS bookings (
    number INTEGER PRIMARY KEY AUTOINCREMENT, offer_id TEXT NOT NULL, passenger TEXT NOT NULL,
    price_cents INTEGER NOT NULL, airline TEXT NOT NULL, flight_number TEXT NOT NULL,
    departs_at TEXT NOT NULL, arrives_at TEXT NOT NULL, booked_at TEXT NOT NULL, idempotency_key TEXT
);
CREATE INDEX IF NOT EXISTS bookings_by_offer ON bookings (offer_id, passenger);
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL,
    starts_at TEXT NOT NULL, ends_at TEXT NOT NULL, notes TEXT
);
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
    session TEXT, run TEXT, call TEXT, status INTEGER
);
"""


class Store:
    """Bookings, calendar entries and the request log in one SQLite file; safe to share between threads and processes.

    Open one on the file of a running (or stopped) service to read what really happened.
    """

    def __init__(self, database_path: str | Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(database_path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file; a write in progress is finished first."""
        with self._lock:
            self._db.close()

    def book(self, offer: Offer, passenger: str, idempotency_key: str | None) -> Record:
        """Record one more booking of the offer; 409 when no seat is left. Asks no questions about earlier ones."""
        with self._transaction() as db:
            (sold,) = db.execute("SELECT count(*) FROM bookings WHERE offer_id = ?", (offer.offer_id,)).fetchone()
            if sold >= offer.seats:
                raise Refusal(HTTPStatus.CONFLICT, f"Offer {offer.offer_id} is sold out; nothing was booked.")
            row = db.execute(
                "INSERT INTO bookings (offer_id, passenger, price_cents, airline, flight_number, departs_at,"
                " arrives_at, booked_at, idempotency_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING *",
                (
                    offer.offer_id,
                    passenger,
                    offer.price_cents,
                    offer.airline,
                    offer.flight_number,
                    offer.departs_at.isoformat(),
                    offer.arrives_at.isoformat(),
                    _now(),
                    idempotency_key,
                ),
            ).fetchone()
        return _booking_record(row)

    def add_entry(self, title: str, starts_at: str, ends_at: str, notes: str | None) -> Record:
        with self._transaction() as db:
            row = db.execute(
                "INSERT INTO entries (title, starts_at, ends_at, notes) VALUES (?, ?, ?, ?) RETURNING *",
                (title, starts_at, ends_at, notes),
            ).fetchone()
        return _entry_record(row)

    def bookings(self, *, offer_id: str | None = None, passenger: str | None = None) -> list[Record]:
        """Return bookings, oldest first; a filter that is None matches all."""
        rows = self._rows(
            "SELECT * FROM bookings WHERE offer_id = coalesce(?, offer_id) AND passenger = coalesce(?, passenger)"
            " ORDER BY number",
            (offer_id, passenger),
        )
        return [_booking_record(row) for row in rows]

    def booking(self, booking_id: str) -> Record | None:
        """Return the booking with that id, if there is one."""
        number = booking_id.removeprefix("BK-")
        if not (number.isascii() and number.isdecimal() and len(number) <= 15):
            return None
        found = [_booking_record(row) for row in self._rows("SELECT * FROM bookings WHERE number = ?", (int(number),))]
        return found[0] if found and found[0]["booking_id"] == booking_id else None

    def entries(self, *, title: str | None = None, starts_at: str | None = None) -> list[Record]:
        """Return calendar entries, oldest first; a filter that is None matches all."""
        rows = self._rows(
            "SELECT * FROM entries WHERE title = coalesce(?, title) AND starts_at = coalesce(?, starts_at)"
            " ORDER BY number",
            (title, starts_at),
        )
        return [_entry_record(row) for row in rows]

    def requests(self) -> list[Record]:
        """Return the request log, oldest first; `status` is None while a request is being answered."""
        return [dict(row) for row in self._rows("SELECT * FROM requests ORDER BY number")]

    def seats_sold(self) -> dict[str, int]:
        """Return the number of bookings by offer id."""
        return dict(map(tuple, self._rows("SELECT offer_id, count(*) FROM bookings GROUP BY offer_id")))

    def log_request(self, method: str, path: str, session: str | None, run: str | None, call: str | None) -> int:
        """Record that a request arrived, before anything is done about it; returns its number."""
        with self._transaction() as db:
            (number,) = db.execute(
                "INSERT INTO requests (at, method, path, session, run, call)"
                " VALUES (?, ?, ?, ?, ?, ?) RETURNING number",
                (_now(), method, path, session, run, call),
            ).fetchone()
        return cast(int, number)

    def log_status(self, number: int, status: int) -> None:
        with self._transaction() as db:
            db.execute("UPDATE requests SET status = ? WHERE number = ?", (status, number))

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")


def _booking_record(row: sqlite3.Row) -> Record:
    return {
        "booking_id": f"BK-{row['number']:05d}",
        "offer_id": row["offer_id"],
        "passenger": row["passenger"],
        "price_usd": row["price_cents"] / 100,
        "airline": row["airline"],
        "flight_number": row["flight_number"],
        "departs_at": row["departs_at"],
        "arrives_at": row["arrives_at"],
        "booked_at": row["booked_at"],
        "idempotency_key": row["idempotency_key"],
    }


def _entry_record(row: sqlite3.Row) -> Record:
    return {
        "entry_id": f"CAL-{row['number']:05d}",
        "title": row["title"],
        "starts_at": row["starts_at"],
        "ends_at": row["ends_at"],
        "notes": row["notes"],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
