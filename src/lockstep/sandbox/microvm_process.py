"""One tool in one machine: its frames, its limits as the host enforces them, its end.

The guest keeps limits too, and says which one ended the tool; the host believes that only about the tool itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from lockstep.gate.permit import Permit
from lockstep.sandbox.contract import EgressRecord, SandboxSpec, Use
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.framed import FramedChild
from lockstep.sandbox.guest_limits import MONITOR_BYTES
from lockstep.sandbox.link import Inlet, Link, Outlet
from lockstep.sandbox.monitor import Vm
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Digest, now_ms

CLOSE_S = 5.0
_METER_S = 0.1
_KILLED = 128 + signal.SIGKILL
_TICKS = os.sysconf("SC_CLK_TCK")


class GuestChild:
    """The tool in the guest as `FramedChild` sees a process."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.stdin: Outlet | None = link.stdin
        self.stdout: Inlet | None = link.stdout
        self.stderr: Inlet | None = link.stderr

    @property
    def returncode(self) -> int | None:
        return self._link.code

    async def wait(self) -> int:
        await self._link.ended.wait()
        return _KILLED if self._link.code is None else self._link.code


class MicroVmProcess:
    """A tool in a machine of its own; implements `Process`. `destroy` removes what the machine leaves on the host."""

    def __init__(
        self,
        vm: Vm,
        link: Link,
        spec: SandboxSpec,
        proxy: EgressProxy | None,
        began: float,
        destroy: Callable[[], Awaitable[None]],
    ) -> None:
        self._vm = vm
        self._link = link
        self._proxy = proxy
        self._limits = spec.limits
        self._destroy = destroy
        self._began = began
        self._ready = self._admitted = time.monotonic()
        self._sealed: float | None = None
        self._usage = _Usage(vm.pid)
        self._usage.sample()
        self._cpu_before_s = 0.0
        """Of what was admitted before: earlier calls."""
        self._cpu_at_ready_s = self._usage.cpu_s or 0.0
        self._framed = FramedChild(GuestChild(link), spec.limits, vm.kill, self._blame)
        self._meter: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None
        self._watch_over()

    def admit(self, permit: Permit, call_digest: Digest, identity: Mapping[str, str]) -> None:
        permit.redeem(call_digest, now_ms())
        if self._sealed is not None:  # not its first call
            self._cpu_before_s = self._cpu_at_ready_s = self._usage.cpu_s or 0.0
            self._sealed = None
        self._admitted = time.monotonic()
        if self._proxy is not None:
            self._proxy.admit(identity)
        self._watch_over()

    def rest(self) -> None:
        self._framed.stop_clock()
        if self._meter is not None:
            self._meter.cancel()
        self._ready = time.monotonic()

    @property
    def alive(self) -> bool:
        return not self._framed.ended.done()

    async def send(self, frame: bytes) -> None:
        await self._framed.send(frame)

    async def receive(self) -> bytes:
        return await self._framed.receive()

    def use(self) -> Use:
        cpu_s = self._usage.cpu_s
        return Use(
            start_ms=(self._ready - self._began) * 1000,
            run_ms=((self._sealed or time.monotonic()) - self._admitted) * 1000,
            cpu_s=None if cpu_s is None else cpu_s - self._cpu_before_s,
            peak_memory_bytes=self._usage.peak_memory_bytes,
        )

    def egress_log(self) -> tuple[EgressRecord, ...]:
        return self._proxy.records() if self._proxy else ()

    def stderr_tail(self) -> str:
        tail = self._framed.stderr_tail()
        return f"{tail}\n[{self._link.broken}]".lstrip("\n") if self._link.broken else tail

    async def seal(self) -> None:
        if self._sealed is not None:
            return
        self._sealed = time.monotonic()
        self._framed.stop_clock()
        if self._meter is not None:
            self._meter.cancel()
        self._usage.sample()
        if self._proxy is not None:
            await self._proxy.shut()

    async def close(self) -> None:
        if self._end is None:
            self._end = asyncio.create_task(self._finish())
        await to_the_end(self._end)

    async def _finish(self) -> None:
        try:
            await self.seal()
            self._vm.kill()
            await self._framed.close(CLOSE_S)
            await self._link.close()
            await self._vm.close()
            if self._proxy is not None:
                await self._proxy.close()
        finally:
            await self._destroy()

    def _blame(self, _: int) -> str:
        return "memory_bytes" if self._link.out_of_memory else ""

    def _watch_over(self) -> None:
        """Start clock and meter anew."""
        self._framed.start_clock()
        if self._meter is None or self._meter.done():
            self._meter = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Measure the monitor's process, and enforce memory and CPU whatever the guest says of itself."""
        most = self._limits.memory_bytes + self._limits.disk_bytes + MONITOR_BYTES
        while not self._framed.ended.done():
            self._usage.sample()
            if (self._usage.peak_memory_bytes or 0) > most:
                self._framed.hit("memory_bytes")
            if (self._usage.cpu_s or 0.0) - self._cpu_at_ready_s > self._limits.cpu_s:
                self._framed.hit("cpu_s")
            if self._link.broken:
                self._vm.kill()
            await asyncio.wait([self._framed.ended], timeout=_METER_S)


class _Usage:
    """CPU time and memory of a monitor's process: memory that is its machine's own, not the snapshot's it came from."""

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")
        self.cpu_s: float | None = None
        self.peak_memory_bytes: int | None = None

    def sample(self) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (self._process / "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                ticks = int(fields[11]) + int(fields[12])
                self.cpu_s = max(ticks / _TICKS, self.cpu_s or 0.0)
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in (self._process / "status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak_memory_bytes = max(int(line.split()[1]) * 1024, self.peak_memory_bytes or 0)
