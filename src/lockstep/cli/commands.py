"""What each command does that runs or changes something. Every function returns its exit code.

What a user got wrong is raised as LockstepError.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from lockstep.agent.diff import diff as diff_locks
from lockstep.agent.files import read_text
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import Lock, from_text, read_lock, to_text
from lockstep.cli import answering, scaffold
from lockstep.cli.report import (
    BAD_INPUT,
    FINISHED,
    as_json,
    exit_code,
)
from lockstep.cli.show import Live, print_changes, print_result
from lockstep.cli.stores import existing, find, opened
from lockstep.cli.terminal import account, console, plain, print_json, user
from lockstep.cli.tool_pins import approve_tools
from lockstep.errors import ConfigError
from lockstep.journal.events import RunStarted
from lockstep.journal.stops import require_running
from lockstep.kernel.state import State, Status
from lockstep.runtime.answers import Answer
from lockstep.runtime.answers import cancel as cancel_run
from lockstep.runtime.answers import settle as settle_call
from lockstep.runtime.reading import lock_of_run, read_state
from lockstep.values import RunId, Tier, new_token
from lockstep.wiring import locking, models, running, stores
from lockstep.wiring.stores import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What `lockstep run` was asked for."""

    agent: Path
    message: str
    session: str | None
    approve: Literal["ask", "all", "none"]
    model: str | None
    unlocked: bool
    principal: str
    store: Path | None
    json: bool


async def init(directory: Path) -> int:
    scaffold.write(directory)
    console().print(f"wrote {plain(str(directory))}/: {', '.join(scaffold.FILES)}")
    await lock(directory, None)
    console().print(f'try: lockstep run {plain(str(directory))} "What is 2 + 2?"')
    return FINISHED


async def lock(directory: Path, store: Path | None) -> int:
    resolved = await approve_tools(directory, store, ())
    parts = ", ".join(f"{name} {resolved.dimension_digest(name)[:8]}" for name in resolved.parts)
    console().print(f"locked {resolved.agent}: {resolved.digest[:12]} ({parts})")
    return FINISHED


async def diff(a: Path, b: Path | None, store: Path | None) -> int:
    if b is None:
        left = locking.with_code(read_lock(a), Store.of(a, store).code())
        right = await _resolved(a, store)
    else:
        left, right = await _lock_at(a, store), await _lock_at(b, store)
    changes = diff_locks(left, right)
    out = console()
    if not changes:
        out.print(f"no difference: {left.digest[:12]}")
        return FINISHED
    out.print(f"{left.digest[:12]} -> {right.digest[:12]}")
    print_changes(out, changes)
    return FINISHED


async def run(asked: RunRequest) -> int:
    if not asked.message.strip():
        raise ConfigError("The message is empty.", remedy='Say what is to be done: lockstep run AGENT "message".')
    if asked.session is not None and not asked.session.strip():
        raise ConfigError("The session has no name.", remedy="Leave --session out to begin a new one.")
    where = Store.of(asked.agent, asked.store)
    code = where.code()
    async with stores.opened_tools(where) as tools:
        prepared = await running.prepare(asked.agent, tools, code, unlocked=asked.unlocked, model=asked.model)
        agent = locked_agent(prepared.lock)
        await running.require_secrets(agent)
        await running.require_tiers(tools, agent)
        out = console(stderr=asked.json)
        live = None if asked.json else Live(out)
        async with models.opened_model(agent, code) as model, opened(where) as journal:
            require_running(journal, agent.name)
            await tools.sweep()  # what a process that died here left running
            await running.start_ahead(tools, agent)
            prepared = running.with_address(prepared, model)
            driver = running.open_driver(
                prepared.lock,
                directory=asked.agent,
                journal=journal,
                tools=tools,
                code=code,
                standing=where.standing(),
                watcher=live,
                model=model,
                attendant=answering.attendant(out, agent, asks=live is not None),
            )
            started = RunStarted(
                agent=prepared.lock.agent,
                lock=prepared.lock.digest,
                lock_text=to_text(prepared.lock),
                directory=str(asked.agent.resolve()),
                principal=asked.principal or user(),
                session=asked.session or new_token("s"),
                input=asked.message,
                unlocked=prepared.unlocked,
                drift=prepared.drift,
                model=asked.model or "",
                approve=asked.approve,
            )
            new = await driver.start(started)
            if live is not None:
                out.print(f"[dim]run {new}, session {plain(started.session)}[/]")
            state = await driver.advance(new)
            state = await answering.ask_in_terminal(out, driver, journal, state, asked.json)
            return _report(out, state, asked.json, live)


async def answer(
    store: Path | None, approval: str, *, given: bool, by: str, because: str, digest: str, resume: bool
) -> int:
    who = by.strip() or user()
    said = Answer(given=given, by=who, because=because, login=account(), digest=digest)
    run, goes_on = await answering.answer(store, approval, said)
    return await _resume(store, run, by=by, json=False) if resume and goes_on else FINISHED


