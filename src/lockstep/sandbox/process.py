"""A sandboxed process as the contract has it, over whatever a backend started: permit, clocks, measurements, egress.

Backends give a `Body`: what they started, how it is measured, how it is ended. All else is the same for each of them.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping
from typing import Protocol

from lockstep.gate.permit import Permit
from lockstep.sandbox.contract import EgressRecord, SandboxSpec, Use
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.framed import Child, FramedChild
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Digest, now_ms

CLOSE_S = 5.0
_METER_S = 0.1
_KILLED, _OUT_OF_TIME = 128 + signal.SIGKILL, 128 + signal.SIGXCPU


class Body(Protocol):
    """What a backend started for one sandbox. Sizes in bytes, CPU in seconds; None where not measured."""

    @property
    def child(self) -> Child: ...

    @property
    def cpu_s(self) -> float | None: ...

    @property
    def peak_memory_bytes(self) -> int | None: ...

    @property
    def memory_limit_bytes(self) -> int:
        """Above which the host ends it, with what the backend itself needs."""

    async def started(self, framed: FramedChild) -> None:
        """Return when the process inside is known to run, or to have run.

        Raises:
            SandboxUnavailable: it does not; nothing of the tool ran.
        """

    def sample(self) -> None:
        """Measure now, and look after what else needs looking after ten times a second."""

    def kill(self) -> None:
        """End it, whatever it does; the child's exit follows."""

    def blame(self, exit_code: int) -> str:
        """The limit that was behind an end of its own, or ""."""

    def last_words(self) -> str:
        """What the backend adds to what the process wrote to stderr, or ""."""

    async def end(self, *, exited: bool) -> None:
        """Remove everything of it. `exited`: the child was seen to exit within `CLOSE_S` of being killed."""


class SandboxProcess:
    """Implements `Process` over a body. Its clock runs from the beginning: it has `wall_s` to get ready."""

    def __init__(self, body: Body, spec: SandboxSpec, proxy: EgressProxy | None, began: float) -> None:
        self._body = body
        self._proxy = proxy
        self._limits = spec.limits
        self._began = self._ready = self._admitted = began
        self._sealed: float | None = None
        self._cpu_before_s = 0.0
        """Used by earlier calls."""
        self._cpu_floor_s = 0.0
        """Used when the current limit began to count: starting does not count."""
        self._meter: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None
        self.framed = FramedChild(body.child, spec.limits, body.kill, self._blame)

    def started(self) -> None:
        """It runs: from now on it is measured and timed."""
        self._ready = self._admitted = time.monotonic()
        self._body.sample()
        self._cpu_floor_s = self._body.cpu_s or 0.0
        self._watch_over()

    def admit(
        self,
        permit: Permit,
        call_digest: Digest,
        identity: Mapping[str, str],
        secret_values: Mapping[str, str] | None = None,
        wall_s: float | None = None,
    ) -> None:
        permit.redeem(call_digest, now_ms())
        if self._sealed is not None:  # not its first call
            self._cpu_before_s = self._cpu_floor_s = self._body.cpu_s or 0.0
            self._sealed = None
        self._admitted = time.monotonic()
        if self._proxy is not None:
            self._proxy.admit(identity, secret_values)
        self._watch_over(self._limits.wall_s if wall_s is None else wall_s)

    def rest(self) -> None:
        self._stop_watching()
        self._ready = time.monotonic()

    def pause(self) -> None:
        self.framed.pause_clock()

    def go_on(self) -> None:
        self.framed.continue_clock()

    def renew(self) -> None:
        self.framed.start_clock()

    @property
    def alive(self) -> bool:
        return not self.framed.ended.done()

    async def send(self, frame: bytes) -> None:
        await self.framed.send(frame)

    async def receive(self) -> bytes:
        return await self.framed.receive()

    def use(self) -> Use:
        cpu_s = self._body.cpu_s
        return Use(
            start_ms=(self._ready - self._began) * 1000,
            run_ms=((self._sealed or time.monotonic()) - self._admitted) * 1000,
            cpu_s=None if cpu_s is None else cpu_s - self._cpu_before_s,
            peak_memory_bytes=self._body.peak_memory_bytes,
        )

    def egress_log(self) -> tuple[EgressRecord, ...]:
        return self._proxy.records() if self._proxy else ()

    def stderr_tail(self) -> str:
        return "\n".join(filter(None, (self.framed.stderr_tail(), self._body.last_words())))

    async def seal(self) -> None:
        if self._sealed is not None:
            return
        self._sealed = time.monotonic()
        self._stop_watching()
        self._body.sample()
        if self._proxy is not None:
            await self._proxy.shut()

    async def close(self) -> None:
        if self._end is None:
            self._end = asyncio.create_task(self._finish())
        await to_the_end(self._end)

    async def _finish(self) -> None:
        try:
            await self.seal()
            exited = await self.framed.close(CLOSE_S)
            if self._proxy is not None:
                await self._proxy.close()
        except BaseException:
            await self._body.end(exited=False)
            raise
        await self._body.end(exited=exited)

    def _blame(self, exit_code: int) -> str:
        """The kernel ends a process that has used up its time with a plain kill."""
        self._body.sample()
        spent_s = (self._body.cpu_s or 0.0) - self._cpu_floor_s
        killed = exit_code in (_KILLED, _OUT_OF_TIME)
        return self._body.blame(exit_code) or ("cpu_s" if killed and spent_s >= self._limits.cpu_s * 0.9 else "")

    def _watch_over(self, wall_s: float | None = None) -> None:
        """Start clock and meter anew."""
        self.framed.start_clock(wall_s)
        if self._meter is None or self._meter.done():
            self._meter = asyncio.create_task(self._watch())

    def _stop_watching(self) -> None:
        self.framed.stop_clock()
        if self._meter is not None:
            self._meter.cancel()

    async def _watch(self) -> None:
        """Measure, and enforce memory and CPU for everything inside together."""
        while not self.framed.ended.done():
            self._body.sample()
            if (self._body.peak_memory_bytes or 0) > self._body.memory_limit_bytes:
                self.framed.hit("memory_bytes")
            if (self._body.cpu_s or 0.0) - self._cpu_floor_s > self._limits.cpu_s:
                self.framed.hit("cpu_s")
            await asyncio.wait([self.framed.ended], timeout=_METER_S)
