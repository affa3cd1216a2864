"""Repeated calls in the loop: releases, deliberate repeats, calls emitted again, what a principal's sessions share."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inprocess import (
    ASK_BOOK,
    BOOK,
    LOOK,
    Functions,
    ListedModel,
    answer,
    call,
    driver_of,
    locked_agent,
    locked_tool,
    ok,
    reply,
)
from test_driver import BA1, during, results, run_of

from lockstep.agent.effect_spec import ReleaseRule, Repeats
from lockstep.agent.locked import LockedTool
from lockstep.journal.port import Journal
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.state import Left, Receipt, State, Status
from lockstep.runtime.driver import Driver
from lockstep.runtime.elsewhere import Elsewhere, ordered
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import Effect

CANCEL = locked_tool("cancel", Effect.ONCE)
CANCELLED = (ReleaseRule(tool="cancel", where={"/id": "result:/id"}),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def booking(**repeats: Any) -> LockedTool:
    return replace(BOOK, repeats=Repeats(**repeats))


class Service:
    """Books under B1, B2, ... and counts."""

    def __init__(self) -> None:
        self.tools = Functions(book=self.book, cancel=lambda _: ok("cancelled"))
        self.books = 0

    def book(self, _: PermittedCall) -> Outcome:
        self.books += 1
        return ok(f'{{"id": "B{self.books}"}}')


def driving(journal: Journal, service: Service, tool: LockedTool, *replies: Any, **more: Any) -> Driver:
    agent = locked_agent(tool, CANCEL, LOOK, **more)
    return driver_of(journal, ListedModel(*replies, reply()), service.tools, agent)


def joined(state: State) -> list[str]:
    return [each.duplicate_of for each in state.all_calls]


# --- releases ---


def test_a_cancellation_frees_the_booking_it_names_within_a_run(path: Path) -> None:
    service = Service()
    steps = [call("book", BA1), call("cancel", {"id": "B9"}), call("book", BA1, "p2")]
    freed = [call("cancel", {"id": "B1"}, "p3"), call("book", BA1, "p4"), call("book", BA1, "p5")]

    async def work(journal: SQLiteJournal) -> State:
        return await run_of(driving(journal, service, booking(released_by=CANCELLED), *map(reply, steps + freed)))

    state = during(path, work)
    run = state.run
    assert joined(state) == ["", "", f"{run}/1.0", "", "", f"{run}/5.0"]
    assert service.books == 2


@pytest.mark.parametrize("window_runs", [0, 20], ids=["from-extracts", "from-events"])
def test_a_cancellation_frees_the_booking_of_an_earlier_run(path: Path, window_runs: int) -> None:
    service = Service()
    tool = booking(released_by=CANCELLED)

    async def one(journal: SQLiteJournal, asked: Any) -> State:
        return await run_of(driving(journal, service, tool, reply(asked), window_runs=window_runs))

    asked = [call("book", BA1, "p1"), call("book", BA1, "p2"), call("cancel", {"id": "B1"}), call("book", BA1, "p3")]
    states = [during(path, lambda journal, each=each: one(journal, each)) for each in asked]  # type: ignore[misc]
    assert [joined(state) for state in states] == [[""], [f"{states[0].run}/1.0"], [""], [""]]
    assert service.books == 2


def test_a_cancellation_that_failed_frees_nothing(path: Path) -> None:
    service = Service()
    service.tools.functions["cancel"] = lambda _: Outcome(kind="tool_error", text="no")

    async def work(journal: SQLiteJournal) -> State:
        steps = [reply(call("book", BA1)), reply(call("cancel", {"id": "B1"})), reply(call("book", BA1, "p2"))]
        return await run_of(driving(journal, service, booking(released_by=CANCELLED), *steps))

    state = during(path, work)
    assert joined(state)[-1] == f"{state.run}/1.0"
    assert service.books == 1


# --- deliberate repeats ---


@pytest.mark.parametrize("given", [True, False], ids=["approved", "refused"])
def test_a_deliberate_repeat_asks_a_person_and_has_a_key_of_its_own(path: Path, given: bool) -> None:
    service = Service()
    steps = [reply(call("book", BA1)), reply(call("book", {**BA1, "again": True}, "p2"))]

    async def work(journal: SQLiteJournal) -> State:
        driver = driving(journal, service, booking(again=True), *steps)
        waiting = await run_of(driver)
        assert (waiting.status, service.books) == (Status.SUSPENDED, 1)
        (asked,) = waiting.calls
        assert asked.question == f"Run book once more? The same call was already made ({waiting.run}/1.0)."
        await answer(journal, asked.approval, given=given, by="ada", agent=driver.agent)
        return await driver.resume(waiting.run, by="ada")

    state = during(path, work)
    assert state.status is Status.FINISHED
    assert service.books == (2 if given else 1)
    assert len({each.key for each in service.tools.calls}) == service.books
    assert all("again" not in each.arguments for each in service.tools.calls)
    (receipt,) = state.receipts.values()
    assert receipt.where == f"{state.run}/{'2.0' if given else '1.0'}"


def test_a_deliberate_repeat_hides_the_first_only_when_made_and_may_be_repeated_in_turn(path: Path) -> None:
    service = Service()
    said = [ok("First."), Outcome(kind="tool_error", text="sold out"), ok("Second."), ok("Third.")]
    service.tools.functions["book"] = lambda _: said.pop(0)
    again = {**BA1, "again": True}
    steps = [reply(call("book", asked, f"p{n}")) for n, asked in enumerate([BA1, again, BA1, again, BA1, again])]
    state = during(path, lambda journal: run_of(driving(journal, service, booking(again=True), *steps), approve="all"))
    told = [each.text.split("\n")[0] for each in state.all_calls]
    assert told == ["First.", "sold out", "First.", "Second.", "Second.", "Third."]
    assert joined(state) == ["", "", f"{state.run}/1.0", "", f"{state.run}/4.0", ""]
    assert len({each.key for each in service.tools.calls}) == len(service.tools.calls) == 4


def test_without_a_first_call_a_deliberate_repeat_is_a_call_like_any_other(path: Path) -> None:
    service = Service()
    steps = [reply(call("book", {**BA1, "again": True}))]
    state = during(path, lambda journal: run_of(driving(journal, service, booking(again=True), *steps)))
    assert (state.stop_reason, service.books) == ("completed", 1)


# --- calls that are emitted again ---


def test_a_call_that_is_emitted_again_in_a_later_run_is_served_even_without_a_scope(path: Path) -> None:
    service = Service()

    async def one(journal: SQLiteJournal) -> State:
        return await run_of(driving(journal, service, booking(scope="none"), reply(call("book", BA1, "id1"))))

    first, second = during(path, one), during(path, one)
    assert joined(second) == [f"{first.run}/1.0"]
    assert service.books == 1


def test_a_read_that_is_emitted_again_is_served_until_something_was_changed(path: Path) -> None:
    service = Service()

    async def one(journal: SQLiteJournal, *asked: Any) -> State:
        return await run_of(driving(journal, service, BOOK, *map(reply, asked)))

    async def work(journal: SQLiteJournal) -> list[list[str]]:
        look = call("look", {"to": "SFO"}, "id1")
        first = await one(journal, look)
        runs = [first, await one(journal, look), await one(journal, look, call("book", BA1), look)]
        runs.append(await one(journal, look))
        return [
            [each.replace(first.run, "first").replace(runs[2].run, "third") for each in joined(run)] for run in runs
        ]

    assert during(path, work) == [[""], ["first/1.0"], ["first/1.0", "", ""], ["third/3.0"]]
    assert service.tools.count("look") == 2


# --- the sessions of a principal ---

SHARED = booking(scope="principal", released_by=CANCELLED)


async def one_of(journal: Journal, service: Service, *asked: Any, tool: LockedTool = SHARED, **who: str) -> State:
    return await run_of(driving(journal, service, tool, *map(reply, asked)), **who)


def test_what_another_session_of_the_principal_did_counts(path: Path) -> None:
    service = Service()

    async def work(journal: SQLiteJournal) -> None:
        first = await one_of(journal, service, call("book", BA1, "p1"), session="s1")
        second = await one_of(journal, service, call("book", BA1, "p2"), session="s2")
        assert joined(second) == [f"{first.run}/1.0"]
        assert results(second.transcript.messages)[0].startswith('{"id": "B1"}\n\n[This call was already made')
        other = await one_of(journal, service, call("book", BA1, "p3"), session="s3", principal="eve")
        assert joined(other) == [""]

    during(path, work)
    during(path, lambda journal: one_of(journal, service, call("book", BA1, "p4"), session="s4"))
    assert service.books == 2, "one for each principal, also after a restart"


def test_what_the_session_scope_keeps_apart_stays_apart(path: Path) -> None:
    service = Service()

    async def work(journal: SQLiteJournal) -> None:
        for session in ("s1", "s2"):
            await one_of(journal, service, call("book", BA1, session), session=session, tool=BOOK)

    during(path, work)
    assert service.books == 2


def test_a_cancellation_in_any_session_frees_the_booking_in_all(path: Path) -> None:
    service = Service()

    async def work(journal: SQLiteJournal) -> list[bool]:
        said = [
            ("s1", call("book", BA1, "p1")),
            ("s2", call("cancel", {"id": "B1"}, "p2")),
            ("s1", call("book", BA1, "p3")),
            ("s2", call("book", BA1, "p4")),
            ("s1", call("cancel", {"id": "B2"}, "p5")),
            ("s3", call("book", BA1, "p6")),
        ]
        return [bool(joined(await one_of(journal, service, asked, session=session))[0]) for session, asked in said]

    assert during(path, work) == [False, False, False, True, False, False]
    assert service.books == 3


def test_a_run_sees_what_was_cancelled_elsewhere_while_it_was_under_way(path: Path) -> None:
    service = Service()

    async def work(journal: SQLiteJournal) -> State:
        async def elsewhere(_: PermittedCall) -> Outcome:
            await one_of(journal, service, call("cancel", {"id": "B1"}), session="s2")
            return ok()

        service.tools.functions["look"] = elsewhere
        asked = [call("book", BA1, "p1"), call("look"), call("book", BA1, "p2")]
        return await one_of(journal, service, *asked, session="s1")

    assert joined(during(path, work)) == ["", "", ""]
    assert service.books == 2


def test_a_call_that_is_in_doubt_in_another_session_is_not_made(path: Path) -> None:
    service = Service()

    async def work(journal: SQLiteJournal) -> None:
        service.tools.functions["book"] = lambda _: Outcome(kind="timeout", text="late", unknown=True)
        await one_of(journal, service, call("book", BA1, "p1"), session="s1")
        service.tools.functions["book"] = service.book
        second = await one_of(journal, service, call("book", BA1, "p2"), session="s2")
        assert [each.outcome for each in second.all_calls] == ["in_doubt"]

    during(path, work)
    assert service.books == 0


class Blind(Elsewhere):
    """Sees nothing before a call is judged: the other session\'s intent comes right after it looked."""

    async def standing(self, state: State) -> dict[str, Receipt]:
        return {}


