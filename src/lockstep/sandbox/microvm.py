"""The microVM tier: each call in a machine of its own, cloned from a snapshot and destroyed afterwards.

Two kinds of snapshots. A bare one holds a guest that has booted and read nothing yet; any tool can start in its clones.
A ready one holds a tool that has started and waits, and is made only of tools that draw their randomness anew when they
are called: everything else that clones share, the agent renews before it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import LockstepError, SandboxUnavailable
from lockstep.sandbox.canary import passes
from lockstep.sandbox.contract import Findings, Process, SandboxSpec
from lockstep.sandbox.drive import Drive, blank_drive, write_drive
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.guest_limits import machine_memory_mib, start_request
from lockstep.sandbox.gvisor_spec import check_mounts
from lockstep.sandbox.image.build import Image, find_image
from lockstep.sandbox.leftovers import Ledger, Remains, is_gone, kill_processes, remove_files
from lockstep.sandbox.link import Link, LinkError
from lockstep.sandbox.microvm_process import MicroVmProcess
from lockstep.sandbox.monitor import Machine, Monitor, Vm
from lockstep.sandbox.proven import Proven
from lockstep.sandbox.snapshots import Snapshots
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Digest, Tier, digest_json

FORMAT = 1
"""Part of every snapshot's key; counted up when what a snapshot holds changes its meaning."""
PYTHON = ("/usr/bin/python3", "-I", "-S")
_CMDLINE = "quiet loglevel=0 panic=-1 reboot=t"
_BOOT_S = {Tier.MICROVM: 20.0, Tier.EMULATED: 150.0}
_CLONE_S = 20.0
_REST_S = 30.0
_REST_LOOK_S = 0.01
_REMOVAL_ATTEMPTS = 40
_REMOVAL_PAUSE_S = 0.025
_NO_BOUNDARY = "none: the processor is emulated in software, which is not a security boundary"
_STDERR_BYTES = 8 * 2**10


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What every machine of this backend stands on: the image, and the version of the monitor."""

    image: Image
    version: str


class MicroVM:
    """The microVM tier over one monitor.

    Args:
        state_dir: remembers what was proven and which machines exist.
        monitor: runs the machines.
        cache: holds the guest image and the snapshots.
        draws_anew: whether what a spec starts reseeds itself at each call, so that clones of it may be handed out.
    """

    def __init__(
        self,
        state_dir: Path,
        monitor: Monitor,
        cache: Path,
        draws_anew: Callable[[SandboxSpec], bool] = lambda _: False,
    ) -> None:
        self._monitor = monitor
        self._cache = cache
        self._draws_anew = draws_anew
        self._ledger = Ledger(state_dir)
        self._snapshots = Snapshots(cache / "snapshots")
        self._proven = Proven(state_dir / f"{monitor.name}.json")
        self._ground: Ground | None = None
        self._findings: Findings | None = None
        self._canary_lock = asyncio.Lock()
        self._restless: set[Digest] = set()

    @property
    def tier(self) -> Tier:
        return self._monitor.tier

    async def canary(self) -> Findings:
        async with self._canary_lock:
            if self._findings is None:
                self._findings = await self._try_out()
            return self._findings

    async def available(self) -> Findings:
        if self._findings is not None:
            return self._findings
        with contextlib.suppress(SandboxUnavailable):
            ground = await self._prepared()
            if self._proven.holds(_proof(self._monitor, ground)):
                return self._result((*self._described(ground), (self._monitor.name, "proven before")), available=True)
        return await self.canary()

    async def start(self, spec: SandboxSpec) -> Process:
        began = time.monotonic()
        mounts = check_mounts(spec.mounts)
        ground = await self._prepared()
        remains = self._create()
        proxy = EgressProxy(spec.egress) if spec.egress else None
        held = _Held()
        try:
            if proxy is not None:
                await proxy.listen(remains.egress_socket)
            drive = await asyncio.to_thread(write_drive, Path(remains.directory, "drive"), mounts)
            ready = await self._ready_snapshot(ground, spec, drive)
            egress = remains.egress_socket if proxy else None
            if ready is None:
                bare = await self._bare_snapshot(ground, spec, drive)
                await self._clone(held, self._machine(ground, spec, drive), bare, remains, egress)
                await held.talk().ask("start", start_request(spec))
            else:
                kept = Drive(path=ready / "drive", digest=drive.digest, size_bytes=drive.size_bytes)
                await self._clone(held, self._machine(ground, spec, kept), ready, remains, egress)
                held.talk().stderr.begin_with((ready / "stderr").read_bytes())
            return MicroVmProcess(held.machine(), held.talk(), spec, proxy, began, lambda: self._destroy(remains))
        except BaseException as error:
            await to_the_end(asyncio.create_task(self._give_up(held, remains, proxy)))
            if isinstance(error, LinkError):
                raise SandboxUnavailable(f"The microVM did not start: {error}", remedy=_REMEDY) from error
            if isinstance(error, OSError):
                raise _unwritable(error) from error
            raise

    async def sweep(self) -> int:
        orphans = list(self._ledger.orphans())
        for remains in orphans:
            await self._destroy(remains)
        await asyncio.to_thread(self._snapshots.trim)
        return len(orphans)

    # Machines

    async def _prepared(self) -> Ground:
        if self._ground is None:
            version = await self._monitor.prepare()
            image = await asyncio.to_thread(find_image, self._cache)
            self._ground = Ground(image=image, version=version)
        return self._ground

    def _machine(self, ground: Ground, spec: SandboxSpec, drive: Drive) -> Machine:
        return Machine(
            kernel=ground.image.kernel,
            initrd=ground.image.initrd,
            cmdline=_CMDLINE,
            drives=(drive.path,),
            memory_mib=machine_memory_mib(spec.limits, drive.size_bytes),
        )

    async def _clone(
        self,
        held: _Held,
        machine: Machine,
        snapshot: Path,
        remains: Remains,
        egress: Path | None,
        *,
        fork: bool = False,
    ) -> None:
        """Clone and attach; a snapshot that does not load is removed, so that the next start makes it anew."""
        try:
            held.vm = await self._monitor.clone(machine, snapshot, Path(remains.directory), fork=fork)
            held.link = Link(await held.vm.connect(), egress)
            await held.link.attach(_CLONE_S)
        except (SandboxUnavailable, LinkError):
            self._snapshots.drop(snapshot)
            raise

    async def _bare_snapshot(self, ground: Ground, spec: SandboxSpec, drive: Drive) -> Path:
        memory_mib = machine_memory_mib(spec.limits, drive.size_bytes)

        async def make(draft: Path) -> None:
            blank = Drive(path=draft / "drive", digest=drive.digest, size_bytes=drive.size_bytes)
            blank_drive(blank.path, blank.size_bytes)
            async with self._workshop() as (held, remains):
                machine = self._machine(ground, spec, blank)
                held.vm = await self._monitor.boot(machine, Path(remains.directory))
                held.link = Link(await held.vm.connect())
                await held.link.attach(_BOOT_S[self.tier])
                await self._monitor.snapshot(held.vm, draft)

        return await self._snapshots.get(self._key(ground, memory_mib, drive.size_bytes, "bare"), make)

    async def _ready_snapshot(self, ground: Ground, spec: SandboxSpec, drive: Drive) -> Path | None:
        """The snapshot of this tool waiting for its first request; None when clones of it may not be handed out."""
        if not self._draws_anew(spec):
            return None
        memory_mib = machine_memory_mib(spec.limits, drive.size_bytes)
        key = self._key(ground, memory_mib, drive.size_bytes, {**start_request(spec), "drive": drive.digest})
        if key in self._restless:
            return None
        bare = await self._bare_snapshot(ground, spec, drive)

        async def make(draft: Path) -> None:
            blank_drive(draft / "drive", drive.size_bytes)  # clones have read theirs
            async with self._workshop() as (held, remains):
                await self._clone(held, self._machine(ground, spec, drive), bare, remains, None, fork=True)
                await held.talk().ask("start", start_request(spec))
                (draft / "stderr").write_bytes(await _come_to_rest(held.talk()))
                await self._monitor.snapshot(held.machine(), draft)

        try:
            return await self._snapshots.get(key, make)
        except _Restless:
            self._restless.add(key)
            return None

    def _key(self, ground: Ground, memory_mib: int, drive_bytes: int, what: object) -> Digest:
        monitor = [self._monitor.name, ground.version, _processor()]
        return digest_json(
            {
                "format": FORMAT,
                "image": ground.image.digest,
                "monitor": monitor,
                "size": [memory_mib, drive_bytes],
                "what": what,  # type: ignore[dict-item]
            }
        )

    @contextlib.asynccontextmanager
    async def _workshop(self) -> AsyncIterator[tuple[_Held, Remains]]:
        """A place for a machine that is made to be snapshotted; nothing of it is left."""
        remains, held = self._create(), _Held()
        try:
            yield held, remains
        except OSError as error:
            raise _unwritable(error) from error
        except LinkError as error:
            raise SandboxUnavailable(f"The microVM did not start: {error}", remedy=_REMEDY) from error
        finally:
            await to_the_end(asyncio.create_task(self._give_up(held, remains, None)))

    # Ends

    def _create(self) -> Remains:
        try:
            return self._ledger.create()
        except OSError as error:
            raise _unwritable(error) from error

    async def _give_up(self, held: _Held, remains: Remains, proxy: EgressProxy | None) -> None:
        try:
            if held.link is not None:
                await held.link.close()
            if held.vm is not None:
                await held.vm.close()
            if proxy is not None:
                await proxy.close()
        finally:
            await self._destroy(remains)

    async def _destroy(self, remains: Remains) -> None:
        """Kill what is left of a machine and remove its files; what resists stays recorded for the next sweep."""
        for _ in range(_REMOVAL_ATTEMPTS):
            if not kill_processes(remains):
                remove_files(remains)
                if is_gone(remains):
                    self._ledger.forget(remains)
                    return
            await asyncio.sleep(_REMOVAL_PAUSE_S)

    # The canary

    async def _try_out(self) -> Findings:
        try:
            ground = await self._prepared()
        except SandboxUnavailable as error:
            return self._result(((self._monitor.name, error.message),), available=False, remedy=error.remedy)
        try:
            available, seen = await passes(self._monitor.name, self.start, (PYTHON, {}))
        except LockstepError as error:
            return self._result(((self._monitor.name, error.message),), available=False, remedy=_REMEDY)
        if available:
            self._proven.save(_proof(self._monitor, ground))
        return self._result((*self._described(ground), *seen), available=available, remedy="" if available else _REMEDY)

    def _described(self, ground: Ground) -> tuple[tuple[str, str], ...]:
        image = f"{ground.image.digest[:16]}, Linux {ground.image.kernel_version}"
        found = (("monitor", f"{self._monitor.name} {ground.version}"), ("guest image", image))
        return found if self.tier is Tier.MICROVM else (*found, ("boundary", _NO_BOUNDARY))

    def _result(self, details: tuple[tuple[str, str], ...], *, available: bool, remedy: str = "") -> Findings:
        return Findings(tier=self.tier, backend=self._monitor.name, available=available, details=details, remedy=remedy)


_REMEDY = "Run `lockstep doctor` to see what this machine can do."


class _Held:
    """A machine and the link to it, as far as they have come to be."""

    def __init__(self) -> None:
        self.vm: Vm | None = None
        self.link: Link | None = None

    def machine(self) -> Vm:
        assert self.vm is not None
        return self.vm

    def talk(self) -> Link:
        assert self.link is not None
        return self.link


class _Restless(Exception):
    """The tool does not come to rest silently, so that a snapshot of it would lose something."""


async def _come_to_rest(link: Link) -> bytes:
    """Wait until the tool waits for its input and has said nothing on its output; what it printed meanwhile.

    Raises:
        _Restless: it ended, spoke, or never waits.
    """
    deadline = time.monotonic() + _REST_S
    said = bytearray()
    while time.monotonic() < deadline:
        answer = await link.ask("rest")
        said = (said + await link.stderr.read_now())[-_STDERR_BYTES:]
        if link.stdout.spoken or answer.get("ended"):
            break
        if answer.get("resting"):
            return bytes(said)
        await asyncio.sleep(_REST_LOOK_S)
    raise _Restless


def _processor() -> str:
    """What of this machine a snapshot depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        return digest_json([line for line in lines if line.startswith(("model", "vendor_id", "flags", "stepping"))])
    return "unknown"


def _proof(monitor: Monitor, ground: Ground) -> list[str | int]:
    return [monitor.name, ground.version, ground.image.digest, os.uname().release, os.geteuid()]


def _unwritable(error: OSError) -> SandboxUnavailable:
    message = f"The files of a sandbox cannot be written: {error.strerror or error} ({error.filename})."
    return SandboxUnavailable(message, remedy="Free some space, or name a writable directory in TMPDIR.")
