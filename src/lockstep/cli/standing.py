"""Standing approvals at the terminal: `lockstep allow`, `lockstep revoke`, `lockstep approvals --standing`."""

from __future__ import annotations

import json as json_text
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import read_lock
from lockstep.agent.locked import LockedAgent
from lockstep.agent.pointers import check, steps
from lockstep.cli.report import FINISHED
from lockstep.cli.stores import existing
from lockstep.cli.terminal import account, console, count, plain, print_json, user
from lockstep.errors import ApprovalError, ConfigError, LockError
from lockstep.journal.standing import Standing
from lockstep.values import new_token, now_ms
from lockstep.wiring.stores import Store

_UNITS = {"m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 31 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowing:
    """What `lockstep allow` was asked for."""

    agent: Path
    tool: str
    where: Sequence[str]
    lasting: str
    times: int | None
    principal: str
    by: str
    because: str


async def allow(asked: Allowing, store: Path | None, json: bool) -> int:
    agent = locked_agent(read_lock(asked.agent))
    if asked.tool not in agent.tools:
        known = ", ".join(agent.tools) or "none"
        raise ConfigError(f"{agent.name} has no tool {asked.tool!r:.100}.", remedy=f"It has: {known}.")
    at_ms = now_ms()
    standing = Standing(
        id=new_token("g"),
        agent=agent.name,
        directory=str(asked.agent.resolve()),
        lock=agent.digest,
        tool=asked.tool,
        where=tuple(_condition(agent, asked.tool, each) for each in asked.where),
        principal=asked.principal,
        from_ms=at_ms,
        until_ms=at_ms + _seconds(asked.lasting) * 1000,
        times=asked.times,
        by=asked.by.strip() or user(),
        login=account(),
        because=asked.because,
    )
    Store.of(asked.agent, store).standing().give(standing)
    if json:
        print_json(_as_json(standing))
        return FINISHED
    console().print(f"allowed {standing.id}: {_scope(standing)}; `lockstep revoke {standing.id}` takes it back")
    return FINISHED


async def revoke(name: str, store: Path | None, *, by: str, because: str) -> int:
    book = existing(store).standing()
    revoked = book.revoke(name, by=by.strip() or user(), because=because, at_ms=now_ms())
    if revoked is None:
        found = next((each for each in book.all() if each.id == name), None)
        why = f"There is no standing approval {name:.100}." if found is None else ""
        why = why or f"Standing approval {name} does not stand any more: {found.ended(now_ms()) if found else ''}."
        raise ApprovalError(why, remedy="`lockstep approvals --standing` lists them.")
    console().print(f"revoked {name}; calls like that ask a person again")
    return FINISHED


async def listing(store: Path | None, json: bool) -> int:
    found = existing(store).standing().all()
    if json:
        print_json({"standing": [_as_json(each) for each in found]})
        return FINISHED
    out = console()
    for each in found:
        ended = _ended(each)
        mark = f"[dim]{each.id} {plain(ended)}[/]" if ended else f"[yellow]{each.id}[/]"
        out.print(f"{mark} {_scope(each)}")
        because = f": {plain(each.because)}" if each.because else ""
        out.print(f"    given by {plain(each.by)}{because}; used {each.used}{_of(each)}; lock {each.lock[:12]}")
    if not found:
        out.print("no standing approvals")
    return FINISHED


def _ended(standing: Standing) -> str:
    """Why it is worth nothing now; empty while it is."""
    if ended := standing.ended(now_ms()):
        return ended
    try:
        lock = read_lock(Path(standing.directory)).digest
    except LockError:
        return "void: agent.lock is gone"
    return "" if lock == standing.lock else "void: agent.lock has changed"


def _scope(standing: Standing) -> str:
    where = " and ".join(f"{pointer} = {value}" for pointer, value in standing.where)
    until = datetime.fromtimestamp(standing.until_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    whose = f" for {standing.principal}" if standing.principal else ""
    times = "" if standing.times is None else f", at most {count(standing.times, 'time')}"
    return plain(f"{standing.tool} of {standing.agent}{f' where {where}' if where else ''}{whose} until {until}{times}")


def _of(standing: Standing) -> str:
    return "" if standing.times is None else f" of {standing.times}"


def _as_json(standing: Standing) -> dict[str, object]:
    where = [{"pointer": pointer, "value": json_text.loads(value)} for pointer, value in standing.where]
    return asdict(standing) | {"where": where, "ended": _ended(standing) or None}


def _condition(agent: LockedAgent, tool: str, text: str) -> tuple[str, str]:
    pointer, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError(f"is {text!r}: it must be POINTER=VALUE, like /to=bob")
        pointer = check(pointer.strip())
    except ValueError as error:
        raise ConfigError(f"--where {error}.", remedy="Name an argument and what it must be.") from error
    properties = agent.tools[tool].input_schema.get("properties")
    first = steps(pointer)[0]
    if isinstance(properties, dict) and first not in properties:
        raise ConfigError(f"{tool} has no argument {first!r:.100}.", remedy=f"It has: {', '.join(properties)}.")
    try:
        wanted = json_text.loads(value)
    except ValueError:
        wanted = value
    only = properties.get(first) if isinstance(properties, dict) and pointer.count("/") == 1 else None
    if isinstance(only, dict) and only.get("type") == "string" and not isinstance(wanted, str):
        right = f"'{pointer}={json_text.dumps(value)}'"
        raise ConfigError(f"--where {text!r} would never hold: {first} is text.", remedy=f"Write {right}.")
    if isinstance(only, dict) and only.get("type") in ("integer", "number", "boolean") and isinstance(wanted, str):
        raise ConfigError(f"--where {text!r} would never hold: {first} is of type {only['type']}.")
    return pointer, json_text.dumps(wanted)


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text.strip())
    if match is None or int(match[1]) * _UNITS[match[2]] > _LONGEST_S:
        raise ConfigError(f"--for is {text!r:.50}.", remedy="Say for how long: 30m, 8h or 2d, at most 31d.")
    return int(match[1]) * _UNITS[match[2]]
