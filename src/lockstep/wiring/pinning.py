"""Which definitions of other people's servers may come into the lock, which is the record of what was approved.

A server that is locked for the first time is taken as it is shown to whoever locks it. From then on, a tool that it
grows is left out, and a definition or a package that changed stops the locking, until a person approves the tool by
name; naming it in `include` does the same for a new one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lockstep.agent.context import METHODS
from lockstep.agent.diff import definition_changes
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import Lock, read_lock
from lockstep.agent.locked import LockedTool
from lockstep.agent.resolve import resolve, shown_name, source_key
from lockstep.errors import ConfigError, LockError
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.scan import Finding, Offered, scan
from lockstep.wiring.locking import Asked, ask_sources, check, check_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One tool of a server: `approved`, `changed`, `gone` (not offered any more), `new` on a server that was
    approved, or `first` on one that never was."""

    name: str
    pin: str
    status: str
    source: str
    lines: tuple[str, ...] = ()
    """How it changed, in words that are safe to print."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """What an agent's servers offer now, against what was approved."""

    asked: Asked
    standing: tuple[Standing, ...]
    findings: tuple[Finding, ...]


async def review(directory: Path, tools: SandboxedTools, code: CodeStore) -> Review:
    """Ask every source what it offers, and compare with the agent's lock. Nothing is written.

    Raises:
        ConfigError, ModelError, SandboxUnavailable: as for locking.
    """
    asked = await ask_sources(directory, tools, code)
    wanted = resolve(directory, asked.spec, asked.definitions, asked.protocols, asked.trees)
    check(directory, wanted)
    return Review(
        asked=asked,
        standing=_standing(_approved(directory), locked_agent(wanted).tools),
        findings=scan(_offered(asked)),
    )


def approved_lock(directory: Path, seen: Review, approve: Collection[str] | None = ()) -> Lock:
    """The lock with what was approved before and what is approved now: these names, or with None all.

    Raises:
        ConfigError: a definition changed and is not approved (says how), or `approve` names no tool of a server.
        ModelError: the agent's model is a file that cannot be used.
    """
    asked, left_out = seen.asked, set[str]()
    if approve is not None:
        _require_known(approve, seen.standing)
        _require_unchanged(directory, approve, seen.standing)
        left_out = _left_out(asked, approve, seen.standing)
    definitions = {
        index: [each for each in offered if shown_name(asked.spec.tools[index], str(each["name"])) not in left_out]
        for index, offered in asked.definitions.items()
    }
    lock = resolve(directory, asked.spec, definitions, asked.protocols, asked.trees)
    check_whole(directory, asked.spec, lock)
    return lock


def _approved(directory: Path) -> Mapping[str, LockedTool]:
    """The tools of the lock there is; none where there is none that can be read, and locking begins anew."""
    try:
        return locked_agent(read_lock(directory)).tools
    except LockError:
        return {}


def _standing(before: Mapping[str, LockedTool], now: Mapping[str, LockedTool]) -> tuple[Standing, ...]:
    known = {tool.source for tool in before.values()}
    out = []
    for name, tool in now.items():
        if not tool.source.startswith("mcp:"):
            continue
        old = before.get(name)
        lines = _changes(old, tool) if old else ()
        status = ("changed" if lines else "approved") if old else "new" if tool.source in known else "first"
        out.append(Standing(name=name, pin=tool.pin, status=status, source=tool.source, lines=lines))
    for name, tool in before.items():
        if tool.source.startswith("mcp:") and name not in now:
            out.append(Standing(name=name, pin=tool.pin, status="gone", source=tool.source))
    return tuple(out)


def _changes(old: LockedTool, new: LockedTool) -> tuple[str, ...]:
    """What somebody else changed. The agent's own files and the command are its author's business."""
    packages = [
        f"runtime {name}: {old.runtime.get(name, 'nothing')[:12]} -> {new.runtime.get(name, 'nothing')[:12]}"
        for name in sorted({*old.runtime, *new.runtime})
        if old.runtime.get(name) != new.runtime.get(name)
    ]
    return (*definition_changes(old.definition, new.definition), *packages)


def _require_known(approve: Collection[str], standing: Sequence[Standing]) -> None:
    names = {each.name for each in standing}
    if unknown := sorted(set(approve) - names):
        raise ConfigError(
            f"{unknown[0]!r} is no tool of an MCP server of this agent.",
            remedy=f"There are: {', '.join(sorted(names)) or 'none'}.",
        )


def _require_unchanged(directory: Path, approve: Collection[str], standing: Sequence[Standing]) -> None:
    changed = [each for each in standing if each.status == "changed" and each.name not in approve]
    if changed:
        said = "\n".join(
            f"Tool {each.name!r} is not the one that was approved:\n" + "\n".join(f"  {line}" for line in each.lines)
            for each in changed
        )
        names = " ".join(each.name for each in changed)
        raise ConfigError(said, remedy=f"If that is right: lockstep tools approve {directory} {names}")


def _left_out(asked: Asked, approve: Collection[str], standing: Sequence[Standing]) -> set[str]:
    named = {shown_name(source, name) for source in asked.spec.tools for name in source.include or ()}
    named |= {shown_name(source, name) for source in asked.spec.tools if source.mcp for name in METHODS}  # by `offer`
    return {each.name for each in standing if each.status == "new"} - named - set(approve)


def _offered(asked: Asked) -> list[Offered]:
    seen: set[tuple[str, str]] = set()
    out: list[Offered] = []
    for index, source in enumerate(asked.spec.tools):
        for definition in asked.definitions[index]:
            key = (source_key(source), str(definition["name"]))
            if source.mcp and key not in seen:
                seen.add(key)
                out.append(Offered(source=key[0], definition=definition))
    return out
