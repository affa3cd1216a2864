"""Sandboxes of runs that wait for an answer to their server: kept a while, because it may know its own state only as
long as it lives; few, because each takes room that calls need.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from lockstep.values import RunId

KEPT_S = 600.0
MAX_KEPT = 4


class Keeping:
    """The runs whose sandboxes are kept; `end` destroys those of one."""

    def __init__(self, end: Callable[[str], Awaitable[None]]) -> None:
        self._end = end
        self._kept: OrderedDict[RunId, asyncio.TimerHandle] = OrderedDict()
        self._ending: set[asyncio.Task[None]] = set()

    async def keep(self, run: RunId) -> None:
        """Keep what this run has for a while; of too many, the one that has waited longest goes."""
        self.goes_on(run)
        self._kept[run] = asyncio.get_running_loop().call_later(KEPT_S, self._over, run)
        while len(self._kept) > MAX_KEPT:
            oldest, timer = self._kept.popitem(last=False)
            timer.cancel()
            await self._end(oldest)

    def goes_on(self, run: RunId) -> None:
        """It is driven again: whoever drives it ends what it has."""
        if (timer := self._kept.pop(run, None)) is not None:
            timer.cancel()

    def _over(self, run: RunId) -> None:
        self._kept.pop(run, None)
        task = asyncio.ensure_future(self._ended(run))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _ended(self, run: RunId) -> None:
        await self._end(run)
