"""Machines for the microVM tier: cloned from two kinds of snapshots, which are made when they are first needed.

A bare snapshot holds a guest that has booted and read nothing yet; any tool can start in its clones. A ready one holds
a tool that has started and waits for its first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.contract import SandboxSpec
from lockstep.sandbox.drive import Drive, blank_drive
from lockstep.sandbox.guest_limits import machine_memory_mib, start_request
from lockstep.sandbox.image.build import Image, find_image
from lockstep.sandbox.leftovers import Ledger, Remains, unwritable
from lockstep.sandbox.link import Link, LinkError
from lockstep.sandbox.monitor import Machine, Monitor, Vm
from lockstep.sandbox.snapshots import Snapshots
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Digest, Json, Tier, digest_json

FORMAT = 2
"""Part of every snapshot's key; counted up when machines are put together or started differently."""
REMEDY = "Run `lockstep doctor` to see what this machine can do."
_CMDLINE = "quiet loglevel=0 panic=-1 reboot=t"
_BOOT_S = {Tier.MICROVM: 20.0, Tier.EMULATED: 150.0}
_CLONE_S = 20.0
_REST_S = 30.0
_REST_LOOK_S = 0.01
_STDERR_BYTES = 8 * 2**10


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What every machine stands on: the guest image, and the version of the monitor."""

    image: Image
    version: str


@dataclass(kw_only=True, slots=True)
class Held:
    """A machine and the link to it, as far as they have come to be."""

    vm: Vm | None = None
    link: Link | None = None

    def complete(self) -> tuple[Vm, Link]:
        assert self.vm is not None
        assert self.link is not None
        return self.vm, self.link

    async def close(self) -> None:
        if self.link is not None:
            await self.link.close()
        if self.vm is not None:
            await self.vm.close()


class Machines:
    """The machines of one monitor. `cache` holds the guest image and the snapshots."""

    def __init__(self, monitor: Monitor, cache: Path, ledger: Ledger) -> None:
        self._monitor = monitor
        self._cache = cache
        self._ledger = ledger
        self._snapshots = Snapshots.below(cache)
        self._restless: set[Digest] = set()
        self._ground: Ground | None = None

    async def look(self) -> Ground:
        """Look for the image and the monitor. Called first.

        Raises:
            SandboxUnavailable: one of both is not there.
        """
        version = await self._monitor.prepare()
        self._ground = Ground(image=await asyncio.to_thread(find_image, self._cache), version=version)
        return self._ground

    @property
    def ground(self) -> Ground:
        """What was found last."""
        assert self._ground is not None, "look() comes first"
        return self._ground

    async def start(
        self, held: Held, spec: SandboxSpec, drive: Drive, remains: Remains, egress: Path | None, *, ready: bool
    ) -> None:
        """A machine in which what the spec names has started, into `held`; with `ready`, a clone of one that waits.

        Raises:
            SandboxUnavailable, LinkError, OSError: it did not start; what `held` has by then is the caller's to close.
        """
        snapshot = await self._ready_snapshot(spec, drive) if ready else None
        if snapshot is None:
            bare = await self._bare_snapshot(spec, drive)
            _, link = await self._clone(held, self._machine(spec, drive), bare, remains, egress)
            await link.ask("start", start_request(spec))
        else:
            read = Drive(path=snapshot / "drive", digest=drive.digest, size_bytes=drive.size_bytes)
            _, link = await self._clone(held, self._machine(spec, read), snapshot, remains, egress)
            link.stderr.begin_with((snapshot / "stderr").read_bytes())

    def _machine(self, spec: SandboxSpec, drive: Drive) -> Machine:
        return Machine(
            kernel=self.ground.image.kernel,
            initrd=self.ground.image.initrd,
            cmdline=_CMDLINE,
            drives=(drive.path,),
            memory_mib=machine_memory_mib(spec.limits, drive.size_bytes),
        )

    async def _clone(
        self, held: Held, machine: Machine, snapshot: Path, remains: Remains, egress: Path | None, *, fork: bool = False
    ) -> tuple[Vm, Link]:
        """Clone and attach; a snapshot that does not load is removed, so that the next start makes it anew.

        A monitor that works no longer says so itself, and nothing about the snapshot.
        """
        try:
            held.vm = await self._monitor.clone(machine, snapshot, Path(remains.directory), fork=fork)
            held.link = Link(await held.vm.connect(), egress)
            await held.link.attach(_CLONE_S)
        except (SandboxUnavailable, LinkError):
            await self._monitor.prepare()
            self._snapshots.drop(snapshot)
            raise
        return held.vm, held.link

    async def _bare_snapshot(self, spec: SandboxSpec, drive: Drive) -> Path:
        async def make(draft: Path) -> None:
            blank = Drive(path=draft / "drive", digest=drive.digest, size_bytes=drive.size_bytes)
            blank_drive(blank.path, blank.size_bytes)
            async with self._workshop() as (held, remains):
                held.vm = await self._monitor.boot(self._machine(spec, blank), Path(remains.directory))
                held.link = Link(await held.vm.connect())
                await held.link.attach(_BOOT_S[self._monitor.tier])
                await self._monitor.snapshot(held.vm, draft)

        return await self._snapshots.get(self._key(spec, drive, "bare"), make)

    async def _ready_snapshot(self, spec: SandboxSpec, drive: Drive) -> Path | None:
        """The snapshot of this tool waiting for its first request; None when it does not come to rest by itself."""
        key = self._key(spec, drive, {**start_request(spec), "drive": drive.digest})
        if key in self._restless:
            return None
        bare = await self._bare_snapshot(spec, drive)

        async def make(draft: Path) -> None:
            blank_drive(draft / "drive", drive.size_bytes)  # clones have read theirs
            async with self._workshop() as (held, remains):
                vm, link = await self._clone(held, self._machine(spec, drive), bare, remains, None, fork=True)
                await link.ask("start", start_request(spec))
                (draft / "stderr").write_bytes(await _come_to_rest(link))
                await self._monitor.snapshot(vm, draft)

        try:
            return await self._snapshots.get(key, make)
        except Restless:
            self._restless.add(key)
            return None

    def _key(self, spec: SandboxSpec, drive: Drive, what: Json) -> Digest:
        return digest_json(
            {
                "format": FORMAT,
                "image": self.ground.image.digest,
                "monitor": [self._monitor.name, self.ground.version, _processor()],
                "size": [machine_memory_mib(spec.limits, drive.size_bytes), drive.size_bytes],
                "what": what,
            }
        )

    @contextlib.asynccontextmanager
    async def _workshop(self) -> AsyncIterator[tuple[Held, Remains]]:
        """A place for a machine that is made to be snapshotted; nothing of it is left."""
        try:
            remains, held = self._ledger.create(), Held()
            try:
                yield held, remains
            finally:
                await to_the_end(asyncio.create_task(self._clear(held, remains)))
        except OSError as error:
            raise unwritable(error) from error
        except LinkError as error:
            raise SandboxUnavailable(f"The microVM did not start: {error}", remedy=REMEDY) from error

    async def _clear(self, held: Held, remains: Remains) -> None:
        try:
            await held.close()
        finally:
            await self._ledger.destroy(remains)


class Restless(Exception):
    """The tool does not come to rest silently, so that a snapshot of it would lose something."""


async def _come_to_rest(link: Link) -> bytes:
    """Wait until the tool waits for its input and has said nothing on its output; what it printed meanwhile.

    Raises:
        Restless: it ended, spoke, or never waits.
    """
    deadline = time.monotonic() + _REST_S
    said = b""
    while time.monotonic() < deadline:
        answer = await link.ask("rest")
        said = (said + await link.stderr.read_now())[-_STDERR_BYTES:]
        if link.stdout.spoken or answer.get("ended"):
            break
        if answer.get("resting"):
            return said
        await asyncio.sleep(_REST_LOOK_S)
    raise Restless


def _processor() -> str:
    """What of this machine a snapshot depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        return digest_json([line for line in lines if line.startswith(("model", "vendor_id", "flags", "stepping"))])
    return "unknown"
