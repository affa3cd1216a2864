"""What the kill switch does to runs that are being driven: whatever is under way is broken off, and the run waits.

The gate refuses a stopped agent every permit by itself; this is for what was let go before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lockstep.errors import AgentStopped, StoreError
from lockstep.journal.events import EffectDoubted, Event, RunSuspended
from lockstep.journal.port import Stops
from lockstep.journal.stops import require_running
from lockstep.kernel.state import Phase, State
from lockstep.values import Effect

LOOK_S = 0.25
"""How often a stop is looked for while runs are driven: one look of some microseconds for all runs of a driver."""
AGENT_STOPPED = AgentStopped.code


class StopWatch:
    """Looks for a stop of one agent while its runs are driven, and breaks them off."""

    def __init__(self, stops: Stops, agent: str) -> None:
        self._stops = stops
        self._agent = agent
        self._driven: set[asyncio.Timeout] = set()
        self._next: asyncio.TimerHandle | None = None
        self._found: AgentStopped | StoreError | None = None

    @asynccontextmanager
    async def heeded(self) -> AsyncIterator[None]:
        """Cancel the body once the agent is stopped, and raise that in its place.

        Raises:
            AgentStopped: it was stopped, before or meanwhile.
            StoreError: whether it was cannot be read any more.
        """
        require_running(self._stops, self._agent)
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._driven.add(scope)
                self._look_later()
                try:
                    yield
                finally:
                    self._done(scope)
        except TimeoutError:
            if self._found is None or not scope.expired():
                raise
            raise type(self._found)(self._found.message, remedy=self._found.remedy) from None

    def _done(self, scope: asyncio.Timeout) -> None:
        self._driven.discard(scope)
        if self._next is not None and not self._driven:
            self._next.cancel()
            self._next = None

    def _look_later(self) -> None:
        if self._next is None:
            self._next = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._next = None
        try:
            require_running(self._stops, self._agent)
        except (AgentStopped, StoreError) as found:
            self._found = found
            for scope in self._driven:
                if not scope.expired():
                    scope.reschedule(0)
        else:
            self._look_later()


def halted(state: State, stopped: AgentStopped) -> list[Event]:
    """What is recorded of a run that was broken off: a `once` call that had been let go is in doubt, and it waits.

    One that was in doubt already may have been waited for until now, and a probe counts from when it ended.
    """
    in_doubt = [
        call
        for call in state.calls
        if call.phase is Phase.DOUBTED or (call.phase is Phase.INTENDED and call.effect is Effect.ONCE)
    ]
    why = "the agent was stopped while the call was under way"
    then = f"then `lockstep resume {state.run}`."
    if in_doubt:
        names = ", ".join(call.name for call in in_doubt)
        then = f"{names} is in doubt: find out whether it happened, then `lockstep resume {state.run} --happened`"
        then += f" or `lockstep resume {state.run} --did-not-happen`."
    message = f"{stopped.message} {stopped.remedy.rstrip('.')}; {then}"
    call = in_doubt[0].id if in_doubt else ""
    return [
        *(EffectDoubted(call=each.id, why=each.why_doubted or why) for each in in_doubt),
        RunSuspended(reason=AGENT_STOPPED, call=call, message=message),
    ]
