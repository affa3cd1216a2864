"""From an agent's directory to its lock: every tool source is asked in a sandbox, and the whole is checked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import cast

from lockstep.agent.files import AGENT_FILE
from lockstep.agent.from_lock import locked_agent, remote_of
from lockstep.agent.load import load_spec
from lockstep.agent.lock import Lock
from lockstep.agent.locked import LockedTool
from lockstep.agent.places import host_path
from lockstep.agent.resolve import code_files, resolve, source_key
from lockstep.agent.spec import FILE_MODELS, AgentSpec, PolicySection, ToolSource
from lockstep.agent.trees import Trees
from lockstep.errors import ConfigError, StoreError
from lockstep.gate.arguments import ArgumentChecker
from lockstep.gate.effect_checks import effect_problems
from lockstep.gate.gate import Describing
from lockstep.gate.policy import Policies
from lockstep.sandbox.contract import ProcessEnded
from lockstep.tools.client import BadReply, ServerError, Unauthorized
from lockstep.tools.code import CodeStore
from lockstep.tools.egress_checks import egress_problems, private_names
from lockstep.tools.host import Description, SandboxedTools
from lockstep.tools.remote_headers import marks_problem
from lockstep.tools.scan import visible
from lockstep.tools.structure import schema_problem
from lockstep.values import Digest, Effect, JsonObject, digest_json, sha256
from lockstep.wiring.models import read_file_model
from lockstep.wiring.unstarted import remedy_for

_TOOL_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")
"""What the Model Context Protocol lets a tool be called; some providers take less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the sources of an agent answered, by the index of their entries."""

    spec: AgentSpec
    definitions: Mapping[int, Sequence[JsonObject]]
    protocols: Mapping[int, str]
    problems: tuple[str, ...]
    """Definitions of servers that are of no use and were dropped, each in a sentence."""
    trees: Trees
    """What their directories of packages were."""


async def ask_sources(directory: Path, tools: SandboxedTools, code: CodeStore) -> Asked:
    """Ask every tool source for its definitions in a sandbox.

    Raises:
        ConfigError: something in the directory is wrong, or a source cannot say.
        SandboxUnavailable: the sources cannot be asked on this machine.
    """
    spec, trees = load_spec(directory), Trees()
    require_files(directory, spec)
    definitions: dict[int, Sequence[JsonObject]] = {}
    protocols: dict[int, str] = {}
    problems: list[str] = []
    for index, said in enumerate(await _describe_all(directory, spec, tools, code, trees)):
        source = spec.tools[index]
        definitions[index], dropped = said.offer.tools, said.offer.problems
        if source.mcp:
            protocols[index] = said.protocol
            definitions[index], more = usable(said.offer.tools, over_http=source.mcp.url is not None)
            dropped = (*dropped, *more)
        problems += [f"{directory / AGENT_FILE}: tools[{index}]: {each}; it was left out." for each in dropped]
    return Asked(spec=spec, definitions=definitions, protocols=protocols, problems=tuple(problems), trees=trees)


def require_files(directory: Path, spec: AgentSpec) -> None:
    """What can be wrong with an agent whatever its tools are, before any of them is started.

    Raises:
        ConfigError, ModelError: a file is missing or cannot be read, or is no Cedar, or no script or recording.
    """
    toolless = resolve(directory, spec.model_copy(update={"tools": ()}), {})
    _parsed(directory, locked_agent(toolless).policies)
    _require_model_file(directory, spec)


async def resolve_agent(directory: Path, tools: SandboxedTools, code: CodeStore) -> Lock:
    """Resolve what is on disk, with everything that its tool sources offer, and check the whole.

    Raises:
        ConfigError, ModelError: something in the directory is wrong.
        SandboxUnavailable: the sources cannot be asked on this machine.
    """
    asked = await ask_sources(directory, tools, code)
    lock = resolve(directory, asked.spec, asked.definitions, asked.protocols, asked.trees)
    check_whole(directory, asked.spec, lock)
    return lock


def check_whole(directory: Path, spec: AgentSpec, lock: Lock) -> None:
    """As `check`, and what is seen only from this machine: names that lead to private addresses, the model's file.

    Raises:
        ConfigError, ModelError: each problem in a sentence.
    """
    check(directory, lock)
    if closed := private_names(locked_agent(lock).tools.values()):
        raise ConfigError("\n".join(f"{directory / AGENT_FILE}: {problem}." for problem in closed))
    _require_model_file(directory, spec)


def _require_model_file(directory: Path, spec: AgentSpec) -> None:
    provider, _, name = spec.model.name.partition(":")
    if provider in FILE_MODELS:
        read_file_model(provider, directory / name)


def check(directory: Path, lock: Lock) -> Policies:
    """Everything about a lock that can be wrong before a run: tools, schemas, egress, effects, policies.

    Raises:
        ConfigError: each problem in a sentence.
    """
    agent = locked_agent(lock)
    problems = []
    for tool in agent.tools.values():
        problems += [f"{directory / AGENT_FILE}: tool {tool.name!r}: {text}." for text in _tool_problems(tool)]
    unknown = agent.budget.unknown_tools(agent.tools)
    problems += [f"{directory / AGENT_FILE}: {text}, which is no tool of this agent." for text in unknown]
    # Verdicts name policies as the lock does, wherever the agent lies; only what a person reads here says where.
    where, policies = _place_of(directory), _parsed(directory, agent.policies)
    if not problems:  # what follows reads the schemas
        for tool in agent.tools.values():
            found = effect_problems(tool, agent.tools)
            problems += [f"{directory / AGENT_FILE}: tool {tool.name!r}: {text}." for text in found]
        schemas = {name: tool.input_schema for name, tool in agent.tools.items()}
        ArgumentChecker(schemas)
        problems += [f"{where}{problem}" for problem in policies.problems(schemas)]
    if problems:
        raise ConfigError("\n".join(problems))
    return policies


def _parsed(directory: Path, policies: Mapping[str, str]) -> Policies:
    try:
        return Policies.parse(policies)
    except ConfigError as error:
        raise ConfigError(f"{_place_of(directory)}{error.message}", remedy=error.remedy) from error


def _place_of(directory: Path) -> str:
    return "" if directory == Path() else f"{directory}/"


def with_code(lock: Lock, code: CodeStore) -> Lock:
    """The lock with the code behind its digests, as far as the store still has it: for a diff that shows lines."""
    files = dict(lock.files)
    for tool in locked_agent(lock).tools.values():
        with contextlib.suppress(StoreError):
            snapshot = code.get(tool.code)
            files.update({name: (snapshot / name).read_bytes() for name in tool.code if name not in files})
    return replace(lock, files=files)


async def _describe_all(
    directory: Path, spec: AgentSpec, tools: SandboxedTools, code: CodeStore, trees: Trees
) -> list[Description]:
    """What each source offers, asked for at the same time as far as the machine has room; all that is wrong is said.

    Of entries that share a source and run it alike, the first is asked for all of them.
    """
    room = asyncio.Semaphore(max(2, os.cpu_count() or 1))
    asked: list[tuple[LockedTool, Sequence[str], asyncio.Task[Description]]] = []
    answers: list[asyncio.Task[Description]] = []
    try:
        for index, source in enumerate(spec.tools):
            tool = _to_ask(directory, spec.policy, source, code, trees)
            alike = replace(tool, effect=Effect.READ)  # which says what its calls do, and nothing of what it offers
            offers = source.mcp.offer if source.mcp else ("tools",)
            task = next((each for other, of, each in asked if (other, of) == (alike, offers)), None)
            if task is None:
                place = f"{directory / AGENT_FILE}: tools[{index}] ({source_key(source)})"
                task = asyncio.create_task(_describe(directory, place, source, tool, tools, room))
                asked.append((alike, offers, task))
            answers.append(task)
        done = await asyncio.gather(*(task for *_, task in asked), return_exceptions=True)
    finally:
        for *_, task in asked:
            task.cancel()
        await asyncio.gather(*(task for *_, task in asked), return_exceptions=True)
    _raise_any([each for each in done if isinstance(each, BaseException)])
    return [task.result() for task in answers]


def _raise_any(failed: Sequence[BaseException]) -> None:
    """What went wrong with the sources: every mistake of the agent, or the first thing that is none."""
    mistakes = [each for each in failed if isinstance(each, ConfigError)]
    for each in failed:
        if not isinstance(each, ConfigError):
            raise each
    if len(mistakes) > 1:
        raise ConfigError("\n".join(f"{each.message}\n  {each.remedy}".rstrip() for each in mistakes))
    if mistakes:
        raise mistakes[0]


def _to_ask(directory: Path, policy: PolicySection, source: ToolSource, code: CodeStore, trees: Trees) -> LockedTool:
    files = code_files(directory, source)
    code.put(files)
    return _as_tool(policy, source, files, keep_runtime(source, code, trees))


async def _describe(
    directory: Path, place: str, source: ToolSource, asked: LockedTool, tools: SandboxedTools, room: asyncio.Semaphore
) -> Description:
    """What a source offers; `place` names its entry."""
    try:
        async with room:
            return await _offered(asked, tools, source.mcp.offer if source.mcp else ("tools",))
    except ServerError as error:
        problem = f"{place} cannot be used: {error.message.rstrip('.')}."
        remedy = "Then lock again." if isinstance(error, Unauthorized) else "Correct it, then lock again."
        raise ConfigError(problem, remedy=remedy) from error
    except BadReply as error:
        remedy = "Tools speak MCP over Streamable HTTP: name the URL of its endpoint."
        if source.mcp is None or source.mcp.url is None:
            remedy = "Tools speak MCP over stdio: print to standard error, for standard output is the protocol's."
        raise ConfigError(f"{place} does not speak MCP: {error}.", remedy=remedy) from error
    except ProcessEnded as error:
        remedy = "" if source.mcp and source.mcp.url else remedy_for(directory, source, error)
        raise ConfigError(f"{place} {_why_ended(source, error)}", remedy=remedy) from error


async def _offered(asked: LockedTool, tools: SandboxedTools, offers: Sequence[str]) -> Description:
    permit, digest = Describing().permit(asked)
    try:
        return await tools.describe(asked, permit, digest, offers=offers)
    except ProcessEnded as ended:
        if not asked.source.startswith("mcp:") or asked.remote or ended.limit:
            raise
    # There are servers of the legacy era that end at a request they do not know.
    permit, digest = Describing().permit(asked)
    return await tools.describe(asked, permit, digest, offers=offers, legacy=True)


def _why_ended(source: ToolSource, ended: ProcessEnded) -> str:
    if ended.limit == "connection":
        return f"does not answer: {ended.stderr}."
    (last,) = ended.stderr.strip().splitlines()[-1:] or ("It printed nothing.",)
    if ended.limit == "wall_s":
        return f"did not say within {source.timeout_s:g} s (timeout_s) what it offers. {last}"
    how = f"its limit {ended.limit}" if ended.limit else f"exit code {ended.exit_code}"
    return f"ended before it said what it offers ({how}). {last}"


def keep_runtime(source: ToolSource, code: CodeStore, trees: Trees) -> dict[str, Digest]:
    """Put the packages a server consists of into the store; their digests by name.

    Raises:
        ConfigError, StoreError: they cannot be read, or kept.
    """
    runtime = source.mcp.runtime if source.mcp else {}
    return {name: code.put_tree(host_path(path), trees) for name, path in runtime.items()}


def _as_tool(
    policy: PolicySection, source: ToolSource, files: Mapping[str, bytes], runtime: Mapping[str, Digest]
) -> LockedTool:
    """The source as something to run: no egress, because saying what one offers needs none but to get there.

    It needs the tier of its calls, but for a built-in one: its own code is ours, only what it is given to run is not.
    """
    tier = policy.tier(source.model_copy(update={"untrusted": False}) if source.builtin else source)
    server = source.mcp
    return LockedTool(
        name=source_key(source),
        definition={},
        pin=digest_json({}),
        effect=source.effect,
        dedupe_on=None,
        tier=tier,
        degrade=policy.stand_in(tier),
        egress=server.egress if server else (),
        env=source.env,
        limits=source.limits,
        timeout_s=source.timeout_s,
        fee_usd=Decimal(0),
        source=source_key(source),
        code={name: sha256(data) for name, data in files.items()},
        secrets=source.secrets,
        runtime=runtime,
        files=server.files if server else {},
        asks=server.asks if server else (),
        remote=remote_of(server) if server else None,
    )


def usable(
    definitions: Sequence[JsonObject], *, over_http: bool = False
) -> tuple[Sequence[JsonObject], tuple[str, ...]]:
    """The definitions of a server that can be used, and a phrase about each other one; all where none can.

    What is wrong with all of them is an error, which `check` says with the place.
    """
    problems = {str(each["name"]): problem for each in definitions if (problem := _unusable(each, over_http))}
    good = [each for each in definitions if str(each["name"]) not in problems]
    if not good:
        return definitions, ()
    return good, tuple(f"tool {visible(name)!r}: {problem}" for name, problem in problems.items())


def _unusable(definition: JsonObject, over_http: bool) -> str:
    name = str(definition["name"])
    problems = _definition_problems(name, definition)
    if over_http and (problem := marks_problem(definition)):
        problems.append(problem)
    if not problems:
        try:
            digest_json(definition)
            ArgumentChecker({name: cast(JsonObject, definition["inputSchema"])})
        except (ValueError, ConfigError) as error:
            problems.append(str(error).rstrip("."))
    return "; ".join(problems)


def _definition_problems(name: str, definition: JsonObject) -> list[str]:
    problems = []
    if not _TOOL_NAME.fullmatch(name):
        problems.append("a tool's name is at most 128 letters, digits, _ - . and /")
    schema = definition.get("inputSchema")
    if not isinstance(schema, Mapping):
        return [*problems, "its definition has no inputSchema object"]
    if schema.get("type") != "object":
        problems.append('its inputSchema must have `"type": "object"`: arguments are named')
    if "outputSchema" in definition and (problem := schema_problem(definition["outputSchema"])):
        problems.append(f"its outputSchema is not usable: {problem}")
    return problems


def _tool_problems(tool: LockedTool) -> list[str]:
    return [*_definition_problems(tool.name, tool.definition), *egress_problems(tool)]
