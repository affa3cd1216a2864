"""`lockstep tools pin`, `diff` and `approve`: what an agent's MCP servers offer, against what was approved.

The lock is the record of what was approved; `approve_tools` is the one way into it, for `lockstep lock` too.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import Lock, write_lock
from lockstep.agent.resolve import shown_name, source_key
from lockstep.cli.report import BAD_INPUT, FINISHED
from lockstep.cli.terminal import console, plain, print_json
from lockstep.gate.policy import Policies
from lockstep.values import Effect
from lockstep.wiring import stores
from lockstep.wiring.pinning import Review, Standing, approved_lock, review
from lockstep.wiring.stores import Store

_WAITS = ("new", "changed", "gone", "first")


async def pins(directory: Path, store: Path | None, *, json: bool) -> int:
    seen = await _seen(directory, store)
    if json:
        print_json({"tools": [_as_json(each) for each in seen.standing]})
        return FINISHED
    out = console()
    for each in seen.standing:
        out.print(f"{each.status:8}  {each.pin[:12]}  {plain(each.name)}  [dim]{plain(each.source)}[/]")
    if not seen.standing:
        out.print("this agent has no MCP servers")
    return FINISHED


async def diff(directory: Path, store: Path | None, *, json: bool) -> int:
    seen = await _seen(directory, store)
    waiting = [each for each in seen.standing if each.status in _WAITS]
    if json:
        found = [{"tool": each.tool, "what": each.what, "text": each.text} for each in seen.findings]
        print_json({"tools": [_as_json(each) for each in waiting], "findings": found})
        return BAD_INPUT if waiting else FINISHED
    out = console()
    for each in waiting:
        out.print(f"[yellow]{each.status}[/] {plain(each.name)}  [dim]{plain(each.source)}[/]")
        for line in each.lines:
            out.print(f"    {plain(line)}")
    _print_advice(out, seen)
    if not waiting:
        out.print("every tool is the one that was approved")
    return BAD_INPUT if waiting else FINISHED


async def approve(directory: Path, store: Path | None, names: Collection[str] | None) -> int:
    lock = await approve_tools(directory, store, names)
    console().print(f"locked {lock.agent}: {lock.digest[:12]}")
    return FINISHED


async def approve_tools(directory: Path, store: Path | None, names: Collection[str] | None) -> Lock:
    """Write the lock with these tools approved (None: all), and say what a person should read.

    Raises:
        ConfigError: something changed that is not among them; nothing was written.
    """
    seen = await _seen(directory, store)
    lock = approved_lock(directory, seen, names)
    write_lock(directory, lock)
    out = console()
    _print_advice(out, seen)
    left_out = [each for each in seen.standing if each.status == "new" and each.name not in lock.tools()]
    for each in left_out:
        out.print(f"[yellow]not approved[/] {plain(each.name)}: new on {plain(each.source)}, left out")
    if left_out:
        named = " ".join(plain(each.name) for each in left_out)
        out.print(f"to approve: lockstep tools approve {plain(str(directory))} {named}")
    first = [each for each in seen.standing if each.status == "first"]
    for source in dict.fromkeys(each.source for each in first):
        named = ", ".join(each.name for each in first if each.source == source)
        out.print(f"approved as first seen on {plain(source)}: {plain(named)}")
    _print_defaults(out, seen, lock)
    return lock


def _print_defaults(out: Console, seen: Review, lock: Lock) -> None:
    """What holds because nothing was said, where it surprises: a tool nobody may call, one whose repeats do not run."""
    agent = locked_agent(lock)
    if denied := Policies.parse(agent.policies).unpermitted(agent.tools):
        whose = "no policy names" if agent.policies else "[policy] names no files, so no policy names"
        out.print(f"[yellow]denied[/] {plain(', '.join(denied))}: {plain(whose)} them in a permit")
    servers = [each for each in seen.asked.spec.tools if each.mcp]
    unsaid = {source_key(each) for each in servers if "effect" not in each.model_fields_set}
    said = {
        shown_name(each, name) for each in servers if "effect" in each.model_fields_set for name in each.include or ()
    }
    tools = [tool for tool in agent.tools.values() if tool.source in unsaid and tool.name not in said]
    once = [tool.name for tool in tools if tool.effect is Effect.ONCE]
    if once:
        why = "no effect is declared, so in a session the same call again is not run and gets the first result"
        out.print(f"[yellow]once[/] {plain(', '.join(once))}: {why}; `lockstep tools check` says more")


async def _seen(directory: Path, store: Path | None) -> Review:
    where = Store.of(directory, store)
    async with stores.opened_tools(where) as tools:
        return await review(directory, tools, where.code())


def _print_advice(out: Console, seen: Review) -> None:
    for problem in seen.asked.problems:
        out.print(f"[yellow]unusable[/] {plain(problem)}")
    for each in seen.findings:
        out.print(f"[yellow]look at[/] {plain(each.tool)} of {plain(each.source)}: {plain(each.text)}")


def _as_json(each: Standing) -> dict[str, str | list[str]]:
    return {
        "name": each.name,
        "status": each.status,
        "pin": each.pin,
        "source": each.source,
        "changes": list(each.lines),
    }
