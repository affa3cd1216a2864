"""The only place that names concrete parts: which journal, which backends, which model.

Faces (terminal, later web and gateway) and the library user come here to get an agent locked or a driver to run it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from lockstep.agent.load import AGENT_FILE, load_spec, read_file
from lockstep.agent.lock import (
    Lock,
    Part,
    code_files,
    differing_parts,
    from_text,
    read_lock,
    resolve,
    resolve_static,
    source_key,
)
from lockstep.agent.locked import LockedAgent, LockedTool, locked_agent
from lockstep.agent.spec import FILE_MODELS, MODEL_NAME_RULE, AgentSpec, ModelSection, ToolSource
from lockstep.errors import ConfigError, LockError, ModelError, StoreError
from lockstep.gate.arguments import ArgumentChecker
from lockstep.gate.gate import Describing, Gate
from lockstep.gate.policy import Policies
from lockstep.journal.events import RunStarted
from lockstep.journal.port import Journal
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.sqlite_file import DATABASE
from lockstep.model.port import Model, Settings
from lockstep.runtime.driver import Driver, Watcher
from lockstep.runtime.reading import read_run
from lockstep.sandbox.bubblewrap import Bubblewrap
from lockstep.sandbox.contract import Backend, Findings, ProcessEnded
from lockstep.sandbox.gvisor import GVisor
from lockstep.sandbox.image.build import setup_microvm
from lockstep.tools.client import BadReply, ServerError
from lockstep.tools.code import CodeStore
from lockstep.tools.egress_checks import egress_problems, private_names
from lockstep.tools.host import SandboxedTools
from lockstep.tools.secret_values import secret_value
from lockstep.tools.starting import Guest
from lockstep.values import RunId, Tier, digest_json, sha256

STORE_ENV = "LOCKSTEP_STORE"
STORE_NAME = ".lockstep"
_FROM_ENVIRONMENT = "model: address from the environment"
_TOOL_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")
"""What the Model Context Protocol lets a tool be called; some providers take less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """A store directory: journal, code snapshots, what the sandboxes left."""

    directory: Path

    @classmethod
    def of(cls, agent: Path, named: Path | None = None) -> Store:
        """The store named on the command line, else by the environment, else `.lockstep/` beside the agent."""
        chosen = named or (Path(os.environ[STORE_ENV]) if os.environ.get(STORE_ENV) else agent / STORE_NAME)
        return cls(directory=chosen.resolve())

    @property
    def holds_runs(self) -> bool:
        """Whether there is a journal in it."""
        return (self.directory / DATABASE).is_file()

    def make(self) -> Store:
        """The store itself, its directory made.

        Raises:
            StoreError: it cannot be.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The store {self.directory} cannot be made: {error.strerror}.",
                remedy=f"Choose another with --store or {STORE_ENV}.",
            ) from error
        return self

    def journal(self, *, readonly: bool = False) -> SQLiteJournal:
        return (SQLiteJournal.open_readonly if readonly else SQLiteJournal.open)(self.directory)

    def code(self) -> CodeStore:
        return CodeStore(self.directory / "code")

    def backends(self) -> tuple[Backend, ...]:
        state = self.directory / "sandboxes"
        return (Bubblewrap(state), GVisor(state))

    def tools(self, backends: Sequence[Backend] | None = None) -> SandboxedTools:
        """The tool host; `backends` in place of this machine's own."""
        guest = Guest(self.directory / "guest")
        return SandboxedTools(self.backends() if backends is None else backends, self.code(), guest)


@contextlib.asynccontextmanager
async def opened_tools(store: Store) -> AsyncIterator[SandboxedTools]:
    """The store's tool host; every sandbox is gone at the end."""
    tools = store.tools()
    try:
        yield tools
    finally:
        await tools.close()


def make_guest_image(say: Callable[[str], None]) -> None:
    """Put the guest image of microVMs together; `say` is told what is being done.

    Raises:
        SandboxUnavailable: it cannot be made here.
    """
    setup_microvm(say)


async def findings(store: Store) -> list[Findings]:
    """What each tier's canary saw on this machine."""
    return [await backend.canary() for backend in store.backends()]


async def resolve_agent(directory: Path, tools: SandboxedTools, code: CodeStore) -> Lock:
    """Resolve what is on disk, asking every tool source for its definitions in a sandbox, and check the whole.

    Raises:
        ConfigError, ModelError: something in the directory is wrong.
        SandboxUnavailable: the sources cannot be asked on this machine.
    """
    spec = load_spec(directory)
    definitions: dict[int, Sequence[Any]] = {}
    for index, source in enumerate(spec.tools):
        definitions[index] = await _describe(directory, index, source, tools, code)
    lock = resolve(directory, spec, definitions)
    check(directory, lock)
    if closed := private_names(locked_agent(lock).tools.values()):
        raise ConfigError("\n".join(f"{directory / AGENT_FILE}: {problem}." for problem in closed))
    provider, _, name = spec.model.name.partition(":")
    if provider in FILE_MODELS:
        _read_file_model(provider, directory / name)
    return lock