def test_of_sessions_that_intend_the_same_call_at_one_moment_the_first_runs_it(path: Path) -> None:
    service = Service()

    async def work(journal: SQLiteJournal, attempt: int) -> list[str]:
        drivers = [driving(journal, service, SHARED, reply(call("book", BA1))) for _ in range(3)]
        for driver in drivers:
            driver._elsewhere = Blind(journal)
        sessions = [f"{attempt}-{number}" for number in range(3)]
        states = await asyncio.gather(
            *(run_of(driver, session=session) for driver, session in zip(drivers, sessions, strict=True))
        )
        await one_of(journal, service, call("cancel", {"id": f"B{attempt}"}), session=f"{attempt}-3")
        return [state.all_calls[0].outcome for state in states]

    for attempt in range(1, 11):
        outcomes = during(path, lambda journal, attempt=attempt: work(journal, attempt))  # type: ignore[misc]
        assert outcomes.count("ok") == 1
        assert set(outcomes) <= {"ok", "joined", "in_doubt_elsewhere"}
        assert service.books == attempt


def test_whoever_comes_second_is_given_the_result_of_the_first(path: Path) -> None:
    service = Service()

    async def work(journal: SQLiteJournal) -> State:
        await one_of(journal, service, call("book", BA1), session="s1")
        driver = driving(journal, service, SHARED, reply(call("book", BA1)))
        driver._elsewhere = Blind(journal)
        return await run_of(driver, session="s2")

    state = during(path, work)
    (told,) = results(state.transcript.messages)
    assert told.startswith('{"id": "B1"}\n\n[This call was already made')
    assert [message.is_error for message in state.transcript.messages if hasattr(message, "is_error")] == [False]
    assert state.receipts == {}
    assert service.books == 1


