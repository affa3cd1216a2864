"""What can be wrong with a tool's effects before a run: fields that are not there, probes that cannot be asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lockstep.agent.locked import LockedTool
from lockstep.agent.pointers import EVERY, steps
from lockstep.gate.effects import AGAIN
from lockstep.values import Effect


def effect_problems(tool: LockedTool, tools: Mapping[str, LockedTool]) -> Iterator[str]:
    """What is wrong, in sentences without their full stop."""
    for pointer in tool.dedupe_on or ():
        if not _may_stand(tool, pointer):
            yield f"dedupe_on names {pointer!r}, which is not one of its arguments ({_names(tool)})"
    if tool.dedupe_on == ():
        yield "dedupe_on names nothing, so that every call would be the same one; name fields, or leave it out"
    yield from _released_by(tool, tools)
    if tool.repeats.again and AGAIN in _properties(tool):
        yield f"again = true, and it has an argument {AGAIN!r} of its own"
    if tool.repeats.again and not tool.once_only:
        yield "again = true, but its calls may be repeated as they are"
    if tool.repeats.probe is not None:
        yield from _probe(tool, tools)


def _released_by(tool: LockedTool, tools: Mapping[str, LockedTool]) -> Iterator[str]:
    for rule in tool.repeats.released_by:
        other = tools.get(rule.tool)
        if other is None:
            yield f"released_by names the tool {rule.tool!r}, which this agent does not have"
            continue
        for pointer, reference in rule.where.items():
            if not _may_stand(other, pointer):
                yield f"released_by names {pointer!r}, which is not an argument of {rule.tool} ({_names(other)})"
            yield from _reference("released_by", tool, reference)


def _probe(tool: LockedTool, tools: Mapping[str, LockedTool]) -> Iterator[str]:
    probe = tool.repeats.probe
    assert probe is not None
    if tool.effect not in (Effect.ONCE, Effect.KEYED):
        yield f"probe is for calls that are never repeated blindly; this one is {tool.effect.value}"
    asked = tools.get(probe.tool)
    if asked is None:
        yield f"probe names the tool {probe.tool!r}, which this agent does not have"
        return
    if asked.effect is not Effect.READ:
        yield f'probe names {probe.tool}, which is {asked.effect.value}: what only asks is declared effect = "read"'
    for name, source in probe.arguments.items():
        if name not in _properties(asked):
            yield f"probe.arguments names {name!r}, which is not an argument of {probe.tool} ({_names(asked)})"
        if source.startswith("result:"):
            yield f"probe.arguments.{name} is {source!r}: a call whose reply was lost has no result to look into"
        elif source != "key":
            yield from _reference(f"probe.arguments.{name}", tool, source)


def _reference(where: str, tool: LockedTool, reference: str) -> Iterator[str]:
    kind, _, pointer = reference.partition(":")
    if kind == "arguments" and not _may_stand(tool, pointer):
        yield f"{where} refers to {reference!r}, which is not one of its arguments ({_names(tool)})"


def _may_stand(tool: LockedTool, pointer: str) -> bool:
    """Whether the schema leaves room for something there; only named properties are known for certain."""
    schema: Any = tool.input_schema
    for step in steps(pointer):
        if not isinstance(schema, Mapping):
            return True
        properties, items = schema.get("properties"), schema.get("items")
        if isinstance(properties, Mapping) and step in properties:
            schema = properties[step]
        elif (step == EVERY or step.isdigit()) and isinstance(items, Mapping):
            schema = items
        else:
            return not isinstance(properties, Mapping) and schema is not tool.input_schema
    return True


def _properties(tool: LockedTool) -> Mapping[str, Any]:
    found = tool.input_schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def _names(tool: LockedTool) -> str:
    return ", ".join(sorted(_properties(tool))) or "it has none"
