"""gVisor: each call in a fresh `runsc` sandbox that is destroyed afterwards.

Chooses how to run (`canary`) and guarantees that nothing of a sandbox is left; `gvisor_process` runs one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.canary import passes
from lockstep.sandbox.contract import Findings, Process, SandboxSpec
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_inside import furnished
from lockstep.sandbox.gvisor_process import spawn
from lockstep.sandbox.leftovers import Ledger, Remains, unwritable
from lockstep.sandbox.process import SandboxProcess
from lockstep.sandbox.runsc import RUNSC_ENV, SYSTRAP, ProvenWay, Runsc, locate, ways
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Tier

_DELETE_S = 10.0
_OLD = "without systrap; on Debian 12 `lockstep setup gvisor` fetches a faster one"
_REMEDY = "Run `lockstep doctor` to see what this machine can do."


class GVisor:
    """The gVisor tier. `state_dir` remembers which way works here and which sandboxes exist."""

    def __init__(self, state_dir: Path, runsc: str | None = None) -> None:
        self._named = runsc
        self._ledger = Ledger(state_dir)
        self._proven = ProvenWay(state_dir / "gvisor.json")
        self._authority = EgressCA(state_dir / "egress-ca")
        self._way: Runsc | None = None
        self._findings: Findings | None = None
        self._canary_lock = asyncio.Lock()

    @property
    def tier(self) -> Tier:
        return Tier.GVISOR

    async def canary(self) -> Findings:
        async with self._canary_lock:
            if self._findings is None:
                self._findings = await self._search()
            return self._findings

    async def available(self) -> Findings:
        way = self._way
        if way is None:
            with contextlib.suppress(SandboxUnavailable):  # the canary says it better
                way = self._proven.load(locate(self._named))
        if way is None or self._findings is not None:
            return await self.canary()
        seen = (("runsc", f"{way.path}, {way.version}"), (way.name, "proven before"))
        return self._result(seen, "", available=True)

    async def start(self, spec: SandboxSpec) -> Process:
        try:
            return await self.start_by(await self._choose(), spec)
        except SandboxUnavailable:
            if not self._forget_remembered_way():
                raise
            return await self.start_by(await self._choose(), spec)

    async def start_by(self, way: Runsc, spec: SandboxSpec) -> Process:
        """A started sandbox, run in this way.

        Raises:
            ConfigError: the mounts of the spec are refused.
            SandboxUnavailable: it did not start; nothing of it is left.
        """
        began = time.monotonic()
        spec, proxy = await furnished(spec, self._authority)
        remains = self._ledger.create()
        process: SandboxProcess | None = None
        try:
            if proxy is not None:
                await proxy.listen(remains.egress_socket)
            socket = remains.egress_socket if proxy else None
            body = await spawn(way, spec, remains, socket, functools.partial(self._destroy, way, remains))
            process = SandboxProcess(body, spec, proxy, began)
            await body.started(process.framed)
        except BaseException as error:
            await to_the_end(asyncio.create_task(self._give_up(way, remains, process, proxy)))
            if isinstance(error, OSError):
                raise unwritable(error) from error
            raise
        process.started()
        return process

    async def sweep(self) -> int:
        return await self._ledger.sweep()

    async def _give_up(
        self, way: Runsc, remains: Remains, process: SandboxProcess | None, proxy: EgressProxy | None
    ) -> None:
        if process is not None:
            await process.close()
            return
        if proxy is not None:
            await proxy.close()
        await self._destroy(way, remains, clean=False)

    async def _destroy(self, way: Runsc, remains: Remains, clean: bool) -> None:
        try:
            if not clean:
                await self._ledger.hunt(remains)
                await _delete(way, remains)
        finally:
            await self._ledger.remove(remains)

    async def _choose(self) -> Runsc:
        if self._way is None:
            self._way = self._proven.load(locate(self._named))
        if self._way is None:
            findings = await self.canary()
            if self._way is None:
                raise SandboxUnavailable("gVisor cannot run on this machine.", remedy=findings.remedy or _REMEDY)
        return self._way

    def _forget_remembered_way(self) -> bool:
        """Drop the way that just failed; True when it was only remembered, so that searching again makes sense."""
        self._proven.forget()
        remembered = self._findings is None
        self._way = None
        self._findings = None
        return remembered

    async def _search(self) -> Findings:
        """Try every way with a real sandbox; the first that starts and refuses what it must is remembered."""
        try:
            candidates = await ways(locate(self._named))
        except SandboxUnavailable as error:
            return self._result((("runsc", error.message),), error.remedy, available=False)
        details: tuple[tuple[str, str], ...] = (("runsc", f"{candidates[0].path}, {candidates[0].version}"),)
        if candidates[0].platform != SYSTRAP:
            details += (("build", _OLD),)
        for way in candidates:
            available, seen = await passes(way.name, functools.partial(self.start_by, way))
            details += seen
            if available:
                self._way = way
                self._proven.save(way)
                return self._result(details, "", available=True)
        remedy = (
            "Run as root, or allow user namespaces (sysctl user.max_user_namespaces)."
            if candidates[0].rootless
            else "Run `lockstep setup gvisor` for a newer runsc, or allow ptrace on this host."
        )
        return self._result(details, remedy, available=False)

    def _result(self, details: tuple[tuple[str, str], ...], remedy: str, *, available: bool) -> Findings:
        return Findings(tier=self.tier, backend="gvisor", available=available, details=details, remedy=remedy)


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
