"""QEMU's `microvm` machine as a monitor: with KVM where guests really run, else emulated and then no boundary.

The process gets everything by descriptor (kernel, memory, drives, link, control), so that it can run as nobody without
a file of its own, behind QEMU's system call filter. Clones map sealed memory privately.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox import memory_image
from lockstep.sandbox.kvm import runs_guests
from lockstep.sandbox.monitor import Machine, Stream, Vm
from lockstep.sandbox.qmp import Qmp
from lockstep.sandbox.timestamp_counter import counter_khz
from lockstep.values import Tier

INSTALL = (
    "Install it with `apt-get install --no-install-recommends qemu-system-x86`, or name a binary in LOCKSTEP_QEMU."
)
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_NOBODY = 65534
_GREETING_S = 20.0
_END_S = 5.0
_LOG_TAIL = 400
_STATE_BYTES = 64 * 2**20
_FILE_BYTES = 256 * 2**20
_FILTER = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_T = TypeVar("_T")
_R = TypeVar("_R")
_IGNORE_SHARED = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]


class QemuVm:
    """A running QEMU; implements `Vm`."""

    def __init__(self, process: asyncio.subprocess.Process, link: socket.socket, log: Path) -> None:
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._link = link
        self._log = log
        self.qmp: Qmp | None = None
        self.memory = -1
        """The memory shared with it, when it can be snapshotted; else -1."""

    @property
    def pid(self) -> int:
        return self._process.pid

    async def connect(self) -> Stream:
        return await asyncio.open_unix_connection(sock=self._link)

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        if self._pidfd >= 0:  # asyncio's own way to signal may reap the process where nobody looks for its exit code
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and wait for its end; what is held open stays open."""
        self.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _END_S)

    async def close(self) -> None:
        await self.end()
        if self.qmp is not None:
            self.qmp.close()
        self._link.close()
        for descriptor in (self.memory, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self.memory = self._pidfd = -1

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace").strip()[-_LOG_TAIL:]
        return ""


class Qemu:
    """One build of QEMU with one accelerator."""

    def __init__(self, *, kvm: bool, binary: str | None = None) -> None:
        self._named = binary
        self._binary = ""
        self._kvm = kvm
        self._kept = memory_image.Kept()

    @property
    def name(self) -> str:
        return "qemu-kvm" if self._kvm else "qemu-tcg"

    @property
    def tier(self) -> Tier:
        return Tier.MICROVM if self._kvm else Tier.EMULATED

    async def prepare(self) -> str:
        self._binary, version = await installed(self._named)
        if self._kvm:
            await runs_guests()
        return version

    async def boot(self, machine: Machine, directory: Path) -> QemuVm:
        with contextlib.ExitStack() as stack:
            memory = _taking(memory_image.blank, machine.memory_mib * 2**20)
            kernel, initrd = (_opened(stack, path) for path in (machine.kernel, machine.initrd))
            cmdline = f"{machine.cmdline} {_tuning(kvm=self._kvm)}".strip()
            start = ["-kernel", _path(kernel), "-initrd", _path(initrd), "-append", cmdline]
            return await self._spawn(machine, directory, memory, start, [kernel, initrd], shared=True)

    async def snapshot(self, vm: Vm, into: Path) -> None:
        assert isinstance(vm, QemuVm)
        assert vm.qmp is not None
        await vm.qmp.do("stop")
        await vm.qmp.do("migrate-set-capabilities", capabilities=_IGNORE_SHARED)
        try:
            (into / "state").write_bytes(await _state_of(vm, vm.qmp))
            memory_image.seal(vm.memory)
            await asyncio.to_thread(memory_image.save, vm.memory, into / "memory")
        except OSError as error:
            raise SandboxUnavailable(f"A snapshot cannot be kept: {error}.") from error
        self._kept.put(into / "memory", vm.memory)
        vm.memory = -1

    async def clone(self, machine: Machine, snapshot: Path, directory: Path, *, fork: bool = False) -> QemuVm:
        memory = _taking(self._kept.get, snapshot / "memory")
        if fork:
            memory = _taking(memory_image.copy, memory)
        state = _taking(lambda path: path.read_bytes(), snapshot / "state")
        reading_end, writing_end = os.pipe()
        writing = asyncio.create_task(asyncio.to_thread(_write_all, writing_end, state))
        try:
            start, passed = ["-incoming", "defer"], [reading_end]
            vm = await self._spawn(machine, directory, memory, start, passed, shared=fork, keep=not fork)
        finally:
            os.close(reading_end)  # QEMU has its own, whose end is the end of writing
        assert vm.qmp is not None
        try:
            await vm.qmp.do("migrate-set-capabilities", capabilities=_IGNORE_SHARED)
            await vm.qmp.do("migrate-incoming", uri=f"fd:{reading_end}")
            await vm.qmp.migrated()
            await writing
            await vm.qmp.do("cont")
        except BaseException:
            await asyncio.shield(vm.close())
            raise
        return vm

    async def _spawn(
        self,
        machine: Machine,
        directory: Path,
        memory: int,
        start: Sequence[str],
        descriptors: Sequence[int],
        *,
        shared: bool,
        keep: bool = False,
    ) -> QemuVm:
        """Start QEMU and its control connection; `memory` is the machine's to close unless `keep`."""
        log = directory / "qemu.log"
        with contextlib.ExitStack() as stack:
            if not keep:
                unless_started = stack.enter_context(contextlib.ExitStack())
                unless_started.callback(os.close, memory)
            drives = [_opened(stack, path) for path in machine.drives]
            link, its_link = socket.socketpair()
            control, its_control = socket.socketpair()
            stack.callback(its_link.close)
            stack.callback(its_control.close)
            command = [
                *self._prefix(),
                *self._machine(machine, directory, memory, shared=shared),
                *_devices(its_link.fileno(), its_control.fileno(), drives),
                *start,
            ]
            passed = [memory, its_link.fileno(), its_control.fileno(), *drives, *descriptors]
            try:
                vm = QemuVm(await self._execute(command, passed, log), link, log)
            except ProcessLookupError:
                message = f"{self.name} did not start: {log.read_text(errors='replace').strip()[-_LOG_TAIL:]}"
                raise SandboxUnavailable(message, remedy=INSTALL) from None
            _limit(vm.pid)
            if not keep:
                unless_started.pop_all()
                vm.memory = memory
        try:
            vm.qmp = await Qmp.over(control)
            await vm.qmp.greet(_GREETING_S)
        except BaseException as error:
            await asyncio.shield(vm.close())
            if isinstance(error, SandboxUnavailable):
                message = f"{self.name} did not start: {vm.last_words() or error.message}"
                raise SandboxUnavailable(message) from error
            raise
        return vm

    async def _execute(self, command: list[str], passed: list[int], log: Path) -> asyncio.subprocess.Process:
        nobody = os.geteuid() == 0 and not self._kvm
        with log.open("wb") as errors:
            try:
                return await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    env=_ENV,
                    cwd="/",
                    pass_fds=passed,
                    start_new_session=True,
                    umask=0o077,
                    user=_NOBODY if nobody else None,
                    group=_NOBODY if nobody else None,
                    extra_groups=[] if nobody else None,
                )
            except OSError as error:
                raise SandboxUnavailable(f"{self._binary} does not start: {error.strerror}.", remedy=INSTALL) from error

    def _prefix(self) -> list[str]:
        """Die with us, where the program that arranges it is there; elsewhere `sweep` finds it."""
        prefix = []
        if (setpriv := shutil.which("setpriv")) is not None:
            prefix += [setpriv, "--pdeathsig", "KILL", "--no-new-privs", "--"]
        return [*prefix, self._binary]

    def _machine(self, machine: Machine, directory: Path, memory: int, *, shared: bool) -> list[str]:
        size = f"{machine.memory_mib}M"
        backend = f"memory-backend-file,id=ram,size={size},mem-path={_path(memory)},share={'on' if shared else 'off'}"
        return [
            *("-name", str(directory)),  # by this `sweep` finds it
            *("-M", "microvm,acpi=on,rtc=off,isa-serial=off,x-option-roms=off,memory-backend=ram"),
            *("-accel", "kvm" if self._kvm else "tcg,tb-size=64"),
            *("-cpu", "host" if self._kvm else "max"),
            *("-m", size, "-smp", str(machine.vcpus), "-object", backend),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", _FILTER),
        ]


