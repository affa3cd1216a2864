"""People and runs: what an answer is refused for, approvals given beforehand, and limits that several runs share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import pytest
from inprocess import (
    ASK_BOOK,
    BOOK,
    Functions,
    ListedModel,
    answer,
    call,
    driver_of,
    locked_agent,
    reply,
    started,
)

from lockstep.agent.budget import Budget, Limits
from lockstep.agent.locked import LockedAgent
from lockstep.errors import ApprovalError, BudgetError, JournalCorrupt
from lockstep.gate.approvals import Terms
from lockstep.journal import events as ev
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.standing import Standing, StandingBook
from lockstep.kernel.state import State, Status
from lockstep.runtime import spending
from lockstep.runtime.answers import Answer, answer_approval, cancel
from lockstep.runtime.driver import Driver
from lockstep.runtime.questions import origin_in_words, question_of
from lockstep.runtime.reading import read_run, read_state
from lockstep.runtime.spending import Place, Spending
from lockstep.values import Digest, RunId, now_ms

T = TypeVar("T")
BA1 = {"flight": "BA1"}
ASKING = locked_agent(policy=ASK_BOOK)
DAY_MS = 86_400_000


def during(path: Path, work: Callable[[SQLiteJournal], Awaitable[T]]) -> T:
    async def bounded() -> T:
        journal = SQLiteJournal.open(path)
        try:
            return await asyncio.wait_for(work(journal), 60)
        finally:
            await journal.close()

    return asyncio.run(bounded())


def asking(journal: SQLiteJournal, agent: LockedAgent = ASKING, *, standing: StandingBook | None = None) -> Driver:
    model = ListedModel(reply(call("book", BA1)), reply(text="Done."))
    return driver_of(journal, model, Functions(), agent, standing=standing)


async def waiting_run(journal: SQLiteJournal, agent: LockedAgent = ASKING) -> tuple[State, str]:
    driver = asking(journal, agent)
    state = await driver.advance(await driver.start(started()))
    return state, state.call("1.0").approval


async def given(journal: SQLiteJournal, state: State) -> list[ev.ApprovalGiven]:
    events = [item.event for item in await read_run(journal, state.run)]
    return [event for event in events if isinstance(event, ev.ApprovalGiven)]


# --- what an answer is refused for ---


def refused(path: Path, said: Answer, terms: Terms, match: str, agent: LockedAgent = ASKING) -> None:
    async def work(journal: SQLiteJournal) -> None:
        state, approval = await waiting_run(journal, agent)
        before = await read_state(journal, state.run)
        with pytest.raises(ApprovalError, match=match):
            await answer_approval(journal, approval, said, lambda _: terms)
        assert await read_state(journal, state.run) == before
        after = await answer(journal, approval, given=False, by="bob")
        assert after.call("1.0").refused_by == "bob"

    during(path, work)


YES = Answer(given=True, by="eve")


def test_under_a_lock_that_changed_since_only_a_refusal_counts(tmp_path: Path) -> None:
    changed = replace(Terms.of(ASKING), lock=Digest("2" * 64))
    refused(tmp_path, YES, changed, "agent.lock changed since approval .*: the run is of 111111111111, .* is now 2222")


def test_under_another_policy_only_a_refusal_counts(tmp_path: Path) -> None:
    refused(tmp_path, YES, replace(Terms.of(ASKING), policy=Digest("2" * 64)), "another call, principal or policy")


def test_an_answer_with_the_digest_of_another_call_is_none(tmp_path: Path) -> None:
    refused(tmp_path, replace(YES, digest="f" * 64), Terms.of(ASKING), "is not for what has the digest ffff")


@pytest.mark.parametrize("taken", [lambda d: d, lambda d: d[:8]], ids=["whole", "its beginning"])
@pytest.mark.parametrize("name", ["digest", "bound"])
def test_an_answer_may_name_what_was_shown(tmp_path: Path, name: str, taken: Callable[[str], str]) -> None:
    async def work(journal: SQLiteJournal) -> None:
        state, approval = await waiting_run(journal)
        said = replace(YES, digest=taken(getattr(state.call("1.0"), name)), because="her usual", login="eve-1")
        await answer_approval(journal, approval, said, lambda _: Terms.of(ASKING))
        (event,) = await given(journal, state)
        assert (event.by, event.because, event.login) == ("eve", "her usual", "eve-1")

    during(tmp_path, work)


def test_too_little_of_a_digest_is_no_digest(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        state, approval = await waiting_run(journal)
        little = str(state.call("1.0").digest)[:7]
        with pytest.raises(ApprovalError, match="is not for what has the digest"):
            await answer_approval(journal, approval, replace(YES, digest=little), lambda _: Terms.of(ASKING))

    during(tmp_path, work)


def test_the_one_for_whom_it_acts_is_refused_where_they_may_not_approve(tmp_path: Path) -> None:
    agent = replace(ASKING, principal_may_approve=False)
    refused(tmp_path, Answer(given=True, by="ada"), Terms.of(agent), "acts for ada, who may not approve", agent)


def test_two_people_approve_one_after_the_other_and_a_third_is_too_late(tmp_path: Path) -> None:
    agent = replace(ASKING, four_eyes=True)

    async def work(journal: SQLiteJournal) -> None:
        state, approval = await waiting_run(journal, agent)
        assert "by 2 people" in state.message
        first = await answer(journal, approval, given=True, by="eve", agent=agent)
        assert first.call("1.0").approvals == ("eve",)
        assert (await asking(journal, agent).resume(state.run, by="eve")).status is Status.SUSPENDED
        with pytest.raises(ApprovalError, match="eve approved this already; it needs 2 different people"):
            await answer(journal, approval, given=True, by="eve", agent=agent)
        await answer(journal, approval, given=True, by="bob", agent=agent)
        with pytest.raises(ApprovalError, match="was already answered by eve, bob, who approved it"):
            await answer(journal, approval, given=True, by="carl", agent=agent)
        assert (await asking(journal, agent).resume(state.run, by="bob")).output == "Done."
        assert [event.by for event in await given(journal, state)] == ["eve", "bob"]
        with pytest.raises(ApprovalError, match="was already answered by eve, bob"):
            await answer(journal, approval, given=False, by="carl", agent=agent)

    during(tmp_path, work)


def test_an_approval_of_a_run_that_was_cancelled_meanwhile_is_none(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        state, approval = await waiting_run(journal)
        await cancel(journal, state.run, by="ada")
        with pytest.raises(ApprovalError, match=f"is of run {state.run}, which has finished"):
            await answer(journal, approval, given=True, by="eve")

    during(tmp_path, work)


def test_all_beforehand_is_not_enough_where_two_must_look(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        driver = asking(journal, replace(ASKING, four_eyes=True))
        state = await driver.advance(await driver.start(started(approve="all")))
        assert (state.status, state.call("1.0").approvals) == (Status.SUSPENDED, ())

    during(tmp_path, work)


def test_an_approval_of_an_earlier_version_is_not_run_and_the_run_goes_on(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        state, _ = await waiting_run(journal)
        events = [item.event for item in await read_run(journal, state.run)]
        old = [replace(each, bound=None) if isinstance(each, ev.ApprovalAsked) else each for each in events]
        asked = next(each for each in old if isinstance(each, ev.ApprovalAsked))
        yes = ev.ApprovalGiven(call="1.0", approval=asked.approval, digest=asked.digest, by="eve")
        await cancel(journal, state.run, by="ada")
        run = RunId("r0old")
        entries = [(now_ms(), each) for each in [*old, yes]]
        await journal.append(run, 1, entries)
        state = await asking(journal).resume(run, by="ada")
        assert state.output == "Done."
        assert state.all_calls[0].outcome == "approval_refused"

    during(tmp_path, work)


# --- given beforehand ---


def standing(**changes: object) -> Standing:
    fields: dict[str, object] = {
        "id": "g1",
        "agent": "traveller",
        "directory": "/agents/traveller",
        "lock": Digest("1" * 64),
        "tool": "book",
        "from_ms": now_ms(),
        "until_ms": now_ms() + 60_000,
        "by": "eve",
    }
    return Standing(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_was_allowed_beforehand_asks_nobody_and_the_record_names_it(tmp_path: Path) -> None:
    book = StandingBook(tmp_path)
    book.give(standing(times=1, because="the fair"))

    async def work(journal: SQLiteJournal) -> None:
        driver = asking(journal, standing=book)
        state = await driver.advance(await driver.start(started()))
        assert state.output == "Done."
        (event,) = await given(journal, state)
        assert (event.by, event.standing, event.because) == ("eve", "g1", "the fair")
        assert (await journal.verify(state.run)).broken_seq is None
        state = await driver.advance(await driver.start(started(session="s2")))
        assert state.status is Status.SUSPENDED

    during(tmp_path, work)
    assert book.all()[0].used == 1


@pytest.mark.parametrize("approve, ran", [("none", False), ("all", True)])
def test_what_the_run_was_told_comes_first_and_spends_nothing(tmp_path: Path, approve: str, ran: bool) -> None:
    book = StandingBook(tmp_path)
    book.give(standing())

    async def work(journal: SQLiteJournal) -> None:
        driver = asking(journal, standing=book)
        state = await driver.advance(await driver.start(started(approve=approve)))
        assert (state.all_calls[0].outcome == "ok") is ran

    during(tmp_path, work)
    assert book.all()[0].used == 0


# --- limits that several runs share ---


def limited(**scopes: Limits) -> LockedAgent:
    return locked_agent(budget=Budget(steps=50, scopes=scopes))


def plain(journal: SQLiteJournal, agent: LockedAgent) -> Driver:
    return driver_of(journal, ListedModel(reply(call("look")), reply(text="Done.")), Functions(), agent)


async def one(driver: Driver, **how: str) -> State:
    principal = how.pop("principal", "ada")
    return await driver.advance(await driver.start(replace(started(**how), principal=principal)))


def test_a_session_that_has_had_its_runs_begins_no_other_and_another_session_does(tmp_path: Path) -> None:
    agent = limited(session=Limits(runs=2))

    async def work(journal: SQLiteJournal) -> None:
        for _ in range(2):
            assert (await one(plain(journal, agent))).output == "Done."  # a driver each: what counts is in the journal
        with pytest.raises(BudgetError, match="this session has had 2 of 2 runs") as caught:
            await one(plain(journal, agent))
        assert caught.value.exit_code == 4
        assert len(await journal.runs()) == 2
        assert (await one(plain(journal, agent), session="s2")).output == "Done."

    during(tmp_path, work)


@pytest.mark.parametrize(
    "scope, session, principal, ends",
    [
        ("session", "s1", "ada", True),
        ("session", "s2", "ada", False),
        ("principal", "s2", "ada", True),
        ("principal", "s2", "bob", False),
        ("day", "s2", "bob", True),
        ("principal_day", "s2", "ada", True),
        ("principal_day", "s2", "bob", False),
    ],
)
def test_what_earlier_runs_cost_counts_in_their_scope_and_in_no_other(
    tmp_path: Path, scope: str, session: str, principal: str, ends: bool
) -> None:
    agent = limited(**{scope: Limits(cost_usd=Decimal("0.03"))})  # each run costs two cents

    async def work(journal: SQLiteJournal) -> None:
        assert (await one(plain(journal, agent))).totals.cost_usd == Decimal("0.02")
        state = await one(plain(journal, agent), session=session, principal=principal)
        assert state.stop_reason == (f"budget_{scope}" if ends else "completed")
        assert state.totals.steps == (1 if ends else 2)

    during(tmp_path, work)


def test_yesterdays_runs_do_not_count_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = limited(day=Limits(runs=1), principal_day=Limits(runs=1))
    noon = now_ms() // DAY_MS * DAY_MS + DAY_MS // 2

    async def work(journal: SQLiteJournal) -> None:
        from lockstep.runtime import driver, live

        def at(time_ms: int) -> None:
            for module in (driver, live):
                monkeypatch.setattr(module, "now_ms", lambda: time_ms)

        def talking() -> Driver:
            return driver_of(journal, ListedModel(reply(text="Done.")), Functions(), agent)

        at(noon - DAY_MS)
        await one(talking())
        at(noon)
        await one(talking(), session="s2")
        with pytest.raises(BudgetError, match=r"this day \(UTC\) has had 1 of 1 runs"):
            await one(talking(), session="s3")

    during(tmp_path, work)


def test_runs_of_one_driver_count_each_other_while_they_go_on(tmp_path: Path) -> None:
    agent = limited(principal=Limits(steps=10))

    async def work(journal: SQLiteJournal) -> None:
        model = ListedModel(*[reply(call("look", {"n": n})) for n in range(30)])
        driver = driver_of(journal, model, Functions(), agent)
        runs = [await driver.start(started(session=f"s{n}")) for n in range(5)]
        states = await asyncio.gather(*(driver.advance(run) for run in runs))
        assert {state.stop_reason for state in states} == {"budget_principal"}
        used = sum(state.totals.steps for state in states)
        assert 10 <= used <= 10 + len(runs) - 1, "more than what was under way"

    during(tmp_path, work)


def test_of_many_runs_that_begin_at_once_only_so_many_do(tmp_path: Path) -> None:
    agent = limited(day=Limits(runs=3))

    async def work(journal: SQLiteJournal) -> None:
        driver = plain(journal, agent)
        begun = await asyncio.gather(
            *(driver.start(started(session=f"s{n}")) for n in range(8)), return_exceptions=True
        )
        assert [type(each) for each in begun].count(BudgetError) == 5
        assert len(await journal.runs()) == 3

    during(tmp_path, work)


def test_a_run_that_waits_counts_with_what_it_has_used(tmp_path: Path) -> None:
    agent = replace(ASKING, budget=Budget(scopes={"principal": Limits(calls_per_tool={"book": 1})}))

    async def work(journal: SQLiteJournal) -> None:
        state, approval = await waiting_run(journal, agent)
        other = await one(asking(journal, agent), session="s2")
        assert other.all_calls[0].outcome == "budget"
        await answer(journal, approval, given=True, by="eve", agent=agent)
        assert (await asking(journal, agent).resume(state.run, by="eve")).all_calls[0].outcome == "ok"

    during(tmp_path, work)


def test_an_earlier_run_whose_cost_is_unknown_stops_the_next_unless_that_is_allowed(tmp_path: Path) -> None:
    agent = limited(principal=Limits(cost_usd=Decimal(1)))
    allowing = replace(agent, budget=replace(agent.budget, unknown_price="allow"))

    async def work(journal: SQLiteJournal) -> None:
        model = ListedModel(reply(text="Done.", cost_usd=None))
        await one(driver_of(journal, model, Functions(), locked_agent()))
        with pytest.raises(BudgetError, match="a cost that is unknown") as caught:
            await one(plain(journal, agent), session="s2")
        assert 'budget.unknown_price = "allow"' in caught.value.remedy
        assert (await one(plain(journal, allowing), session="s2")).output == "Done."

    during(tmp_path, work)


def test_what_runs_used_is_drawn_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = limited(principal=Limits(runs=100), day=Limits(runs=100))
    read: list[str] = []

    async def counted(journal: SQLiteJournal, run: str) -> State:
        read.append(run)
        return await read_state(journal, run)  # type: ignore[arg-type]

    async def work(journal: SQLiteJournal) -> None:
        monkeypatch.setattr(spending, "read_state", counted)
        for number in range(6):
            await one(plain(journal, agent), session=f"s{number}")
        place = Place(session="s9", principal="ada", at_ms=now_ms())
        known = Spending(journal, agent.name, agent.budget)
        read.clear()
        await known.read(place)
        assert len(read) == 1, "only the newest"
        read.clear()
        again = Spending(journal, agent.name, agent.budget)
        await again.read(place)
        assert read == []
        tight = Spending(journal, agent.name, replace(agent.budget, scopes={"principal": Limits(runs=6)}))
        await tight.read(place)
        with pytest.raises(BudgetError, match="has had 6 of 6 runs"):
            tight.require_room(place)

    during(tmp_path, work)


def test_where_a_run_that_counts_cannot_be_read_none_begins(tmp_path: Path) -> None:
    agent = limited(principal=Limits(runs=100))

    async def work(journal: SQLiteJournal) -> None:
        state = await one(plain(journal, locked_agent()))
        with sqlite3.connect(tmp_path / "journal.db") as connection:
            connection.execute("UPDATE events SET body = x'7b' WHERE seq = 3")
        with pytest.raises(JournalCorrupt, match=f"What run {state.run} used is not known"):
            await one(plain(journal, agent), session="s2")

    during(tmp_path, work)


def test_without_shared_limits_nothing_of_other_runs_is_read(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        known = Spending(journal, "traveller", Budget())
        await journal.close()  # so that reading would fail
        await known.read(Place(session="s1", principal="ada", at_ms=0))
        assert not known.counts

    during(tmp_path, work)


# --- what a person is shown ---


def test_a_question_says_the_call_its_grounds_its_rule_its_cost_and_what_a_refusal_does(tmp_path: Path) -> None:
    agent = replace(ASKING, tools={**ASKING.tools, "book": replace(BOOK, fee_usd=Decimal("2.50"))})

    async def work(journal: SQLiteJournal) -> None:
        state, approval = await waiting_run(journal, agent)
        recorded = await read_run(journal, state.run)
        judged = next(item for item in recorded if isinstance(item.event, ev.CallJudged))
        origin = ev.Origin(pointer="/flight", how="part", trust="untrusted", refs=("0.0/result",))
        recorded[recorded.index(judged)] = replace(judged, event=replace(judged.event, origins=(origin,)))
        asked = question_of(state, state.call("1.0"), recorded, agent)
        assert (asked.approval, asked.tool, asked.title) == (approval, "book", "book it")
        (given_,) = asked.arguments
        assert (given_.pointer, given_.value) == ("/flight", '"BA1"')
        assert given_.origin == "from part of UNTRUSTED text (0.0)"
        assert (asked.question, asked.effect) == ("Book it?", "once")
        assert asked.policies == ("policy.cedar:2",)
        assert (asked.fee_usd, asked.spent_usd) == (Decimal("2.50"), Decimal("0.01"))
        assert "book does not run" in asked.if_refused
        assert asked.expires_at_ms > now_ms()

    during(tmp_path, work)


@pytest.mark.parametrize(
    "how, trust, words",
    [
        ("exact", "user", "from the user's words (search 2.0 at /offers/1)"),
        ("composed", "untrusted", "put together from UNTRUSTED text (search 2.0 at /offers/1)"),
        ("normalised", "trusted", "from a trusted result (search 2.0 at /offers/1), written otherwise"),
        ("none", "none", "from NOWHERE: the model made it up or worked it out"),
        ("schema", "trusted", "says nothing of its own, or is named by the tool"),
    ],
)
def test_an_origin_is_said_in_words(how: str, trust: str, words: str) -> None:
    origin = ev.Origin(pointer="/a", how=how, trust=trust, refs=("input", "2.0/result#/offers/1"))
    assert origin_in_words(origin, {"2.0": "search"}) == words
