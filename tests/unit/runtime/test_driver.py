"""The driver with a real journal: what is durable when, what a crash leaves, what a person can say to a run."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from inprocess import (
    ASK_BOOK,
    Functions,
    ListedModel,
    answer,
    call,
    driver_of,
    locked_agent,
    locked_tool,
    lost,
    ok,
    reply,
    started,
    types_of,
)

from lockstep.agent.locked import Budget
from lockstep.errors import ApprovalError, FenceConflict, JournalCorrupt, PermitError, RunError, StoreFull
from lockstep.gate.permit import Permit
from lockstep.journal import events as ev
from lockstep.journal.codec import pack, unpack
from lockstep.journal.port import Entry, Journal
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.decide import CRASH_LIMIT
from lockstep.kernel.state import Phase, State, Status
from lockstep.model.port import AskedCall, AssistantMessage, Failure, FailureKind, Prompt, Reply, Settings, ToolMessage
from lockstep.runtime import answers, driver, live
from lockstep.runtime.answers import cancel, settle
from lockstep.runtime.driver import Driver
from lockstep.runtime.reading import read_run, read_state, unfinished, waiting
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import Effect, RunId, now_ms

WAIT_S = 60
T = TypeVar("T")
BA1 = {"flight": "BA1"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def during(path: Path, work: Callable[[SQLiteJournal], Awaitable[T]]) -> T:
    """Open the store, work, close it: one life of a process."""

    async def bounded() -> T:
        journal = SQLiteJournal.open(path)
        try:
            return await asyncio.wait_for(work(journal), WAIT_S)
        finally:
            await journal.close()

    return asyncio.run(bounded())


async def run_of(driver: Driver, message: str = "Book it.", **how: str) -> State:
    return await driver.advance(await driver.start(started(message, **how)))


def results(messages: Sequence[Any]) -> list[str]:
    return [message.text for message in messages if isinstance(message, ToolMessage)]


# --- the loop ---


def test_a_run_asks_judges_executes_and_records_each_in_order(path: Path) -> None:
    model = ListedModel(reply(call("look", {"to": "SFO"})), reply(call("book", BA1)), reply(text="Booked."))
    tools = Functions(book=lambda asked: ok(f"booked {asked.arguments['flight']}"))

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(driver_of(journal, model, tools))
        assert (state.status, state.stop_reason, state.output) == (Status.FINISHED, "completed", "Booked.")
        recorded = await journal.read(state.run)
        assert types_of(recorded) == [
            "run.started",
            *["context.built", "model.replied", "call.judged", "effect.settled"],
            *["context.built", "model.replied", "call.judged", "effect.intended", "effect.settled"],
            *["context.built", "model.replied", "run.finished"],
        ]
        assert (await journal.verify(state.run)).broken_seq is None
        assert (await read_state(journal, state.run)).totals == state.totals

    during(path, work)
    assert results(model.prompts[-1].messages) == ['look {"to": "SFO"}', "booked BA1"]
    assert [call.tool.name for call in tools.calls] == ["look", "book"]


def test_the_digest_in_the_record_is_that_of_the_prompt_the_model_saw(path: Path) -> None:
    model = ListedModel(reply(call("look")), reply())

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(driver_of(journal, model, Functions()))
        built = [item.event for item in await journal.read(state.run) if isinstance(item.event, ev.ContextBuilt)]
        assert [(event.step, event.digest) for event in built] == [
            (1, model.prompts[0].digest),
            (2, model.prompts[1].digest),
        ]

    during(path, work)


def test_neighbouring_reads_run_at_the_same_time_and_effects_one_after_another(path: Path) -> None:
    together = asyncio.Barrier(3)
    inside: list[str] = []

    async def look(asked: PermittedCall) -> Outcome:
        async with asyncio.timeout(WAIT_S), together:
            return ok(f"saw {asked.id}")

    async def note(asked: PermittedCall) -> Outcome:
        inside.append("in " + asked.id)
        await asyncio.sleep(0)
        inside.append("out " + asked.id)
        return ok()

    model = ListedModel(reply(*[call("look")] * 3, call("note"), call("note")), reply())

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(driver_of(journal, model, Functions(look=look, note=note)))
        assert state.stop_reason == "completed"

    during(path, work)
    assert inside == ["in 1.3", "out 1.3", "in 1.4", "out 1.4"]
    assert results(model.prompts[1].messages) == ["saw 1.0", "saw 1.1", "saw 1.2", "ok", "ok"]


def test_reads_that_run_together_are_recorded_as_they_come(path: Path) -> None:
    slow_may_end = asyncio.Event()

    async def look(asked: PermittedCall) -> Outcome:
        if asked.id == "1.0":
            await asyncio.wait_for(slow_may_end.wait(), WAIT_S)
        return ok(asked.id)

    class Watcher(driver.Silent):
        def event(self, state: State, event: ev.Event) -> None:
            if isinstance(event, ev.EffectSettled) and event.call == "1.1":
                slow_may_end.set()

    model = ListedModel(reply(call("look"), call("look")), reply())

    async def work(journal: SQLiteJournal) -> list[str]:
        state = await run_of(driver_of(journal, model, Functions(look=look), watcher=Watcher()))
        recorded = await journal.read(state.run)
        return [item.event.call for item in recorded if isinstance(item.event, ev.EffectSettled)]

    assert during(path, work) == ["1.1", "1.0"]
    assert results(model.prompts[1].messages) == ["1.0", "1.1"]


def test_a_model_that_asks_for_nonsense_is_told_and_recovers(path: Path) -> None:
    model = ListedModel(reply(call("teleport"), call("look", "{not json"), call("look", BA1)), reply(text="ok"))
    tools = Functions()

    async def work(journal: SQLiteJournal) -> None:
        assert (await run_of(driver_of(journal, model, tools))).stop_reason == "completed"

    during(path, work)
    unknown, malformed, seen = results(model.prompts[1].messages)
    assert unknown.startswith("There is no tool 'teleport'")
    assert malformed.startswith("Invalid arguments for look")
    assert seen.startswith("look")
    assert tools.count("look") == 1


@pytest.mark.parametrize("text", ["half \ud83d", "\udeeb", "\0", "🛫", "x" * 100_000])
def test_any_text_of_a_model_or_a_tool_is_recorded_and_goes_on(path: Path, text: str) -> None:
    model = ListedModel(reply(call("look"), call("look", text), call(text), text=text), reply(text=text))
    tools = Functions(look=lambda _: ok(text))

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(driver_of(journal, model, tools), message=text)
        assert (state.stop_reason, state.output) == ("completed", text)
        again = await read_state(journal, state.run)
        assert again.transcript.messages == state.transcript.messages
        assert (await journal.verify(state.run)).broken_seq is None

    during(path, work)


def test_a_failing_tool_is_an_outcome_the_model_sees(path: Path) -> None:
    model = ListedModel(reply(call("look")), reply())
    tools = Functions(look=lambda _: Outcome(kind="tool_error", text="look failed: no such city", detail="Traceback"))

    async def work(journal: SQLiteJournal) -> State:
        return await run_of(driver_of(journal, model, tools))

    assert during(path, work).settled[0].outcome == "tool_error"
    assert results(model.prompts[1].messages) == ["look failed: no such city"]


def test_fees_are_paid_for_calls_that_went_well_only(path: Path) -> None:
    paid = locked_tool("book", Effect.ONCE, fee_usd="1.50")
    outcomes = iter([ok(), Outcome(kind="tool_error", text="no")])
    model = ListedModel(reply(call("book"), call("book"), cost_usd="0"), reply(cost_usd="0"))

    async def work(journal: SQLiteJournal) -> State:
        return await run_of(driver_of(journal, model, Functions(book=lambda _: next(outcomes)), locked_agent(paid)))

    assert during(path, work).totals.cost_usd == Decimal("1.5")


def test_no_sandbox_ends_the_run_and_nothing_else_runs(path: Path) -> None:
    model = ListedModel(reply(call("look"), call("book", BA1)), reply())
    tools = Functions(look=lambda _: Outcome(kind="sandbox_unavailable", text="Not run: runsc is missing."))

    async def work(journal: SQLiteJournal) -> State:
        return await run_of(driver_of(journal, model, tools))

    state = during(path, work)
    assert (state.stop_reason, tools.count("book")) == ("sandbox_unavailable", 0)


# --- what is durable when ---


def test_an_intent_is_on_disk_before_the_tool_sees_the_call(path: Path) -> None:
    seen: list[list[str]] = []

    async def look_at_the_disk(asked: PermittedCall) -> Outcome:
        other = SQLiteJournal.open_readonly(path)
        recorded = await other.read(asked.run)
        await other.close()
        last = recorded[-1].event
        assert isinstance(last, ev.EffectIntended)
        assert (last.call, last.digest, last.key) == (asked.id, asked.digest, asked.key)
        seen.append(types_of(recorded))
        return ok()

    model = ListedModel(reply(call("book", BA1)), reply(call("note")), reply())
    tools = Functions(book=look_at_the_disk, note=look_at_the_disk)

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(driver_of(journal, model, tools))
        permits = [e.event.permit for e in await journal.read(state.run) if isinstance(e.event, ev.EffectIntended)]
        assert permits == [permit.id for permit in tools.permits]

    during(path, work)
    assert len(seen) == 2


class Watched:
    """A journal that knows how much of each run is durable."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.durable = 0

    async def append(self, run: RunId, first_seq: int, entries: Sequence[Entry]) -> None:
        await self.journal.append(run, first_seq, entries)
        self.durable = first_seq + len(entries) - 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.journal, name)


