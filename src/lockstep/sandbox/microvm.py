"""The microVM tier: each call in a machine of its own, cloned from a snapshot and destroyed afterwards.

Clones of a tool that has started are handed out only where the tool draws its randomness anew when it is called;
everything else that clones share, the agent in the guest renews before it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from lockstep.errors import LockstepError, SandboxUnavailable
from lockstep.sandbox.canary import passes
from lockstep.sandbox.contract import Findings, Process, SandboxSpec
from lockstep.sandbox.drive import write_drive
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_inside import furnished
from lockstep.sandbox.gvisor_spec import check_mounts
from lockstep.sandbox.leftovers import Ledger, Remains, unwritable
from lockstep.sandbox.link import LinkError
from lockstep.sandbox.machines import REMEDY, Ground, Held, Machines
from lockstep.sandbox.microvm_process import MicroVmBody
from lockstep.sandbox.monitor import Monitor
from lockstep.sandbox.process import SandboxProcess
from lockstep.sandbox.proven import Proven
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Tier

PYTHON = ("/usr/bin/python3", "-I", "-S")
"""The guest's own, which starts whatever this machine has."""
_NO_BOUNDARY = "none: the processor is emulated in software, which is not a security boundary"


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
        self._draws_anew = draws_anew
        self._ledger = Ledger(state_dir)
        self._machines = Machines(monitor, cache, self._ledger)
        self._proven = Proven(state_dir / f"{monitor.name}.json")
        self._authority = EgressCA(state_dir / "egress-ca")
        self._findings: Findings | None = None
        self._canary_lock = asyncio.Lock()

    @property
    def tier(self) -> Tier:
        return self._monitor.tier

    async def canary(self) -> Findings:
        async with self._canary_lock:
            if self._findings is None:
                self._findings = await self._try_out()
            return self._findings

    async def available(self) -> Findings:
        if self._findings is None:
            with contextlib.suppress(SandboxUnavailable):  # the canary says it better
                ground = await self._machines.ground()
                if self._proven.holds(self._grounds(ground)):
                    seen = (*self._described(ground), (self._monitor.name, "proven before"))
                    return self._result(seen, available=True)
        return await self.canary()

    async def start(self, spec: SandboxSpec) -> Process:
        began = time.monotonic()
        await self._machines.ground()
        ready = not spec.secrets and self._draws_anew(spec)  # placeholders of secrets are one sandbox's alone
        spec, proxy = await furnished(spec, self._authority)
        mounts = check_mounts(spec.mounts)
        remains, held = self._ledger.create(), Held()
        try:
            if proxy is not None:
                await proxy.listen(remains.egress_socket)
            drive = await asyncio.to_thread(write_drive, Path(remains.directory, "drive"), mounts)
            egress = remains.egress_socket if proxy else None
            await self._machines.start(held, spec, drive, remains, egress, ready=ready)
            body = MicroVmBody(*held.complete(), spec, lambda: self._ledger.destroy(remains))
        except BaseException as error:
            await to_the_end(asyncio.create_task(self._give_up(held, remains, proxy)))
            if isinstance(error, LinkError):
                raise SandboxUnavailable(f"The microVM did not start: {error}", remedy=REMEDY) from error
            if isinstance(error, OSError):
                raise unwritable(error) from error
            raise
        process = SandboxProcess(body, spec, proxy, began)
        process.started()
        return process

    async def sweep(self) -> int:
        swept = await self._ledger.sweep()
        await asyncio.to_thread(self._machines.trim)
        return swept

    async def _give_up(self, held: Held, remains: Remains, proxy: EgressProxy | None) -> None:
        try:
            await held.close()
            if proxy is not None:
                await proxy.close()
        finally:
            await self._ledger.destroy(remains)

    async def _try_out(self) -> Findings:
        try:
            ground = await self._machines.ground()
        except SandboxUnavailable as error:
            return self._result(((self._monitor.name, error.message),), error.remedy, available=False)
        try:
            available, seen = await passes(self._monitor.name, self.start, (PYTHON, {}))
        except LockstepError as error:
            return self._result(((self._monitor.name, error.message),), error.remedy or REMEDY, available=False)
        if available:
            self._proven.save(self._grounds(ground))
        return self._result((*self._described(ground), *seen), "" if available else REMEDY, available=available)

    def _grounds(self, ground: Ground) -> list[str | int]:
        return [self._monitor.name, ground.version, ground.image.digest, os.uname().release, os.geteuid()]

    def _described(self, ground: Ground) -> tuple[tuple[str, str], ...]:
        image = f"{ground.image.digest[:16]}, Linux {ground.image.kernel_version}"
        found = (("monitor", f"{self._monitor.name} {ground.version}"), ("guest image", image))
        return found if self.tier is Tier.MICROVM else (*found, ("boundary", _NO_BOUNDARY))

    def _result(self, details: tuple[tuple[str, str], ...], remedy: str = "", *, available: bool) -> Findings:
        return Findings(tier=self.tier, backend=self._monitor.name, available=available, details=details, remedy=remedy)
