"""One tool in one machine: how it is measured from outside, and ended.

The guest keeps limits too, and says when it ended the tool for its memory; the host believes that only about the tool
itself. What the monitor's process uses is measured here, whatever the guest says.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from lockstep.sandbox.contract import SandboxSpec
from lockstep.sandbox.framed import FramedChild
from lockstep.sandbox.guest_limits import MONITOR_BYTES
from lockstep.sandbox.link import Link
from lockstep.sandbox.link_channels import Inlet, Outlet
from lockstep.sandbox.monitor import Vm

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


class MicroVmBody:
    """A machine with a started tool in it; `destroy` removes what it leaves on the host."""

    def __init__(self, vm: Vm, link: Link, spec: SandboxSpec, destroy: Callable[[], Awaitable[None]]) -> None:
        self._vm = vm
        self._link = link
        self._limit_bytes = spec.limits.memory_bytes + spec.limits.disk_bytes
        self._destroy = destroy
        self._process = Path(f"/proc/{vm.pid}")
        self.child = GuestChild(link)
        self.cpu_s: float | None = None
        self.peak_memory_bytes: int | None = None

    @property
    def memory_limit_bytes(self) -> int:
        return self._limit_bytes + MONITOR_BYTES

    async def started(self, framed: FramedChild) -> None:
        """The agent inside has said so already."""

    def sample(self) -> None:
        """CPU of the monitor's process, and memory that is this machine's own: not the snapshot's it came from."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (self._process / "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                self.cpu_s = max((int(fields[11]) + int(fields[12])) / _TICKS, self.cpu_s or 0.0)
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in (self._process / "status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak_memory_bytes = max(int(line.split()[1]) * 1024, self.peak_memory_bytes or 0)
        if self._link.broken:
            self.kill()

    def kill(self) -> None:
        self._vm.kill()

    def blame(self, exit_code: int) -> str:
        """The guest's kernel ended all of it for its memory; nothing outside shows that."""
        return "memory_bytes" if self._link.out_of_memory else ""

    def last_words(self) -> str:
        return f"[{self._link.broken}]" if self._link.broken else ""

    async def end(self, *, exited: bool) -> None:
        try:
            await self._link.close()
            await self._vm.close()
        finally:
            await self._destroy()