def test_nothing_outside_happens_while_an_event_is_not_durable(path: Path) -> None:
    moments: list[str] = []

    async def work(journal: SQLiteJournal) -> None:
        watched = Watched(journal)

        class Counting(driver.Silent):
            recorded = 1

            def event(self, state: State, event: ev.Event) -> None:
                self.recorded += 1

        watcher = Counting()

        def outside(what: str) -> None:
            assert watcher.recorded == watched.durable, what
            moments.append(what)

        class Model(ListedModel):
            async def reply(self, prompt: Prompt, settings: Settings, **more: Any) -> Reply | Failure:
                outside("model")
                return await super().reply(prompt, settings, **more)

        def tool(asked: PermittedCall) -> Outcome:
            outside(asked.tool.name)
            return ok()

        async def sleep(_: float) -> None:
            outside("sleep")

        model = Model(
            reply(call("look")),
            Failure(kind=FailureKind.TIMEOUT, message="slow"),
            reply(call("note"), call("book", BA1), call("look")),
            reply(),
        )
        tools = Functions(look=tool, note=tool, book=tool)
        driving = driver_of(watched, model, tools, watcher=watcher, sleep=sleep)
        state = await run_of(driving)
        assert state.stop_reason == "completed"
        assert watcher.recorded == watched.durable == state.next_seq - 1

    during(path, work)
    assert moments == ["model", "look", "model", "sleep", "model", "note", "book", "look", "model"]


