"""One `runsc run`: start it, know for certain that it started, meter it, end it.

A frame can be sent only after runsc has recorded that the process inside runs. So what fails before that is
`SandboxUnavailable` (nothing of the tool ran); what ends after that is `ProcessEnded` (something may have).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping

from lockstep.errors import SandboxUnavailable
from lockstep.gate.permit import Permit
from lockstep.sandbox.contract import EgressRecord, SandboxSpec, Use
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.framed import FramedChild
from lockstep.sandbox.gvisor_spec import OVERHEAD_BYTES, write_bundle
from lockstep.sandbox.leftovers import Remains
from lockstep.sandbox.runsc import RUNSC_ENV, Runsc
from lockstep.sandbox.sentry import Sentry, fatal_error, trim_log
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Digest, now_ms

START_S = 20.0
CLOSE_S = 5.0
_LOOK_S = 0.004
_METER_S = 0.1
_KILLED = 128 + signal.SIGKILL
_RUNSC_FAILED = (128, -signal.SIGKILL)  # runsc's own exit code for what it could not do, or its own death
_LOG_BYTES = 256 * 2**10
_REMEDY = "Run `lockstep doctor` to see what this machine can do."


class GVisorProcess:
    """A sandboxed process; implements `Process`. `destroy` removes what it leaves, given whether runsc cleaned up."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        spec: SandboxSpec,
        remains: Remains,
        sentry: Sentry,
        proxy: EgressProxy | None,
        destroy: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._child = child
        self._remains = remains
        self._sentry = sentry
        self._proxy = proxy
        self._limits = spec.limits
        self._destroy = destroy
        self._began = self._ready = self._admitted = time.monotonic()
        self._sealed: float | None = None
        self._cpu_before_s = 0.0
        """Of what was admitted before: earlier calls."""
        self._cpu_at_ready_s = 0.0
        self._orphaned = False
        self._framed = FramedChild(child, spec.limits, self._kill, self._blame)
        self._meter: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None

    async def started(self) -> None:
        """Return when the process inside is known to run, or to have run; it then has `wall_s` to get ready.

        Raises:
            SandboxUnavailable: runsc failed, or the process was not running within `START_S` seconds.
        """
        deadline = time.monotonic() + START_S
        while not (self._sentry.running() or self._framed.talked.is_set()):
            if self._framed.ended.done():
                if failure := self._failure_to_start():
                    raise SandboxUnavailable(f"The gVisor sandbox did not start: {failure}.", remedy=_REMEDY)
                break  # it ran, and ended before we looked
            if time.monotonic() > deadline:
                message = f"The gVisor sandbox did not start within {START_S:.0f} s."
                raise SandboxUnavailable(message, remedy=_REMEDY)
            await asyncio.wait([self._framed.ended], timeout=_LOOK_S)
        self._ready = self._admitted = time.monotonic()
        self._sentry.sample()
        self._cpu_at_ready_s = self._sentry.cpu_s or 0.0
        self._watch_over()

    def admit(self, permit: Permit, call_digest: Digest, identity: Mapping[str, str]) -> None:
        permit.redeem(call_digest, now_ms())
        if self._sealed is not None:  # not its first call
            self._cpu_before_s = self._cpu_at_ready_s = self._sentry.cpu_s or 0.0
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
        cpu_s = self._sentry.cpu_s
        return Use(
            start_ms=(self._ready - self._began) * 1000,
            run_ms=((self._sealed or time.monotonic()) - self._admitted) * 1000,
            cpu_s=None if cpu_s is None else cpu_s - self._cpu_before_s,
            peak_memory_bytes=self._sentry.peak_memory_bytes,
        )

    def egress_log(self) -> tuple[EgressRecord, ...]:
        return self._proxy.records() if self._proxy else ()

    def stderr_tail(self) -> str:
        return self._framed.stderr_tail()

    async def seal(self) -> None:
        if self._sealed is not None:
            return
        self._sealed = time.monotonic()
        self._framed.stop_clock()
        if self._meter is not None:
            self._meter.cancel()
        self._sentry.sample()
        if self._proxy is not None:
            await self._proxy.shut()

    async def close(self) -> None:
        if self._end is None:
            self._end = asyncio.create_task(self._finish())
        await to_the_end(self._end)

    async def _finish(self) -> None:
        await self.seal()
        clean = await self._ended()
        if self._proxy is not None:
            await self._proxy.close()
        await self._destroy(clean)

    async def _ended(self) -> bool:
        """End the process; True when runsc saw it end and has cleaned up after itself."""
        ended = await self._framed.close(CLOSE_S)
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
        self._sentry.close()
        return ended and not self._orphaned

    def _failure_to_start(self) -> str:
        """Why there is no proof that the process ran; "" when there is. In doubt it did not: it was sent nothing."""
        own_words = fatal_error(self._remains.log)
        if self._sentry.known and not own_words and self._child.returncode not in _RUNSC_FAILED:
            return ""
        last_line = self.stderr_tail().strip().rpartition("\n")[2][-300:]
        return own_words or last_line or f"runsc ended with exit code {self._child.returncode}"

    def _kill(self) -> None:
        """Kill the sentry, so that `runsc run` cleans up and exits; without a known sentry, kill `runsc run`."""
        self._sentry.running()  # attaches if it can be had by now
        if not self._sentry.kill() and self._child.returncode is None:
            self._orphaned = True
            self._child.kill()

    def _blame(self, exit_code: int) -> str:
        """The kernel's own out-of-memory killer leaves no other trace than this."""
        killed = exit_code in (_KILLED, -signal.SIGKILL)
        return "memory_bytes" if killed and self._peak() > self._limits.memory_bytes else ""

    def _peak(self) -> int:
        return self._sentry.peak_memory_bytes or 0

    def _watch_over(self) -> None:
        """Start clock and meter anew."""
        self._framed.start_clock()
        if self._meter is None or self._meter.done():
            self._meter = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Measure, enforce memory and CPU for all processes inside together, and keep runsc's log small."""
        while not self._framed.ended.done():
            self._sentry.sample()
            if self._peak() > self._limits.memory_bytes + OVERHEAD_BYTES:
                self._framed.hit("memory_bytes")
            if (self._sentry.cpu_s or 0.0) - self._cpu_at_ready_s > self._limits.cpu_s:
                self._framed.hit("cpu_s")
            trim_log(self._remains.log, _LOG_BYTES)
            await asyncio.wait([self._framed.ended], timeout=_METER_S)


async def spawn(
    way: Runsc,
    spec: SandboxSpec,
    remains: Remains,
    proxy: EgressProxy | None,
    destroy: Callable[[bool], Awaitable[None]],
) -> GVisorProcess:
    """Write the bundle and start `runsc run` in a session of its own.

    Where `setpriv` exists it dies with the thread that called this, so with us; elsewhere `sweep` finds it.

    Raises:
        ConfigError: the mounts of the spec are refused.
        SandboxUnavailable: the binary cannot be executed.
    """
    cgroup = remains.cgroup if way.cgroups else None
    socket = remains.egress_socket if proxy else None
    write_bundle(remains.bundle, spec, cgroup=cgroup, egress_socket=socket)
    run = ("run", f"--bundle={remains.bundle}", remains.id)
    command = way.command(remains.state_root, *run, log=remains.log, egress=proxy is not None)
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        command = [setpriv, "--pdeathsig", "KILL", "--", *command]
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=RUNSC_ENV,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxUnavailable(f"{way.path} does not start: {error.strerror}.", remedy=_REMEDY) from error
    return GVisorProcess(child, spec, remains, Sentry(remains.state_root, cgroup), proxy, destroy)
