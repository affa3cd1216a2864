"""The kill switch at the terminal: `lockstep stop` and `lockstep start`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from lockstep.agent.load import AGENT_FILE, load_spec
from lockstep.cli.report import FINISHED, INTERNAL
from lockstep.cli.stores import existing, looking, opened
from lockstep.cli.terminal import console, plain, print_json, user
from lockstep.errors import ConfigError, StoreBusy
from lockstep.journal.events import RunFinished, RunSuspended
from lockstep.journal.stops import stop_text
from lockstep.values import RunId, now_ms
from lockstep.wiring import stores
from lockstep.wiring.stores import Store

_QUIET_S = 10.0
"""How long to wait until what is under way has been broken off: it is noticed within a second, then killed."""
_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """An agent by name, and the store that its stop stands in."""

    agent: str
    store: Store


async def stop(agent: str, named: Path | None, *, by: str, because: str, json: bool) -> int:
    target = await _target(agent, named)
    before = await _under_way(target) if target.store.holds_runs else set()
    with stores.opened_stops(target.store.make()) as stops:
        stood = stops.stop(target.agent, by=by or user(), because=because, at_ms=now_ms())
    left, why = await _quiet(target)
    broken_off = sorted(before - left)
    if json:
        value = {"agent": target.agent, "stopped": True, "by": stood.by, "because": stood.because}
        print_json({**value, "at_ms": stood.at_ms, "suspended": broken_off, "not_suspended": sorted(left)})
        return INTERNAL if why else FINISHED
    out = console()
    out.print(plain(stop_text(stood)))
    for run in broken_off:
        out.print(f"suspended {run}")
    for run in sorted(left):
        out.print(f"[yellow]not suspended[/] {run}: {plain(why or 'its process died before; nothing drives it')}")
    out.print(f"It gets no permit. `lockstep start {plain(target.agent)}` lets it run again.")
    return INTERNAL if why else FINISHED


async def start(agent: str, named: Path | None, *, by: str, because: str, json: bool) -> int:
    target = await _target(agent, named)
    with stores.opened_stops(target.store.make()) as stops:
        was_stopped = stops.start(target.agent, by=by or user(), because=because, at_ms=now_ms())
    if json:
        print_json({"agent": target.agent, "stopped": False, "was_stopped": was_stopped})
        return FINISHED
    said = "may run again; `lockstep resume RUN` drives a suspended run on" if was_stopped else "was not stopped"
    console().print(f"Agent {plain(target.agent)} {said}.")
    return FINISHED


async def _target(agent: str, named: Path | None) -> _Target:
    """The agent of this directory, or of this name in the store.

    Raises:
        ConfigError: there is neither: a name that is mistyped would stop nothing.
    """
    directory = Path(agent)
    if (directory / AGENT_FILE).is_file():
        return _Target(agent=load_spec(directory).agent.name, store=Store.of(directory, named))
    store = existing(named)
    async with looking(named) as journal:
        known = sorted({row.agent for row in await journal.runs()})
    if agent not in known:
        raise ConfigError(
            f"There is no agent {agent!r} in the store {store.directory}; it has runs of {', '.join(known) or 'none'}.",
            remedy="Name one of those, or the directory of an agent.",
        )
    return _Target(agent=agent, store=store)


async def _under_way(target: _Target) -> set[RunId]:
    """Runs of the agent that have neither finished nor been suspended."""
    async with looking(target.store.directory) as journal:
        at_rest = (RunFinished.TYPE, RunSuspended.TYPE)
        return {row.run for row in await journal.runs() if row.agent == target.agent and row.last not in at_rest}


async def _quiet(target: _Target) -> tuple[set[RunId], str]:
    """Wait until nothing of the agent runs any more; the runs that are not suspended, and why that is not known."""
    until = time.monotonic() + _QUIET_S
    while left := await _under_way(target):
        try:
            async with opened(target.store), stores.opened_tools(target.store) as tools:
                await tools.sweep()  # whoever drove these runs is dead, which its sandboxes may not be
                return left, ""
        except StoreBusy as busy:
            if time.monotonic() > until:
                return left, f"{busy.message} It has not answered in {_QUIET_S:g} s: end that process itself."
        await asyncio.sleep(_LOOK_S)
    return left, ""