def test_when_the_intent_cannot_be_written_the_tool_is_not_called(path: Path) -> None:
    tools = Functions()

    async def work(journal: SQLiteJournal) -> None:
        class Full(Watched):
            async def append(self, run: RunId, first_seq: int, entries: Sequence[Entry]) -> None:
                if any(isinstance(event, ev.EffectIntended) for _, event in entries):
                    raise StoreFull("No space.")
                await super().append(run, first_seq, entries)

        with pytest.raises(StoreFull):
            await run_of(driver_of(Full(journal), ListedModel(reply(call("book", BA1))), tools))

    during(path, work)
    assert tools.calls == []


# --- kill at every boundary ---

TRAVEL = (
    reply(call("look", {"to": "SFO"}), call("look", {"to": "OAK"})),
    Failure(kind=FailureKind.OVERLOADED, message="busy"),
    reply(call("note", {"text": "found"}), call("pay", {"to": "BA"}), call("look")),
    reply(call("book", BA1), call("send", {"to": "ada"})),
    reply(text="Booked."),
)


class Dead(Exception):
    """The process ended here."""


@contextmanager
def dying_before_event(path: Path, number: int) -> Iterator[None]:
    """Let the journal keep the first events of each run only, also in the middle of an append, and then die."""
    append = SQLiteJournal.append

    async def cut(self: SQLiteJournal, run: RunId, first_seq: int, entries: Sequence[Entry]) -> None:
        kept = entries[: max(0, number - first_seq)]
        if kept:
            await append(self, run, first_seq, kept)
        if len(kept) < len(entries):
            raise Dead

    SQLiteJournal.append = cut  # type: ignore[method-assign]
    try:
        yield
    finally:
        SQLiteJournal.append = append  # type: ignore[method-assign]


async def instantly(_: float) -> None:
    return


def live_until(path: Path, number: int, tools: Functions) -> tuple[RunId, list[ev.Recorded]]:
    """A first life in which only the events before `number` get onto the disk."""

    async def first(journal: SQLiteJournal) -> tuple[RunId, list[ev.Recorded]]:
        driving = driver_of(journal, ListedModel(*TRAVEL), tools, locked_agent(policy=ASK_BOOK), sleep=instantly)
        run = await driving.start(started(approve="all"))
        with dying_before_event(path, number), suppress(Dead):
            await driving.advance(run)
        return run, await journal.read(run)

    return during(path, first)


async def settle_doubts(journal: Journal, driving: Driver, state: State, tools: Functions) -> State:
    """What a person does: look whether it happened, say so, resume."""
    while state.status is Status.SUSPENDED:
        (doubted,) = [each for each in state.calls if each.phase is Phase.DOUBTED]
        happened = tools.ran[f"{state.run}/{doubted.id}"] > 0
        await settle(journal, state.run, happened=happened, by="ada", result="BA1 it was" if happened else "")
        state = await driving.resume(state.run, by="ada")
    return state


def whole_length(tmp_path: Path) -> int:
    return len(live_until(tmp_path / "whole", 10**6, Functions())[1])


def test_a_death_before_any_event_repeats_nothing_recorded_and_never_books_twice(tmp_path: Path) -> None:
    doubtful = []
    for number in range(2, whole_length(tmp_path) + 1):
        path, tools = tmp_path / f"store{number}", Functions()
        run, left = live_until(path, number, tools)
        assert len(left) == number - 1
        before = tools.ran.copy()
        settled = {item.event.call for item in left if isinstance(item.event, ev.EffectSettled)}
        replies = sum(isinstance(item.event, ev.ModelReplied) for item in left)
        failures = sum(isinstance(item.event, ev.ModelFailed) for item in left)

        async def second(
            journal: SQLiteJournal, run: RunId = run, tools: Functions = tools, failures: int = failures
        ) -> tuple[State, ListedModel, bool]:
            model = ListedModel(*TRAVEL, failed=failures)
            agent = locked_agent(policy=ASK_BOOK)
            driving = driver_of(journal, model, tools, agent, sleep=instantly)
            state = await driving.resume(run, by="ada")
            doubted = state.status is Status.SUSPENDED
            state = await settle_doubts(journal, driving, state, tools)
            assert (await journal.verify(run)).broken_seq is None
            return state, model, doubted

        state, model, doubted = during(path, second)
        if doubted:
            doubtful.append(left[-1].event.TYPE)
        assert (state.status, state.stop_reason, state.output) == (Status.FINISHED, "completed", "Booked.")
        assert tools.swept == 1
        assert all(tools.ran[f"{run}/{call_id}"] == before[f"{run}/{call_id}"] for call_id in settled)
        assert tools.count("book") <= 1
        assert tools.count("send") <= 1
        assert len(model.prompts) == len(TRAVEL) - replies - failures
        keys = {each.key for each in tools.calls if each.tool.name == "pay"}
        assert len(keys) == 1
        assert (tools.count("book"), tools.count("send")) == (1, 1) or doubted
    assert doubtful == ["effect.intended"] * 2  # of book and of send: only where nobody can know, and always there


