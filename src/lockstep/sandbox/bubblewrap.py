"""bubblewrap: namespaces, seccomp, Landlock, limits on the host's own kernel; only where an agent's policy accepts it.

Fast and no more than that: a bug in the host's kernel is a way out. Amd64 alone, because its filter knows no other.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.backend import Details, TierBackend
from lockstep.sandbox.bubblewrap_process import BubblewrapBody, spawn
from lockstep.sandbox.contract import SandboxSpec
from lockstep.sandbox.leftovers import Remains
from lockstep.sandbox.proven import Grounds
from lockstep.values import Json, Tier

INSTALL = "Install it with `apt-get install bubblewrap`, or name a binary in LOCKSTEP_BWRAP."


class Bubblewrap(TierBackend[str]):
    """The process tier; its one way is the path of `bwrap`."""

    def __init__(self, state_dir: Path, bwrap: str | None = None) -> None:
        super().__init__(state_dir, Tier.PROCESS, "bubblewrap")
        self._named = bwrap

    async def _grounds(self) -> Grounds:
        path = _locate(self._named)
        return [path, os.stat(path).st_mtime_ns, os.uname().release, os.geteuid()]

    async def _ways(self) -> list[str]:
        return [_locate(self._named)]

    def _stored(self, way: str) -> Json:
        return way

    def _restored(self, stored: Json) -> str:
        return str(stored)

    def _describe(self, way: str) -> tuple[str, Details]:
        return way, ()

    def _remedy(self, way: str) -> str:
        return "Run as root, or allow user namespaces (sysctl user.max_user_namespaces)."

    async def _spawn(self, way: str, spec: SandboxSpec, mounts: Mapping[str, Path], remains: Remains) -> BubblewrapBody:
        return await spawn(way, spec, mounts, remains, self._ledger)


def _locate(named: str | None) -> str:
    """The path of `bwrap`: the argument, then LOCKSTEP_BWRAP, then PATH.

    Raises:
        SandboxUnavailable: there is none, or this machine's processor is not one the filter is for.
    """
    if platform.machine() != "x86_64":
        raise SandboxUnavailable(f"The process tier knows no filter for {platform.machine()}.", remedy="Use gVisor.")
    wanted = named or os.environ.get("LOCKSTEP_BWRAP") or "bwrap"
    found = shutil.which(wanted)
    if found is None:
        raise SandboxUnavailable(f"bubblewrap's {wanted} is not an executable on this machine.", remedy=INSTALL)
    return os.path.realpath(found)
