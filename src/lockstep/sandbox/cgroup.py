"""A control group for one sandbox, in either version of the hierarchy, where we may make one.

The backstop behind what is measured and limited otherwise: memory and processes of everything inside together.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_V1_MEMORY_OFF = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class Cgroup:
    """An existing group; `directories` has one entry per hierarchy (one in all under version 2)."""

    name: str
    directories: tuple[Path, ...]

    @classmethod
    def make(cls, name: str, *, memory_bytes: int, processes: int) -> Cgroup | None:
        """A new empty group with these limits; None where there is no leave to make one that holds them."""
        try:
            if (_ROOT / "cgroup.controllers").is_file():
                return cls._version_2(name, memory_bytes, processes)
            return cls._version_1(name, memory_bytes, processes)
        except OSError:
            for directory in _directories(name):
                with contextlib.suppress(OSError):
                    directory.rmdir()
            return None

    @classmethod
    def _version_2(cls, name: str, memory_bytes: int, processes: int) -> Cgroup:
        (_ROOT / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        directory = _ROOT / name
        directory.mkdir()
        (directory / "memory.max").write_text(str(memory_bytes))
        with contextlib.suppress(OSError):  # no swap, no file
            (directory / "memory.swap.max").write_text("0")
        (directory / "pids.max").write_text(str(processes))
        return cls(name=name, directories=(directory,))

    @classmethod
    def _version_1(cls, name: str, memory_bytes: int, processes: int) -> Cgroup:
        directories = tuple(_ROOT / controller / name for controller in ("memory", "pids", "cpuacct"))
        for directory in directories:
            directory.mkdir()
        (directories[0] / "memory.limit_in_bytes").write_text(str(min(memory_bytes, _V1_MEMORY_OFF)))
        (directories[1] / "pids.max").write_text(str(processes))
        return cls(name=name, directories=directories)

    def joins(self) -> Callable[[], None]:
        """For a child between fork and exec: go into the group."""
        files = [str(directory / "cgroup.procs") for directory in self.directories]

        def join() -> None:
            for file in files:
                with open(file, "w") as procs:
                    procs.write("0")

        return join

    def peak_memory_bytes(self) -> int:
        """Raises OSError where the kernel does not keep it."""
        directory = self.directories[0]
        if len(self.directories) > 1:
            return int(read_now(f"{directory}/memory.max_usage_in_bytes"))
        with contextlib.suppress(FileNotFoundError):
            return int(read_now(f"{directory}/memory.peak"))
        return int(read_now(f"{directory}/memory.current"))

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed something in it for its memory limit."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                counts = dict(line.split() for line in (self.directories[0] / name).read_text().splitlines())
                return int(counts.get("oom_kill", 0)) > 0
        return False

    def kill(self) -> None:
        """SIGKILL everything in it."""
        with contextlib.suppress(OSError):
            (self.directories[0] / "cgroup.kill").write_text("1")
            return
        for pid in _processes(self.directories):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def read_now(path: str) -> str:
    """A small file of the kernel, read plainly: measuring reads several of them ten times a second."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096).decode()
    finally:
        os.close(descriptor)


def _processes(directories: Sequence[Path]) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(line) for line in (directories[0] / "cgroup.procs").read_text().split()]
    return []


def _directories(name: str) -> list[Path]:
    return [path for path in (_ROOT / name, *_ROOT.glob(f"*/{name}")) if path.is_dir()]
