"""Warm sandboxes: started, made ready and waiting, each for one call; a call takes one and it is destroyed afterwards.

What waits has no permit and reaches nothing (`Process.admit`). A shelf holds the sandboxes of one recipe; how many are
kept there follows demand: more when a call found none, fewer when one waited in vain, and never more than the machine
has room for. Only a sandbox whose recipe says so (`single_use=False`) sees a second call, of the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lockstep.errors import LockstepError, SandboxBusy
from lockstep.sandbox.contract import Process
from lockstep.sandbox.warm import Lease, NotReady, Recipe, Room, Warm, make, ms_since
from lockstep.values import Digest

T = TypeVar("T")

_REFILL_S = 0.1
"""A call that is over sooner is not slowed down by the start of another sandbox beside it."""


@dataclass(kw_only=True)
class _Shelf(Generic[T]):
    recipe: Recipe[T]
    ready: deque[Warm[T]] = field(default_factory=deque)
    starting: int = 0
    waiting: deque[asyncio.Future[Warm[T] | None]] = field(default_factory=deque)
    target: int = 0
    used: float = 0.0
    """When a call last asked here; 0 before the first."""


@dataclass(kw_only=True)
class _Kept(Generic[T]):
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    warm: Warm[T] | None = None
    gives_way: bool = False
    used: float = 0.0


class Pool(Generic[T]):
    """Sandboxes of one process, within `room`."""

    def __init__(self, room: Room | None = None) -> None:
        self._room = room or Room.of_machine()
        self._shelves: dict[Digest, _Shelf[T]] = {}
        self._kept: dict[tuple[str, Digest], _Kept[T]] = {}
        self._running = asyncio.Semaphore(self._room.running)
        self._starting = asyncio.Semaphore(self._room.starting)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.Task[None]] = set()
        self._closed = False

    @asynccontextmanager
    async def lease(self, recipe: Recipe[T]) -> AsyncIterator[Lease[T]]:
        """A sandbox for one call, destroyed afterwards without anybody waiting for it.

        Raises:
            SandboxBusy: there was no room within `queue_s`.
            SandboxUnavailable, ConfigError, NotReady: none could be started; nothing of it is left.
        """
        began = time.monotonic()
        await self._room_to_run()
        try:
            shelf = self._shelves.setdefault(recipe.key, _Shelf(recipe=recipe))
            lease = await self._take(shelf, began) or await self._start(shelf, began)
        except BaseException:
            self._running.release()
            raise
        refill = asyncio.get_running_loop().call_later(_REFILL_S, self._refill, shelf)
        try:
            yield lease
        finally:
            try:
                await lease.process.seal()
            finally:
                self._end(lease.process, ran=True)
                refill.cancel()
                self._refill(shelf)

    @asynccontextmanager
    async def lease_of_run(self, run: str, recipe: Recipe[T], *, gives_way: bool = False) -> AsyncIterator[Lease[T]]:
        """The sandbox of this run, one call at a time; its first call takes one that waits, where there is a shelf of
        the recipe. Started anew when it has ended. Raises what `lease` does.

        `gives_way`: between calls it is ended where another needs its room, the one first that was used longest ago.
        """
        began = time.monotonic()
        kept = self._kept.setdefault((run, recipe.key), _Kept(gives_way=gives_way))
        async with kept.lock:
            kept.used = began
            queue_ms, start_ms = ms_since(began), 0.0
            if kept.warm is not None and not kept.warm.process.alive:
                self._end(kept.warm.process, ran=True)
                kept.warm = None
            warm = kept.warm is not None
            if kept.warm is None:
                await self._room_to_run()
                queue_ms = ms_since(began)
                try:
                    kept.warm = await self._waiting_for_a_run(recipe, began)
                    warm = kept.warm is not None
                    kept.warm = kept.warm or await make(recipe)
                except BaseException:
                    self._running.release()
                    raise
                start_ms = kept.warm.start_ms
            one = kept.warm
            lease = Lease(
                process=one.process, ready=one.ready, queue_ms=queue_ms, start_ms=start_ms, warm=warm, spoiled=True
            )
            try:
                yield lease
            finally:  # of a call that was not carried to its end nobody knows what is still under way inside
                try:
                    await one.process.seal()
                finally:
                    if lease.spoiled:
                        kept.warm = None
                        self._end(one.process, ran=True)

    async def _waiting_for_a_run(self, recipe: Recipe[T], began: float) -> Warm[T] | None:
        shelf = self._shelves.get(recipe.key)
        if shelf is None or (lease := await self._take(shelf, began)) is None:
            return None
        asyncio.get_running_loop().call_later(_REFILL_S, self._refill, shelf)
        return Warm(process=lease.process, ready=lease.ready, start_ms=0.0)

    def prepare(self, recipe: Recipe[T]) -> None:
        """Have one ready soon."""
        shelf = self._shelves.setdefault(recipe.key, _Shelf(recipe=recipe))
        shelf.target = max(1, shelf.target)
        self._refill(shelf)

    async def end(self, run: str) -> None:
        """Destroy what was kept for this run."""
        for key in [key for key in self._kept if key[0] == run]:
            kept = self._kept.pop(key)
            if kept.warm is not None:
                self._end(kept.warm.process, ran=True)

    async def close(self) -> None:
        """Destroy everything and wait until it is gone."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for shelf in self._shelves.values():
            while shelf.ready:
                self._let_go(shelf, shelf.ready[0])
        for run, _ in list(self._kept):
            await self.end(run)
        while self._ends:
            await asyncio.gather(*self._ends, return_exceptions=True)

    async def _room_to_run(self) -> None:
        if self._running.locked():
            self._make_room()
        try:
            async with asyncio.timeout(self._room.queue_s):
                await self._running.acquire()
        except TimeoutError:
            raise SandboxBusy(
                f"All {self._room.running} sandboxes that this machine has room for are in use, for more than"
                f" {self._room.queue_s:g} s.",
                remedy="Run fewer at once, or give the machine more memory.",
            ) from None

    def _make_room(self) -> None:
        """End what was kept for a session that has not called for longest, if there is one that gives way."""
        idle = [
            (kept.used, key)
            for key, kept in self._kept.items()
            if kept.gives_way and kept.warm is not None and not kept.lock.locked()
        ]
        if idle and (warm := self._kept.pop(min(idle)[1]).warm) is not None:
            self._end(warm.process, ran=True)

    async def _take(self, shelf: _Shelf[T], began: float) -> Lease[T] | None:
        """One that waits or is about to; None when there is none to be had soon."""
        seen_before, shelf.used = shelf.used > 0, time.monotonic()
        warm = self._waiting_one(shelf)
        if warm is None and seen_before:
            shelf.target = min(shelf.target + 1, self._room.idle)
        if warm is None and shelf.starting > len(shelf.waiting):
            warm = await self._arrival(shelf)
        if warm is None:
            return None
        return Lease(process=warm.process, ready=warm.ready, queue_ms=ms_since(began), start_ms=0.0, warm=True)

    def _waiting_one(self, shelf: _Shelf[T]) -> Warm[T] | None:
        while shelf.ready:
            warm = shelf.ready.popleft()
            if warm.expiry is not None:
                warm.expiry.cancel()
            if warm.process.alive:
                return warm
            self._end(warm.process)
        return None

    async def _arrival(self, shelf: _Shelf[T]) -> Warm[T] | None:
        arrival: asyncio.Future[Warm[T] | None] = asyncio.get_running_loop().create_future()
        shelf.waiting.append(arrival)
        try:
            await asyncio.wait([arrival], timeout=self._room.wait_s)
        except asyncio.CancelledError:
            if arrival.done() and (warm := arrival.result()) is not None:
                self._put(shelf, warm)
            raise
        finally:
            with contextlib.suppress(ValueError):
                shelf.waiting.remove(arrival)
        return arrival.result() if arrival.done() else None

    async def _start(self, shelf: _Shelf[T], began: float) -> Lease[T]:
        queue_ms = ms_since(began)
        warm = await make(shelf.recipe)
        return Lease(process=warm.process, ready=warm.ready, queue_ms=queue_ms, start_ms=warm.start_ms, warm=False)

    def _refill(self, shelf: _Shelf[T]) -> None:
        while not self._closed and shelf.starting + len(shelf.ready) < shelf.target and self._room_to_wait(shelf):
            shelf.starting += 1
            self._keep(self._tasks, asyncio.create_task(self._start_ahead(shelf)))

    def _room_to_wait(self, shelf: _Shelf[T]) -> bool:
        """Whether one more may wait; one of a shelf that was asked longer ago makes way for it."""
        others = [other for other in self._shelves.values() if other.used < shelf.used and other.ready]
        taken = sum(len(each.ready) + each.starting for each in self._shelves.values())
        if taken >= self._room.idle and others:
            oldest = min(others, key=lambda other: other.used)
            self._let_go(oldest, oldest.ready[0])
            taken -= 1
        return taken < self._room.idle

    async def _start_ahead(self, shelf: _Shelf[T]) -> None:
        warm: Warm[T] | None = None
        try:
            async with self._starting:
                warm = await make(shelf.recipe)
        except (LockstepError, NotReady):
            shelf.target = 0  # the next call starts its own, and learns why
        finally:
            shelf.starting -= 1
        if shelf.waiting:
            shelf.waiting.popleft().set_result(warm)
        elif warm is not None:
            self._put(shelf, warm)

    def _put(self, shelf: _Shelf[T], warm: Warm[T]) -> None:
        shelf.ready.append(warm)
        loop = asyncio.get_running_loop()
        warm.expiry = loop.call_later(self._room.idle_s, self._let_go, shelf, warm)

    def _let_go(self, shelf: _Shelf[T], warm: Warm[T]) -> None:
        """Destroy one that waits: nobody came for it, or another is needed more."""
        shelf.ready.remove(warm)
        shelf.target = max(0, shelf.target - 1)
        if warm.expiry is not None:
            warm.expiry.cancel()
        self._end(warm.process)

    def _end(self, process: Process, *, ran: bool = False) -> None:
        self._keep(self._ends, asyncio.create_task(self._destroy(process, ran)))

    async def _destroy(self, process: Process, ran: bool) -> None:
        try:
            await process.close()
        finally:
            if ran:
                self._running.release()  # only now: what is being destroyed still takes its room

    def _keep(self, among: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        among.add(task)
        task.add_done_callback(among.discard)