def check(directory: Path, lock: Lock) -> Policies:
    """Everything about a lock that can be wrong before a run: tools, schemas, egress, `dedupe_on`, policies.

    Raises:
        ConfigError: each problem in a sentence.
    """
    agent = locked_agent(lock)
    problems = []
    for tool in agent.tools.values():
        problems += [f"{directory / AGENT_FILE}: tool {tool.name!r}: {text}." for text in _tool_problems(tool)]
    # Verdicts name policies as the lock does, wherever the agent lies; only what a person reads here says where.
    where = "" if directory == Path() else f"{directory}/"
    try:
        policies = Policies.parse(agent.policies)
    except ConfigError as error:
        raise ConfigError(f"{where}{error.message}", remedy=error.remedy) from error
    if not problems:  # what follows reads the schemas
        schemas = {name: tool.input_schema for name, tool in agent.tools.items()}
        ArgumentChecker(schemas)
        problems += [f"{where}{problem}" for problem in policies.problems(schemas)]
    if problems:
        raise ConfigError("\n".join(problems))
    return policies


def with_code(lock: Lock, code: CodeStore) -> Lock:
    """The lock with the code behind its digests, as far as the store still has it: for a diff that shows lines."""
    files = dict(lock.files)
    for tool in locked_agent(lock).tools.values():
        with contextlib.suppress(StoreError):
            snapshot = code.get(tool.code)
            files.update({name: (snapshot / name).read_bytes() for name in tool.code if name not in files})
    return replace(lock, files=files)


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
    spec = load_spec(directory)
    if unlocked:
        prepared = await _prepare_unlocked(directory, tools, code)
    else:
        lock = read_lock(directory)
        disk = resolve_static(directory, spec, lock)
        drift = differing_parts(lock, disk)
        if drift:
            raise LockError(
                f"{directory} differs from agent.lock in {'; '.join(drift)}.",
                remedy=f"`lockstep diff {directory}` shows how; `lockstep lock {directory}` accepts it;"
                " `--unlocked` runs it as it is.",
            )
        prepared = Prepared(lock=replace(lock, files=disk.files))
    _keep_code(directory, spec, code)
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
) -> Driver:
    """A driver for the runs of one lock. `model` is the lock's own, opened before, or stands in for it.

    Raises:
        ConfigError, ModelError: the model cannot be had, or its price is unknown while the run has a cost limit.
    """
    agent = locked_agent(lock)
    if model is None:
        model = open_model(agent, code)
    return Driver(
        agent=agent,
        settings=_settings(agent.model),
        journal=journal,
        gate=Gate(agent, check(directory, lock)),
        model=model,
        tools=tools,
        watcher=watcher,
    )


def open_model(agent: LockedAgent, code: CodeStore, env: Mapping[str, str] = os.environ) -> Model:
    """The locked model, ready to ask."""
    provider, _, name = agent.model.name.partition(":")
    if provider in FILE_MODELS:
        return _open_file_model(agent, provider, name, code)
    from lockstep.model.prices import read_prices
    from lockstep.model.providers import open_provider

    prices = agent.model.prices
    opened = open_provider(
        agent.model.name,
        base_url=agent.model.base_url,
        api_key_env=agent.model.api_key_env,
        env=env,
        prices=None if prices is None else read_prices(prices.model_dump(exclude_none=True)),
    )
    if agent.budget.cost_usd is not None and not opened.priced:
        raise ConfigError(
            f"The price of {agent.model.name} is unknown, so budget.cost_usd cannot be kept.",
            remedy="Give model.prices in agent.toml, or remove the limit.",
        )
    return opened


@contextlib.asynccontextmanager
async def opened_model(agent: LockedAgent, code: CodeStore) -> AsyncIterator[Model]:
    """As `open_model`; its connections are closed at the end."""
    model = open_model(agent, code)
    try:
        yield model
    finally:
        if close := getattr(model, "close", None):
            await close()