def test_a_deliberate_repeat_of_what_another_session_made_runs_when_a_person_says_so(path: Path) -> None:
    service = Service()
    tool = booking(scope="principal", again=True)

    async def work(journal: SQLiteJournal) -> None:
        await one_of(journal, service, call("book", BA1), session="s1", tool=tool)
        driver = driving(journal, service, tool, reply(call("book", {**BA1, "again": True})))
        waiting = await run_of(driver, session="s2")
        await answer(journal, waiting.calls[0].approval, given=True, by="ada", agent=driver.agent)
        await driver.resume(waiting.run, by="ada")

    during(path, work)
    assert service.books == 2


def test_a_call_that_waited_for_approval_while_another_session_made_it_is_not_made(path: Path) -> None:
    service = Service()

    async def work(journal: SQLiteJournal) -> State:
        driver = driving(journal, service, SHARED, reply(call("book", BA1)), policy=ASK_BOOK)
        waiting = await run_of(driver, session="s1")
        await one_of(journal, service, call("book", BA1), session="s2")
        await answer(journal, waiting.calls[0].approval, given=True, by="ada", agent=driver.agent)
        return await driver.resume(waiting.run, by="ada")

    state = during(path, work)
    assert [each.outcome for each in state.all_calls] == ["joined"]
    assert service.books == 1