def test_the_prompt_of_a_resumed_run_is_the_one_it_would_have_been(tmp_path: Path) -> None:
    whole = [item.event for item in live_until(tmp_path / "a", 10**6, Functions())[1]]
    digests = {event.step: event.digest for event in whole if isinstance(event, ev.ContextBuilt)}
    for number in (4, 9, 14):
        path = tmp_path / f"b{number}"
        run, left = live_until(path, number, Functions())
        model = ListedModel(*TRAVEL, failed=types_of(left).count("model.failed"))

        async def second(journal: SQLiteJournal, run: RunId = run, model: ListedModel = model) -> list[ev.Recorded]:
            driving = driver_of(journal, model, Functions(), locked_agent(policy=ASK_BOOK), sleep=instantly)
            await driving.resume(run, by="ada")
            return await journal.read(run)

        built = [item.event for item in during(path, second) if isinstance(item.event, ev.ContextBuilt)]
        assert built
        assert {event.step: event.digest for event in built}.items() <= digests.items(), number


def test_an_unknown_outcome_of_an_effect_that_must_not_be_repeated_is_in_doubt(path: Path) -> None:
    model = ListedModel(reply(call("book", BA1)), reply(text="ok"))
    tools = Functions(book=lambda _: lost())

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, tools)
        state = await run_of(driving)
        assert state.status is Status.SUSPENDED
        assert "no answer within 5 s" in state.message
        assert (await driving.resume(state.run, by="ada")).status is Status.SUSPENDED
        assert tools.count("book") == 1
        (item,) = waiting(await unfinished(journal))
        assert item.call.phase is Phase.DOUBTED

    during(path, work)


@pytest.mark.parametrize("tool", ["look", "note"])
def test_an_unknown_outcome_of_what_may_be_repeated_is_told_to_the_model(path: Path, tool: str) -> None:
    model = ListedModel(reply(call(tool, {"to": "x"})), reply(text="ok"))

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(driver_of(journal, model, Functions(**{tool: lambda _: lost()})))
        assert state.stop_reason == "completed"

    during(path, work)
    assert results(model.prompts[1].messages) == ["no answer within 5 s"]


@pytest.mark.parametrize("happened", [True, False])
def test_a_person_settles_a_doubt_and_the_model_is_told(path: Path, happened: bool) -> None:
    model = ListedModel(reply(call("book", BA1)), reply(text="ok"))
    tools = Functions(book=lambda _: lost())

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, tools)
        state = await run_of(driving)
        await settle(journal, state.run, happened=happened, by="ada")
        with pytest.raises(RunError, match="Nothing in run"):
            await settle(journal, state.run, happened=not happened, by="eve")
        state = await driving.resume(state.run, by="ada")
        assert state.stop_reason == "completed"
        assert tools.count("book") == 1
        with pytest.raises(RunError, match=r"Nothing in run .* is in doubt"):
            await settle(journal, state.run, happened=happened, by="ada")

    during(path, work)
    (told,) = results(model.prompts[1].messages)
    assert ("did happen, as ada found out" in told) == happened


def test_a_run_that_was_driven_before_is_resumed_by_advancing_it(path: Path) -> None:
    tools = Functions()
    run, left = live_until(path, 6, tools)
    assert types_of(left)[-1] != "run.finished"

    async def second(journal: SQLiteJournal) -> list[str]:
        driving = driver_of(journal, ListedModel(*TRAVEL), tools, locked_agent(policy=ASK_BOOK), sleep=instantly)
        await driving.advance(run)
        return types_of(await journal.read(run))

    assert "run.resumed" in during(path, second)
    assert tools.swept == 1


def test_a_finished_run_is_left_as_it_is(path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, ListedModel(reply()), Functions())
        state = await run_of(driving)
        for again in (await driving.resume(state.run, by="ada"), await driving.advance(state.run)):
            assert again.next_seq == state.next_seq

    during(path, work)


def test_a_run_that_brings_the_driver_down_before_it_gets_anywhere_is_stopped_in_the_end(path: Path) -> None:
    class Broken:
        def judge(self, *_: object) -> ev.CallJudged:
            raise Dead

    async def work(journal: SQLiteJournal) -> State:
        driving = driver_of(journal, ListedModel(reply(call("look"))), Functions())
        driving._gate = Broken()  # type: ignore[assignment]
        run = await driving.start(started())
        for _ in range(CRASH_LIMIT):
            with pytest.raises(Dead):
                await driving.advance(run)
        return await driving.advance(run)

    assert during(path, work).stop_reason == "crashed"


# --- sessions ---