def address_drift(agent: LockedAgent, model: Model, env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What a run must say of a model that is asked where no lock but the environment says: SDKs read variables."""
    used = str(getattr(model, "base_url", ""))
    if agent.model.base_url is not None or not used:
        return ()
    named = any(value.startswith(("http://", "https://")) and _leads_to(value, used) for value in env.values())
    return (f"{_FROM_ENVIRONMENT} ({used})",) if named else ()


def with_address(prepared: Prepared, model: Model) -> Prepared:
    """The same lock; unlocked when the address of its model is the environment's."""
    drift = address_drift(locked_agent(prepared.lock), model)
    return replace(prepared, unlocked=True, drift=(*prepared.drift, *drift)) if drift else prepared


def require_address(run: RunId, started: RunStarted, agent: LockedAgent, model: Model) -> None:
    """A run goes on at the address it began with.

    Raises:
        LockError: the environment now says otherwise.
    """
    begun = tuple(drift for drift in started.drift if drift.startswith(_FROM_ENVIRONMENT))
    now = address_drift(agent, model)
    if begun != now:
        was, would = begun or now, "had" if begun else "did not have"
        raise LockError(
            f"Run {run} {would} its {was[0]} when it began.",
            remedy="Set or unset the variable that names the model's address as it was then, and resume.",
        )


def _leads_to(address: str, used: str) -> bool:
    return f"{used.rstrip('/')}/".startswith(f"{address.rstrip('/')}/")


async def lock_of_run(journal: Journal, run: RunId) -> tuple[RunStarted, Lock]:
    """How a run began and the lock it runs under, from the record itself.

    Raises:
        RunError, JournalCorrupt, LockError: there is none, or it does not hold.
    """
    started = cast(RunStarted, (await read_run(journal, run))[0].event)
    return started, from_text(started.lock_text, f"the lock of run {run}")


def _settings(model: ModelSection) -> Settings:
    return Settings(
        temperature=model.temperature,
        top_p=model.top_p,
        max_tokens=model.max_tokens,
        seed=model.seed,
        parallel_tool_calls=model.parallel_tool_calls,
        timeout_s=model.timeout_s,
    )


def _open_file_model(agent: LockedAgent, provider: str, name: str, code: CodeStore) -> Model:
    path = Path(name)
    if agent.model_file is not None:
        file, digest = agent.model_file
        path = code.get({file: digest}) / file
    return _read_file_model(provider, path)


def _read_file_model(provider: str, path: Path) -> Model:
    if provider == "scripted":
        from lockstep.model.scripted import ScriptedModel, read_script

        return ScriptedModel(read_script(path))
    from lockstep.model.recorded import RecordedModel
    from lockstep.model.recording import read_recording

    return RecordedModel(recording=read_recording(path))


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


def _keep_code(directory: Path, spec: AgentSpec, code: CodeStore) -> None:
    for source in spec.tools:
        code.put(code_files(directory, source))
    provider, _, name = spec.model.name.partition(":")
    if provider in FILE_MODELS:
        code.put({name: read_file(directory / name)})


async def _describe(
    directory: Path, index: int, source: ToolSource, tools: SandboxedTools, code: CodeStore
) -> Sequence[Any]:
    files = code_files(directory, source)
    code.put(files)
    asked = _as_tool(source, files)
    permit, digest = Describing().permit(asked)
    place = f"{directory / AGENT_FILE}: tools[{index}] ({source_key(source)})"
    try:
        return await tools.describe(asked, permit, digest)
    except ServerError as error:
        problem = f"{place} cannot be used: {error.message.rstrip('.')}."
        raise ConfigError(problem, remedy="Correct it, then lock again.") from error
    except BadReply as error:
        raise ConfigError(f"{place} does not speak MCP: {error}.", remedy="Tools speak MCP over stdio.") from error
    except ProcessEnded as error:
        raise ConfigError(f"{place} {_why_ended(source, error)}", remedy="Start it by hand to see why.") from error


def _why_ended(source: ToolSource, ended: ProcessEnded) -> str:
    (last,) = ended.stderr.strip().splitlines()[-1:] or ("It printed nothing.",)
    if ended.limit == "wall_s":
        return f"did not say within {source.timeout_s:g} s (timeout_s) what it offers. {last}"
    how = f"its limit {ended.limit}" if ended.limit else f"exit code {ended.exit_code}"
    return f"ended before it said what it offers ({how}). {last}"


def _as_tool(source: ToolSource, files: Mapping[str, bytes]) -> LockedTool:
    """The source as something to run: no egress, because saying what one offers needs none."""
    return LockedTool(
        name=source_key(source),
        definition={},
        pin=digest_json({}),
        effect=source.effect,
        dedupe_on=None,
        tier=Tier(source.isolation),
        egress=(),
        env=source.env,
        limits=source.limits,
        timeout_s=source.timeout_s,
        fee_usd=Decimal(0),
        source=source_key(source),
        code={name: sha256(data) for name, data in files.items()},
        secrets=source.secrets,
    )


def _tool_problems(tool: LockedTool) -> list[str]:
    problems = []
    if not _TOOL_NAME.fullmatch(tool.name):
        problems.append("a tool's name is at most 128 letters, digits, _ - . and /")
    problems += egress_problems(tool)
    schema = tool.definition.get("inputSchema")
    if not isinstance(schema, Mapping):
        return [*problems, "its definition has no inputSchema object"]
    if schema.get("type") != "object":
        problems.append('its inputSchema must have `"type": "object"`: arguments are named')
    properties = schema.get("properties")
    known = set(properties) if isinstance(properties, Mapping) else set()
    for field in tool.dedupe_on or ():
        if field not in known:
            problems.append(
                f"dedupe_on names {field!r}, which is not one of its arguments ({', '.join(sorted(known))})"
            )
    return problems


async def start_ahead(tools: SandboxedTools, agent: LockedAgent) -> None:
    """Have sandboxes ready by the time a provider has answered; a model that is a file answers at once."""
    if agent.model.name.partition(":")[0] not in FILE_MODELS:
        await tools.prepare(agent.tools.values())


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
