"""What the driver makes of calls that go on as tasks: recorded, asked after where that may help, never repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
    elsewhere,
    locked_agent,
    locked_tool,
    ok,
    reply,
    started,
    types_of,
)

from lockstep.errors import StoreError
from lockstep.journal import events as ev
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.decide import TASK_RETRY_S
from lockstep.kernel.state import Phase, State, Status
from lockstep.runtime import driver as driving
from lockstep.runtime import live
from lockstep.runtime.driver import Driver
from lockstep.runtime.reading import read_run, read_state
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import Effect, JsonObject, RunId

NOTE = locked_tool("note", Effect.IDEMPOTENT, retries=2)
AGENT = locked_agent(*map(elsewhere, (BOOK, PAY, LOOK, NOTE)))
OF: dict[str, JsonObject] = {"book": {"flight": "BA1"}, "pay": {"to": "bob"}, "look": {}, "note": {}}
UNHEARD = Outcome(kind="process_ended", text="the connection broke", unknown=True, task_open=True)
LOST = Outcome(kind="task_lost", text="unknown", unknown=True)


class Killed(BaseException):
    """The process died here."""


def task(*outcomes: Outcome | BaseException, name: str = "t-1") -> Callable[[PermittedCall], Awaitable[Outcome]]:
    """A tool that makes a task of its call, and then meets with these, each time that is asked after."""
    left = list(outcomes)

    async def behave(call: PermittedCall) -> Outcome:
        assert call.tasks is not None
        if call.round is None or not call.round.task:
            await call.tasks.begun(name)
        now = left.pop(0)
        if isinstance(now, BaseException):
            raise now
        return now

    return behave


def driver(journal: SQLiteJournal, tools: Functions, name: str = "book", **more: Any) -> Driver:
    model = ListedModel(reply(call(name, OF[name])), reply(text="Done."))
    return driver_of(journal, model, tools, AGENT, **more)


async def ran(journal: SQLiteJournal, tools: Functions, name: str = "book", **more: Any) -> State:
    one = driver(journal, tools, name, **more)
    return await one.advance(await one.start(started()))


async def recorded(journal: SQLiteJournal, run: RunId) -> list[ev.Event]:
    return [each.event for each in await read_run(journal, run)]


def test_the_task_is_durable_before_the_call_goes_on(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        seen: list[str] = []

        async def behave(call: PermittedCall) -> Outcome:
            assert call.tasks is not None
            await call.tasks.begun("t-1")
            seen.extend(types_of(await read_run(journal, call.run)))
            return ok("booked")

        state = await ran(journal, Functions(book=behave))
        assert seen[-2:] == ["effect.intended", "task.begun"]
        assert (state.status, state.settled[0].text) == (Status.FINISHED, "booked")

    during(tmp_path, work)


def test_a_task_that_cannot_be_recorded_is_not_asked_after(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        went_on = False

        async def behave(call: PermittedCall) -> Outcome:
            nonlocal went_on
            assert call.tasks is not None
            await journal.close()
            await call.tasks.begun("t-1")
            went_on = True
            return ok()

        with pytest.raises(StoreError):
            await ran(journal, Functions(book=behave))
        assert not went_on

    during(tmp_path, work)


@pytest.mark.parametrize("name", OF)
def test_a_process_that_dies_asks_after_the_task_and_calls_nothing(tmp_path: Path, name: str) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(**{name: task(Killed(), ok("did it"))})
        with pytest.raises(Killed):
            await ran(journal, tools, name)
        (row,) = await journal.runs()
        state = await driver(journal, tools, name).resume(row.run, by="ada")
        assert (state.status, state.settled[0].text) == (Status.FINISHED, "did it")
        first, second = tools.calls
        assert (first.round, second.round and second.round.task) == (None, "t-1")
        assert first.digest != second.digest
        assert first.key == second.key
        events = await recorded(journal, row.run)
        intended = [each for each in events if isinstance(each, ev.EffectIntended)]
        assert len(intended) == (name != "look"), "asking after a task intends nothing"

    during(tmp_path, work)


@pytest.mark.parametrize("name", OF)
def test_one_that_is_not_answered_for_is_asked_after_again_and_later_each_time(tmp_path: Path, name: str) -> None:
    async def work(journal: SQLiteJournal) -> None:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        tools = Functions(**{name: task(*[UNHEARD] * 8)})
        state = await ran(journal, tools, name, sleep=sleep)
        retried = [each for each in await recorded(journal, state.run) if isinstance(each, ev.EffectRetried)]
        delays = [each.delay_ms / 1000 for each in retried]
        assert delays == list(TASK_RETRY_S)
        assert len(tools.calls) == len(TASK_RETRY_S) + 1
        if name in ("book", "pay"):
            assert (state.suspended_for, state.calls[0].phase) == ("in_doubt", Phase.DOUBTED)
            assert "asks its server once more" in state.message
        else:
            assert state.settled[0].outcome == "process_ended"

    during(tmp_path, work)


HEARD = replace(UNHEARD, heard=True)


def test_one_that_its_server_speaks_of_now_and_then_is_asked_after_further_and_less_and_less(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=task(*[UNHEARD] * 5, HEARD, *[UNHEARD] * 5, HEARD, ok("booked")))
        state = await ran(journal, tools, sleep=lambda seconds: asyncio.sleep(0))
        assert state.settled[0].text == "booked"
        assert {each.round.task for each in tools.calls[1:] if each.round} == {"t-1"}
        retried = [each for each in await recorded(journal, state.run) if isinstance(each, ev.EffectRetried)]
        assert [each.delay_ms / 1000 for each in retried] == [*TASK_RETRY_S, *[TASK_RETRY_S[-1]] * 6]

    during(tmp_path, work)


def test_one_whose_server_speaks_of_it_and_then_breaks_off_is_not_asked_after_beyond_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000_000
    for module in (driving, live):
        monkeypatch.setattr(module, "now_ms", lambda: now)

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += int(seconds * 1000)

    async def work(journal: SQLiteJournal) -> None:
        behave = task(*[HEARD] * 100)

        async def in_time(call: PermittedCall) -> Outcome:
            assert call.tasks is not None
            return replace(await behave(call), heard=call.tasks.left_s > 0)

        tools = Functions(book=in_time)
        state = await ran(journal, tools, sleep=sleep)
        assert state.suspended_for == "in_doubt"
        assert len(tools.calls) < 20

    during(tmp_path, work)


@pytest.mark.parametrize(
    ("outcome", "kind"), [(LOST, "task_lost"), (Outcome(kind="timeout", text="late", unknown=True), "timeout")]
)
@pytest.mark.parametrize("name", OF)
def test_what_nobody_will_learn_is_in_doubt_where_that_matters(
    tmp_path: Path, name: str, outcome: Outcome, kind: str
) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(**{name: task(outcome)})
        state = await ran(journal, tools, name)
        assert len(tools.calls) == 1, "it was called again, or asked after without need"
        if name in ("book", "pay"):
            assert (state.suspended_for, state.calls[0].phase) == ("in_doubt", Phase.DOUBTED)
        else:
            assert state.settled[0].outcome == kind

    during(tmp_path, work)


def test_whoever_resumes_asks_after_one_in_doubt_once_more(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=task(LOST, LOST, ok("booked")))
        state = await ran(journal, tools)
        again = await driver(journal, tools).resume(state.run, by="ada")
        assert (again.suspended_for, len(tools.calls)) == ("in_doubt", 2)
        done = await driver(journal, tools).resume(state.run, by="ada")
        assert (done.status, done.settled[0].text) == (Status.FINISHED, "booked")
        (settled,) = [each for each in await recorded(journal, state.run) if isinstance(each, ev.EffectSettled)]
        assert settled.late
        assert not (await read_state(journal, state.run)).receipts[done.settled[0].dedupe_key].in_doubt

    during(tmp_path, work)


def test_how_long_it_is_asked_after_counts_from_its_beginning_and_not_while_nobody_drives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000_000
    for module in (driving, live):
        monkeypatch.setattr(module, "now_ms", lambda: now)

    async def work(journal: SQLiteJournal) -> None:
        nonlocal now
        left: list[float] = []

        async def behave(call: PermittedCall) -> Outcome:
            nonlocal now
            assert call.tasks is not None
            left.append(call.tasks.left_s)
            now += 10_000
            if call.round is None:
                await call.tasks.begun("t-1")
            now += 30_000
            return replace(UNHEARD, task_open=False) if len(left) < 4 else ok()

        tools = Functions(book=behave)
        state = await ran(journal, tools)
        for _ in range(3):
            now += 3_600_000
            state = await driver(journal, tools).resume(state.run, by="ada")
        assert state.status is Status.FINISHED
        assert left == [100.0, 70.0, 30.0, 0.0]

    during(tmp_path, work)


def test_only_a_tool_whose_entry_says_so_may_become_one(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions()
        agent = locked_agent(replace(AGENT.tools["book"], task_s=0.0))
        model = ListedModel(reply(call("book", OF["book"])), reply(text="Done."))
        one = driver_of(journal, model, tools, agent)
        await one.advance(await one.start(started()))
        assert [each.tasks for each in tools.calls] == [None]

    during(tmp_path, work)


def test_what_is_a_task_is_asked_after_also_where_its_entry_lets_it_make_none_any_more(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        tools = Functions(book=task(Killed(), ok("booked")))
        with pytest.raises(Killed):
            await ran(journal, tools)
        (row,) = await journal.runs()
        agent = locked_agent(*(replace(tool, task_s=0.0) for tool in AGENT.tools.values()))
        model = ListedModel(reply(call("book", OF["book"])), reply(text="Done."))
        later = driver_of(journal, model, tools, agent)
        await later.resume(row.run, by="ada")
        asked = tools.calls[-1]
        assert (asked.round and asked.round.task, asked.tasks and asked.tasks.left_s) == ("t-1", 0.0)

    during(tmp_path, work)


def test_a_read_beside_others_is_recorded_as_a_task_of_its_own(tmp_path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        model = ListedModel(reply(call("look", {"at": 1}), call("look", {"at": 2})), reply(text="Done."))

        async def behave(call: PermittedCall) -> Outcome:
            assert call.tasks is not None
            await call.tasks.begun(f"t-{call.id}")
            return ok()

        one = driver_of(journal, model, Functions(look=behave), AGENT)
        state = await one.advance(await one.start(started()))
        begun = [each for each in await recorded(journal, state.run) if isinstance(each, ev.TaskBegun)]
        assert sorted((each.call, each.task) for each in begun) == [("1.0", "t-1.0"), ("1.1", "t-1.1")]

    during(tmp_path, work)
