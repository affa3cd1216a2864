"""What sandboxes leave on the host, recorded before it exists, so that a later process can destroy it.

One record per sandbox below the state directory names its temporary directory, its control group and its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.values import new_token

_SOCKET_PATH_LIMIT = 108  # sun_path; runsc adds its own names below our directory
_LONGEST_NAME = 40
_ATTEMPTS = 40
_PAUSE_S = 0.025
_CGROUPS = Path("/sys/fs/cgroup")
_OURS = "lockstep-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Remains:
    """What one sandbox has on the host: `directory` (mode 0700, short path), `cgroup` name, owner."""

    id: str
    directory: str
    owner_pid: int
    owner_started: int

    @property
    def state_root(self) -> Path:
        """Where runsc keeps its state; appears in the arguments of each of its processes."""
        return Path(self.directory, "r")

    @property
    def bundle(self) -> Path:
        return Path(self.directory, "b")

    @property
    def log(self) -> Path:
        return Path(self.directory, "log")

    @property
    def egress_socket(self) -> Path:
        return Path(self.directory, "e.sock")

    @property
    def cgroup(self) -> str:
        return f"{_OURS}{self.id}"


class Ledger:
    """The records of live sandboxes of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "sandboxes"

    def create(self) -> Remains:
        """Record a new sandbox, then make its directories.

        Raises:
            OSError: one of both cannot be written; neither is left.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        token = new_token("s")
        remains = Remains(
            id=token,
            directory=f"{_short_temporary_directory()}/{_OURS}{token}",
            owner_pid=os.getpid(),
            owner_started=_started(os.getpid()) or 0,
        )
        draft = self._folder / f"{token}.draft"
        try:
            draft.write_text(json.dumps(asdict(remains)))
            draft.replace(self._folder / f"{token}.json")
            os.mkdir(remains.directory, 0o700)
            remains.state_root.mkdir()
            remains.bundle.mkdir()
        except OSError:
            draft.unlink(missing_ok=True)
            remove_files(remains)
            self.forget(remains)
            raise
        return remains

    async def hunt(self, remains: Remains) -> None:
        """Kill every process of this sandbox and wait until none is seen any more."""
        for _ in range(_ATTEMPTS):
            if not kill_processes(remains):
                return
            await asyncio.sleep(_PAUSE_S)

    async def remove(self, remains: Remains) -> None:
        """Remove files and control group; what resists stays recorded for the next sweep."""
        for _ in range(_ATTEMPTS):
            if await asyncio.to_thread(_removed, remains):
                self.forget(remains)
                return
            await asyncio.sleep(_PAUSE_S)  # a control group stays busy until its last process is reaped

    async def sweep(self) -> int:
        """Destroy what belongs to no living process; returns how many."""
        orphans = list(self.orphans())
        for remains in orphans:
            await self.destroy(remains)
        return len(orphans)

    async def destroy(self, remains: Remains) -> None:
        """Kill what is left of a sandbox, then remove its files."""
        await self.hunt(remains)
        await self.remove(remains)

    def forget(self, remains: Remains) -> None:
        (self._folder / f"{remains.id}.json").unlink(missing_ok=True)

    def orphans(self) -> Iterator[Remains]:
        """What belongs to no living process."""
        if not self._folder.is_dir():
            return
        for record in self._folder.iterdir():
            try:
                remains = Remains(**json.loads(record.read_text()))
            except (ValueError, TypeError):
                record.unlink(missing_ok=True)  # cut short while it was written: nothing existed yet
                continue
            if _started(remains.owner_pid) != remains.owner_started:
                yield remains


def unwritable(error: OSError) -> SandboxUnavailable:
    """The error for files of a sandbox that cannot be written."""
    message = f"The files of a sandbox cannot be written: {error.strerror or error} ({error.filename})."
    return SandboxUnavailable(message, remedy="Free some space, or name a writable directory in TMPDIR.")


def kill_processes(remains: Remains) -> int:
    """SIGKILL every process of this sandbox, found by its directory among the arguments; returns how many.

    What runs in a jail knows its directory by its name alone.
    """
    directory = remains.directory.encode()
    marks = {directory, b"--root=%s/r" % directory, remains.cgroup.encode()}
    killed = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if marks & set((entry / "cmdline").read_bytes().split(b"\0")):
                killed += _kill(int(entry.name), marks)
    return killed


def remove_files(remains: Remains) -> None:
    """Remove the sandbox's directory and control group, unless something is still mounted below."""
    for cgroup in _cgroup_directories(remains.cgroup):
        with contextlib.suppress(OSError):
            cgroup.rmdir()
    directory = Path(remains.directory)
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and directory.name == remains.cgroup
    if ours and not _has_mounts(directory):
        shutil.rmtree(directory, ignore_errors=True)


def _removed(remains: Remains) -> bool:
    """In a thread: a dozen hierarchies of control groups are looked through, and the kernel takes its time."""
    remove_files(remains)
    return is_gone(remains)


def is_gone(remains: Remains) -> bool:
    """Whether neither directory nor control group is left (a group with a process in it cannot be removed)."""
    return not os.path.lexists(remains.directory) and not any(_cgroup_directories(remains.cgroup))


def _cgroup_directories(name: str) -> Iterator[Path]:
    """At the top of a hierarchy or one below, whether all controllers share one hierarchy or each has its own."""
    level = [str(_CGROUPS)]
    for depth in range(3):
        if depth:
            level = [below for above in level for below in _directories(above)]
        yield from (Path(above, name) for above in level if os.path.isdir(f"{above}/{name}"))


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(
            path
        ) as entries:  # nothing of ours is in another's: each look there is one the kernel remembers
            others = (entry for entry in entries if not entry.name.startswith(_OURS))
            return [entry.path for entry in others if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _kill(pid: int, marks: set[bytes]) -> bool:
    """Kill exactly the process that carries a mark: pinned first, checked again, then signalled."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if marks & set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return True
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return False


def _has_mounts(directory: Path) -> bool:
    """A leaked bind mount below must never be followed by a recursive delete."""
    below = f"{directory}/"
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4].startswith(below) for line in mounts)


def _short_temporary_directory() -> str:
    chosen = tempfile.gettempdir()
    return chosen if len(chosen) + _LONGEST_NAME + 20 < _SOCKET_PATH_LIMIT else "/tmp"


def _started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
