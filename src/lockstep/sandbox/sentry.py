"""gVisor's sentry as the host sees it: is it running, what has it used, end it now.

Reads runsc's own state file and /proc; nothing in here can be forged from inside a sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from lockstep.sandbox.cgroup import read_now

_BLOCK = 512  # bytes per block in struct stat
_TICKS = os.sysconf("SC_CLK_TCK")
_CGROUPS = "/sys/fs/cgroup"


class Sentry:
    """Handle on the process that holds one sandbox; safe against reuse of its pid."""

    def __init__(self, state_root: Path, cgroup: str | None) -> None:
        self._state_root = state_root
        self._cgroup = cgroup
        self._pid: int | None = None
        self._pidfd: int | None = None
        self._memory: Path | None = None
        self.cpu_s: float | None = None
        self.peak_memory_bytes: int | None = None

    @property
    def known(self) -> bool:
        """Whether runsc has come as far as making the sandbox."""
        return self._pid is not None

    def running(self) -> bool:
        """Whether runsc has recorded that the process inside was started."""
        try:
            name = next((name for name in os.listdir(self._state_root) if name.endswith(".state")), None)
            recorded = (self._state_root / name).read_bytes() if name else b""
            if not recorded or (self.known and b'"running"' not in recorded):
                return False  # asked every few milliseconds: parsed only when there is something new in it
            state = json.loads(recorded)
            self._attach(int(state["sandbox"]["pid"]))
            return bool(state["status"] == "running")
        except (OSError, ValueError, KeyError, TypeError):
            return False  # being written

    def kill(self) -> bool:
        """SIGKILL; False when the sentry is not known yet. `runsc run` then cleans up behind it."""
        if self._pidfd is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        return True

    def sample(self) -> None:
        """Measure now: CPU, and bytes used by the sandbox (its memory, its files, gVisor's own)."""
        if self._pid is None:
            return
        with contextlib.suppress(OSError, ValueError, IndexError):
            self.cpu_s = max(self._measured_cpu_s(), self.cpu_s or 0.0)
        with contextlib.suppress(OSError, ValueError, IndexError):
            used = self._guest_memory() + _anonymous(self._pid)
            self.peak_memory_bytes = max(used, self.peak_memory_bytes or 0)

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._pid = None

    def _attach(self, pid: int) -> None:
        if self._pid is None and pid > 0:
            self._pidfd = os.pidfd_open(pid)
            self._pid = pid

    def _guest_memory(self) -> int:
        """What is allocated of the memory file that backs everything inside, tmpfs included."""
        if self._memory is None:
            below = f"/proc/{self._pid}/fd"
            for name in os.listdir(below):
                with contextlib.suppress(OSError):
                    if os.readlink(f"{below}/{name}").startswith("/memfd:runsc-memory"):
                        self._memory = Path(below, name)
                        break
        return self._memory.stat().st_blocks * _BLOCK if self._memory else 0

    def _measured_cpu_s(self) -> float:
        if self._cgroup is not None:
            return cgroup_cpu_s(self._cgroup)
        return tree_cpu_s(self._pid or 0)


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process and all below it, with those of its children that were reaped."""
    total = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(ticks) for ticks in fields[11:15])
    return total / _TICKS


def tree_memory_bytes(pid: int) -> int:
    """Bytes of their own that a process and all below it hold in memory."""
    total = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            total += _anonymous(each)
    return total


def _tree(pid: int) -> Iterator[int]:
    todo = [pid]
    while todo:
        pid = todo.pop()
        yield pid
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                todo += [int(child) for child in (thread / "children").read_text().split()]


def cgroup_cpu_s(name: str) -> float:
    """CPU seconds used by a control group, from either version of the hierarchy."""
    for controller in ("cpuacct", "cpu,cpuacct"):
        with contextlib.suppress(OSError):
            return int(read_now(f"{_CGROUPS}/{controller}/{name}/cpuacct.usage")) / 1e9
    first = read_now(f"{_CGROUPS}/{name}/cpu.stat").split("\n", 1)[0]
    return int(first.split()[1]) / 1e6


def fatal_error(log: Path) -> str:
    """What runsc itself died of, in its own words; "" when it did not. The log cannot be written from inside."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError, KeyError):
            entry = json.loads(line)
            if entry.get("level") == "error":  # gVisor logs what happens inside as warnings at most
                return str(entry["msg"]).removeprefix("FATAL ERROR: ").strip()
    return ""


def trim_log(log: Path, limit_bytes: int) -> None:
    """A process inside can make runsc log without end; runsc appends, so cutting is safe."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > limit_bytes:
            os.truncate(log, 0)


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
