"""bubblewrap: namespaces, seccomp, Landlock, limits on the host's own kernel; only where an agent's policy accepts it.

Fast and no more than that: a bug in the host's kernel is a way out. Amd64 alone, because its filter knows no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import time
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.bubblewrap_process import spawn, started
from lockstep.sandbox.canary import passes
from lockstep.sandbox.contract import Findings, Process, SandboxSpec
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_inside import furnished
from lockstep.sandbox.gvisor_spec import check_mounts
from lockstep.sandbox.leftovers import Ledger, Remains, unwritable
from lockstep.sandbox.process import SandboxProcess
from lockstep.sandbox.proven import Proven
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Tier

INSTALL = "Install it with `apt-get install bubblewrap`, or name a binary in LOCKSTEP_BWRAP."


class Bubblewrap:
    """The process tier. `state_dir` remembers what was proven and which sandboxes exist."""

    def __init__(self, state_dir: Path, bwrap: str | None = None) -> None:
        self._named = bwrap
        self._ledger = Ledger(state_dir)
        self._proven = Proven(state_dir / "bubblewrap.json")
        self._authority = EgressCA(state_dir / "egress-ca")
        self._findings: Findings | None = None
        self._canary_lock = asyncio.Lock()

    @property
    def tier(self) -> Tier:
        return Tier.PROCESS

    async def canary(self) -> Findings:
        async with self._canary_lock:
            if self._findings is None:
                self._findings = await self._try_out()
            return self._findings

    async def available(self) -> Findings:
        if self._findings is None:
            with contextlib.suppress(SandboxUnavailable):
                path = _locate(self._named)
                if self._proven.holds(_grounds(path)):
                    self._findings = self._result(((path, "proven before"),), available=True)
        return self._findings or await self.canary()

    async def start(self, spec: SandboxSpec) -> Process:
        began = time.monotonic()
        bwrap = _locate(self._named)
        spec, proxy = await furnished(spec, self._authority)
        mounts = check_mounts(spec.mounts)
        remains = self._ledger.create()
        process: SandboxProcess | None = None
        try:
            if proxy is not None:
                await proxy.listen(remains.egress_socket)
            body, status = await spawn(bwrap, spec, mounts, remains, self._ledger)
            process = SandboxProcess(body, spec, proxy, began)
            await started(status, process)
        except BaseException as error:
            await to_the_end(asyncio.create_task(self._give_up(remains, process, proxy)))
            if isinstance(error, OSError):
                raise unwritable(error) from error
            raise
        process.started()
        return process

    async def sweep(self) -> int:
        return await self._ledger.sweep()

    async def _give_up(self, remains: Remains, process: SandboxProcess | None, proxy: EgressProxy | None) -> None:
        if process is not None:
            await process.close()
            return
        if proxy is not None:
            await proxy.close()
        await self._ledger.destroy(remains)

    async def _try_out(self) -> Findings:
        try:
            path = _locate(self._named)
        except SandboxUnavailable as error:
            return self._result((("bwrap", error.message),), error.remedy, available=False)
        available, seen = await passes(path, self.start)
        if available:
            self._proven.save(_grounds(path))
        remedy = "" if available else "Run as root, or allow user namespaces (sysctl user.max_user_namespaces)."
        return self._result(seen, remedy, available=available)

    def _result(self, details: tuple[tuple[str, str], ...], remedy: str = "", *, available: bool) -> Findings:
        return Findings(tier=self.tier, backend="bubblewrap", available=available, details=details, remedy=remedy)


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


def _grounds(path: str) -> list[str | int]:
    return [path, os.stat(path).st_mtime_ns, os.uname().release, os.geteuid()]
