"""Who follows a call while it runs: what they hear of it, and how they break it off.

Breaking off is as gentle as the gate's rules need it to be: a call that only reads ends at once, and so does one that
was not let go. One with an effect that was let go ends only when its client says so in words, and is in doubt then; a
client that is merely gone leaves it to run to its end, and so it leaves a server that would lose what it knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lockstep.agent.locked import LockedTool
from lockstep.kernel.state import Phase, State
from lockstep.tools.port import Listener
from lockstep.values import RunId


class BrokenOff(Exception):
    """Whoever asked for the run does not want it any more."""


class Breaking:
    """Breaks one run off. Of a run that is not driven yet, nothing begins."""

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None
        self._acts: Callable[[], bool] = bool
        self.broken = False

    def off(self, *, effects: bool) -> None:
        """Break it off, where need be also in the middle of an effect."""
        if not effects and self._acts():
            return
        self.broken = True
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(0)

    @asynccontextmanager
    async def heeded(self, acts: Callable[[], bool]) -> AsyncIterator[None]:
        """Cancel the body when it is broken off. `acts` says whether an effect is under way.

        Raises:
            BrokenOff: it was, before or meanwhile.
        """
        scope = asyncio.timeout(0 if self.broken else None)
        self._acts = acts
        try:
            async with scope:
                self._scope = scope
                try:
                    yield
                finally:
                    self._scope = None
        except TimeoutError:
            if not scope.expired():
                raise
            raise BrokenOff from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Follower:
    """A client that asked for a call: what it hears, and its way to break the call off. `began` is told its run."""

    listener: Listener | None = None
    breaking: Breaking = field(default_factory=Breaking)
    began: Callable[[RunId], None] = lambda run: None
    insists: Callable[[], bool] = bool
    """Once the client no longer waits: whether it said that the call is to be cancelled, or is merely gone."""


def acts(state: State, tools: Mapping[str, LockedTool]) -> bool:
    """Whether a call is under way that must not be broken off for nothing: one with an effect that was let go, or one
    of a server that keeps what it knows between calls and would lose it."""
    return any(
        call.phase in (Phase.INTENDED, Phase.DOUBTED) or (call.open and call.verdict and tools[call.name].run_lifetime)
        for call in state.calls
    )
