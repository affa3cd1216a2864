"""One `runsc run`: start it, know for certain that it started, measure it, end it.

A frame can be sent only after runsc has recorded that the process inside runs. So what fails before that is
`SandboxUnavailable` (nothing of the tool ran); what ends after that is `ProcessEnded` (something may have).
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.child import kill_child, start_child
from lockstep.sandbox.contract import SandboxSpec
from lockstep.sandbox.framed import FramedChild
from lockstep.sandbox.gvisor_spec import OVERHEAD_BYTES, write_bundle
from lockstep.sandbox.leftovers import Remains
from lockstep.sandbox.runsc import RUNSC_ENV, Runsc
from lockstep.sandbox.sentry import Sentry, fatal_error, trim_log

START_S = 20.0
_LOOK_S = 0.008
_SOONEST_S = 0.06
"""Sooner than this no runsc has a sandbox running, and looking costs as much as what else we do for it."""
_KILLED = 128 + signal.SIGKILL
_RUNSC_FAILED = (128, -signal.SIGKILL)  # runsc's own exit code for what it could not do, or its own death
_LOG_BYTES = 256 * 2**10
_REMEDY = "Run `lockstep doctor` to see what this machine can do."


class GVisorBody:
    """A `runsc run` and the sentry behind it. `destroy` removes what they leave, given whether runsc cleaned up."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        spec: SandboxSpec,
        remains: Remains,
        sentry: Sentry,
        destroy: Callable[[bool], Awaitable[None]],
    ) -> None:
        self.child = child
        self._limit_bytes = spec.limits.memory_bytes
        self._remains = remains
        self._sentry = sentry
        self._destroy = destroy
        self._orphaned = False

    @property
    def cpu_s(self) -> float | None:
        return self._sentry.cpu_s

    @property
    def peak_memory_bytes(self) -> int | None:
        return self._sentry.peak_memory_bytes

    @property
    def memory_limit_bytes(self) -> int:
        return self._limit_bytes + OVERHEAD_BYTES

    async def started(self, framed: FramedChild) -> None:
        """Until runsc says so, for at most `START_S` seconds."""
        began = time.monotonic()
        while not (self._sentry.running() or framed.talked.is_set()):
            if framed.ended.done():
                if failure := self._failure_to_start(framed):
                    raise SandboxUnavailable(f"The gVisor sandbox did not start: {failure}.", remedy=_REMEDY)
                return  # it ran, and ended before we looked
            if time.monotonic() > began + START_S:
                message = f"The gVisor sandbox did not start within {START_S:.0f} s."
                raise SandboxUnavailable(message, remedy=_REMEDY)
            await asyncio.sleep(_LOOK_S if time.monotonic() - began > _SOONEST_S else _SOONEST_S)

    def sample(self) -> None:
        self._sentry.sample()
        trim_log(self._remains.log, _LOG_BYTES)

    def kill(self) -> None:
        """Kill the sentry, so that `runsc run` cleans up and exits; without a known sentry, kill `runsc run`."""
        self._sentry.running()  # attaches if it can be had by now
        if not self._sentry.kill() and self.child.returncode is None:
            self._orphaned = True
            kill_child(self.child)

    def blame(self, exit_code: int) -> str:
        """The kernel's own out-of-memory killer leaves no other trace than this."""
        killed = exit_code in (_KILLED, -signal.SIGKILL)
        return "memory_bytes" if killed and (self.peak_memory_bytes or 0) > self._limit_bytes else ""

    def last_words(self) -> str:
        return ""

    async def end(self, *, exited: bool) -> None:
        if not exited:
            kill_child(self.child)
        self._sentry.close()
        await self._destroy(exited and not self._orphaned)

    def _failure_to_start(self, framed: FramedChild) -> str:
        """Why there is no proof that the process ran; "" when there is. In doubt it did not: it was sent nothing."""
        own_words = fatal_error(self._remains.log)
        if self._sentry.known and not own_words and self.child.returncode not in _RUNSC_FAILED:
            return ""
        last_line = framed.stderr_tail().strip().rpartition("\n")[2][-300:]
        return own_words or last_line or f"runsc ended with exit code {self.child.returncode}"


async def spawn(
    way: Runsc,
    spec: SandboxSpec,
    mounts: Mapping[str, Path],
    remains: Remains,
    skeletons: Path,
    destroy: Callable[[bool], Awaitable[None]],
) -> GVisorBody:
    """Write the bundle and start `runsc run` in a session of its own.

    Where `setpriv` exists it dies with the thread that called this, so with us; elsewhere `sweep` finds it.

    Raises:
        SandboxUnavailable: the binary cannot be executed.
    """
    cgroup = remains.cgroup if way.cgroups else None
    egress_socket = remains.egress_socket if spec.egress else None
    write_bundle(remains.bundle, skeletons, spec, mounts, cgroup=cgroup, egress_socket=egress_socket)
    run = ("run", f"--bundle={remains.bundle}", remains.id)
    command = way.command(remains.state_root, *run, log=remains.log, egress=egress_socket is not None)
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        command = [setpriv, "--pdeathsig", "KILL", "--", *command]
    try:
        child = await start_child(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=RUNSC_ENV,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxUnavailable(f"{way.path} does not start: {error.strerror}.", remedy=_REMEDY) from error
    return GVisorBody(child, spec, remains, Sentry(remains.state_root, cgroup), destroy)
