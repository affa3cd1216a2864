"""The kill switch's record: durable, seen by every process of a store, and a chain of its own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.errors import AgentStopped, StoreBusy, StoreDamaged, StoreError
from lockstep.journal import codec, migrations
from lockstep.journal.migrations import MIGRATIONS
from lockstep.journal.port import Stop
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.sqlite_file import DATABASE, hold
from lockstep.journal.stops import CHAIN, StopBook, require_running


@pytest.fixture
def book(tmp_path: Path) -> Iterator[StopBook]:
    book = StopBook.open(tmp_path)
    yield book
    book.close()


def edit(store: Path, statement: str) -> None:
    connection = sqlite3.connect(store / DATABASE)
    with connection:
        connection.execute(statement)
    connection.close()


def rows(store: Path) -> list[tuple[int, int, str, bytes, bytes]]:
    connection = sqlite3.connect(store / DATABASE)
    found = connection.execute("SELECT seq, at, type, body, hash FROM stops ORDER BY seq").fetchall()
    connection.close()
    return found


def test_a_stop_stands_until_the_agent_is_started(book: StopBook) -> None:
    stop = book.stop("travel", by="ada", because="it books twice", at_ms=5)
    assert stop == Stop(agent="travel", by="ada", because="it books twice", at_ms=5) == book.stop_of("travel")
    assert book.stop_of("other") is None
    assert book.start("travel", by="bob", because="", at_ms=6)
    assert book.stop_of("travel") is None


def test_a_second_stop_does_not_hide_who_stopped_it(book: StopBook, tmp_path: Path) -> None:
    book.stop("travel", by="ada", because="it books twice", at_ms=5)
    assert book.stop("travel", by="bob", because="me too", at_ms=6).by == "ada"
    assert len(rows(tmp_path)) == 1


def test_starting_what_was_not_stopped_writes_nothing(book: StopBook, tmp_path: Path) -> None:
    assert not book.start("travel", by="ada", because="", at_ms=5)
    assert rows(tmp_path) == []


def test_who_is_refused_learns_by_whom_when_and_why(book: StopBook) -> None:
    require_running(book, "travel")
    book.stop("travel", by="ada", because="it books twice.", at_ms=0)
    with pytest.raises(AgentStopped) as refused:
        require_running(book, "travel")
    assert refused.value.code == "agent_stopped"
    assert refused.value.message == "Agent travel was stopped by ada on 1970-01-01 00:00:00 UTC: it books twice."
    assert "lockstep start travel" in refused.value.remedy


def test_a_stop_is_written_and_seen_while_another_process_holds_the_store(tmp_path: Path) -> None:
    journal = SQLiteJournal.open(tmp_path)
    book = StopBook.open(tmp_path)
    assert journal.stop_of("travel") is None
    book.stop("travel", by="ada", because="", at_ms=5)
    seen = journal.stop_of("travel")
    asyncio.run(journal.close())
    book.close()
    assert seen is not None


def test_the_entries_are_a_hash_chain_and_time_does_not_go_back(book: StopBook, tmp_path: Path) -> None:
    book.stop("travel", by="ada", because="\ud800", at_ms=9)
    book.start("travel", by="ada", because="", at_ms=4)
    head = codec.GENESIS
    for number, (seq, at_ms, kind, body, digest) in enumerate(rows(tmp_path), 1):
        head = codec.link(head, CHAIN, seq, at_ms, kind, body)
        assert (seq, at_ms, digest) == (number, 9, head)


@pytest.mark.parametrize(
    "damage",
    ["UPDATE stops SET body = 'x'", "UPDATE stops SET body = '{}'", "DROP TABLE stops"],
    ids=["no JSON", "fields missing", "no table"],
)
def test_what_cannot_be_read_lets_nothing_go(book: StopBook, tmp_path: Path, damage: str) -> None:
    book.stop("travel", by="ada", because="", at_ms=5)
    edit(tmp_path, damage)
    with pytest.raises(StoreDamaged):
        book.stop_of("travel")


def test_an_older_store_that_nobody_holds_is_brought_forward(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / DATABASE)
    connection.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;")
    connection.close()
    book = StopBook.open(tmp_path)
    book.stop("travel", by="ada", because="", at_ms=5)
    book.close()


def test_a_holder_of_a_version_without_stops_is_said_and_nothing_is_pretended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = sqlite3.connect(tmp_path / DATABASE)
    connection.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;")
    connection.close()
    monkeypatch.setattr(migrations, "_HOLDER_S", 0.1)
    hold(tmp_path)
    with pytest.raises(StoreBusy, match="knows no stop"):
        StopBook.open(tmp_path)


def test_a_place_that_cannot_be_a_store_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        StopBook.open(tmp_path / "file" / "store")