def test_a_session_carries_earlier_runs_into_the_prompt_in_order(path: Path) -> None:
    model = ListedModel(reply(AskedCall(provider_id="", name="look", arguments="{}")), reply(text="Seen."))

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, Functions(look=lambda _: ok("BA1")))
        first = await run_of(driving, "One.")
        second = await run_of(driving, "Two.")
        other = await run_of(driving, "Alone.", session="s2")
        (begin, *_) = await journal.read(second.run)
        assert isinstance(begin.event, ev.RunStarted)
        assert begin.event.previous == (first.run,)
        assert other.history == 0
        assert second.history == len(first.transcript.messages)

    during(path, work)
    texts = [message.text for message in model.prompts[3].messages]
    assert texts == ["One.", "", "BA1", "Seen.", "Two.", "", "BA1"]
    assert [message.text for message in model.prompts[4].messages] == ["Alone."]


@pytest.mark.parametrize("size, heard", [(0, []), (1, ["3"]), (2, ["2", "3"]), (9, ["1", "2", "3"])])
def test_the_window_says_how_many_earlier_runs_are_heard(path: Path, size: int, heard: list[str]) -> None:
    model = ListedModel(reply(text="ok"))

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, Functions(), locked_agent(window_runs=size))
        for message in ("1", "2", "3", "4"):
            await run_of(driving, message)

    during(path, work)
    assert [message.text for message in model.prompts[-1].messages if message.role == "user"] == [*heard, "4"]


@pytest.mark.parametrize("window_runs", [0, 1, 20])
def test_what_must_not_be_repeated_is_known_in_the_session_beyond_the_window(path: Path, window_runs: int) -> None:
    model = ListedModel(reply(call("book", {"flight": "BA1", "why": "x"})), reply(text="ok"))
    tools = Functions(book=lambda _: ok("Booked BA1."))

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, tools, locked_agent(window_runs=window_runs))
        first = await run_of(driving, "One.")
        await run_of(driving_of_talk(journal, window_runs), "Thanks.")
        again = await run_of(driving, "Once more.")
        assert [each.duplicate_of for each in again.all_calls] == [f"{first.run}/1.0"]
        elsewhere = await run_of(driving, "Me too.", session="s2")
        assert [each.duplicate_of for each in elsewhere.all_calls] == [""]

    during(path, work)
    assert tools.count("book") == 2


def driving_of_talk(journal: Journal, window_runs: int) -> Driver:
    return driver_of(journal, ListedModel(reply(text="Welcome.")), Functions(), locked_agent(window_runs=window_runs))


def test_two_equal_bookings_in_one_reply_are_one_booking(path: Path) -> None:
    model = ListedModel(reply(call("book", BA1), call("book", {**BA1, "note": "again"})), reply())
    tools = Functions(book=lambda _: ok("Booked BA1."))

    async def work(journal: SQLiteJournal) -> None:
        await run_of(driver_of(journal, model, tools))

    during(path, work)
    assert tools.count("book") == 1
    first, second = results(model.prompts[1].messages)
    assert first == "Booked BA1."
    assert second.startswith("Booked BA1.\n\n[This call was already made")


def test_an_effect_in_doubt_of_a_cancelled_run_is_not_repeated_by_the_next(path: Path) -> None:
    """The session that booked, died, was cancelled, and asked again."""

    async def dies(_: PermittedCall) -> Outcome:
        raise Dead

    model = ListedModel(reply(call("book", BA1)), reply(text="ok"))
    tools = Functions(book=dies)

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, tools)
        run = await driving.start(started())
        with pytest.raises(Dead):
            await driving.advance(run)
        assert "may have happened" in (await cancel(journal, run, by="ada")).message
        again = await run_of(driving, "Try again.")
        assert [each.outcome for each in again.all_calls] == ["in_doubt"]

    during(path, work)
    assert tools.count("book") == 1
    told = results(model.prompts[-1].messages)
    assert told[0].startswith("The run was stopped before it was known whether this call happened.")
    assert told[1].startswith("Not run: nobody knows yet")


def test_a_session_with_an_unfinished_run_refuses_another_until_that_ends(path: Path) -> None:
    model = ListedModel(reply(call("book", BA1)), reply(text="ok"))

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, Functions(), locked_agent(policy=ASK_BOOK))
        state = await run_of(driving)
        with pytest.raises(RunError, match=f"unfinished run {state.run}") as caught:
            await driving.start(started())
        assert f"lockstep resume {state.run}" in caught.value.remedy
        await driving.start(started(session="s2"))
        await cancel(journal, state.run, by="ada")
        await driving.start(started())

    during(path, work)


def test_a_session_that_is_given_two_runs_at_the_same_moment_takes_one(path: Path) -> None:
    async def work(journal: SQLiteJournal) -> list[Any]:
        driving = driver_of(journal, ListedModel(reply()), Functions())
        both = await asyncio.gather(driving.start(started()), driving.start(started()), return_exceptions=True)
        assert len(await journal.runs()) == 1
        return list(both)

    assert [type(each) for each in during(path, work)] == [str, RunError]


@pytest.mark.parametrize("changes", [{"principal": "eve"}, {"agent": "other"}])
def test_a_session_belongs_to_one_principal_and_one_agent(path: Path, changes: dict[str, str]) -> None:
    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, ListedModel(reply()), Functions())
        await run_of(driving)
        with pytest.raises(RunError, match="is a conversation of ada with traveller"):
            await driving.start(replace(started(), **changes))  # type: ignore[arg-type]

    during(path, work)


