"""Any interleaving of calls, lost and late replies, probes, people, deaths and resumes, held against a model world.

The driver, the gate, the kernel and the SQLite journal are the real ones; `outside` is what they act on. By default
the same histories each time; `LOCKSTEP_EXAMPLES=5000` tries that many new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inprocess import answer, driver_of, started
from outside import (
    AGENT,
    ANSWERS,
    LOCK,
    LOCK_TEXT,
    MADE_ONCE_PER_CALL,
    ONCE_PER_KEY,
    SETTLES_S,
    WINDOW_S,
    Asking,
    Chance,
    Clock,
    Done,
    Host,
    Killed,
    Life,
    Mortal,
    World,
)

from lockstep.cli.explaining import as_json as why_as_json
from lockstep.journal import audit, audit_check
from lockstep.journal import events as ev
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.sqlite_audit import SQLiteAudit
from lockstep.kernel.apply import fold, start
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.kernel.transcript import UNSEEDED
from lockstep.model.port import AssistantMessage, Message, ToolMessage
from lockstep.runtime import answers, inputs, live, sampling
from lockstep.runtime import driver as driving
from lockstep.runtime.driver import Driver
from lockstep.runtime.reading import read_run, read_state, verify_run
from lockstep.telemetry.tree import build_tree
from lockstep.telemetry.why import explain
from lockstep.values import Effect, RunId

EXAMPLES = os.environ.get("LOCKSTEP_EXAMPLES")
MOST_RESUMES = 40
MOST_DEATHS = 12
"""Of one history: more than `CRASH_LIMIT` in a row, so that runs are also given up."""


class Drawn:
    """Chance out of Hypothesis."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def of(self, what: str, *options: Any) -> Any:
        return self._data.draw(st.sampled_from(options), label=what)


class History:
    """One session: runs one after another, in processes that die, and the people around it."""

    def __init__(self, directory: Path, chance: Chance) -> None:
        self.directory = directory
        self.chance = chance
        self.clock = Clock()
        self.world = World(clock=self.clock)
        self.ran: Counter[str] = Counter()
        self.host = Host(self.world, chance, self.ran)
        self.model = Asking(self.world, chance)
        self.deaths = 0
        self.journal = SQLiteJournal.open(directory)

    async def live(self) -> None:
        try:
            for _ in range(self.chance.of("runs", 1, 2, 3)):
                await self._run()
                self.clock.now += self.chance.of("between runs", 10, 3000, WINDOW_S * 1000)
                self.world.catch_up()
                if self.chance.of("somebody looks after doubts", False, True):
                    await self._settle_ended()
            self.clock.now += SETTLES_S * 1000
            self.world.catch_up()
            await Readings(self).hold()
        finally:
            await self.journal.close()

    def _driver(self) -> Driver:
        """A new process."""
        dies_at = None
        if self.deaths < MOST_DEATHS:
            dies_at = self.chance.of("dies at step", None, *range(25))
        life = self.host.life = self.model.life = Life(dies_at)
        return driver_of(Mortal(self.journal, life), self.model, self.host, AGENT, sleep=self.clock.sleep)

    async def _died(self) -> None:
        self.deaths += 1
        self.clock.now += self.chance.of("dead for", 1, 2000)
        await self.journal.close()
        self.journal = SQLiteJournal.open(self.directory)

    async def _run(self) -> None:
        run = await self._start()
        state = None
        for _ in range(MOST_RESUMES):
            driver = self._driver()
            try:
                if state is None:
                    state = await driver.advance(run)
                else:
                    state = await driver.resume(run, by="ada")
            except Killed:
                await self._died()
                continue
            if state.status is Status.FINISHED:
                again = await driver_of(self.journal, self.model, self.host, AGENT).resume(run, by="ada")
                assert again == state, "what is folded from the record is not what was driven"
                return
            await self._people(state)
            state = await read_state(self.journal, run)
            if state.status is Status.FINISHED:
                return
        raise AssertionError("the run does not end")

    async def _start(self) -> RunId:
        beginning = started(lock_text=LOCK_TEXT, lock=LOCK.digest)
        while True:
            before = {row.run for row in await self.journal.runs()}
            try:
                return await self._driver().start(beginning)
            except Killed:
                await self._died()
            begun = [row.run for row in await self.journal.runs() if row.run not in before]
            if begun:
                return begun[0]

    async def _people(self, state: State) -> None:
        """Somebody acts, or time does. Whoever speaks knows the truth."""
        act = self.chance.of("a person", "answers", "waits", "cancels")
        self.clock.now += 10
        if act == "cancels":
            await answers.cancel(self.journal, state.run, by="ada")
            return
        for call in state.calls:
            if call.phase is Phase.WAITING and act == "answers":
                given = self.chance.of("approves", True, False)
                await answer(self.journal, call.approval, given=given, by="ada", agent=AGENT)
            elif call.phase is Phase.NEEDS_INPUT and act == "answers":
                said = self.chance.of("tells the server", ANSWERS, None)
                await inputs.answer_input(self.journal, call.input, inputs.Said(responses=said, by="ada"))
            elif call.phase in (Phase.WAITING, Phase.NEEDS_INPUT):
                self.clock.now += 600_000
            elif call.phase is Phase.DOUBTED and (act == "answers" or not AGENT.tools[call.name].repeats.probe):
                await self._settle(state.run, call)

    async def _settle(self, run: RunId, call: CallState) -> None:
        self.clock.now += SETTLES_S * 1000
        self.world.catch_up()
        self.world.end_tasks_of(f"{run}/{call.id}")
        did = self.world.by(f"{run}/{call.id}")
        result = did[0].result if did and self.chance.of("says what it answered", True, False) else ""
        await answers.settle(self.journal, run, call.id, happened=bool(did), by="ada", result=result)

    async def _settle_ended(self) -> None:
        for row in await self.journal.runs():
            state = await read_state(self.journal, row.run)
            for call in state.all_calls:
                if call.phase is Phase.DOUBTED:
                    await self._settle(row.run, call)


