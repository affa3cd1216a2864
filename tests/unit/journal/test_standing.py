"""Standing approvals on disk: spent exactly as often as stated, by any process, and worth nothing once changed."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lockstep.errors import StoreBusy, StoreDamaged
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.sqlite_file import DATABASE
from lockstep.journal.standing import Standing, StandingBook
from lockstep.values import Digest, RunId

RUN = RunId("r1")
GIVEN = Standing(
    id="g1",
    agent="traveller",
    directory="/agents/traveller",
    lock=Digest("1" * 64),
    tool="book",
    where=(("/flight", '"BA1"'), ("/seats", "2")),
    from_ms=1000,
    until_ms=5000,
    times=2,
    by="eve",
    login="eve-1",
    because="the fair",
)


@pytest.fixture
def book(tmp_path: Path) -> StandingBook:
    book = StandingBook(tmp_path)
    book.give(GIVEN)
    return book


def use(book: StandingBook, call: str = "1.0", at_ms: int = 2000) -> bool:
    return book.use("g1", run=RUN, call=call, at_ms=at_ms)


def test_it_reads_back_as_it_was_given(book: StandingBook, tmp_path: Path) -> None:
    assert StandingBook(tmp_path).all() == [GIVEN]


def test_a_store_without_any_has_none(tmp_path: Path) -> None:
    assert StandingBook(tmp_path / "nowhere").all() == []
    assert not (tmp_path / "nowhere").exists()


def test_it_is_used_as_often_as_it_says_and_no_more(book: StandingBook) -> None:
    assert [use(book, call) for call in ("1.0", "2.0", "3.0")] == [True, True, False]
    assert book.all()[0].ended(2000) == "used up"


def test_asked_again_for_the_same_call_it_spends_nothing(book: StandingBook) -> None:
    assert [use(book), use(book), use(book, "2.0"), use(book), use(book, "3.0")] == [True, True, True, True, False]
    assert book.all()[0].used == 2


def test_it_ends_in_time_also_for_a_call_it_was_spent_on_and_when_the_clock_goes_back(book: StandingBook) -> None:
    assert use(book, at_ms=4999)
    assert not use(book, "2.0", at_ms=5000)
    assert not use(book, at_ms=5000)
    book.give(replace(GIVEN, id="g2", from_ms=9000, until_ms=9999))
    assert not use(book, "2.0", at_ms=2000)


def test_revoked_it_is_worth_nothing_and_says_by_whom(book: StandingBook) -> None:
    assert book.revoke("g1", by="bob", because="enough", at_ms=1500) == GIVEN
    assert not use(book)
    (found,) = book.all()
    assert (found.ended(1500), found.revoked_because) == ("revoked by bob", "enough")
    assert book.revoke("g1", by="bob", because="", at_ms=1600) is None
    assert book.revoke("g2", by="bob", because="", at_ms=1600) is None


def test_one_that_was_never_given_is_not_used(book: StandingBook) -> None:
    assert not book.use("g9", run=RUN, call="1.0", at_ms=2000)


def test_of_many_who_use_it_at_once_only_so_many_do(book: StandingBook, tmp_path: Path) -> None:
    won: list[bool] = []
    begin = threading.Barrier(8)

    def work(number: int) -> None:
        begin.wait()
        won.append(use(StandingBook(tmp_path), f"{number}.0"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)
    assert sorted(won) == [False] * 6 + [True] * 2


def test_it_is_written_while_another_holds_the_store(tmp_path: Path) -> None:
    journal = SQLiteJournal.open(tmp_path)
    with pytest.raises(StoreBusy):
        SQLiteJournal.open(tmp_path)
    book = StandingBook(tmp_path)
    book.give(GIVEN)
    assert book.revoke("g1", by="bob", because="", at_ms=1500) == GIVEN
    assert journal.directory == tmp_path


CHANGES = {
    "until later": """UPDATE standing SET body = replace(CAST(body AS TEXT), '5000', '9000') WHERE seq = 1""",
    "a use less": "DELETE FROM standing WHERE seq = 2",
    "a use from elsewhere": "INSERT INTO standing SELECT 9, at, type, body, hash FROM standing WHERE seq = 2",
    "another time": "UPDATE standing SET at = at + 1 WHERE seq = 1",
}


@pytest.mark.parametrize("sql", CHANGES.values(), ids=CHANGES.keys())
def test_changed_by_hand_none_of_them_counts(book: StandingBook, tmp_path: Path, sql: str) -> None:
    use(book)
    use(book, "2.0")
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute(sql)
    with pytest.raises(StoreDamaged, match="were changed"):
        book.all()
    with pytest.raises(StoreDamaged, match="were changed"):
        use(book, "3.0")