def test_runs_of_several_sessions_go_on_at_once_in_one_store(path: Path) -> None:
    model = ListedModel(reply(call("look")), reply(call("book", BA1)), reply(text="ok"))
    tools = Functions()

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, tools)
        states = await asyncio.gather(*(run_of(driving, session=f"s{number}") for number in range(30)))
        assert {state.stop_reason for state in states} == {"completed"}
        for state in states:
            assert (await journal.verify(state.run)).broken_seq is None

    during(path, work)
    assert set(tools.ran.values()) == {1}
    assert (tools.count("look"), tools.count("book")) == (30, 30)


def test_two_drivers_of_one_run_cannot_both_record_and_only_one_books(path: Path) -> None:
    tools = Functions()

    async def work(journal: SQLiteJournal) -> list[Any]:
        drivers = [driver_of(journal, ListedModel(reply(call("book", BA1)), reply()), tools) for _ in range(2)]
        run = await drivers[0].start(started())
        both = await asyncio.gather(*(each.advance(run) for each in drivers), return_exceptions=True)
        assert (await journal.verify(run)).broken_seq is None
        return list(both)

    kinds = sorted(type(each).__name__ for each in during(path, work))
    assert kinds == ["FenceConflict", "State"]
    assert tools.count("book") == 1


# --- approvals ---


def asking(journal: Journal, model: ListedModel, tools: Functions, expires_s: float = 3600) -> Driver:
    return driver_of(journal, model, tools, locked_agent(policy=ASK_BOOK, approval_expires_s=expires_s))


def test_an_approved_call_runs_after_a_restart_and_costs_nothing_meanwhile(path: Path) -> None:
    model, tools = ListedModel(reply(call("book", BA1)), reply(text="Booked.")), Functions()

    async def ask(journal: SQLiteJournal) -> tuple[RunId, str]:
        state = await run_of(asking(journal, model, tools))
        assert (state.status, tools.count("book")) == (Status.SUSPENDED, 0)
        (item,) = waiting(await unfinished(journal))
        assert (item.call.question, item.state.run) == ("Book it?", state.run)
        assert await asking(journal, model, tools).resume(state.run, by="ada") == state
        return state.run, item.call.approval

    async def approve(journal: SQLiteJournal) -> State:
        await answer(journal, approval, given=True, by="ada")
        assert waiting(await unfinished(journal)) == []
        return await read_state(journal, run)

    async def go_on(journal: SQLiteJournal) -> State:
        return await asking(journal, model, tools).resume(run, by="ada")

    run, approval = during(path, ask)
    assert during(path, approve).call("1.0").approved_by == "ada"
    assert during(path, go_on).output == "Booked."
    assert tools.count("book") == 1
    assert tools.swept == 0


def test_an_approval_is_given_once_and_only_by_its_name(path: Path) -> None:
    model = ListedModel(reply(call("book", BA1)), reply())

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(asking(journal, model, Functions()))
        approval = state.call("1.0").approval
        for name in ("a0000", "", approval[:-1], approval.upper()):
            with pytest.raises(RunError, match="is waiting"):
                await answer(journal, name, given=True, by="eve")
        await answer(journal, approval, given=True, by="ada")
        for given in (True, False):
            with pytest.raises(ApprovalError, match=f"{approval} was already answered by ada, who approved it"):
                await answer(journal, approval, given=given, by="eve")

    during(path, work)


def test_of_two_answers_at_once_one_counts(path: Path) -> None:
    model = ListedModel(reply(call("book", BA1)), reply())

    async def work(journal: SQLiteJournal) -> list[Any]:
        state = await run_of(asking(journal, model, Functions()))
        approval = state.call("1.0").approval
        yes = answer(journal, approval, given=True, by="ada")
        no = answer(journal, approval, given=False, by="eve")
        return list(await asyncio.gather(yes, no, return_exceptions=True))

    outcomes = during(path, work)
    assert [type(each) for each in outcomes].count(State) == 1
    (late,) = [each for each in outcomes if isinstance(each, ApprovalError)]
    assert "was already answered by" in late.message


def test_a_refusal_and_its_reason_are_shown_to_the_model(path: Path) -> None:
    model, tools = ListedModel(reply(call("book", BA1)), reply(text="Then not.")), Functions()

    async def work(journal: SQLiteJournal) -> State:
        driving = asking(journal, model, tools)
        state = await run_of(driving)
        await answer(journal, state.call("1.0").approval, given=False, by="ada", because="too expensive")
        return await driving.resume(state.run, by="ada")

    assert during(path, work).output == "Then not."
    assert results(model.prompts[1].messages)[0].startswith("Not run: ada refused this call because: too expensive.")
    assert tools.calls == []


