"""The microVM tier: each call in a machine of its own, cloned from a snapshot and destroyed afterwards.

Clones of a tool that has started are handed out only where the tool draws its randomness anew when it is called;
everything else that clones share, the agent in the guest renews before it answers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.backend import Details, TierBackend
from lockstep.sandbox.contract import SandboxSpec
from lockstep.sandbox.drive import write_drive
from lockstep.sandbox.leftovers import Remains
from lockstep.sandbox.link import LinkError
from lockstep.sandbox.machines import REMEDY, Ground, Held, Machines
from lockstep.sandbox.microvm_process import MicroVmBody
from lockstep.sandbox.monitor import Monitor
from lockstep.sandbox.proven import Grounds
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Json, Tier

PYTHON = ("/usr/bin/python3", "-I", "-S")
"""The guest's own, which starts whatever this machine has."""
_NO_BOUNDARY = "none: the processor is emulated in software, which is not a security boundary"


class MicroVM(TierBackend[Ground]):
    """The microVM tier over one monitor.

    Args:
        state_dir: remembers what was proven and which machines exist.
        monitor: runs the machines.
        cache: holds the guest image and the snapshots.
        draws_anew: whether what a spec starts reseeds itself at each call, so that clones of it may be handed out.
    """

    _python = (PYTHON, {})

    def __init__(
        self,
        state_dir: Path,
        monitor: Monitor,
        cache: Path,
        draws_anew: Callable[[SandboxSpec], bool] = lambda _: False,
    ) -> None:
        super().__init__(state_dir, monitor.tier, monitor.name)
        self._draws_anew = draws_anew
        self._machines = Machines(monitor, cache, self._ledger)

    async def _grounds(self) -> Grounds:
        ground = await self._machines.look()
        return [self._name, ground.version, ground.image.digest, os.uname().release, os.geteuid()]

    async def _ways(self) -> list[Ground]:
        return [self._machines.ground]

    def _stored(self, way: Ground) -> Json:
        return self._name

    def _restored(self, stored: Json) -> Ground:
        return self._machines.ground

    def _describe(self, way: Ground) -> tuple[str, Details]:
        image = f"{way.image.digest[:16]}, Linux {way.image.kernel_version}"
        found = (("monitor", f"{self._name} {way.version}"), ("guest image", image))
        return self._name, found if self.tier is Tier.MICROVM else (*found, ("boundary", _NO_BOUNDARY))

    def _remedy(self, way: Ground) -> str:
        return REMEDY

    async def _spawn(self, way: Ground, spec: SandboxSpec, mounts: Mapping[str, Path], remains: Remains) -> MicroVmBody:
        ready = not spec.secrets and self._draws_anew(spec)  # placeholders of secrets are one sandbox's alone
        egress = remains.egress_socket if spec.egress else None
        held = Held()
        try:
            drive = await asyncio.to_thread(write_drive, Path(remains.directory, "drive"), mounts)
            await self._machines.start(held, spec, drive, remains, egress, ready=ready)
            return MicroVmBody(*held.complete(), spec, lambda: self._ledger.destroy(remains))
        except BaseException as error:
            await to_the_end(asyncio.create_task(held.close()))
            if isinstance(error, LinkError):
                raise SandboxUnavailable(f"The microVM did not start: {error}", remedy=REMEDY) from error
            raise
