"""What the driver makes of servers that ask back: rounds under one key, doubts, ends, and who is there to answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inprocess import (
    BOOK,
    LOOK,
    PAY,
    Functions,
    ListedModel,
    call,
    driver_of,
    during,
    locked_agent,
    lost,
    ok,
    reply,
    started,
    types_of,
)

from lockstep.agent.effect_spec import Repeats
from lockstep.agent.locked import LockedTool
from lockstep.errors import InputError
from lockstep.gate.rounds import round_digest
from lockstep.journal import events as ev
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.decide import MAX_ROUNDS
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.runtime import inputs, keeping
from lockstep.runtime.answers import cancel
from lockstep.runtime.driver import Driver
from lockstep.runtime.inputs import Said, answer_input, waiting_input
from lockstep.runtime.reading import doubts, read_run, verify_run
from lockstep.tools.inputs import Asked, read_request, read_result
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import JsonObject

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}
FORM = {"method": "elicitation/create", "params": {"message": "Well?", "requestedSchema": SCHEMA}}
YES: JsonObject = {"q": {"action": "accept", "content": {"n": 2}}}
ASKS = ("elicitation",)


def asks(tool: LockedTool) -> LockedTool:
    return replace(tool, asks=ASKS)


AGENT = locked_agent(asks(BOOK), asks(PAY), asks(LOOK))


def asking(state: str = "1", *, acted: bool = False, **requests: Any) -> Outcome:
    asked = read_result({"inputRequests": requests or {"q": FORM}, "requestState": state}, ASKS)
    return Outcome(kind="input_required", text="asks", asked=asked, acted=acted)


def then(*outcomes: Outcome) -> Callable[[PermittedCall], Outcome]:
    """A tool that meets with these, one after another."""
    left = list(outcomes)
    return lambda call: left.pop(0)


def booking(journal: SQLiteJournal, tools: Functions, name: str = "book", **more: Any) -> Driver:
    arguments: JsonObject = {"flight": "BA1"} if name == "book" else {"to": "bob"} if name == "pay" else {}
    model = ListedModel(reply(call(name, arguments)), reply(text="Done."))
    return driver_of(journal, model, tools, AGENT, **more)


async def waits(driver: Driver) -> tuple[State, CallState]:
    state = await driver.advance(await driver.start(started()))
    asked = waiting_input(state)
    assert asked is not None
    return state, asked


async def answered(journal: SQLiteJournal, driver: Driver, responses: JsonObject | None = YES) -> State:
    """Somebody answers what waits, and the run goes on."""
    (row,) = [row for row in await journal.runs() if row.last == ev.RunSuspended.TYPE]
    state = await read(journal, row.run)
    asked = waiting_input(state)
    assert asked is not None
    await answer_input(journal, asked.input, Said(responses=responses, by="ada"))
    return await driver.resume(row.run, by="ada")


async def read(journal: SQLiteJournal, run: Any) -> State:
    from lockstep.runtime.reading import read_state

    return await read_state(journal, run)


def test_each_round_has_a_permit_of_its_own_for_exactly_what_was_asked_and_said(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=then(asking("one"), asking("two"), ok("booked")))
        driver = booking(journal, tools)
        await waits(driver)
        await answered(journal, driver)
        state = await answered(journal, booking(journal, tools), {"q": {"action": "decline"}})
        assert (state.status, state.calls, state.output) == (Status.FINISHED, (), "Done.")
        first, second, third = tools.calls
        assert first.round is None
        assert second.round is not None
        assert third.round is not None
        assert (second.round.responses, second.round.state) == (YES, "one")
        assert (third.round.responses, third.round.state) == ({"q": {"action": "decline"}}, "two")
        assert len({each.key for each in tools.calls}) == 1
        assert len({each.digest for each in tools.calls}) == len({permit.id for permit in tools.permits}) == 3
        assert (await verify_run(journal, state.run)).broken_seq is None

    during(tmp_path, work)


def test_a_permit_for_one_answer_is_none_for_another() -> None:
    asked = CallState(id="1.0", provider_id="", name="book", arguments="{}", asked_at_ms=0, rounds=1, answers='{"q":1}')
    other = replace(asked, answers='{"q":2}')
    digest = "1" * 64
    assert len({round_digest(each, digest) for each in (asked, other, replace(asked, rounds=2))}) == 3  # type: ignore[arg-type]
    assert round_digest(replace(asked, rounds=0), digest) == digest  # type: ignore[arg-type]


def test_what_is_said_to_a_server_is_no_message_to_the_model(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        driver = booking(journal, Functions(book=then(asking(), ok("booked"))))
        await waits(driver)
        state = await answered(journal, driver)
        assert "accept" not in repr(state.transcript.messages)
        assert "Well?" not in repr(state.transcript.messages)

    during(tmp_path, work)


def test_a_reply_that_is_lost_in_a_later_round_is_in_doubt(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        driver = booking(journal, Functions(book=then(asking(), lost())))
        await waits(driver)
        state = await answered(journal, driver)
        assert (state.suspended_for, state.calls[0].phase) == ("in_doubt", Phase.DOUBTED)

    during(tmp_path, work)


def test_a_keyed_call_is_tried_again_in_its_round_under_its_key(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        busy = Outcome(kind="tool_error", text="busy", transient=True)
        tools = Functions(pay=then(asking(), busy, lost(), ok("paid")))
        driver = booking(journal, tools, "pay", sleep=lambda seconds: asyncio.sleep(0))
        await waits(driver)
        state = await answered(journal, driver)
        assert state.settled[0].text == "paid"
        assert [each.round is None for each in tools.calls] == [True, False, False, False]
        assert len({each.key for each in tools.calls}) == 1

    during(tmp_path, work)


@pytest.mark.parametrize("acted", [False, True])
@pytest.mark.parametrize("how", ["told nothing", "tool error", "cancelled"])
def test_what_went_no_further_is_in_doubt_only_if_a_round_may_have_acted(tmp_path: Path, acted: bool, how: str) -> None:
    async def work(journal: SQLiteJournal) -> None:
        error = Outcome(kind="tool_error", text="they said no")
        driver = booking(journal, Functions(book=then(asking(acted=acted), error)))
        state, _ = await waits(driver)
        if how == "cancelled":
            await cancel(journal, state.run, by="ada")
        else:
            await answered(journal, driver, None if how == "told nothing" else YES)
        assert bool(await doubts(journal)) is acted
        state = await read(journal, state.run)
        assert bool(state.receipts) is acted

    during(tmp_path, work)


def test_a_server_may_ask_so_often_and_no_more(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=lambda call: asking())
        driver = booking(journal, tools)
        await waits(driver)
        for _ in range(MAX_ROUNDS):
            state = await answered(journal, driver)
        assert state.status is Status.FINISHED
        assert "asked for input more than 8 times" in state.settled[0].text
        assert len(tools.calls) == MAX_ROUNDS + 1

    during(tmp_path, work)


def test_what_is_refused_for_everybody_is_declined_at_once(tmp_path: Path) -> None:
    secret = {"type": "object", "properties": {"pin": {"type": "string", "format": "password"}}}
    form = {"method": "elicitation/create", "params": {"message": "Your PIN?", "requestedSchema": secret}}

    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=then(asking(q=form), ok("told")))
        driver = booking(journal, tools)
        state = await driver.advance(await driver.start(started()))
        assert state.output == "Done."
        assert tools.calls[1].round is not None
        assert tools.calls[1].round.responses == {"q": {"action": "decline"}}

    during(tmp_path, work)


def test_a_server_that_only_wants_to_be_called_again_is_after_a_while(tmp_path: Path) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(seconds)

    async def work(journal: SQLiteJournal) -> None:
        again = Outcome(kind="input_required", text="", asked=read_result({"requestState": "later"}, ASKS))
        tools = Functions(look=then(again, ok("seen")))
        driver = booking(journal, tools, "look", sleep=sleep)
        state = await driver.advance(await driver.start(started()))
        assert state.settled[0].text == "seen"
        assert slept
        assert tools.calls[1].round is not None
        assert (tools.calls[1].round.responses, tools.calls[1].round.state) == ({}, "later")

    during(tmp_path, work)


@pytest.mark.parametrize("late", ["to say", "to go on"])
def test_an_answer_that_comes_too_late_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    agent = replace(AGENT, approval_expires_s=0.05)

    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=then(asking()))
        model = ListedModel(reply(call("book", {"flight": "BA1"})), reply(text="Done."))
        driver = driver_of(journal, model, tools, agent)
        state, asked = await waits(driver)
        if late == "to say":
            await asyncio.sleep(0.06)
            with pytest.raises(InputError, match="has expired"):
                await answer_input(journal, asked.input, Said(responses=YES, by="ada"))
        else:
            monkeypatch.setattr(inputs, "now_ms", lambda: 0)
            await answer_input(journal, asked.input, Said(responses=YES, by="ada"))
            await asyncio.sleep(0.06)
        state = await driver.resume(state.run, by="ada")
        assert (state.settled[0].outcome, len(tools.calls)) == ("input_expired", 1)

    during(tmp_path, work)


@pytest.mark.parametrize(
    ("responses", "says"),
    [
        ({}, "'q' is not answered."),
        ({"q": 5}, "is none."),
        ({"q": {"action": "perhaps"}}, "one of accept, decline, cancel"),
        ({"q": {"action": "accept", "content": {"n": "two"}}}, "n is 'two': it takes whole number"),
        ({"q": {"action": "accept", "content": {"m": 1}}}, "no field 'm'"),
        ({"q": {"action": "decline", "content": {"n": "x" * 2**20}}}, "at most"),
    ],
)
def test_an_answer_that_was_not_asked_for_is_not_recorded(tmp_path: Path, responses: JsonObject, says: str) -> None:
    async def work(journal: SQLiteJournal) -> None:
        state, asked = await waits(booking(journal, Functions(book=then(asking()))))
        with pytest.raises(InputError, match=says):
            await answer_input(journal, asked.input, Said(responses=responses, by="ada"))
        assert types_of(await read_run(journal, state.run))[-1] == "run.suspended"

    during(tmp_path, work)


def test_of_two_sessions_of_a_principal_the_one_that_waits_is_not_overtaken(tmp_path: Path) -> None:
    """It was first when it was let go; that it goes on later makes it no later."""
    once = replace(asks(BOOK), repeats=Repeats(scope="principal"))

    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=then(asking(), ok("booked")))
        model = ListedModel(reply(call("book", {"flight": "BA1"})), reply(text="Done."))
        driver = driver_of(journal, model, tools, locked_agent(once))
        first, _ = await waits(driver)
        other = await driver.advance(await driver.start(started(session="s2")))
        assert (other.settled[0].outcome, len(tools.calls)) == ("in_doubt", 1)
        state = await answered(journal, driver)
        assert (state.run, state.settled[0].text) == (first.run, "booked")

    during(tmp_path, work)


def test_the_sandbox_of_a_run_is_kept_while_its_server_waits_for_an_answer(tmp_path: Path) -> None:
    """A server may have sealed its state with a key that only its process knows."""

    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=then(asking(), ok("booked")))
        driver = booking(journal, tools)
        state, _ = await waits(driver)
        assert tools.ended == []
        await answered(journal, driver)
        assert tools.ended == [state.run]

    during(tmp_path, work)


def test_few_sandboxes_are_kept_and_not_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(journal: SQLiteJournal) -> None:
        ended: asyncio.Queue[str] = asyncio.Queue()

        class Told(Functions):
            async def end(self, kept_for: str) -> None:
                ended.put_nowait(kept_for)

        model = ListedModel(reply(call("look")))
        driver = driver_of(journal, model, Told(look=lambda call: asking()), AGENT)
        runs = [
            (await driver.advance(await driver.start(started(session=f"s{n}")))).run
            for n in range(keeping.MAX_KEPT + 1)
        ]
        assert ended.get_nowait() == runs[0]
        monkeypatch.setattr(keeping, "KEPT_S", 0.01)
        last = await driver.advance(await driver.start(started(session="last")))
        assert {await ended.get(), await ended.get()} == {runs[1], last.run}

    during(tmp_path, work)


# --- servers that hold their call open ---


class Here:
    """Somebody who is there."""

    offers = frozenset({"elicitation"})
    by, login = "grace", "terminal"

    def __init__(self, says: Any) -> None:
        self.says = says
        self.asked: list[Asked] = []

    async def answer(self, state: State, call: CallState, asked: Asked) -> JsonObject | None:
        self.asked.append(asked)
        if self.says == "nothing":
            await asyncio.Event().wait()
        return self.says  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("says", "told", "because"),
    [
        ({"request": {"action": "accept", "content": {"n": 2}}}, {"action": "accept", "content": {"n": 2}}, ""),
        ({"request": {"action": "decline"}}, {"action": "decline"}, ""),
        ({"request": {"action": "accept", "content": {"n": "x"}}}, {"action": "cancel"}, "nobody was there to answer"),
        ({"other": {}}, {"action": "cancel"}, "nobody was there to answer"),
        (None, {"action": "cancel"}, "nobody was there to answer"),
        ("nothing", {"action": "cancel"}, "nobody was there to answer"),
    ],
)
def test_a_server_that_waits_is_told_what_somebody_says_who_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Any, told: JsonObject, because: str
) -> None:
    monkeypatch.setattr(inputs, "ATTEND_S", 0.05 if says == "nothing" else 5.0)

    async def work(journal: SQLiteJournal) -> None:
        async def book(call: PermittedCall) -> Outcome:
            assert tools.ask is not None
            return ok(json.dumps(await tools.ask(read_request(FORM, ASKS))))

        tools = Functions(book=book)
        driver = booking(journal, tools, attendant=Here(says))
        state = await driver.advance(await driver.start(started()))
        assert json.loads(state.settled[0].text) == {"request": told}
        (given,) = [each.event for each in await read_run(journal, state.run) if isinstance(each.event, ev.InputGiven)]
        assert (json.loads(given.responses)["request"], given.because) == (told, because)
        assert (given.by, given.login) == (("lockstep", "") if because else ("grace", "terminal"))

    during(tmp_path, work)


def test_a_server_that_waits_may_not_ask_for_a_secret_either(tmp_path: Path) -> None:
    secret = {"type": "object", "properties": {"pin": {"type": "string", "format": "password"}}}
    form = {"method": "elicitation/create", "params": {"message": "Your PIN?", "requestedSchema": secret}}

    async def work(journal: SQLiteJournal) -> None:
        async def book(call: PermittedCall) -> Outcome:
            assert tools.ask is not None
            return ok(json.dumps(await tools.ask(read_request(form, ASKS))))

        tools = Functions(book=book)
        here = Here({"request": {"action": "accept", "content": {"pin": "1234"}}})
        driver = booking(journal, tools, attendant=here)
        state = await driver.advance(await driver.start(started()))
        assert json.loads(state.settled[0].text) == {"request": {"action": "decline"}}
        assert here.asked == []

    during(tmp_path, work)


def test_a_server_that_waits_may_ask_so_often_and_no_more(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        async def book(call: PermittedCall) -> Outcome:
            assert tools.ask is not None
            said = [await tools.ask(read_request(FORM, ASKS)) for _ in range(MAX_ROUNDS + 1)]
            return ok(json.dumps([each["request"]["action"] for each in said if each]))  # type: ignore[index,call-overload]

        tools = Functions(book=book)
        here = Here({"request": {"action": "accept", "content": {}}})
        driver = booking(journal, tools, attendant=here)
        state = await driver.advance(await driver.start(started()))
        assert json.loads(state.settled[0].text) == ["accept"] * MAX_ROUNDS + ["decline"]
        assert len(here.asked) == MAX_ROUNDS

    during(tmp_path, work)


def test_two_reads_that_wait_are_asked_about_one_after_another(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        busy = 0

        class One(Here):
            async def answer(self, state: State, call: CallState, asked: Asked) -> JsonObject | None:
                nonlocal busy
                busy += 1
                assert busy == 1
                await asyncio.sleep(0)
                busy -= 1
                return {"request": {"action": "decline"}}

        async def look(call: PermittedCall) -> Outcome:
            assert tools.ask is not None
            return ok(json.dumps(await tools.ask(read_request(FORM, ASKS))))

        tools = Functions(look=look)
        model = ListedModel(reply(call("look", {"n": 1}), call("look", {"n": 2})), reply(text="Done."))
        driver = driver_of(journal, model, tools, AGENT, attendant=One(None))
        state = await driver.advance(await driver.start(started()))
        assert (state.output, len(tools.calls)) == ("Done.", 2)
        assert (await verify_run(journal, state.run)).broken_seq is None

    during(tmp_path, work)


def test_a_tool_that_may_not_ask_has_nobody_to_ask(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions()
        model = ListedModel(reply(call("book", {"flight": "BA1"})), reply(text="Done."))
        driver = driver_of(journal, model, tools, locked_agent(BOOK), attendant=Here(None))
        await driver.advance(await driver.start(started()))
        assert tools.ask is None

    during(tmp_path, work)