def test_an_expired_approval_cannot_be_given_and_the_run_goes_on_without(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tools = ListedModel(reply(call("book", BA1)), reply(text="Then not.")), Functions()

    async def work(journal: SQLiteJournal) -> None:
        driving = asking(journal, model, tools, expires_s=3600)
        state = await run_of(driving)
        for module in (driver, live, answers):
            monkeypatch.setattr(module, "now_ms", lambda: now_ms() + 3_600_001)
        with pytest.raises(RunError, match="has expired") as caught:
            await answer(journal, state.call("1.0").approval, given=True, by="ada")
        assert f"lockstep resume {state.run}" in caught.value.remedy
        state = await driving.resume(state.run, by="ada")
        assert state.output == "Then not."

    during(path, work)
    assert results(model.prompts[1].messages)[0].startswith("Not run: nobody approved this call in time.")
    assert tools.calls == []


@pytest.mark.parametrize("approve, ran", [("all", 1), ("none", 0)])
def test_standing_answers_need_no_person_and_are_recorded(path: Path, approve: str, ran: int) -> None:
    model, tools = ListedModel(reply(call("book", BA1)), reply()), Functions()

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(asking(journal, model, tools), approve=approve)
        assert state.stop_reason == "completed"
        (by,) = [
            item.event.by
            for item in await journal.read(state.run)
            if isinstance(item.event, ev.ApprovalGiven | ev.ApprovalRefused)
        ]
        assert by == f"--approve {approve}"

    during(path, work)
    assert tools.count("book") == ran


def test_two_calls_that_wait_are_answered_one_by_one(path: Path) -> None:
    look = locked_tool("book")  # a read, so that both wait at once
    model, tools = ListedModel(reply(call("book", {"n": 1}), call("book", {"n": 2})), reply()), Functions()

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, model, tools, locked_agent(look, policy=ASK_BOOK))
        state = await run_of(driving)
        first, second = (each.approval for each in state.calls)
        await answer(journal, second, given=True, by="ada")
        assert (await driving.resume(state.run, by="ada")).status is Status.SUSPENDED
        await answer(journal, first, given=False, by="ada")
        assert (await driving.resume(state.run, by="ada")).stop_reason == "completed"

    during(path, work)
    assert [each.arguments for each in tools.calls] == [{"n": 2}]


# --- cancelling ---


def test_a_waiting_run_can_be_cancelled_and_the_session_goes_on(path: Path) -> None:
    model, tools = ListedModel(reply(call("look"), call("book", BA1))), Functions()

    async def work(journal: SQLiteJournal) -> None:
        driving = asking(journal, model, tools)
        state = await cancel(journal, (await run_of(driving)).run, by="ada")
        assert (state.status, state.stop_reason, state.message) == (Status.FINISHED, "cancelled", "Cancelled by ada.")
        with pytest.raises(RunError, match="has finished already"):
            await cancel(journal, state.run, by="ada")
        assert waiting(await unfinished(journal)) == []
        talking = ListedModel(reply(text="Fine."))
        await run_of(asking(journal, talking, tools), "Never mind.")
        told = [
            message for message in talking.prompts[0].messages if isinstance(message, AssistantMessage | ToolMessage)
        ]
        assert [type(message).__name__ for message in told] == ["AssistantMessage", "ToolMessage", "ToolMessage"]

    during(path, work)
    assert tools.count("book") == 0


