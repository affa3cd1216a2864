"""What `[[tools]]` declares of arguments, for each tool of an entry: those of the pointers that the tool takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lockstep.agent.pointers import steps
from lockstep.agent.spec import FieldsSection
from lockstep.errors import ConfigError
from lockstep.values import Json, JsonObject


def fields_of_tool(fields: FieldsSection, definition: JsonObject) -> dict[str, Json]:
    """Kind -> pointers, in the order declared; a kind of which the tool takes nothing is left out."""
    takes = _arguments(definition)
    named = {kind: [p for p in pointers if steps(p)[0] in takes] for kind, pointers in fields.declared.items()}
    return {kind: pointers for kind, pointers in named.items() if pointers}


def check_fields(place: str, fields: FieldsSection, definitions: Sequence[JsonObject]) -> None:
    """Refuse a pointer that leads nowhere in every tool of the entry, which would be a rule that never holds.

    Raises:
        ConfigError: with the arguments that there are.
    """
    known = [_arguments(definition) for definition in definitions]
    if not any("inputSchema" in definition for definition in definitions):
        return  # a lock that lacks these tools, which says so itself
    for kind, pointers in fields.declared.items():
        for pointer in pointers:
            if not any(steps(pointer)[0] in each for each in known):
                raise ConfigError(
                    f"{place}.fields.{kind} names {pointer!r}, which no tool of this entry takes.",
                    remedy=f"They take: {', '.join(sorted(set().union(*known))) or 'nothing'}.",
                )


def _arguments(definition: JsonObject) -> set[str]:
    schema = definition.get("inputSchema")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return set(properties) if isinstance(properties, Mapping) else set()
