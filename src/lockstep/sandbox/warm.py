"""What a warm sandbox is: how it is made, what a call gets of it, how much room there is for it."""

from __future__ import annotations

import os
import time
from asyncio import TimerHandle
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

from lockstep.sandbox.contract import Backend, Process, SandboxSpec
from lockstep.values import Digest, digest_json

T = TypeVar("T")

_MIB = 2**20
_CALL_BYTES = 640 * _MIB
"""What a running sandbox is taken to need: the default limit and gVisor's own."""
_IDLE_BYTES = 48 * _MIB
"""What a waiting one is taken to need; measured 23 MB."""


class NotReady(Exception):
    """What `Recipe.warm_up` raises of a sandbox that started and is of no use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How much of the machine sandboxes may take: how many `running`, `idle` and `starting` ahead of need at once."""

    running: int
    idle: int
    starting: int
    wait_s: float = 1.0
    """How long a call waits for a sandbox that is being started already."""
    queue_s: float = 10.0
    """How long a call waits for room, before it is refused."""
    idle_s: float = 60.0
    """How long a sandbox waits for a call."""

    @classmethod
    def of_machine(cls) -> Room:
        """Of what is free now: three quarters for calls, a tenth for waiting, half the processors for starting,
        at least two at once."""
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        cpus = len(os.sched_getaffinity(0))
        return cls(
            running=min(max(2, free * 3 // 4 // _CALL_BYTES), 16 * cpus),
            idle=min(free // 10 // _IDLE_BYTES, 4 * cpus),
            starting=max(2, cpus // 2),  # one alone cannot keep up with three calls a second: a start takes 0.3 s
        )


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[T]):
    """How to make a sandbox and make it ready: `warm_up` talks to the started process and may raise `NotReady`."""

    backend: Backend
    spec: SandboxSpec
    warm_up: Callable[[Process], Awaitable[T]]
    greeting: tuple[str, ...] = ()
    """What `warm_up` says of us: a sandbox that was told otherwise cannot stand in."""

    @cached_property
    def key(self) -> Digest:
        """The same for sandboxes that can stand in for each other; code is mounted from places named by digest."""
        spec = self.spec
        # Of one that outlives a call each call says how long it may take, so that entries for what a server reads and
        # for what it changes have one server between them.
        limits = spec.limits if spec.single_use else replace(spec.limits, wall_s=0)
        return digest_json(
            {
                "tier": self.backend.tier.value,
                "argv": list(spec.argv),
                "mounts": {target: str(source) for target, source in spec.mounts.items()},
                "env": dict(spec.env),
                "egress": [repr(rule) for rule in spec.egress],
                "secrets": [repr(secret) for secret in spec.secrets],
                "limits": repr(limits),
                "single_use": spec.single_use,
                "greeting": list(self.greeting),
            }
        )


@dataclass(kw_only=True)
class Lease(Generic[T]):
    """A sandbox for one call. Times in milliseconds: waiting for a sandbox, and starting one of its own.

    Whoever had the call sets `spoiled` when the sandbox is fit for no other.
    """

    process: Process
    ready: T
    queue_ms: float
    start_ms: float
    warm: bool
    spoiled: bool = False


@dataclass(kw_only=True)
class Warm(Generic[T]):
    process: Process
    ready: T
    start_ms: float
    expiry: TimerHandle | None = None


async def make(recipe: Recipe[T]) -> Warm[T]:
    """Start a sandbox and make it ready.

    Raises:
        SandboxUnavailable, ConfigError, NotReady: nothing of it is left.
    """
    began = time.monotonic()
    process = await recipe.backend.start(recipe.spec)
    try:
        ready = await recipe.warm_up(process)
    except BaseException:
        await process.close()
        raise
    process.rest()
    return Warm(process=process, ready=ready, start_ms=ms_since(began))


def ms_since(began: float) -> float:
    """Milliseconds since a reading of the monotonic clock."""
    return (time.monotonic() - began) * 1000
