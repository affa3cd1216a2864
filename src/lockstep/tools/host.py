"""The tool host: every permitted call in a sandbox of its own, over MCP, and nothing without a permit.

A server elsewhere is reached from here, by the same rules, and hears nothing at all before the permit is spent.
A server is greeted before there is a permit, while it reaches nothing; then a call takes it, and its live definition
must match its pin before the call is sent. After it was sent, a missing answer means that nobody knows what happened;
before, it means that nothing did.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from typing import TypeVar
from urllib.parse import quote

from lockstep.agent.locked import LockedTool
from lockstep.agent.spec import LimitsSection
from lockstep.errors import ConfigError, LockstepError, SandboxBusy, SandboxUnavailable, StoreError
from lockstep.gate.permit import Permit
from lockstep.sandbox.contract import Backend, EgressRecord, Findings, Limits, SandboxSpec
from lockstep.sandbox.egress_forward import KEY_HEADER
from lockstep.sandbox.egress_rules import parse_rule
from lockstep.sandbox.pool import Pool
from lockstep.sandbox.warm import Lease, Recipe
from lockstep.tools.client import LEGACY, MODERN, McpClient
from lockstep.tools.code import CodeStore
from lockstep.tools.conversation import NotServing, Ready, converse, greet, meet
from lockstep.tools.definitions import Offer
from lockstep.tools.egress_checks import binding
from lockstep.tools.guest import LOCKSTEP_MOUNT, TOOL_MOUNT
from lockstep.tools.offering import offered
from lockstep.tools.port import Ask, Outcome, PermittedCall
from lockstep.tools.remote_headers import parameter_headers
from lockstep.tools.remote_servers import RemoteServers, remote_spec
from lockstep.tools.secret_values import secret_values
from lockstep.tools.starting import RUNTIME_MOUNT, Guest
from lockstep.values import TIER_RANK, Digest, Effect, Tier

_REMEDY = "`lockstep doctor` shows what this machine can do."
_MIB = 2**20
_MAX_RECIPES = 2_000
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Where a tool runs; `degraded` names the tier it should have had where the lock accepts a weaker one."""

    backend: Backend
    degraded: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What a source says of itself; `protocol` is empty for our own runner, where nothing is to settle."""

    protocol: str
    offer: Offer


class SandboxedTools:
    """Runs calls on the backends of this machine."""

    def __init__(
        self,
        backends: Sequence[Backend],
        code: CodeStore,
        guest: Guest,
        pool: Pool[Ready] | None = None,
        sweep: Callable[[], Awaitable[None]] | None = None,
        remotes: RemoteServers | None = None,
    ) -> None:
        """`sweep` destroys what an earlier process left of any of the backends."""
        self._backends = sorted(backends, key=lambda backend: TIER_RANK[backend.tier])
        self._code = code
        self._guest = guest
        self._pool = pool or Pool()
        self._sweep = sweep
        self._recipes: dict[tuple[int, Tier, str], tuple[LockedTool, Recipe[Ready]]] = {}
        self._remotes = remotes or RemoteServers()

    async def call(
        self,
        call: PermittedCall,
        permit: Permit,
        on_overdue: Callable[[], None] | None = None,
        ask: Ask | None = None,
    ) -> Outcome:
        tier, degraded, admitted = call.tool.tier, "", False
        try:
            values = await secret_values(call.tool.secrets, os.environ)
            async with contextlib.AsyncExitStack() as stack:

                async def taken(choice: Choice) -> tuple[Choice, Lease[Ready]]:
                    nonlocal tier, degraded
                    tier, degraded = choice.backend.tier, choice.degraded
                    recipe = self._recipe(call.tool, choice.backend, call.principal)
                    return choice, await stack.enter_async_context(self._lease(call, recipe))

                choice, lease = await self._where_it_starts(call.tool, taken)
                lease.process.admit(permit, call.digest, _identity(call), values, _wall_s(call.tool))
                admitted = True
                outcome = await converse(lease.ready, call, lease.process, on_overdue, ask)
                lease.spoiled = outcome.kind in _SPOILS
                if call.tool.run_lifetime and not call.tool.remote and not lease.spoiled:
                    lease.ready.look_ahead(call.tool)
            return _with_use(outcome, choice, lease)
        except NotServing as error:
            return _unsent(call, replace(error.outcome, tier=tier, degraded=degraded))
        except SandboxBusy as error:
            text = f"Not run: {error.message}"
            busy = Outcome(kind="sandbox_busy", text=text, detail=str(error), tier=tier, transient=True)
            return _unsent(call, busy)
        except (SandboxUnavailable, ConfigError, StoreError) as error:
            if admitted:  # what was to be recorded of the call meanwhile could not be
                raise
            return _unsent(call, Outcome(kind="sandbox_unavailable", text=f"Not run: {error}", detail=str(error)))

    async def describe(
        self,
        tool: LockedTool,
        permit: Permit,
        digest: Digest,
        *,
        offers: Collection[str] = ("tools",),
        legacy: bool = False,
        principal: str = "",
    ) -> Description:
        """What a source offers, asked for in a sandbox: tool code never runs outside one.

        `offers`: of a server, what is asked for. `legacy`: begin with the handshake, and do not ask for the modern
        revision. `principal`: who asks a server elsewhere.

        Raises:
            ServerError, BadReply, ProcessEnded: the source cannot say.
            SandboxUnavailable, PermitError: nothing ran.
        """
        # Saying what one offers takes no secret, but for a server elsewhere, which does not even listen without.
        values = await secret_values(tool.secrets if tool.remote else (), os.environ)
        process = await self._where_it_starts(tool, lambda choice: choice.backend.start(self._spec(tool, principal)))
        try:
            process.admit(permit, digest, {}, values)
            client = McpClient(process, tool.asks)
            if not tool.source.startswith("mcp:"):
                await client.initialize()
                return Description(protocol="", offer=await client.list_tools())
            if legacy:
                await client.initialize(LEGACY[0])
            else:
                await client.negotiate()
            return Description(protocol=client.protocol, offer=await offered(client, offers))
        finally:
            await process.close()

    async def prepare(self, tools: Iterable[LockedTool], *, sessions: bool = False) -> None:
        """Have a sandbox of each of these tools ready soon; with `sessions` also of those that outlive a call, of which
        one run needs one and many sessions many. What cannot be had is said when it is called."""
        for tool in tools:
            with contextlib.suppress(LockstepError):
                if tool.remote is None and (sessions or not tool.run_lifetime):
                    self._pool.prepare(self._recipe(tool, (await self.choose(tool)).backend))

    async def end(self, kept_for: str) -> None:
        await self._pool.end(kept_for)
        await self._remotes.pool.end(kept_for)

    async def sweep(self) -> None:
        if self._sweep is not None:
            await self._sweep()

    async def close(self) -> None:
        """Destroy every sandbox and wait until it is gone."""
        await self._pool.close()
        await self._remotes.close()

    async def choose(self, tool: LockedTool) -> Choice:
        """The cheapest available backend that is at least as strong as the tool's tier; else what its lock accepts.

        Raises:
            SandboxUnavailable: there is none, with what was seen and the remedy.
        """
        if tool.remote is not None:
            return Choice(backend=self._remotes.backend(tool.remote))
        missing: list[Findings] = []
        for backend in self._backends:
            if TIER_RANK[backend.tier] >= TIER_RANK[tool.tier]:
                seen = await backend.available()
                if seen.available:
                    return Choice(backend=backend)
                missing.append(seen)
        for backend in self._backends:
            if backend.tier is tool.degrade and (await backend.available()).available:
                return Choice(backend=backend, degraded=tool.tier.value)
        raise _unavailable(tool, missing)

    async def _where_it_starts(self, tool: LockedTool, start: Callable[[Choice], Awaitable[T]]) -> T:
        """What `start` makes of the backend chosen; of the next one where that turns out to work no longer."""
        while True:
            choice = await self.choose(tool)
            try:
                return await start(choice)
            except SandboxUnavailable:
                if (await choice.backend.available()).available:
                    raise

    def _lease(self, call: PermittedCall, recipe: Recipe[Ready]) -> AbstractAsyncContextManager[Lease[Ready]]:
        if call.tool.remote is not None and call.tool.protocol == MODERN:
            return self._remotes.pool.lease(recipe)  # no session that calls would share, so none waits for another
        kept_for = call.kept_for or call.run
        if call.tool.remote is not None:
            return self._remotes.pool.lease_of_run(kept_for, recipe, gives_way=kept_for != call.run)
        if call.tool.run_lifetime:
            return self._pool.lease_of_run(kept_for, recipe, gives_way=kept_for != call.run)
        return self._pool.lease(recipe)

    def _recipe(self, tool: LockedTool, backend: Backend, principal: str = "") -> Recipe[Ready]:
        """Made once for a tool: making it anew would be a third of what a call of a run's server costs us."""
        key = (id(tool), backend.tier, principal if tool.remote else "")
        known, recipe = self._recipes.get(key, (None, None))
        if recipe is None or known is not tool:
            warm_up, greeting = functools.partial(meet if tool.remote else greet, tool), (tool.protocol, *tool.asks)
            spec = self._spec(tool, principal)
            recipe = Recipe(backend=backend, spec=spec, warm_up=warm_up, greeting=greeting)
            if len(self._recipes) >= _MAX_RECIPES:
                self._recipes.clear()
            self._recipes[key] = (tool, recipe)
        return recipe

    def _spec(self, tool: LockedTool, principal: str) -> SandboxSpec:
        return remote_spec(tool, tool.remote, principal) if tool.remote else self._sandbox(tool)

    def _sandbox(self, tool: LockedTool) -> SandboxSpec:
        code = self._code.get(tool.code)
        argv, mounts = self._guest.start(tool, code)
        packages = {f"{RUNTIME_MOUNT}/{name}": self._code.tree(digest) for name, digest in tool.runtime.items()}
        limits = _limits(tool.limits, _wall_s(tool))
        return SandboxSpec(
            argv=argv,
            mounts={**mounts, **packages, TOOL_MOUNT: code, LOCKSTEP_MOUNT: self._guest.directory},
            env={**tool.env, "LOCKSTEP_OUTPUT_BYTES": str(limits.output_bytes)},
            egress=tuple(parse_rule(rule) for rule in tool.egress),
            secrets=tuple(binding(secret) for secret in tool.secrets),
            limits=limits,
            single_use=not tool.run_lifetime,
        )


