"""Firecracker: each machine one `firecracker` process, jailed when we are root, told what to do over its HTTP API.

Snapshots are full ones; a clone is a fresh process that maps the snapshot's memory privately, so that clones share
what they do not change. The guest has no network card, no serial port and no metadata service.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.child import start_child
from lockstep.sandbox.firecracker_api import (
    Action,
    BootSource,
    Call,
    Drive,
    Entropy,
    MachineConfig,
    MemoryBackend,
    RateLimiter,
    SnapshotCreate,
    SnapshotLoad,
    TokenBucket,
    VmState,
    Vsock,
)
from lockstep.sandbox.firecracker_jail import VSOCK_SOCKET, Home, Limits, cgroup_version, new_home
from lockstep.sandbox.firecracker_vm import FirecrackerVm, launch
from lockstep.sandbox.kvm import runs_guests
from lockstep.sandbox.monitor import Machine, Vm
from lockstep.values import Tier

CMDLINE = "reboot=k panic=-1 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"
"""Added to the machine's own. Devices are found through ACPI: Debian's kernel takes none from the command line."""
GUEST_CID = 3
"""The same in every VM: each has a vsock device of its own, and nothing routes between them."""
SNAPSHOT_S = 120.0
VERSION_S = 10.0
_HOLE = bytes(16 * 2**10)
_STATE = "state"
_MEMORY = "memory"
_NEW = {_STATE: "new-state", _MEMORY: "new-memory"}
"""What is being written, beside what the machine itself may have been loaded from."""
_DISK = RateLimiter(
    bandwidth=TokenBucket(size=64 * 2**20, refill_time=100), ops=TokenBucket(size=2_000, refill_time=100)
)
_RANDOM = RateLimiter(bandwidth=TokenBucket(size=64 * 2**10, refill_time=1_000, one_time_burst=64 * 2**10))
SNAPSHOT_CALLS = (VmState(state="Paused"), SnapshotCreate(snapshot_path=_NEW[_STATE], mem_file_path=_NEW[_MEMORY]))
CLONE_CALLS = (SnapshotLoad(snapshot_path=_STATE, mem_backend=MemoryBackend(backend_path=_MEMORY)),)
_INSTALL = "Install a release of Firecracker and its jailer, and name them in FIRECRACKER_BIN and JAILER_BIN."


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """What `locate` found. `jailer` is None where the process runs bare, `cgroups` 0 where there are none."""

    firecracker: str
    jailer: str | None
    version: str
    cgroups: int


class Firecracker:
    """The Firecracker monitor."""

    name = "firecracker"
    tier = Tier.MICROVM

    def __init__(self, installed: Installed | None = None) -> None:
        self._given = self._found = installed

    async def prepare(self) -> str:
        self._found = self._given or await locate()
        await runs_guests()
        return self._found.version

    @property
    def _installed(self) -> Installed:
        assert self._found is not None, "prepare() comes first"
        return self._found

    async def boot(self, machine: Machine, directory: Path) -> Vm:
        files = (("kernel", machine.kernel), ("initrd", machine.initrd), *_named(machine.drives))
        home = await asyncio.to_thread(self._home, directory, files)
        return await self._start(home, machine, boot_calls(machine), writes_snapshot=True)

    async def snapshot(self, vm: Vm, into: Path) -> None:
        assert isinstance(vm, FirecrackerVm)
        for call in SNAPSHOT_CALLS:
            await vm.ask(call, SNAPSHOT_S)
        vm.kill()
        await vm.wait()
        try:
            for name, written in _NEW.items():
                with vm.own(written, stat.S_ISREG) as file:
                    await asyncio.to_thread(_keep, file, into / name)
        except OSError as error:
            raise _unwritable(error) from error

    async def clone(self, machine: Machine, snapshot: Path, directory: Path, *, fork: bool = False) -> Vm:
        kept = ((name, snapshot / name) for name in (_STATE, _MEMORY))
        home = await asyncio.to_thread(self._home, directory, (*kept, *_named(machine.drives)))
        return await self._start(home, machine, CLONE_CALLS, writes_snapshot=fork)

    def _home(self, directory: Path, files: Iterable[tuple[str, Path]]) -> Home:
        home = new_home(directory, self._installed.firecracker, self._installed.jailer)
        try:
            home.make()
            for name, path in files:
                home.place(path, name)
        except OSError as error:
            raise _unwritable(error) from error
        return home

    async def _start(
        self, home: Home, machine: Machine, calls: Sequence[Call], *, writes_snapshot: bool
    ) -> FirecrackerVm:
        limits = Limits(memory_mib=machine.memory_mib, vcpus=machine.vcpus, writes_snapshot=writes_snapshot)
        vm = await launch(home, home.command(limits, self._installed.cgroups))
        try:
            await vm.answers()
            for call in calls:
                await vm.ask(call)
        except BaseException:
            await asyncio.shield(vm.close())
            raise
        return vm


def boot_calls(machine: Machine) -> list[Call]:
    """What is asked of a fresh Firecracker, in this order, to boot the machine."""
    return [
        MachineConfig(vcpu_count=machine.vcpus, mem_size_mib=machine.memory_mib),
        BootSource(kernel_image_path="kernel", initrd_path="initrd", boot_args=f"{machine.cmdline} {CMDLINE}".strip()),
        *(Drive(drive_id=name, path_on_host=name, rate_limiter=_DISK) for name, _ in _named(machine.drives)),
        Vsock(guest_cid=GUEST_CID, uds_path=VSOCK_SOCKET),
        Entropy(rate_limiter=_RANDOM),
        Action(action_type="InstanceStart"),
    ]


async def locate() -> Installed:
    """The installed Firecracker: FIRECRACKER_BIN and JAILER_BIN, then PATH; a jailer may also lie beside it.

    Raises:
        SandboxUnavailable: there is none, it does not run, or we are root and it comes without its own jailer.
    """
    binary = _found(os.environ.get("FIRECRACKER_BIN") or "firecracker")
    if binary is None:
        raise SandboxUnavailable("Firecracker is not installed on this machine.", remedy=_INSTALL)
    version = await _version(binary)
    if os.geteuid() != 0:
        return Installed(firecracker=binary, jailer=None, version=version, cgroups=0)
    beside = str(Path(binary).with_name("jailer"))
    jailer = _found(os.environ.get("JAILER_BIN") or beside) or _found("jailer")
    if jailer is None:
        raise SandboxUnavailable("Firecracker is here, but not its jailer, which root must use.", remedy=_INSTALL)
    if (other := await _version(jailer)) != version:
        raise SandboxUnavailable(f"Firecracker is {version}, its jailer {other}.", remedy=_INSTALL)
    return Installed(firecracker=binary, jailer=jailer, version=version, cgroups=cgroup_version())


def _found(program: str) -> str | None:
    found = shutil.which(program)
    return None if found is None else os.path.realpath(found)


async def _version(binary: str) -> str:
    """`1.16.1`, from "Firecracker v1.16.1" or "Jailer v1.16.1"."""
    pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        child = await start_child(binary, "--version", stdin=none, stdout=pipe, stderr=none, env={})
        out, _ = await asyncio.wait_for(child.communicate(), VERSION_S)
        return out.decode().split()[1].removeprefix("v")
    except (OSError, TimeoutError, UnicodeDecodeError, IndexError) as error:
        raise SandboxUnavailable(f"{binary} does not say its version: {error!r}.", remedy=_INSTALL) from error


def _named(drives: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Each drive with its name in the guest, which is also its file's name in the VM's directory."""
    return ((f"vd{letter}", path) for letter, path in zip("abcdefghijklmnopqrstuvwxyz", drives, strict=False))


def _keep(source: Path, target: Path) -> None:
    """Copy a snapshot's file to where nobody writes it again; readable for all, so that a jail can link it.

    Firecracker writes every page of the machine's memory; what is empty becomes a hole and takes no room.
    """
    with source.open("rb") as read, target.open("xb") as write:
        while piece := read.read(len(_HOLE)):
            if piece == _HOLE:
                write.seek(len(piece), os.SEEK_CUR)
            else:
                write.write(piece)
        write.truncate(read.tell())
    target.chmod(0o444)


def _unwritable(error: OSError) -> SandboxUnavailable:
    message = f"The files of a microVM cannot be written: {error.strerror or error} ({error.filename})."
    return SandboxUnavailable(message, remedy="Free some space, or name a writable directory in TMPDIR.")