# --- what several runs left, put together ---


def receipt(at_ms: int, *freed_by: str, where: str = "r/1.0") -> Receipt:
    return Receipt(where=where, at_ms=at_ms, text="", freed_by=freed_by)


@pytest.mark.parametrize(
    "lefts, stands",
    [
        ([Left(receipts={"k": receipt(5, "t")}), Left(receipts={}, freed={"t": 6})], False),
        ([Left(receipts={"k": receipt(5, "t")}), Left(receipts={}, freed={"t": 4})], True),
        ([Left(receipts={}, freed={"t": 6}), Left(receipts={"k": receipt(5, "t")})], False),
        ([Left(receipts={}, freed={"t": 4}), Left(receipts={"k": receipt(5, "t")})], True),
        ([Left(receipts={"k": receipt(5, "t")}), Left(receipts={}, freed={"t": 5})], False),
        ([Left(receipts={}, freed={"t": 5}), Left(receipts={"k": receipt(5, "t")})], True),
        ([Left(receipts={"k": receipt(5, "t")}, freed={"t": 5})], True),
        ([Left(receipts={"k": receipt(5, "t")}), Left(receipts={}, freed={"u": 6})], True),
    ],
    ids=["after", "before", "by-an-older-run", "before-by-it", "tie", "tie-by-an-older-run", "by-itself", "another"],
)
def test_a_release_ends_what_was_made_before_it(lefts: list[Left], stands: bool) -> None:
    assert [each.stands(9) for each in ordered(lefts)["k"]] == [stands]


def test_receipts_of_one_key_are_given_oldest_first() -> None:
    old, new = receipt(5, where="r1/1.0"), receipt(6, where="r2/1.0")
    for lefts in ([old, new], [new, old]):
        assert ordered(Left(receipts={"k": each}) for each in lefts) == {"k": [old, new]}
