"""The driver: performs what the kernel decides and records what happened.

Events gather until something outside is about to happen (a model is asked, a call runs, the run waits or ends); then
they are made durable together, and only then it happens. So nothing outside ever precedes its record, at two fsyncs a
step. After a crash the same fold leads to the same decision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from lockstep.agent.locked import LockedAgent
from lockstep.errors import AgentStopped, JournalCorrupt, PermitError, RunError, StoreError
from lockstep.gate.gate import Gate, Release
from lockstep.gate.permit import Permit
from lockstep.gate.standing import covers
from lockstep.journal import events as ev
from lockstep.journal.port import Journal
from lockstep.journal.standing import Standing, StandingBook
from lockstep.journal.stops import require_running
from lockstep.kernel import decide as do
from lockstep.kernel.apply import fold, start
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.kernel.transcript import UNSEEDED, build_prompt, definitions, opening
from lockstep.memory.window import window
from lockstep.model.port import AskedCall, Model, Settings
from lockstep.runtime.elsewhere import Elsewhere
from lockstep.runtime.following import BrokenOff, Follower, acts
from lockstep.runtime.inputs import ask_live, round_asked
from lockstep.runtime.keeping import Keeping
from lockstep.runtime.live import Attendant, Live, Silent, Watcher
from lockstep.runtime.outcomes import (
    answer_of_probe,
    answered,
    called,
    cancelled,
    doubted,
    dropped,
    finished,
    joined,
    replied,
    retried,
    settled,
)
from lockstep.runtime.reading import History, read_history, read_run, require_free
from lockstep.runtime.sampling import Sampler, within
from lockstep.runtime.spending import Place, Spending
from lockstep.runtime.stopping import StopWatch, halted
from lockstep.runtime.tasks import asked_again, tasking
from lockstep.tools.port import Outcome, PermittedCall, ToolHost
from lockstep.values import Effect, RunId, new_run_id, now_ms

FIRST_SEQ_DRIVEN = 2
"""The next event of a run that was started and never driven."""


class Driver:
    """Drives runs of one locked agent. Runs may be driven at once; each is driven by one task."""

    def __init__(
        self,
        *,
        agent: LockedAgent,
        settings: Settings,
        journal: Journal,
        gate: Gate,
        model: Model,
        tools: ToolHost,
        standing: StandingBook | None = None,
        watcher: Watcher | None = None,
        attendant: Attendant | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.agent = agent
        self._settings = settings
        self._journal = journal
        self._gate = gate
        self._model = model
        self._tools = tools
        self._standing = standing
        self._watcher = watcher or Silent()
        self._attendant = attendant
        self._sleep = sleep
        self._stops = StopWatch(journal, agent.name)
        self._elsewhere = Elsewhere(journal)
        self._keeping = Keeping(tools.end)
        self._definitions = definitions(agent)
        self._opening = opening(agent)
        self._keeps_receipts = any(tool.once_only for tool in agent.tools.values())
        self._spending = Spending(journal, agent.name, agent.budget)
        self._sampler = Sampler(model, settings, agent.budget, self._informed, sleep)
        self._starting: set[str] = set()
        self._beginning = asyncio.Lock()
        self._begun: dict[RunId, History] = {}
        """What runs that were started and not yet driven take from their session."""

    async def start(self, started: ev.RunStarted) -> RunId:
        """Record a new run in its session; `advance` drives it.

        Its session is read first: that costs the run none of its time, and where it cannot be read there is no run.

        Raises:
            RunError: the session's newest run has not finished, or the session is of another principal or agent.
            AgentStopped: somebody stopped the agent.
            BudgetError: what its session, principal or day may use is used up.
            JournalCorrupt: an earlier run of the session that counts cannot be read.
        """
        require_running(self._journal, self.agent.name)
        if started.session in self._starting:
            raise RunError(f"Session {started.session!r} is being given another run at this moment.")
        self._starting.add(started.session)
        try:
            rows = await self._journal.runs(session=started.session, limit=max(1, self.agent.window_runs))
            if rows:
                require_free(started, rows[0])
            previous = window([row.run for row in reversed(rows)], self.agent.window_runs)
            history = await self._history(started.session, previous, before=None)
            run = await self._begin(replace(started, previous=previous))
            self._begun[run] = history
        finally:
            self._starting.discard(started.session)
        return run

    async def _begin(self, started: ev.RunStarted) -> RunId:
        async with self._beginning:  # so that of two runs the second counts the first
            at_ms = now_ms()
            run = new_run_id(at_ms)
            place = await self._room(started, at_ms)
            await self._journal.append(run, 1, [(at_ms, started)])
            if place is not None:
                self._spending.begun(run, place)
        return run

    async def _room(self, started: ev.RunStarted, at_ms: int) -> Place | None:
        """Where a new run counts, now that there is room for it; None where nothing is counted."""
        if not self._spending.counts:
            return None
        place = Place(session=started.session, principal=started.principal, at_ms=at_ms)
        await self._spending.read(place)
        self._spending.require_room(place)
        return place

    def offered(self, principal: str) -> frozenset[str]:
        """The tools that policy may permit this principal, whatever the arguments."""
        return self._gate.offered(principal)

    async def begin(
        self,
        started: ev.RunStarted,
        history: History,
        asked: AskedCall | None = None,
        attendant: Attendant | None = None,
        follower: Follower | None = None,
    ) -> State:
        """Drive a new run of a session whose history the caller keeps, until it finishes or waits.

        With `asked` it is one call of a client: recorded as what a model would have asked, and then judged, run and
        recorded like every call. `started.client` names the client, and the kernel asks no model. `attendant` is who is
        there to answer its servers, `follower` who hears of it and may break it off.

        Raises:
            AgentStopped: somebody stopped the agent; nothing was recorded.
            BudgetError: what its session, principal or day may use is used up; nothing was recorded.
        """
        require_running(self._journal, self.agent.name)
        async with self._beginning:
            run = new_run_id(now_ms())
            place = await self._room(started, now_ms())
            if place is not None:
                self._spending.begun(run, place)
        seed = UNSEEDED if asked is not None else self._opening
        opened = start(run, seed.add(*history.messages), history.receipts, history.emitted)
        live = Live(self._journal, self._watcher, opened, attendant)
        live.follower = follower or live.follower
        live.record(started)
        if asked is not None:
            live.record(called(started.client, asked))
        return await self._drive(live)

    async def advance(self, run: RunId) -> State:
        """Drive a run that was just started until it finishes or waits; one that was driven before is resumed."""
        live = await self._open(run)
        if live.state.next_seq == FIRST_SEQ_DRIVEN:
            return await self._drive(live)
        return await self._resume(live, by="nobody")

    async def resume(
        self, run: RunId, *, by: str, attendant: Attendant | None = None, follower: Follower | None = None
    ) -> State:
        """Drive on a run that waited or whose process died; one that still waits or has finished is left as it is.

        Raises:
            AgentStopped: somebody stopped the agent, and the run has not finished.
            JournalCorrupt: the run's record does not hold; nothing is done on the strength of a changed past.
        """
        live = await self._open(run)
        live.attendant, live.follower = attendant or live.attendant, follower or live.follower
        return await self._resume(live, by=by)

    async def _resume(self, live: Live, *, by: str) -> State:
        state = live.state
        if state.status is Status.FINISHED:
            return state
        require_running(self._journal, self.agent.name)
        if state.status is Status.SUSPENDED and not do.resumable(state, now_ms(), self.agent.tools):
            return state
        seen = await self._journal.verify(state.run)
        if seen.broken_seq is not None:
            remedy = f"`lockstep verify {state.run}` says the same; `lockstep cancel {state.run}` ends it."
            raise JournalCorrupt(f"Run {state.run} is not resumed: {seen.problem}.", remedy=remedy)
        if state.status is Status.RUNNING:
            await self._tools.sweep()  # what is left of a call must be dead before anybody asks what it did
        live.resumed = True
        live.record(ev.RunResumed(by=by, after_crash=state.status is Status.RUNNING))
        await live.flush()  # at once, so that a run which brings us down before it gets anywhere is counted and stopped
        return await self._drive(live)

    async def _open(self, run: RunId) -> Live:
        recorded = await read_run(self._journal, run)
        first = recorded[0].event
        assert isinstance(first, ev.RunStarted)
        history = self._begun.pop(run, None)
        if history is None:
            history = await self._history(first.session, first.previous, before=run)
            place = Place(session=first.session, principal=first.principal, at_ms=recorded[0].at_ms)
            await self._spending.read(place)
        begin = start(run, self._opening.add(*history.messages), history.receipts, history.emitted)
        return Live(self._journal, self._watcher, fold(begin, recorded), self._attendant)

    async def _history(self, session: str, previous: Sequence[RunId], *, before: RunId | None) -> History:
        return await read_history(self._journal, session, previous, before=before, receipts=self._keeps_receipts)

    async def _drive(self, live: Live) -> State:
        self._keeping.goes_on(live.state.run)
        live.follower.began(live.state.run)
        try:
            async with self._stops.heeded():
                try:
                    async with live.follower.breaking.heeded(lambda: acts(live.state, self.agent.tools)):
                        while command := self._next(live):
                            await self._perform(live, command)
                        await live.flush()
                except BrokenOff:
                    await self._call_off(live)
        except AgentStopped as stopped:
            await self._tools.end(_kept_for(live.state))  # nothing of it runs on when its suspension is recorded
            for event in halted(live.state, stopped):
                live.record(event)
            await live.flush()
        finally:
            self._spending.rests(live.state)
            await self._rests(live.state)
        return live.state

    def _next(self, live: Live) -> do.Command | None:
        return do.decide(self._informed(live), self.agent.budget, now_ms(), self.agent.tools)

    async def _call_off(self, live: Live) -> None:
        """End a run that its client cancelled; before that, ask after what was let go, where a tool can say.

        Most that cancel have only run out of patience. They ask again, and are owed what became of their call.
        """
        why = "its client cancelled it meanwhile"
        for call in live.state.calls:
            if call.phase is Phase.INTENDED and self.agent.tools[call.name].repeats.probe is not None:
                live.record(ev.EffectDoubted(call=call.id, why=why))
        while isinstance(command := self._next(live), do.Probe):
            await self._perform(live, command)
        for event in cancelled(live.state, live.state.client or "its client", why):
            live.record(event)
        await live.flush()

    async def _rests(self, state: State) -> None:
        """Nobody drives the run now. What serves a client's session goes on serving it."""
        if state.client:
            return
        if state.suspended_for == "input":
            await self._keeping.keep(state.run)
        else:
            await self._tools.end(state.run)

    def _informed(self, live: Live) -> State:
        """The state as a decision needs it: with what the other runs under shared limits have used by now."""
        if self._spending.counts:
            live.state = live.state.changed(others=self._spending.driving(live.state))
        return live.state

    async def _perform(self, live: Live, command: do.Command) -> None:
        match command:
            case do.Infer():
                await self._infer(live, command)
            case do.Judge(call):
                live.record(self._gate.judge(await self._known(live.state, call), call))
            case do.Ask(call):
                await self._ask(live, call)
            case do.Answer(call, given, by, because):
                live.record(answered(call, given=given, by=by, because=because))
            case do.Execute(calls, delay_s):
                await self._wait(live, delay_s)
                await self._execute(live, calls)
            case do.Probe(call, delay_s):
                await self._wait(live, delay_s)
                await self._probe(live, call)
            case do.Doubt(call, why):
                live.record(ev.EffectDoubted(call=call.id, why=why))
            case do.Drop(call, outcome, why):
                live.record(dropped(call, outcome, why))
            case do.Sample() | do.Tell():
                await self._sampler.perform(live, command)
            case do.Suspend(reason, call, message):
                live.record(ev.RunSuspended(reason=reason, call=call.id, message=message))
            case do.Finish():
                live.record(finished(live.state, command))

    async def _infer(self, live: Live, command: do.Infer) -> None:
        prompt = build_prompt(self.agent, self._definitions, live.state.transcript)
        if not live.state.context_built:
            live.record(ev.ContextBuilt(step=command.step, digest=prompt.digest))
        await live.flush()
        await self._wait(live, command.delay_s)
        settings = within(self._settings, live.state, self.agent.budget)
        began = time.perf_counter()
        answer = await self._model.reply(prompt, settings, on_text=live.text)
        latency_ms = round((time.perf_counter() - began) * 1000, 3)
        live.record(replied(command, answer, latency_ms))

    async def _wait(self, live: Live, delay_s: float) -> None:
        if delay_s:
            await live.flush()
            await self._sleep(delay_s)

    async def _known(self, state: State, call: CallState) -> State:
        """The state with what counts against this call: its session's receipts, or those of all of the principal's."""
        tool = self.agent.tools.get(call.name)
        if tool is None or not tool.once_for_principal:
            return state
        return state.changed(receipts=await self._elsewhere.standing(state))

    async def _ask(self, live: Live, call: CallState) -> None:
        """Ask for approval; answered at once where somebody gave it beforehand for calls like this one."""
        live.record(self._gate.ask(live.state, call, now_ms()))
        state, asked = live.state, live.state.call(call.id)
        if self._standing is None or state.approve != "ask":
            return
        for each in await asyncio.to_thread(self._standing.all):
            if covers(each, state, asked) and await self._used(each, state, asked):
                because = each.because or "as said beforehand"
                live.record(
                    answered(asked, given=True, by=each.by, because=because, login=each.login, standing=each.id)
                )
                return

    async def _used(self, standing: Standing, state: State, call: CallState) -> bool:
        assert self._standing is not None
        return await asyncio.to_thread(self._standing.use, standing.id, run=state.run, call=call.id, at_ms=now_ms())

    async def _execute(self, live: Live, calls: tuple[CallState, ...]) -> None:
        work = [(call, *self._released(live, call)) for call in calls]
        for call, item, permit in work:
            if call.effect is not Effect.READ and not _asks_after(call):
                live.record(ev.EffectIntended(call=call.id, permit=permit.id, digest=item.digest, key=item.key))
        await live.flush()
        if len(work) == 1:
            call, item, permit = work[0]
            if other := await self._elsewhere.before(live.state, call, item, resumed=live.resumed):
                live.record(joined(call, other))
            else:
                await self._execute_alone(live, call, item, permit)
            return
        running = {
            asyncio.create_task(self._tools.call(item, permit, None, ask_live(live, item, self._sampler))): (call, item)
            for call, item, permit in work
        }
        try:
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task in done]:
                    self._settle(live, *running.pop(task), task.result())
                await live.flush()  # as they come: a crash loses none that came
        finally:
            await _cancel(running)

    async def _execute_alone(self, live: Live, call: CallState, item: PermittedCall, permit: Permit) -> None:
        """Run one call. Past its deadline it is in doubt, durably, while its result is still waited for."""
        ask = ask_live(live, item, self._sampler)
        if not item.tool.repeats.late_s:
            self._settle(live, call, item, await self._tools.call(item, permit, None, ask))
            return
        overdue = asyncio.Event()
        running = asyncio.create_task(self._tools.call(item, permit, overdue.set, ask))
        deadline = asyncio.create_task(overdue.wait())
        try:
            await asyncio.wait({running, deadline}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                why = f"{item.tool.name} did not answer within {item.tool.timeout_s:g} s; it may still"
                live.record(ev.EffectDoubted(call=item.id, why=why))
                await live.flush()
            self._settle(live, call, item, await running)
        finally:
            await _cancel((running, deadline))

    def _released(self, live: Live, call: CallState) -> tuple[PermittedCall, Permit]:
        item, permit = self._permitted(live.state, call.id, self._gate.release(live.state, call, now_ms()))
        offers = live.attendant.offers if live.attendant else item.offers
        tasks = None
        if item.tool.task_s or call.task:  # what is a task already is never called again, whatever its entry says now
            tasks = tasking(live, call, item.tool, now_ms(), lambda: self._unwanted(live))
        return replace(item, offers=offers, listener=live.follower.listener, tasks=tasks), permit

    def _unwanted(self, live: Live) -> bool:
        """Whether somebody said that what is under way is to end; a process that merely ends says no such thing."""
        try:
            require_running(self._journal, self.agent.name)
        except (AgentStopped, StoreError):
            return True
        return live.follower.breaking.broken

    def _permitted(self, state: State, call_id: str, release: Release) -> tuple[PermittedCall, Permit]:
        item = PermittedCall(
            run=state.run,
            session=state.session,
            id=call_id,
            tool=release.tool,
            arguments=release.arguments,
            digest=release.digest,
            key=release.key,
            round=release.round,
            principal=state.principal,
            kept_for=_kept_for(state),
        )
        return item, release.permit

    def _settle(self, live: Live, call: CallState, item: PermittedCall, outcome: Outcome) -> None:
        """Record an outcome: made again where that does no harm and may help; in doubt where it must not be; and where
        its server asks for input, that."""
        now = live.state.call(item.id)
        if outcome.asked is not None:
            expires_s, samples = self.agent.approval_expires_s, item.tool.samples
            for event in round_asked(now, outcome, expires_s, samples=samples):
                live.record(event)
            return
        if now.kept_task:
            again = asked_again(now, outcome)
        else:
            may_help = outcome.transient or (outcome.unknown and item.tool.effect is Effect.KEYED)
            again = may_help and call.attempts < item.tool.retries
            again = again and not do.over_wall(live.state, self.agent.budget, now_ms())
        if again:
            live.record(retried(now, outcome))
        elif _in_doubt(call, outcome) and item.tool.effect in (Effect.ONCE, Effect.KEYED):
            live.record(doubted(item.id, outcome))
        else:
            late = now.phase is Phase.DOUBTED
            freed_by = self._gate.freed_by(call, outcome.text) if outcome.kind == "ok" else ()
            reply = outcome.reply if live.state.client else ""
            live.record(settled(item, outcome, late=late, freed_by=freed_by, reply=reply))

    async def _probe(self, live: Live, call: CallState) -> None:
        """Ask whether a call in doubt happened. What cannot be asked, or is not answered, decides nothing."""
        state = live.state
        try:
            release = self._gate.release_probe(state, call, now_ms())
        except PermitError as problem:
            live.record(ev.EffectProbed(call=call.id, tool="", outcome="not_permitted", text=problem.message))
            return
        item, permit = self._permitted(state, f"{call.id}?{call.probes + 1}", release)
        await live.flush()
        outcome = await self._tools.call(item, permit)
        live.record(answer_of_probe(self._gate, call, item.tool.name, outcome, now_ms()))


def _asks_after(call: CallState) -> bool:
    """Whether what is let go only asks what became of a task: nothing new is intended."""
    return call.kept_task and call.phase in (Phase.INTENDED, Phase.DOUBTED)


def _in_doubt(call: CallState, outcome: Outcome) -> bool:
    """Whether nobody knows if the call happened: a failure says so only of its own attempt."""
    return outcome.unknown or (call.unsure and outcome.kind not in ("ok", "result_unusable"))


def _kept_for(state: State) -> str:
    return state.session if state.client else state.run


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End these tasks and wait until they have: what they run is destroyed by then."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