_SPOILS = frozenset({"bad_reply", "timeout"})
"""Outcomes after which a server that outlives its call is out of step with us."""


def _unsent(call: PermittedCall, outcome: Outcome) -> Outcome:
    """A call that was not sent did nothing; one that has become a task goes on, whether it is asked after or not."""
    if call.round is None or not call.round.task:
        return outcome
    return replace(outcome, unknown=True, task_open=True)


def _unavailable(tool: LockedTool, missing: Sequence[Findings]) -> SandboxUnavailable:
    saw = "; ".join(f"{what}: {found.rstrip('.')}" for each in missing for what, found in each.details)
    return SandboxUnavailable(
        f"Tool {tool.name} needs isolation {tool.tier.value!r}, which is not available on this machine"
        f"{f' ({saw})' if saw else ''}.",
        remedy=next((each.remedy for each in missing if each.remedy), _REMEDY),
    )


def _identity(call: PermittedCall) -> dict[str, str]:
    identity = {
        "Lockstep-Session": call.session,
        "Lockstep-Run": call.run,
        "Lockstep-Call": f"{call.run}/{call.id}",
    }
    if call.tool.effect is Effect.KEYED:
        identity[KEY_HEADER] = call.key
    marked = parameter_headers(call.tool.definition, call.arguments) if call.tool.remote else {}
    return {**{name: _header(value) for name, value in identity.items()}, **marked}