def _limit(pid: int) -> None:
    """No core with a guest's memory in it, no large file; set from here, since QEMU's filter lets nobody raise them."""
    with contextlib.suppress(OSError):
        for name, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, _FILE_BYTES)):
            resource.prlimit(pid, name, (value, value))


async def _state_of(vm: QemuVm, qmp: Qmp) -> bytes:
    """The state of its devices, after which the machine is ended."""
    reading_end, writing_end = os.pipe()
    reading = asyncio.create_task(asyncio.to_thread(_read_all, reading_end))
    try:
        try:
            await qmp.give("state", writing_end)
        finally:
            os.close(writing_end)
        await qmp.do("migrate", uri="fd:state")
        await qmp.migrated()
    finally:
        await vm.end()  # and with it, reading
    return await reading


def _read_all(descriptor: int) -> bytes:
    """Runs in a thread, and closes the descriptor."""
    with open(descriptor, "rb") as file:
        return file.read(_STATE_BYTES)


def _write_all(descriptor: int, data: bytes) -> None:
    """Runs in a thread, because a pipe holds less than a state may have; closes the descriptor."""
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb", buffering=0) as file:
        left = memoryview(data)
        while left:
            left = left[file.write(left) or 0 :]


async def installed(named: str | None = None) -> tuple[str, str]:
    """The path and version of QEMU: the argument, then LOCKSTEP_QEMU, then PATH.

    Raises:
        SandboxUnavailable: there is none that answers.
    """
    wanted = named or os.environ.get("LOCKSTEP_QEMU") or "qemu-system-x86_64"
    found = await asyncio.to_thread(shutil.which, wanted)
    if found is None:
        raise SandboxUnavailable(f"{wanted} is not an executable on this machine.", remedy=INSTALL)
    try:
        done = await asyncio.to_thread(
            subprocess.run, [found, "--version"], capture_output=True, text=True, timeout=_GREETING_S, env=_ENV
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxUnavailable(f"{found} does not start: {error}.", remedy=INSTALL) from error
    version = re.search(r"version (\S+(?: \([^)]*\))?)", done.stdout)
    if done.returncode != 0 or version is None:
        raise SandboxUnavailable(f"{found} --version gave no sensible answer.", remedy=INSTALL)
    return found, version.group(1)


def _devices(link: int, control: int, drives: Sequence[int]) -> list[str]:
    arguments = [
        *("-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control"),
        *("-device", "virtio-serial-device,max_ports=2"),
        *("-chardev", f"socket,id=link,fd={link}", "-device", "virtserialport,chardev=link,name=lockstep"),
        *("-object", "rng-random,id=chance,filename=/dev/urandom", "-device", "virtio-rng-device,rng=chance"),
    ]
    for number, drive in enumerate(drives):
        arguments += ["-add-fd", f"fd={drive},set={number}"]
        arguments += ["-drive", f"if=none,id=d{number},file=/dev/fdset/{number},format=raw,readonly=on"]
        arguments += ["-device", f"virtio-blk-device,drive=d{number}"]
    return arguments


def _tuning(*, kvm: bool) -> str:
    """What the kernel need not find out. Emulated, it can hang while it measures the clock, or distrust it wrongly."""
    if kvm:
        return ""
    clock_khz = counter_khz()
    clock = f"clocksource=tsc tsc=reliable tsc_early_khz={clock_khz}" if clock_khz else ""
    return f"mitigations=off {clock}".strip()


def _taking(take: Callable[[_T], _R], of: _T) -> _R:
    try:
        return take(of)
    except OSError as error:
        raise SandboxUnavailable(f"What a machine starts from cannot be had: {error}.") from error


def _opened(stack: contextlib.ExitStack, path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxUnavailable(f"A machine's file cannot be opened: {error.strerror} ({path}).") from error
    stack.callback(os.close, descriptor)
    return descriptor


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
