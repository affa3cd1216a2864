"""A backend as the contract has it, over what starts bodies: canary, proof, and a start that leaves nothing behind.

A tier says how it is found, named and spawned; all else is the same for each of them. What passed the canary is
remembered across processes. When a start fails the tier is tried anew: one that no longer works is not offered again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.canary import Python, passes
from lockstep.sandbox.contract import Findings, Process, SandboxSpec
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_inside import furnished
from lockstep.sandbox.gvisor_spec import check_mounts
from lockstep.sandbox.leftovers import Ledger, Remains, unwritable
from lockstep.sandbox.process import Body, SandboxProcess
from lockstep.sandbox.proven import Grounds, Proven
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Json, Tier

_REMEDY = "Run `lockstep doctor` to see what this machine can do."
_LOST_S, _LOST_TIMES = 60.0, 20
"""A tier that worked and stopped is tried again after this time, or as many times what trying took."""

W = TypeVar("W")
"""What a tier runs sandboxes with, where there are several ways to choose from."""
Details = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Standing(Generic[W]):
    """What is known of a tier: the way that works, None when none does."""

    way: W | None
    findings: Findings
    tried: bool = True
    """By a canary of this process; else it was remembered."""
    until: float = math.inf


class TierBackend(ABC, Generic[W]):
    """A backend of one tier. `state_dir` remembers what was proven and which sandboxes exist."""

    def __init__(self, state_dir: Path, tier: Tier, name: str) -> None:
        self._tier = tier
        self._name = name
        self._ledger = Ledger(state_dir)
        self._proven = Proven(state_dir / f"{name}.json")
        self._authority = EgressCA(state_dir / "egress-ca")
        self._known: _Standing[W] | None = None
        self._trying = asyncio.Lock()

    @abstractmethod
    async def _grounds(self) -> Grounds:
        """What a proof rests on, looked for anew.

        Raises:
            SandboxUnavailable: what this tier needs is not there.
        """

    @abstractmethod
    async def _ways(self) -> Sequence[W]:
        """Every way worth trying, best first; at least one. Called after `_grounds`, and raises as it does."""

    @abstractmethod
    def _stored(self, way: W) -> Json:
        """For `_restored` of a later process."""

    @abstractmethod
    def _restored(self, stored: Json) -> W: ...

    @abstractmethod
    def _describe(self, way: W) -> tuple[str, Details]:
        """Its name, and what is seen of it before it is tried."""

    @abstractmethod
    def _remedy(self, way: W) -> str:
        """What helps where no way works, of which this was the first."""

    @abstractmethod
    async def _spawn(self, way: W, spec: SandboxSpec, mounts: Mapping[str, Path], remains: Remains) -> Body:
        """Start it; where the spec has egress, its proxy listens at `remains.egress_socket`.

        Raises:
            SandboxUnavailable, OSError: it did not start.
        """

    async def _destroy(self, way: W, remains: Remains) -> None:
        """Remove everything of a sandbox whose end nobody saw."""
        await self._ledger.destroy(remains)

    _python: Python | None = None
    """How Python is started inside, where it is not the one shared with this machine."""

    @property
    def tier(self) -> Tier:
        return self._tier

    async def canary(self) -> Findings:
        async with self._trying:
            if self._known is None or not self._known.tried:
                self._known = await self._try_out()
            return self._known.findings

    async def available(self) -> Findings:
        return (await self._standing()).findings

    async def start(self, spec: SandboxSpec) -> Process:
        standing = await self._standing()
        if standing.way is None:
            saw = "; ".join(f"{what}: {found.rstrip('.')}" for what, found in standing.findings.details)
            message = f"The {self._name} backend cannot run on this machine ({saw})."
            raise SandboxUnavailable(message, remedy=standing.findings.remedy or _REMEDY)
        try:
            try:
                return await self._start(standing.way, spec)
            except SandboxUnavailable:
                way = (await self._doubt(standing)).way
                if way is None or way == standing.way:  # no other way to try; or it is not the tier that fails
                    raise
            return await self._start(way, spec)
        except OSError as error:
            raise unwritable(error) from error

    async def _standing(self) -> _Standing[W]:
        async with self._trying:
            if self._known is None:
                self._known = await self._recall()
            if self._known is None:
                self._known = await self._try_out()
            elif time.monotonic() > self._known.until:
                self._known = await self._try_again()
            return self._known

    async def _doubt(self, failed: _Standing[W]) -> _Standing[W]:
        """What is known after a start failed: tried anew, once for all that failed meanwhile."""
        async with self._trying:
            if self._known is failed or self._known is None:
                self._known = await self._try_again()
            return self._known

    async def _try_again(self) -> _Standing[W]:
        began = time.monotonic()
        anew = await self._try_out()
        pause_s = max(_LOST_S, _LOST_TIMES * (time.monotonic() - began))
        return replace(anew, until=math.inf if anew.findings.available else time.monotonic() + pause_s)

    async def _recall(self) -> _Standing[W] | None:
        with contextlib.suppress(SandboxUnavailable, KeyError, TypeError):  # the canary says it better
            if (stored := self._proven.recall(await self._grounds())) is not None:
                way = self._restored(stored)
                name, details = self._describe(way)
                return replace(self._stand(way, (*details, (name, "proven before"))), tried=False)
        return None

    async def _try_out(self) -> _Standing[W]:
        """Try every way with a real sandbox; the first that starts and refuses what it must is remembered."""
        self._proven.forget()
        try:
            grounds, ways = await self._grounds(), await self._ways()
        except SandboxUnavailable as error:
            return self._stand(None, ((self._name, error.message),), error.remedy)
        _, details = self._describe(ways[0])
        for way in ways:
            name, _ = self._describe(way)
            fit, seen = await passes(name, functools.partial(self._start, way), self._python)
            details += seen
            if fit:
                self._proven.save(grounds, self._stored(way))
                return self._stand(way, details)
        return self._stand(None, details, self._remedy(ways[0]))

    def _stand(self, way: W | None, details: Details, remedy: str = "") -> _Standing[W]:
        findings = Findings(
            tier=self._tier, backend=self._name, available=way is not None, details=details, remedy=remedy
        )
        return _Standing(way=way, findings=findings)

    async def _start(self, way: W, spec: SandboxSpec) -> Process:
        """A started sandbox, run in this way; nothing of it is left when it does not start."""
        began = time.monotonic()
        spec, proxy = await furnished(spec, self._authority)
        mounts = check_mounts(spec.mounts)
        remains = self._ledger.create()
        process: SandboxProcess | None = None
        try:
            if proxy is not None:
                await proxy.listen(remains.egress_socket)
            body = await self._spawn(way, spec, mounts, remains)
            process = SandboxProcess(body, spec, proxy, began)
            await body.started(process.framed)
        except BaseException:
            await to_the_end(asyncio.create_task(self._give_up(way, remains, process, proxy)))
            raise
        process.started()
        return process

    async def _give_up(
        self, way: W, remains: Remains, process: SandboxProcess | None, proxy: EgressProxy | None
    ) -> None:
        if process is not None:
            await process.close()
            return
        if proxy is not None:
            await proxy.close()
        await self._destroy(way, remains)
