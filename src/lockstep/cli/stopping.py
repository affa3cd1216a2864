"""The kill switch at the terminal: `lockstep stop` and `lockstep start`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lockstep.agent.files import AGENT_FILE
from lockstep.agent.load import load_spec
from lockstep.agent.lock import read_lock
from lockstep.cli.report import FINISHED, INTERNAL
from lockstep.cli.stores import existing, looking, opened
from lockstep.cli.terminal import console, plain, print_json, user
from lockstep.errors import ConfigError, JournalCorrupt, LockError, StoreBusy
from lockstep.journal.events import ENDED, RunStarted, RunSuspended
from lockstep.journal.stops import stop_text
from lockstep.runtime.reading import read_run
from lockstep.values import RunId, now_ms
from lockstep.wiring import stores
from lockstep.wiring.stores import Store

_QUIET_S = 10.0
"""How long to wait until what is under way has been broken off: it is noticed within a second, then killed."""
_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """Agents by name, and the store that their stops stand in. One directory may have gone by several names."""

    agents: tuple[str, ...]
    store: Store


async def stop(agent: str, named: Path | None, *, by: str, because: str, json: bool) -> int:
    target = await _target(agent, named)
    before = await _under_way(target) if target.store.holds_runs else set()
    with stores.opened_stops(target.store.make()) as stops:
        stood = [stops.stop(name, by=by or user(), because=because, at_ms=now_ms()) for name in target.agents]
    left, why = await _quiet(target)
    broken_off = sorted(before - left)
    if json:
        print_json(
            {"stopped": [asdict(each) for each in stood], "suspended": broken_off, "not_suspended": sorted(left)}
        )
        return INTERNAL if why else FINISHED
    out = console()
    for each in stood:
        out.print(f"{plain(stop_text(each))} It gets no permit until `lockstep start {plain(each.agent)}`.")
    for run in broken_off:
        out.print(f"suspended {run}")
    for run in sorted(left):
        out.print(f"[yellow]not suspended[/] {run}: {plain(why or 'its process died before; nothing drives it')}")
    return INTERNAL if why else FINISHED


async def start(agent: str, named: Path | None, *, by: str, because: str, json: bool) -> int:
    target = await _target(agent, named)
    with stores.opened_stops(target.store.make()) as stops:
        started = {name: stops.start(name, by=by or user(), because=because, at_ms=now_ms()) for name in target.agents}
    if json:
        print_json({"started": [{"agent": name, "was_stopped": was} for name, was in started.items()]})
        return FINISHED
    for name, was_stopped in started.items():
        said = "may run again; `lockstep resume RUN` drives a suspended run on" if was_stopped else "was not stopped"
        console().print(f"Agent {plain(name)} {said}.")
    return FINISHED


async def _target(agent: str, named: Path | None) -> _Target:
    """The agent of this directory, or of this name in the store.

    Raises:
        ConfigError: there is neither: a name that is mistyped would stop nothing.
    """
    directory = Path(agent)
    if (directory / AGENT_FILE).is_file():
        store = Store.of(directory, named)
        names = {*_names(directory), *(await _running_names(directory, store) if store.holds_runs else ())}
        return _Target(agents=tuple(sorted(names)), store=store)
    store = existing(named)
    async with looking(store.directory) as journal:
        known = sorted({row.agent for row in await journal.runs()})
    if agent not in known:
        raise ConfigError(
            f"There is no agent {agent!r} in the store {store.directory}; it has runs of {', '.join(known) or 'none'}.",
            remedy="Name one of those, or the directory of an agent.",
        )
    return _Target(agents=(agent,), store=store)


def _names(directory: Path) -> set[str]:
    """What the agent is called on disk and in its lock; in an emergency one of the two is enough."""
    try:
        name = load_spec(directory).agent.name
    except ConfigError:
        return {read_lock(directory).agent}
    try:
        return {name, read_lock(directory).agent}
    except LockError:
        return {name}


async def _running_names(directory: Path, store: Store) -> set[str]:
    """What it was called when its unfinished runs began."""
    names, place = set(), str(directory.resolve())  # noqa: ASYNC240 - one look
    async with looking(store.directory) as journal:
        for row in await journal.runs():
            if row.last in ENDED or row.agent in names:
                continue
            with contextlib.suppress(JournalCorrupt):  # what cannot be read cannot be driven either
                first = (await read_run(journal, row.run))[0].event
                if isinstance(first, RunStarted) and first.directory == place:
                    names.add(row.agent)
    return names


async def _under_way(target: _Target) -> set[RunId]:
    """Runs of the agents that have neither finished nor been suspended."""
    async with looking(target.store.directory) as journal:
        at_rest = ENDED | {RunSuspended.TYPE}
        return {row.run for row in await journal.runs() if row.agent in target.agents and row.last not in at_rest}


async def _quiet(target: _Target) -> tuple[set[RunId], str]:
    """Wait until nothing of the agents runs any more; the runs that are not suspended, and why that is not known."""
    until = time.monotonic() + _QUIET_S
    while left := await _under_way(target):
        try:
            async with opened(target.store), stores.opened_tools(target.store) as tools:
                await tools.sweep()  # whoever drove these runs is gone, which its sandboxes may not be
                return await _under_way(target), ""
        except StoreBusy as busy:
            if time.monotonic() > until:
                return left, f"{busy.message} It has not answered in {_QUIET_S:g} s: end that process itself."
        await asyncio.sleep(_LOOK_S)
    return left, ""