async def answer_server(
    store: Path | None,
    name: str,
    fields: Sequence[str],
    words: Mapping[str, bool],
    *,
    by: str,
    because: str,
    resume: bool,
) -> int:
    said = [word for word, is_said in words.items() if is_said]
    if len(said) != 1:
        raise ConfigError(
            "An answer is one of --field NAME=VALUE (or --accept), --decline and --cancel.",
            remedy="`lockstep approvals` shows what is asked for.",
        )
    run = await answering.answer_server(store, name, fields, said[0], by=by.strip() or user(), because=because)
    return await _resume(store, run, by=by, json=False) if resume and run else FINISHED


async def resume(store: Path | None, name: str, *, happened: bool | None, result: str, by: str, json: bool) -> int:
    if result and not happened:
        raise ConfigError("--result says what a call answered that happened.", remedy="Give it with --happened.")
    async with opened(existing(store)) as journal:
        run_id = await find(journal, name)
        if happened is not None:
            require_running(journal, (await read_state(journal, run_id)).agent)
            await settle_call(journal, run_id, happened=happened, by=by or user(), result=result)
    return await _resume(store, run_id, by=by, json=json)


async def settle(store: Path | None, name: str, *, happened: bool, result: str, by: str) -> int:
    if result and not happened:
        raise ConfigError("--result says what a call answered that happened.", remedy="Give it with --happened.")
    run, _, call_id = name.partition("/")
    async with opened(existing(store)) as journal:
        run_id = await find(journal, run)
        call = await settle_call(journal, run_id, call_id, happened=happened, by=by or user(), result=result)
    word = "happened" if happened else "did not happen"
    out = console()
    out.print(f"settled {run_id}/{call.id}: {plain(call.name)} {word}; `lockstep resume {run_id}` drives the run on")
    return FINISHED


async def cancel(store: Path | None, name: str, by: str) -> int:
    where = existing(store)
    async with opened(where) as journal:
        state = await cancel_run(journal, await find(journal, name), by=by or user())
        async with stores.opened_tools(where) as tools:
            await tools.sweep()
    print_result(console(), state)
    return FINISHED


async def doctor(store: Path | None, json: bool) -> int:
    from lockstep.cli.health import examine

    where = Store.of(Path(), store)
    with tempfile.TemporaryDirectory(prefix="lockstep-doctor-") as scratch:  # looking must not make a store
        report = await examine(where, Store(directory=Path(scratch)))
    if json:
        print_json({"ready": report.ready, "checks": [asdict(item) for item in report.items]})
        return FINISHED if report.ready else BAD_INPUT
    out = console()
    for item in report.items:
        mark = "[green]ok[/]  " if item.ok else "[red]no[/]  " if item.needed else "[yellow]--[/]  "
        out.print(f"{mark}{item.name}: {plain(item.found)}")
        if item.remedy and not item.ok:
            out.print(f"      {plain(item.remedy)}")
    return FINISHED if report.ready else BAD_INPUT


async def setup(tier: str, store: Path | None) -> int:
    from lockstep.cli.tier_setup import set_up

    set_up(Tier(tier))
    return await doctor(store, False)


async def _resume(store: Path | None, run_id: RunId, *, by: str, json: bool) -> int:
    where = existing(store)
    out = console(stderr=json)
    async with opened(where) as journal:
        started, locked = await lock_of_run(journal, run_id)
        state = await read_state(journal, run_id)
        if state.status is Status.FINISHED:
            return _report(out, state, json, None)
        require_running(journal, state.agent)
        code = where.code()
        agent = locked_agent(locked)
        live = None if json else Live(out)
        async with stores.opened_tools(where) as tools, models.opened_model(agent, code) as model:
            await running.require_secrets(agent)
            await running.require_tiers(tools, agent)
            running.require_address(run_id, started, agent, model)
            driver = running.open_driver(
                locked,
                directory=Path(started.directory),
                journal=journal,
                tools=tools,
                code=code,
                standing=where.standing(),
                watcher=live,
                model=model,
                attendant=answering.attendant(out, agent, asks=live is not None),
            )
            state = await driver.resume(run_id, by=by or user())
            state = await answering.ask_in_terminal(out, driver, journal, state, json)
            return _report(out, state, json, live)


def _report(out: Console, state: State, json: bool, live: Live | None) -> int:
    if json:
        print_json(as_json(state))
    else:
        print_result(out, state, answered=live is not None and live.said == state.output)
    return exit_code(state)


async def _resolved(directory: Path, store: Path | None) -> Lock:
    where = Store.of(directory, store)
    async with stores.opened_tools(where) as tools:
        return await locking.resolve_agent(directory, tools, where.code())


async def _lock_at(path: Path, store: Path | None) -> Lock:
    if path.is_dir():  # noqa: ASYNC240 - one stat
        return await _resolved(path, store)
    return from_text(read_text(path, remedy="Name an agent directory or an agent.lock."), str(path))