def _with_use(outcome: Outcome, choice: Choice, lease: Lease[Ready]) -> Outcome:
    use = lease.process.use()
    return replace(
        outcome,
        tier=choice.backend.tier,
        degraded=choice.degraded,
        warm=lease.warm,
        queue_ms=round(lease.queue_ms, 3),
        start_ms=round(lease.start_ms, 3),
        run_ms=round(use.run_ms, 3),
        cpu_s=use.cpu_s,
        peak_memory_bytes=use.peak_memory_bytes,
        egress=tuple(_told(record) for record in lease.process.egress_log()),
    )


def _told(record: EgressRecord) -> dict[str, str | int | float | bool | None]:
    return {name: value for name, value in asdict(record).items() if value != "" or name != "purpose"}


def _wall_s(tool: LockedTool) -> float:
    """How long a call of this tool may take altogether: past its deadline a late result is waited for."""
    return tool.timeout_s + tool.repeats.late_s


def _limits(limits: LimitsSection, wall_s: float) -> Limits:
    return Limits(
        memory_bytes=limits.memory_mb * _MIB,
        cpu_s=limits.cpu_s,
        processes=limits.processes,
        open_files=limits.open_files,
        file_bytes=limits.file_mb * _MIB,
        disk_bytes=limits.disk_mb * _MIB,
        output_bytes=limits.output_kb * 1024,
        wall_s=wall_s,
    )


def _header(value: str) -> str:
    """A value as it stands in an HTTP header: percent-encoded beyond plain ASCII, so two values never look alike."""
    return quote(value, safe="/:@._-+")
