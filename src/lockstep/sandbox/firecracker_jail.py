"""Where a Firecracker process lives: the directory it takes for its own, and the command that starts it there.

As root that is a jail made by Firecracker's `jailer` (chroot, a user id of its own, empty namespaces, control groups);
else the VM's directory itself. Either way its files have the same relative names, so that a snapshot loads in any of
them.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

API_SOCKET = "api.sock"
VSOCK_SOCKET = "v.sock"
_UIDS = range(2**30, 2**31)
"""No account has these; drawn at random, two of a thousand VMs share one with a chance below 1 in 2,000."""
_OVERHEAD_MIB = 96
_THREADS = 32
_OPEN_FILES = 256
_CPU_PERIOD_US = 100_000
CGROUP_PARENT = "lockstep"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one VM's process may use. `writes_snapshot` leaves room for a file as large as its memory."""

    memory_mib: int
    vcpus: int
    writes_snapshot: bool

    @property
    def file_bytes(self) -> int:
        return (self.memory_mib + _OVERHEAD_MIB) * 2**20 if self.writes_snapshot else 2**20

    def cgroup(self, version: int) -> list[str]:
        """The jailer's arguments; empty where there are no control groups (`version` 0)."""
        if version == 0:
            return []
        # on a memory file system, the file that a snapshot is written to counts too
        memory = (self.memory_mib * (2 if self.writes_snapshot else 1) + _OVERHEAD_MIB) * 2**20
        cpu = self.vcpus * _CPU_PERIOD_US
        values = (
            (f"memory.max={memory}", f"pids.max={_THREADS}", f"cpu.max={cpu} {_CPU_PERIOD_US}")
            if version == 2
            else (f"memory.limit_in_bytes={memory}", f"pids.max={_THREADS}", f"cpu.cfs_quota_us={cpu}")
        )
        return ["--cgroup-version", str(version), "--parent-cgroup", CGROUP_PARENT, *_each("--cgroup", *values)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """The files of one VM below the caller's `directory`; `uid` is None where the process is not jailed."""

    directory: Path
    firecracker: str
    jailer: str | None
    uid: int | None

    @property
    def id(self) -> str:
        """An argument of the VM's process, by which it can be found: the name of the caller's directory."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.directory.name)[-64:]

    @property
    def root(self) -> Path:
        """What the process sees as its working directory; everything it is told is relative to it."""
        if self.uid is None:
            return self.directory
        return self.directory / Path(self.firecracker).name / self.id / "root"

    @property
    def pid_file(self) -> Path:
        """Where the jailer writes the id of the process it started."""
        return self.root / f"{Path(self.firecracker).name}.pid"

    def make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def place(self, source: Path, name: str) -> str:
        """Put a file where the process can read it, under this name, without a copy where that is possible."""
        target = self.root / name
        if self.uid is None:
            target.symlink_to(source.resolve())
        elif not _linked(source, target):
            shutil.copyfile(source, target)
            os.chown(target, 0, self.uid)
            target.chmod(0o440)
        return name

    def command(self, limits: Limits, cgroup_version: int) -> list[str]:
        """The argument vector; to be started in `root`."""
        own = ["--api-sock", API_SOCKET]
        if self.jailer is None or self.uid is None:
            return [self.firecracker, "--id", self.id, *own]
        return [
            *("unshare", "--net", "--ipc", "--uts", "--"),  # taken over by its guest, it finds no network either
            *(self.jailer, "--id", self.id, "--exec-file", self.firecracker, "--new-pid-ns"),
            *("--uid", str(self.uid), "--gid", str(self.uid), "--chroot-base-dir", str(self.directory)),
            *_each("--resource-limit", f"fsize={limits.file_bytes}", f"no-file={_OPEN_FILES}"),
            *limits.cgroup(cgroup_version),
            *("--", *own),
        ]


def new_home(directory: Path, firecracker: str, jailer: str | None) -> Home:
    """Decide how a VM in this directory will be started."""
    uid = None if jailer is None else secrets.choice(_UIDS)
    return Home(directory=directory, firecracker=firecracker, jailer=jailer, uid=uid)


def cgroup_version() -> int:
    """Which control groups can hold a VM here: 2, 1, or 0 for none."""
    kinds: dict[str, set[str]] = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" and os.access(where, os.W_OK):
            kinds["cgroup2"] = set((Path(where) / "cgroup.controllers").read_text().split())
        elif kind == "cgroup" and os.access(where, os.W_OK):
            kinds.setdefault("cgroup", set()).update(options.split(","))
    wanted = {"memory", "pids", "cpu"}
    return 2 if wanted <= kinds.get("cgroup2", set()) else 1 if wanted <= kinds.get("cgroup", set()) else 0


def remove_cgroups(vm_id: str) -> None:
    """Remove the control groups of a VM that has ended; the jailer makes them and leaves them."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        group = Path(where, CGROUP_PARENT, vm_id)
        if kind in ("cgroup", "cgroup2") and group.is_dir():
            group.rmdir()


def _each(option: str, *values: str) -> list[str]:
    """The option once for each value; the jailer takes no `--option=value`."""
    return [part for value in values for part in (option, value)]


def _linked(source: Path, target: Path) -> bool:
    """A hard link; not for a file that only its owner may read, whose owner and mode a link would share."""
    if not source.stat().st_mode & 0o004:
        return False
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