def test_a_run_cancelled_under_its_driver_records_nothing_more(path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        async def meanwhile(asked: PermittedCall) -> Outcome:
            await cancel(journal, asked.run, by="ada")
            return ok()

        driving = driver_of(journal, ListedModel(reply(call("look")), reply()), Functions(look=meanwhile))
        run = await driving.start(started())
        with pytest.raises(FenceConflict):
            await driving.advance(run)
        assert (await read_state(journal, run)).stop_reason == "cancelled"
        assert (await journal.verify(run)).broken_seq is None

    during(path, work)


def test_a_run_that_is_not_there_is_named_in_the_error(path: Path) -> None:
    async def work(journal: SQLiteJournal) -> None:
        for attempt in (
            read_run(journal, RunId("r0")),
            cancel(journal, RunId("r0"), by="ada"),
            settle(journal, RunId("r0"), happened=True, by="ada"),
            driver_of(journal, ListedModel(), Functions()).resume(RunId("r0"), by="ada"),
        ):
            with pytest.raises(RunError, match="There is no run r0"):
                await attempt

    during(path, work)


# --- the model fails ---


def test_retries_are_events_and_pauses_are_what_the_kernel_said(path: Path) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    model = ListedModel(
        Failure(kind=FailureKind.RATE_LIMITED, message="Slow down.", status=429, retry_after_s=7.5),
        Failure(kind=FailureKind.OVERLOADED, message="Busy.", status=529),
        reply(text="Here."),
    )

    async def work(journal: SQLiteJournal) -> None:
        state = await run_of(driver_of(journal, model, Functions(), sleep=sleep))
        assert state.output == "Here."
        failed = [item.event for item in await journal.read(state.run) if isinstance(item.event, ev.ModelFailed)]
        assert [(event.attempt, event.kind, event.status, event.transient) for event in failed] == [
            (1, "rate_limited", 429, True),
            (2, "overloaded", 529, True),
        ]

    during(path, work)
    assert pauses == [7.5, 2.0]
    assert len({prompt.digest for prompt in model.prompts}) == 1


def test_a_failure_that_would_come_again_is_not_tried_again(path: Path) -> None:
    model = ListedModel(Failure(kind=FailureKind.REFUSED, message="Your key is not valid.", status=401))

    async def work(journal: SQLiteJournal) -> State:
        return await run_of(driver_of(journal, model, Functions()))

    state = during(path, work)
    assert (state.stop_reason, state.message) == ("model_refused", "Your key is not valid.")
    assert len(model.prompts) == 1


def test_a_request_never_has_more_time_than_the_run(path: Path) -> None:
    model = ListedModel(reply(text="ok"))
    agent = locked_agent(budget=Budget(wall_s=30))

    async def work(journal: SQLiteJournal) -> None:
        await run_of(driver_of(journal, model, Functions(), agent))

    during(path, work)
    assert 1 <= model.settings[0].timeout_s <= 30


@pytest.mark.parametrize(
    "budget, stop_reason",
    [
        (Budget(steps=2), "budget_steps"),
        (Budget(calls=2), "budget_calls"),
        (Budget(malformed=1, steps=50), "completed"),
    ],
)
def test_a_budget_ends_the_run_with_its_reason(path: Path, budget: Budget, stop_reason: str) -> None:
    model = ListedModel(*[reply(call("look"))] * 3, reply())

    async def work(journal: SQLiteJournal) -> State:
        return await run_of(driver_of(journal, model, Functions(), locked_agent(budget=budget)))

    assert during(path, work).stop_reason == stop_reason


# --- permits ---


def broken_permit(how: str) -> Callable[[PermittedCall, Permit], None]:
    def redeem(asked: PermittedCall, permit: Permit) -> None:
        match how:
            case "spent":
                permit.redeem(asked.digest, now_ms())
                permit.redeem(asked.digest, now_ms())
            case "other call":
                permit.redeem(type(asked.digest)("0" * 64), now_ms())
            case "expired":
                permit.redeem(asked.digest, permit.expires_at_ms)

    return redeem


@pytest.mark.parametrize("how", ["spent", "other call", "expired"])
@pytest.mark.parametrize("calls", [1, 2])
def test_a_permit_that_does_not_fit_stops_the_driver_and_nothing_is_settled(path: Path, how: str, calls: int) -> None:
    class Broken(Functions):
        async def call(self, asked: PermittedCall, permit: Permit, *more: Any) -> Outcome:
            broken_permit(how)(asked, permit)
            return ok()

    async def work(journal: SQLiteJournal) -> None:
        driving = driver_of(journal, ListedModel(reply(*[call("look")] * calls)), Broken())
        run = await driving.start(started())
        with pytest.raises(PermitError):
            await driving.advance(run)
        assert "effect.settled" not in types_of(await journal.read(run))

    during(path, work)


def test_every_call_has_a_permit_of_its_own_bound_to_it(path: Path) -> None:
    model, tools = ListedModel(reply(*[call("look", BA1)] * 2, call("book", BA1)), reply()), Functions()

    async def work(journal: SQLiteJournal) -> None:
        await run_of(driver_of(journal, model, tools))

    during(path, work)
    assert len({permit.id for permit in tools.permits}) == 3
    assert [permit.call_digest for permit in tools.permits] == [asked.digest for asked in tools.calls]
    assert len({asked.digest for asked in tools.calls}) == 3


def test_arguments_that_were_changed_in_the_record_after_the_approval_do_not_run(path: Path) -> None:
    model, tools = ListedModel(reply(call("book", BA1)), reply()), Functions()

    async def ask(journal: SQLiteJournal) -> RunId:
        state = await run_of(asking(journal, model, tools))
        await answer(journal, state.call("1.0").approval, given=True, by="ada")
        return state.run

    run = during(path, ask)
    with sqlite3.connect(path / "journal.db") as connection:
        ((body,),) = connection.execute("SELECT body FROM events WHERE type = 'model.replied'").fetchall()
        told = json.loads(unpack(body))
        told["calls"][0]["arguments"] = '{"flight": "CONCORDE"}'
        changed = pack(json.dumps(told, separators=(",", ":")).encode())
        connection.execute("UPDATE events SET body = ? WHERE type = 'model.replied'", (changed,))
    connection.close()

    async def go_on(journal: SQLiteJournal) -> None:
        with pytest.raises(JournalCorrupt, match=r"event 3 \(model.replied\) was changed") as caught:
            await asking(journal, model, tools).resume(run, by="ada")
        assert f"lockstep verify {run}" in caught.value.remedy
        assert (await journal.verify(run)).broken_seq == 3

    during(path, go_on)
    assert tools.calls == []


class GoneTerminal:
    """A watcher whose terminal has gone away."""

    def __init__(self) -> None:
        self.told = 0

    def event(self, state: State, event: ev.Event) -> None:
        self.told += 1
        raise BrokenPipeError

    def text(self, piece: str) -> None:
        raise BrokenPipeError


def test_a_watcher_that_fails_costs_no_record(path: Path) -> None:
    model, tools, watcher = ListedModel(reply(call("book", BA1)), reply()), Functions(), GoneTerminal()

    async def work(journal: SQLiteJournal) -> State:
        return await run_of(driver_of(journal, model, tools, watcher=watcher))

    state = during(path, work)
    assert (state.stop_reason, len(tools.calls), watcher.told) == ("completed", 1, 1)
