"""From a lock to a driver: what must hold before a run starts or goes on, and the parts it runs on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lockstep.agent.files import read_file
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.load import load_spec
from lockstep.agent.lock import Lock, Part, differing_parts, read_lock
from lockstep.agent.locked import LockedAgent
from lockstep.agent.resolve import code_files, resolve_static
from lockstep.agent.spec import FILE_MODELS, MODEL_NAME_RULE, AgentSpec, ModelSection
from lockstep.agent.trees import Trees
from lockstep.errors import ConfigError, LockError, ModelError
from lockstep.gate.gate import Gate
from lockstep.journal.events import RunStarted
from lockstep.journal.port import Journal
from lockstep.journal.standing import StandingBook
from lockstep.model.port import Model
from lockstep.runtime.driver import Driver
from lockstep.runtime.live import Attendant, Watcher
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.secret_values import secret_value
from lockstep.values import RunId, digest_json
from lockstep.wiring.locking import check, keep_runtime, resolve_agent
from lockstep.wiring.models import FROM_ENVIRONMENT, address_drift, model_settings, open_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A lock that may run: the one on disk, or with `unlocked` what is there now. `drift` names what differs."""

    lock: Lock
    unlocked: bool = False
    drift: tuple[str, ...] = ()


async def prepare(
    directory: Path, tools: SandboxedTools, code: CodeStore, *, unlocked: bool = False, model: str | None = None
) -> Prepared:
    """The lock a run starts from: agent.lock when the disk agrees with it.

    Raises:
        LockError: they differ (names the parts) and `unlocked` was not asked for, or there is no lock.
    """
    spec, trees = load_spec(directory), Trees()
    if unlocked:
        prepared = await _prepare_unlocked(directory, tools, code)
    else:
        lock = read_lock(directory)
        disk = resolve_static(directory, spec, lock, trees)
        drift = differing_parts(lock, disk)
        if drift:
            raise LockError(
                f"{directory} differs from agent.lock in {'; '.join(drift)}.",
                remedy=f"`lockstep diff {directory}` shows how; `lockstep lock {directory}` accepts it;"
                " `--unlocked` runs it as it is.",
            )
        prepared = Prepared(lock=replace(lock, files=disk.files))
    _keep_code(directory, spec, code, trees)
    return prepared if model is None else _with_model(prepared, model)


def open_driver(
    lock: Lock,
    *,
    directory: Path,
    journal: Journal,
    tools: Any,
    code: CodeStore,
    watcher: Watcher | None = None,
    model: Model | None = None,
    standing: StandingBook | None = None,
    attendant: Attendant | None = None,
) -> Driver:
    """A driver for the runs of one lock. `model` is the lock's own, opened before, or stands in for it; `attendant` is
    whoever is there to answer servers that hold a call open.

    Raises:
        ConfigError, ModelError: the model cannot be had, or its price is unknown while the run has a cost limit.
    """
    agent = locked_agent(lock)
    if model is None:
        model = open_model(agent, code)
    return Driver(
        agent=agent,
        settings=model_settings(agent.model),
        journal=journal,
        gate=Gate(agent, check(directory, lock), journal),
        model=model,
        tools=tools,
        standing=standing,
        watcher=watcher,
        attendant=attendant,
    )


def with_address(prepared: Prepared, model: Model) -> Prepared:
    """The same lock; unlocked when the address of its model is the environment's."""
    drift = address_drift(locked_agent(prepared.lock), model)
    return replace(prepared, unlocked=True, drift=(*prepared.drift, *drift)) if drift else prepared


def require_address(run: RunId, started: RunStarted, agent: LockedAgent, model: Model) -> None:
    """A run goes on at the address it began with.

    Raises:
        LockError: the environment now says otherwise.
    """
    begun = tuple(drift for drift in started.drift if drift.startswith(FROM_ENVIRONMENT))
    now = address_drift(agent, model)
    if begun != now:
        was, would = begun or now, "had" if begun else "did not have"
        raise LockError(
            f"Run {run} {would} its {was[0]} when it began.",
            remedy="Set or unset the variable that names the model's address as it was then, and resume.",
        )


async def require_tiers(tools: SandboxedTools, agent: LockedAgent) -> None:
    """Fail before a run starts when a tool's tier cannot be had here.

    Raises:
        SandboxUnavailable: with what was seen and the remedy.
    """
    for tool in agent.tools.values():
        await tools.choose(tool)


async def require_secrets(agent: LockedAgent, env: Mapping[str, str] = os.environ) -> None:
    """Fail before a run starts when a secret of one of its tools cannot be had; values are asked for and forgotten.

    Raises:
        ConfigError: each such secret in a sentence.
    """
    named = {(one.env, one.source): one for tool in agent.tools.values() for one in tool.secrets}
    problems = []
    for secret in named.values():
        try:
            await secret_value(secret, env)
        except ConfigError as error:
            problems.append(error)
    if problems:
        raise ConfigError("\n".join(error.message for error in problems), remedy=problems[0].remedy)


async def start_ahead(tools: SandboxedTools, agent: LockedAgent) -> None:
    """Have sandboxes ready by the time a provider has answered; a model that is a file answers at once."""
    if agent.model.name.partition(":")[0] not in FILE_MODELS:
        await tools.prepare(agent.tools.values())


async def _prepare_unlocked(directory: Path, tools: SandboxedTools, code: CodeStore) -> Prepared:
    disk = await resolve_agent(directory, tools, code)
    try:
        drift = differing_parts(read_lock(directory), disk)
    except LockError:
        drift = ("agent.lock: missing or not valid",)
    return Prepared(lock=disk, unlocked=True, drift=drift)


def _with_model(prepared: Prepared, name: str) -> Prepared:
    """The same agent with another model: a different lock, so the run says that it is unlocked."""
    locked = cast(Mapping[str, Any], prepared.lock.parts["model"]["settings"].value)
    if name == locked["name"]:
        return prepared
    provider, _, file = name.partition(":")
    if provider in FILE_MODELS and file:
        name = f"{provider}:{Path(file).resolve()}"
    own = ("base_url", "api_key_env", "prices")  # of the locked model, not of this one
    try:
        section = ModelSection.model_validate({k: v for k, v in locked.items() if k not in own} | {"name": name})
    except ValueError as error:
        raise ModelError(f"--model {name!r} names no model: {MODEL_NAME_RULE}.") from error
    value = section.model_dump(mode="json", exclude_none=True)
    lock = replace(
        prepared.lock,
        parts={**prepared.lock.parts, "model": {"settings": Part(sha256=digest_json(value), value=value)}},
    )
    return Prepared(lock=lock, unlocked=True, drift=(*prepared.drift, f"model: settings (--model {name})"))


def _keep_code(directory: Path, spec: AgentSpec, code: CodeStore, trees: Trees) -> None:
    for source in spec.tools:
        code.put(code_files(directory, source))
        keep_runtime(source, code, trees)
    provider, _, name = spec.model.name.partition(":")
    if provider in FILE_MODELS:
        code.put({name: read_file(directory / name)})
