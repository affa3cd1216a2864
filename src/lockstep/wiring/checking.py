"""`lockstep tools check`: what an agent's tools say of themselves, and with a scratch world, what they do."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from lockstep.agent.check_spec import CheckSection
from lockstep.agent.files import AGENT_FILE
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.load import load_spec
from lockstep.agent.lock import Lock
from lockstep.agent.locked import LockedAgent, LockedTool
from lockstep.agent.resolve import code_files, shown_name, source_key
from lockstep.agent.spec import AgentSpec, ToolSource
from lockstep.errors import ConfigError, LockError
from lockstep.gate.trial import Trying
from lockstep.sandbox.egress_rules import parse_authority, parse_rule
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.scan import Offered, scan, visible
from lockstep.tools.semantics import RANK, Finding, static_findings
from lockstep.tools.trial import Place, Trials
from lockstep.wiring.running import prepare, require_tiers
from lockstep.wiring.scratch import scratch_world

_KEY_META = b"lockstep/key"


async def check_tools(directory: Path, tools: SandboxedTools, code: CodeStore, *, scratch: bool) -> list[Finding]:
    """What is found about the tools as they are on disk, worst first; with `scratch`, each is called as well.

    Raises:
        ConfigError, LockError: the directory is wrong, or the scratch world cannot be had.
        SandboxUnavailable: nothing can be called on this machine.
    """
    spec = load_spec(directory)
    try:
        lock = (await prepare(directory, tools, code)).lock
    except LockError:  # never locked, or changed since: what is there now is what is asked about
        lock = (await prepare(directory, tools, code, unlocked=True)).lock
    agent = locked_agent(lock)
    found = [each for name, source in _sources(spec, lock) for each in _static(directory, agent.tools[name], source)]
    found += _scanned(agent)
    if scratch:
        found += await _tried(directory, spec, agent, tools)
    return sorted(found, key=lambda each: (RANK[each.severity], each.tool))


def _static(directory: Path, tool: LockedTool, source: ToolSource) -> list[Finding]:
    reads_key = any(_KEY_META in data for data in code_files(directory, source).values())
    return static_findings(tool, said=frozenset(source.model_fields_set), reads_key=reads_key)


def _scanned(agent: LockedAgent) -> list[Finding]:
    """What a person should read twice in the definitions of other people's servers."""
    theirs = [tool for tool in agent.tools.values() if tool.source.startswith("mcp:")]
    names = {(tool.source, visible(tool.own_name)): tool.name for tool in theirs}
    return [
        Finding(
            tool=names[each.source, each.tool],
            rule=f"scan-{each.what}",
            severity="note" if each.what == "elsewhere" else "warning",
            what=each.text,
            then="read the whole definition, and use the tool only if that is meant",
        )
        for each in scan(Offered(source=tool.source, definition=tool.definition) for tool in theirs)
    ]


def _sources(spec: AgentSpec, lock: Lock) -> Iterator[tuple[str, ToolSource]]:
    """Each locked tool with the entry that provides it."""
    claimed = {shown_name(source, name) for source in spec.tools for name in source.include or ()}
    for source in spec.tools:
        named = [name for name, value in lock.tools().items() if value["source"] == source_key(source)]
        included = [shown_name(source, name) for name in source.include or ()]
        for name in included or [name for name in named if name not in claimed]:
            yield name, source


async def _tried(directory: Path, spec: AgentSpec, agent: LockedAgent, host: SandboxedTools) -> list[Finding]:
    section = spec.check
    if section is None:
        raise ConfigError(
            f"{directory / AGENT_FILE} has no [check], so there is no scratch world.",
            remedy="Say how one is started and where its state is seen: docs/tools-check.md.",
        )
    unknown = sorted(set(section.arguments) - set(agent.tools))
    if unknown:
        raise ConfigError(f"{directory / AGENT_FILE}: check.arguments names {unknown[0]!r}, which is no tool of it.")
    await require_tiers(host, agent)
    trials = Trials(
        tools=agent.tools,
        host=host,
        permits=Trying(agent.tools),
        world=functools.partial(scratch_world, directory, section),
        instead_of=_instead_of(directory, section, agent),
        examples=section.arguments,
    )
    return [each for name in agent.tools for each in await trials.of(name)]


def _instead_of(directory: Path, section: CheckSection, agent: LockedAgent) -> tuple[Place, ...]:
    where = f"{directory / AGENT_FILE}: check.instead_of"
    if section.instead_of:
        try:
            return tuple(parse_authority(text) for text in section.instead_of)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}.", remedy="Write host:port as in the egress rules.") from error
    rules = [parse_rule(text) for tool in agent.tools.values() for text in tool.egress]
    places = sorted({(rule.host, rule.port) for rule in rules})
    if len(places) > 1:
        named = ", ".join(f"{host}:{port}" for host, port in places)
        raise ConfigError(f"{where} is missing: the tools reach {named}.", remedy="Say which the scratch world is.")
    return tuple(places)
