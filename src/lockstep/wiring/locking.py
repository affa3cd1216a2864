"""From an agent's directory to its lock: every tool source is asked in a sandbox, and the whole is checked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from lockstep.agent.load import AGENT_FILE, load_spec
from lockstep.agent.lock import (
    Lock,
    code_files,
    resolve,
    source_key,
)
from lockstep.agent.locked import LockedTool, locked_agent
from lockstep.agent.spec import FILE_MODELS, PolicySection, ToolSource
from lockstep.errors import ConfigError, StoreError
from lockstep.gate.arguments import ArgumentChecker
from lockstep.gate.effect_checks import effect_problems
from lockstep.gate.gate import Describing
from lockstep.gate.policy import Policies
from lockstep.sandbox.contract import ProcessEnded
from lockstep.tools.client import BadReply, ServerError
from lockstep.tools.code import CodeStore
from lockstep.tools.egress_checks import egress_problems, private_names
from lockstep.tools.host import SandboxedTools
from lockstep.values import digest_json, sha256
from lockstep.wiring.models import read_file_model

_TOOL_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")
"""What the Model Context Protocol lets a tool be called; some providers take less."""


async def resolve_agent(directory: Path, tools: SandboxedTools, code: CodeStore) -> Lock:
    """Resolve what is on disk, asking every tool source for its definitions in a sandbox, and check the whole.

    Raises:
        ConfigError, ModelError: something in the directory is wrong.
        SandboxUnavailable: the sources cannot be asked on this machine.
    """
    spec = load_spec(directory)
    definitions: dict[int, Sequence[Any]] = {}
    for index, source in enumerate(spec.tools):
        definitions[index] = await _describe(directory, index, spec.policy, source, tools, code)
    lock = resolve(directory, spec, definitions)
    check(directory, lock)
    if closed := private_names(locked_agent(lock).tools.values()):
        raise ConfigError("\n".join(f"{directory / AGENT_FILE}: {problem}." for problem in closed))
    provider, _, name = spec.model.name.partition(":")
    if provider in FILE_MODELS:
        read_file_model(provider, directory / name)
    return lock


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
    where = "" if directory == Path() else f"{directory}/"
    try:
        policies = Policies.parse(agent.policies)
    except ConfigError as error:
        raise ConfigError(f"{where}{error.message}", remedy=error.remedy) from error
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


def with_code(lock: Lock, code: CodeStore) -> Lock:
    """The lock with the code behind its digests, as far as the store still has it: for a diff that shows lines."""
    files = dict(lock.files)
    for tool in locked_agent(lock).tools.values():
        with contextlib.suppress(StoreError):
            snapshot = code.get(tool.code)
            files.update({name: (snapshot / name).read_bytes() for name in tool.code if name not in files})
    return replace(lock, files=files)


async def _describe(
    directory: Path, index: int, policy: PolicySection, source: ToolSource, tools: SandboxedTools, code: CodeStore
) -> Sequence[Any]:
    files = code_files(directory, source)
    code.put(files)
    asked = _as_tool(policy, source, files)
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


def _as_tool(policy: PolicySection, source: ToolSource, files: Mapping[str, bytes]) -> LockedTool:
    """The source as something to run: no egress, because saying what one offers needs none.

    It needs the tier of its calls, but for a built-in one: its own code is ours, only what it is given to run is not.
    """
    tier = policy.tier(source.model_copy(update={"untrusted": False}) if source.builtin else source)
    return LockedTool(
        name=source_key(source),
        definition={},
        pin=digest_json({}),
        effect=source.effect,
        dedupe_on=None,
        tier=tier,
        degrade=policy.stand_in(tier),
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
    return problems
