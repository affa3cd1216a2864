"""The effect ledger's arithmetic: when two calls are the same one, what frees one, and what a probe's answer means.

Pure. What stands in the ledger is the state's `receipts`, a fold over the journal; this says under which key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from unicodedata import normalize

from lockstep.agent.effect_spec import ProbeSection, ReleaseRule, look_up
from lockstep.agent.locked import LockedTool
from lockstep.agent.pointers import Missing, select
from lockstep.gate.arguments import Arguments, Malformed, read
from lockstep.kernel.state import CallState, Emitted, Receipt, State
from lockstep.values import Digest, Effect, Json, JsonObject, canonical, digest_json, sha256

READ_STANDS_S = 60.0
"""For how long a read that is emitted again gets the result of the first: others may change what it reads."""
AGAIN = "again"
"""The argument by which a model asks for a deliberate repeat, where the tool's entry allows it."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """An earlier call that answers this one: its receipt, or what it was told when it was emitted before."""

    where: str
    text: str
    in_doubt: bool = False


def effect_key(state: State, agent: str, tool: LockedTool, arguments: Arguments) -> Digest:
    """The same for calls that mean the same effect: of one tool, within its scope, by its `dedupe_on` fields.

    A field that is absent is like one that is null, and texts in them count without case and spacing: a passenger
    written another way is the same passenger. Without `dedupe_on` all arguments count, exactly.
    """
    scopes: dict[str, dict[str, str]] = {
        "run": {"run": state.run},
        "principal": {"agent": agent, "principal": state.principal},
    }
    rest = {"tool": tool.name, **scopes.get(tool.repeats.scope, {"session": state.session})}
    if tool.dedupe_on is None:
        return digest_of("arguments", arguments.canonical, rest)
    return digest_json({"fields": {pointer: _field(arguments.value, pointer) for pointer in tool.dedupe_on}, **rest})


def _field(arguments: JsonObject, pointer: str) -> Json:
    try:
        return _folded(select(arguments, pointer))
    except Missing:
        return None


def _folded(value: Any) -> Json:
    if isinstance(value, str):
        return " ".join(normalize("NFKC", value).casefold().split())
    if isinstance(value, dict):
        return {name: _folded(item) for name, item in value.items()}
    return [_folded(item) for item in value] if isinstance(value, list | tuple) else value


def digest_of(name: str, value: bytes, rest: Mapping[str, str]) -> Digest:
    """`digest_json({name: value, **rest})` of a value that is canonical already; `name` sorts before the rest."""
    return sha256(b'{"%b":%b,%b' % (name.encode(), value, canonical(rest)[1:]))


def standing(state: State, key: str) -> Repeat | None:
    """The receipt that stands against another call of this key.

    Within one reply the same call is made once, whatever stands between the two: a model that asks for something, for
    its opposite and for the first again has seen no result of either.
    """
    for call in state.calls:
        if call.dedupe_key == key and call.outcome == "ok" and not call.duplicate_of and not call.again:
            return Repeat(f"{state.run}/{call.id}", call.text)
    receipt = state.receipts.get(key)
    if receipt is None or not receipt.stands(state.last_at_ms):
        return None
    return Repeat(receipt.where, receipt.text, receipt.in_doubt)


def told(tool: str, done: Repeat | Receipt) -> str:
    """What the model is told of a call that is not run, because the same one was made or is in doubt."""
    if done.in_doubt:
        return f"Not run: nobody knows yet whether the same {tool} of before happened. Do not ask for it again."
    return f"{done.text}\n\n[This call was already made ({done.where}); it was not run again. This is its result.]"


def emitted_before(state: State, call: CallState, tool: LockedTool, arguments: Arguments) -> Repeat | None:
    """A call of an earlier reply that an adapter emitted again: the provider's id, the tool and the arguments agree.

    Models reuse ids for other calls, so an id alone says nothing, least of all within one reply. A read is made again
    once the session has changed something, and after a while anyway: its answer may be another.
    """
    if not call.provider_id:
        return None
    for earlier in state.emitted.get(call.provider_id, ()):
        if earlier.name != call.name or (tool.effect is Effect.READ and not _still_read(state, call, earlier)):
            continue
        if earlier.arguments == call.arguments or _same(earlier.arguments, arguments):
            return Repeat(earlier.where, earlier.text)
    return None


def _still_read(state: State, call: CallState, earlier: Emitted) -> bool:
    return earlier.effects_seen == state.effects and call.asked_at_ms - earlier.asked_at_ms < READ_STANDS_S * 1000


def _same(text: str, arguments: Arguments) -> bool:
    try:
        return read(text).canonical == arguments.canonical
    except Malformed:
        return False


def split_again(tool: LockedTool, arguments: Arguments) -> tuple[Arguments, bool]:
    """The arguments without `again`, and whether it was asked for."""
    if not tool.repeats.again or AGAIN not in arguments.value:
        return arguments, False
    value = {name: each for name, each in arguments.value.items() if name != AGAIN}
    return Arguments(value, canonical(value)), arguments.value[AGAIN] is True


def frees(tools: Mapping[str, LockedTool], tool: LockedTool, arguments: JsonObject) -> tuple[str, ...]:
    """The terms of earlier receipts that this call ends if it succeeds."""
    rules = [rule for each in tools.values() for rule in each.repeats.released_by if rule.tool == tool.name]
    terms: dict[str, None] = {}
    for rule in rules:
        try:
            terms[_term(rule, {pointer: select(arguments, pointer) for pointer in rule.where})] = None
        except Missing:
            continue
    return tuple(terms)


def freed_by(tool: LockedTool, arguments: JsonObject, text: str) -> tuple[str, ...]:
    """The terms that end the receipt of a call with these arguments and this result."""
    result = as_json(text)
    terms: dict[str, None] = {}
    for rule in tool.repeats.released_by:
        try:
            found = {pointer: look_up(reference, arguments, result) for pointer, reference in rule.where.items()}
        except Missing:
            continue
        terms[_term(rule, found)] = None
    return tuple(terms)


def _term(rule: ReleaseRule, found: Mapping[str, Json]) -> Digest:
    return digest_json({"tool": rule.tool, "where": found})


def as_json(text: str) -> Json:
    """A result's text as the JSON it is, or None."""
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def probe_arguments(probe: ProbeSection, arguments: JsonObject, key: str) -> JsonObject:
    """What the probe is asked with.

    Raises:
        Missing: the call in doubt has no such argument.
    """
    return {
        name: key if source == "key" else look_up(source, arguments, None) for name, source in probe.arguments.items()
    }


def probed(probe: ProbeSection, text: str) -> Literal["found", "not_found", "unclear"]:
    """What a probe's result says."""
    result: Any = as_json(text)
    if not isinstance(result, dict | list):
        return "unclear"
    try:
        found = select(result, probe.found)
    except Missing:
        return "not_found"
    return "not_found" if found is None or found is False or found in ("", [], {}) else "found"