class Ledger:
    """The record of a whole session beside what was really done."""

    def __init__(self, history: History, recorded: dict[RunId, list[ev.Recorded]]) -> None:
        self.history = history
        self.world = history.world
        self.recorded = recorded
        self.states = {run: fold(start(run, UNSEEDED), items) for run, items in recorded.items()}
        self.calls = {f"{run}/{call.id}": call for run, state in self.states.items() for call in state.all_calls}
        judged = [
            (run, item) for run, items in recorded.items() for item in items if isinstance(item.event, ev.CallJudged)
        ]
        self.judged_at = {f"{run}/{item.event.call}": item.at_ms for run, item in judged}

    def check(self) -> None:
        self._once()
        self._nothing_is_lost()
        self._nothing_is_made_up()
        self._nothing_is_held_back()
        self._nothing_is_asked_of_the_model_again()
        self._fold()
        for state in self.states.values():
            assert state.status is Status.FINISHED
            assert answered_in_order(state.transcript.messages)

    def _once(self) -> None:
        """Of one call, one request and one effect; of one key, one effect, unless it was freed or meant twice."""
        for call_id, times in self.history.ran.items():
            call = self.calls.get(call_id.partition("#")[0])
            assert call is None or call.effect is not Effect.ONCE or times == 1, f"{call_id} was sent {times} times"
        assert all(times == 1 for times in Counter(each.call for each in self.world.done).values())
        for later in self.world.done:
            if later.tool in ONCE_PER_KEY and not self.calls[later.call].again:
                twice = [each for each in self.world.done if self._stands_against(each, later)]
                assert not twice, f"{later} although {twice}"

    def _stands_against(self, earlier: Done, later: Done) -> bool:
        if (earlier.tool, earlier.what) != (later.tool, later.what) or earlier.at >= later.at:
            return False
        if AGENT.tools[later.tool].repeats.window_s is not None:
            return self.judged_at[later.call] < self.judged_at[earlier.call] + WINDOW_S * 1000
        return earlier.undone_at is None or earlier.undone_at > later.at

    def _nothing_is_lost(self) -> None:
        for each in self.world.done:
            call = self.calls[each.call]
            known = call.phase is Phase.DOUBTED or call.outcome in ("ok", "result_unusable")
            assert known, f"{each} stands in the record as {call.phase}, {call.outcome}"

    def _nothing_is_made_up(self) -> None:
        for call_id, call in self.calls.items():
            if call.name not in MADE_ONCE_PER_CALL or call.outcome not in ("ok", "result_unusable"):
                continue
            if call.duplicate_of:
                first = self.calls[call.duplicate_of]
                assert first.outcome in ("ok", "result_unusable") or first.phase is Phase.DOUBTED
            else:
                assert self.world.by(call_id), f"{call_id} ({call.name}) is settled, and nothing was done"

    def _nothing_is_held_back(self) -> None:
        """What was undone for all to see may be done again: its receipt answers no later call."""
        for call_id, call in self.calls.items():
            first = call.duplicate_of
            if not first or not call.dedupe_key or first.partition(".")[0] == call_id.partition(".")[0]:
                continue  # of one reply, the same call is made once whatever stands between
            for done in self.world.by(first):
                if self.calls[done.call].text == done.result:
                    undone = [each for each in self._undone(done) if self.judged_at[each] < self.judged_at[call_id]]
                    assert not undone, f"{call_id} got the receipt of {done}, which {undone} undid"

    def _nothing_is_asked_of_the_model_again(self) -> None:
        """What it said to a server is on record once, and went into the answer that the server got."""
        for items in self.recorded.values():
            events = [item.event for item in items]
            said = [each for each in events if isinstance(each, ev.ModelSampled) and not each.failure]
            assert all(times == 1 for times in Counter((each.input, each.key) for each in said).values())
            for told in (each for each in events if isinstance(each, ev.InputGiven) and each.responses):
                thought = {each.key for each in said if each.input == told.input}
                assert thought == {key for key, each in json.loads(told.responses).items() if "role" in each}

    def _undone(self, done: Done) -> list[str]:
        """The settled calls that undid it as its entry says."""
        by = {rule.tool for rule in AGENT.tools[done.tool].repeats.released_by}
        return [
            call_id
            for call_id, call in self.calls.items()
            if call.name in by and call.outcome == "ok" and f'"{done.id}"' in call.arguments
        ]

    def _fold(self) -> None:
        for run, items in self.recorded.items():
            assert fold(start(run, UNSEEDED), items) == self.states[run]
            half = self.history.chance.of("half", len(items) // 2, 1, len(items) - 1)
            assert fold(fold(start(run, UNSEEDED), items[:half]), items[half:]) == self.states[run]


class Readings:
    """The readings that others make of the record: none of them may fail."""

    def __init__(self, history: History) -> None:
        self.history = history

    async def hold(self) -> None:
        journal = self.history.journal
        runs = [row.run for row in await journal.runs()]
        recorded = {run: await read_run(journal, run) for run in runs}
        Ledger(self.history, recorded).check()
        for run, items in recorded.items():
            assert (await verify_run(journal, run)).broken_seq is None
            assert json.dumps(why_as_json(explain(run, items, LOCK)), default=str)
            build_tree(items)
        out = io.BytesIO()
        with SQLiteAudit(self.history.directory, run=None, session=None) as source:
            done = audit.export(source, out, store="/store")
        out.seek(0)
        assert audit_check.check(out, done.digest).runs == len(runs)


def answered_in_order(messages: tuple[Message, ...]) -> bool:
    """Whether every call a model asked for has its answer, in order, before anything else is said."""
    open_ids: list[str] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            if not open_ids or open_ids.pop(0) != message.provider_id:
                return False
        elif open_ids:
            return False
        elif isinstance(message, AssistantMessage):
            open_ids = [call.provider_id for call in message.calls]
    return not open_ids


@settings(
    max_examples=int(EXAMPLES or 100),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_whatever_happens_when_nothing_is_done_twice_lost_or_made_up(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:

        async def whole() -> None:
            history = History(Path(directory), Drawn(data))
            with contextlib.ExitStack() as patched:
                for module in (driving, live, answers, inputs, sampling):
                    patched.enter_context(patch.object(module, "now_ms", history.clock))
                await history.live()

        asyncio.run(whole())
