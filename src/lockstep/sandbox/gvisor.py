"""gVisor: each call in a fresh `runsc` sandbox that is destroyed afterwards.

Says which ways of running there are, and guarantees that nothing of a sandbox is left; `gvisor_process` runs one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from lockstep.sandbox.backend import Details, TierBackend
from lockstep.sandbox.contract import SandboxSpec
from lockstep.sandbox.gvisor_process import GVisorBody, spawn
from lockstep.sandbox.leftovers import Remains
from lockstep.sandbox.proven import Grounds
from lockstep.sandbox.runsc import RUNSC_ENV, SYSTRAP, Runsc, locate, ways
from lockstep.values import Json, Tier

_DELETE_S = 10.0
_OLD = "without systrap; on Debian 12 `lockstep setup gvisor` fetches a faster one"


class GVisor(TierBackend[Runsc]):
    """The gVisor tier; of the ways to run `runsc` the canary finds the one that works here."""

    def __init__(self, state_dir: Path, runsc: str | None = None) -> None:
        super().__init__(state_dir, Tier.GVISOR, "gvisor")
        self._named = runsc
        self._skeletons = state_dir / "skeletons"

    async def _grounds(self) -> Grounds:
        path = locate(self._named)
        return [path, os.stat(path).st_mtime_ns, os.uname().release, os.geteuid()]

    async def _ways(self) -> list[Runsc]:
        return await ways(locate(self._named))

    def _stored(self, way: Runsc) -> Json:
        return asdict(way)

    def _restored(self, stored: Json) -> Runsc:
        assert isinstance(stored, dict)
        return Runsc(**{**stored, "flags": tuple(stored["flags"])})

    def _describe(self, way: Runsc) -> tuple[str, Details]:
        details: Details = (("runsc", f"{way.path}, {way.version}"),)
        return way.name, details if way.platform == SYSTRAP else (*details, ("build", _OLD))

    def _remedy(self, way: Runsc) -> str:
        if way.rootless:
            return "Run as root, or allow user namespaces (sysctl user.max_user_namespaces)."
        return "Run `lockstep setup gvisor` for a newer runsc, or allow ptrace on this host."

    async def _spawn(self, way: Runsc, spec: SandboxSpec, mounts: Mapping[str, Path], remains: Remains) -> GVisorBody:
        return await spawn(way, spec, mounts, remains, self._skeletons, functools.partial(self._end, way, remains))

    async def _end(self, way: Runsc, remains: Remains, clean: bool) -> None:
        await (self._ledger.remove(remains) if clean else self._destroy(way, remains))

    async def _destroy(self, way: Runsc, remains: Remains) -> None:
        try:
            await self._ledger.hunt(remains)
            await _delete(way, remains)
        finally:
            await self._ledger.remove(remains)


async def _delete(way: Runsc, remains: Remains) -> None:
    """`runsc delete --force`: for a sandbox whose own `runsc run` could not clean up."""
    command = way.command(remains.state_root, "delete", "--force", remains.id)
    with contextlib.suppress(OSError):
        quiet = asyncio.subprocess.DEVNULL
        child = await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=quiet, stderr=quiet, env=RUNSC_ENV)
        try:
            await asyncio.wait_for(child.wait(), _DELETE_S)
        except TimeoutError:
            child.send_signal(signal.SIGKILL)
            await child.wait()
