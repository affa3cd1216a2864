"""What clients of other frameworks ask of an agent's tools: each call a run of the client's session.

The client stands where the model stands: it asks, and never executes. `Driver.begin` judges, runs and records its call;
`Sessions` keeps what each session must remember between calls. Calls with an effect go one after another within a
session, so that the same call asked for twice at once is made once; reads go side by side. A call that was let go runs
to its end even when its client is gone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

from lockstep.agent.locked import LockedTool
from lockstep.errors import JournalCorrupt, LockstepError, RunError, StoreError
from lockstep.gate.arguments import size_problem
from lockstep.journal.events import ENDED, RunStarted
from lockstep.journal.port import Journal
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.model.port import AskedCall
from lockstep.runtime.answers import cancel
from lockstep.runtime.driver import Driver
from lockstep.runtime.following import Follower
from lockstep.runtime.live import Attendant
from lockstep.runtime.reading import CLIENT_WORDS, Unreadable, read_row, read_state
from lockstep.runtime.sessions import Caller, Session, Sessions, key_for, key_of
from lockstep.values import Effect, Json, RunId, new_token

MEND_S = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Before it is tried again to settle a run that broke off; the last for as long as it takes."""


class Desk:
    """Takes the calls of all clients of one agent. `template` is how its runs begin, without whom they are for."""

    def __init__(self, driver: Driver, journal: Journal, template: RunStarted) -> None:
        self.agent = driver.agent
        self._driver = driver
        self._journal = journal
        self._template = template
        self._sessions = Sessions(journal, driver.agent)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._recovered: dict[RunId, Follower] = {}
        """Of runs that an earlier process left to go on as tasks: how they are broken off."""
        freeing = {rule.tool for tool in self.agent.tools.values() for rule in tool.repeats.released_by}
        self._alone = {name for name, tool in self.agent.tools.items() if name in freeing or not _goes_beside(tool)}

    async def call(
        self,
        caller: Caller,
        tool: str,
        arguments: Json,
        attendant: Attendant | None = None,
        follower: Follower | None = None,
    ) -> State:
        """One call, start to end: its run, finished, or suspended where a person must speak first. `attendant` is the
        client itself, where it can be asked what a server wants to know; `follower` is told of the call meanwhile, and
        breaks it off when the client no longer waits for it.

        Raises:
            AgentStopped: somebody stopped the agent.
            RunError: the session is another agent's; the arguments are too long for any tool, and for a record; or the
                record failed once the call had been let go, so that nobody knows yet what became of it. Who asks the
                same again is told.
            StoreError: nothing could be recorded, so nothing was done.
        """
        text = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
        if problem := size_problem(text):
            raise RunError(f"Not run: the arguments are {problem}.", remedy="Send less.")
        asked = AskedCall(provider_id=new_token("call_"), name=tool, arguments=text)
        key = key_for("call", tool, arguments)
        return await self._followed(follower, lambda by: self._take(caller, key, CLIENT_WORDS, asked, attendant, by))

    async def ask(
        self, caller: Caller, message: str, attendant: Attendant | None = None, follower: Follower | None = None
    ) -> State:
        """A whole run of the agent in the caller's session: its answer, or what it waits for. Raises as `call`."""
        key = key_for("ask", message, None)
        return await self._followed(follower, lambda by: self._take(caller, key, message, None, attendant, by))

    async def go_on(
        self,
        run: RunId,
        *,
        by: str,
        fetched: bool,
        attendant: Attendant | None = None,
        follower: Follower | None = None,
    ) -> State:
        """Drive on a run that waited, now that somebody has spoken. Without `fetched` its result is kept for whoever
        asks the same again."""
        return await self._followed(follower, lambda one: self._go_on(run, by, fetched, attendant, one))

    async def cancel(self, run: RunId, *, by: str) -> State:
        """End a run of this agent that waits. What was let go stays in doubt; who asks the same again begins anew.

        Raises:
            RunError: it has finished.
        """
        state = await read_state(self._journal, run)
        session = await self._sessions.of_run(state)
        with session.in_use():
            async with session.effects:
                state = await cancel(self._journal, run, by=by)
                self._sessions.keep(session, session.key_of(run), state, receipts=True)
                return state

    def break_off(self, run: RunId) -> None:
        """Break off a run that goes on although the process it began in is gone, also in the middle of an effect."""
        if (follower := self._recovered.get(run)) is not None:
            follower.breaking.off(effects=True)

    def fetched(self, state: State) -> None:
        """The client has what this run came to: that is held no longer for whoever asks the same again."""
        session = self._sessions.held(state.principal, state.session)
        if session is not None and state.status is Status.FINISHED:
            session.pending = {key: run for key, run in session.pending.items() if run != state.run}

    async def first_of(self, call: CallState) -> CallState | None:
        """The call whose result answers this one, where it was made before; None for any other."""
        run, _, which = call.duplicate_of.partition("/")
        if not run:
            return None
        try:
            state = await read_state(self._journal, RunId(run))
        except (JournalCorrupt, RunError):
            return None
        return next((each for each in state.all_calls if each.id == which), None)

    def offered(self, principal: str) -> frozenset[str]:
        """The tools that policy may permit this principal."""
        return self._driver.offered(principal)

    async def recover(self) -> None:
        """Settle what an earlier process left under way: an effect that was let go is in doubt, the rest ends.

        Tasks that went on meanwhile are asked after beside what is served, and hold up only their own session. While
        the agent is stopped nothing that was let go is asked after: its session waits for that until the agent goes on.
        """
        stopped = self._journal.stop_of(self.agent.name) is not None
        for row in await self._journal.runs():
            if row.last in ENDED or row.agent != self.agent.name:
                continue
            state = await read_row(self._journal, row)
            if isinstance(state, Unreadable) or not state.client or state.status is not Status.RUNNING:
                continue
            let_go = [call for call in state.calls if call.phase in _LET_GO]
            if stopped and let_go:
                self._broke(await self._sessions.of_run(state), [row.run])
            elif any(call.kept_task for call in let_go):
                self._recovered[row.run] = follower = Follower()
                self._beside(self._go_on(row.run, "the gateway", False, None, follower))
            else:
                await self._settled(state)

    async def close(self, grace_s: float) -> None:
        """Wait for calls that are under way, for so long; what is left then is recovered by the next process."""
        mending = [session.mending for session in self._sessions.all_held() if session.mending is not None]
        for task in mending:
            task.cancel()
        await asyncio.gather(*mending, return_exceptions=True)
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=grace_s)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _followed(
        self, follower: Follower | None, work: Callable[[Follower], Coroutine[Any, Any, State]]
    ) -> State:
        follower = follower or Follower()
        try:
            return await self._to_the_end(work(follower))
        except asyncio.CancelledError:
            follower.breaking.off(effects=follower.insists())
            raise

    async def _to_the_end(self, work: Coroutine[Any, Any, State]) -> State:
        """Await work that goes on when whoever awaits it is cancelled."""
        return await asyncio.shield(self._beside(work))

    def _beside(self, work: Coroutine[Any, Any, State]) -> asyncio.Task[State]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen here, so that a client that is gone costs no complaint

    async def _take(
        self,
        caller: Caller,
        key: str,
        words: str,
        asked: AskedCall | None,
        attendant: Attendant | None,
        follower: Follower,
    ) -> State:
        session = await self._sessions.of(caller)
        with session.in_use():
            beside = asked is not None and asked.name in self.agent.tools and asked.name not in self._alone
            beside = beside and key not in session.pending  # that is one run, which only one may drive
            guard: AbstractAsyncContextManager[Any] = nullcontext() if beside else session.effects
            async with guard:
                if follower.breaking.broken:
                    raise asyncio.CancelledError  # nobody waits for it, and nothing of it has begun
                if not beside:
                    await self._mend(session)
                async with self._driving(session, follower) as heard:
                    if (waits := session.pending.get(key)) is not None:
                        state = await self._driver.resume(
                            waits, by=caller.principal, attendant=attendant, follower=heard
                        )
                    else:
                        started = self._started(caller, session, words, asked)
                        state = await self._driver.begin(started, session.history(), asked, attendant, heard)
                self._sessions.keep(session, key, state, receipts=not beside)
                return state

    async def _go_on(
        self, run: RunId, by: str, fetched: bool, attendant: Attendant | None, follower: Follower
    ) -> State:
        state = await read_state(self._journal, run)
        session = await self._sessions.of_run(state)
        with session.in_use():
            async with session.effects:
                async with self._driving(session, follower) as heard:
                    state = await self._driver.resume(run, by=by, attendant=attendant, follower=heard)
                self._sessions.keep(session, session.key_of(run), state, receipts=True, held=not fetched)
                return state

    @asynccontextmanager
    async def _driving(self, session: Session, follower: Follower) -> AsyncIterator[Follower]:
        """Drive a run of this session. One that an error ends is settled before the session goes on: what it let go is
        in the journal, and would be let go once more by who looked only at what is remembered here.

        Raises:
            RunError: it had let something go.
        """
        driven: list[RunId] = []

        def began(run: RunId) -> None:
            driven.append(run)
            follower.began(run)

        try:
            yield replace(follower, began=began)
        except Exception as error:
            if driven:
                self._broke(session, driven)
                if isinstance(error, LockstepError) and await self._may_have_acted(driven[-1]):
                    raise RunError(_UNRECORDED.format(code=error.code)) from error
            raise

    async def _may_have_acted(self, run: RunId) -> bool:
        try:
            return (await read_state(self._journal, run)).effects > 0
        except RunError:
            return False  # not even its beginning is recorded
        except LockstepError:
            return True

    def _broke(self, session: Session, runs: Iterable[RunId]) -> None:
        """These runs of the session are to be settled before it goes on."""
        session.broken.update(runs)
        if session.mending is None or session.mending.done():
            session.mending = asyncio.create_task(self._mend_later(session))

    async def _mend_later(self, session: Session) -> None:
        with session.in_use():
            for pause_s in chain(MEND_S, repeat(MEND_S[-1])):
                await asyncio.sleep(pause_s)
                with suppress(LockstepError):
                    async with session.effects:
                        await self._mend(session)
                    return

    async def _mend(self, session: Session) -> None:
        """Settle the runs of this session that broke off, as the next process would, and remember what they left.

        Raises:
            RunError: the store fails still, or what one did cannot be read: the session does not go on.
        """
        while session.broken:
            run = min(session.broken)
            try:
                await self._mend_run(session, run)
            except StoreError as error:
                raise RunError(_UNSETTLED.format(code=error.code)) from error
            session.broken.discard(run)

    async def _mend_run(self, session: Session, run: RunId) -> None:
        try:
            state = await read_state(self._journal, run)
        except RunError:  # nothing of it is recorded, so nothing was done
            return
        if state.client and state.status is Status.RUNNING:
            state = await self._settled(state)
        acted = state.client and state.effects  # and so whoever asks the same again is owed what became of it
        self._sessions.keep(session, key_of(state) if acted else "", state, receipts=True, held=True)

    async def _settled(self, state: State) -> State:
        """A client's run that nobody drives any more: what it let go is asked after or in doubt; else it ends."""
        if any(call.phase in _LET_GO for call in state.calls):
            self._recovered[state.run] = follower = Follower()
            return await self._driver.resume(state.run, by="the gateway", follower=follower)
        return await cancel(self._journal, state.run, by="the gateway: it ended before the call was let go")

    def _started(self, caller: Caller, session: Session, words: str, asked: AskedCall | None) -> RunStarted:
        return replace(
            self._template,
            principal=caller.principal,
            session=session.name,
            input=words,
            previous=tuple(run for run, _ in session.window),
            client=caller.client if asked is not None else "",
        )


_UNRECORDED = (
    "Nobody knows yet what became of this: its record could not be written ({code}). Ask for the same again to learn"
    " it; what was let go is not made twice."
)
_UNSETTLED = (
    "Not done now: what became of an earlier call of this session is not known yet, because the record cannot be read"
    " or written ({code}). Ask again later."
)
_LET_GO = (Phase.INTENDED, Phase.NEEDS_INPUT, Phase.ANSWERED, Phase.DOUBTED)


def _goes_beside(tool: LockedTool) -> bool:
    return tool.effect is Effect.READ and not tool.once_only
