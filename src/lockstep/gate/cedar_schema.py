"""JSON Schema to Cedar types: what of a call's arguments a policy can read, and as what.

    string, enum of strings -> String        integer -> Long            boolean -> Boolean
    number -> decimal (four places)          array -> Set               object with properties -> Record
    anyOf with null -> an optional attribute

What has no Cedar type (free-form objects, mixed unions, tuples) is left out, with the reason, so that no policy can
read it. Refuses to look at values: that is `cedar_values`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import unquote

from lockstep.values import Json, JsonObject

RESERVED = frozenset({"__entity", "__extn", "__expr"})
"""Keys that Cedar's JSON format reads as an entity, an extension call or an expression: never an attribute's name."""

_MAX_DEPTH = 32
_MAX_PARTS = 5_000
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Path = tuple[str, ...]


class Scalar(StrEnum):
    """Cedar's types without parts, by their names in Cedar's JSON schema format."""

    STRING = "String"
    LONG = "Long"
    BOOLEAN = "Boolean"
    DECIMAL = "decimal"


@dataclass(frozen=True, slots=True)
class SetOf:
    """A Cedar set: order and repeats of the array are gone."""

    element: CedarType


@dataclass(frozen=True, slots=True)
class Attribute:
    type: CedarType
    required: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    attributes: Mapping[str, Attribute]


CedarType = Scalar | SetOf | Record


@dataclass(frozen=True, kw_only=True, slots=True)
class ArgumentTypes:
    """The arguments of one tool as Cedar sees them; `left_out` says of each other argument why it has no type."""

    record: Record
    left_out: Mapping[str, str]


def argument_types(input_schema: JsonObject) -> ArgumentTypes:
    """Read a tool's input schema; never fails, since what is not understood is left out."""
    reader = _Reader(input_schema)
    try:
        found, _ = reader.read(input_schema, (), frozenset({"#"}))
    except _NoCedarType as why:
        found = Record({})
        reader.left_out.setdefault("", str(why))
    return ArgumentTypes(record=found if isinstance(found, Record) else Record({}), left_out=reader.left_out)


_PROVENANCE = Record(
    {
        **{name: Attribute(SetOf(Scalar.STRING)) for name in ("untrusted", "ungrounded", "user", "trusted")},
        "read_untrusted": Attribute(Scalar.BOOLEAN),
    }
)
_GUIDANCE = Record(
    {
        **{name: Attribute(SetOf(Scalar.STRING)) for name in ("stray", "stray_addresses", "private")},
        **{name: Attribute(Scalar.BOOLEAN) for name in ("guided", "read_orders")},
    }
)
FIELD_KINDS = ("destination", "credential", "terms", "content")
_FIELDS = Record({kind: Attribute(SetOf(Scalar.STRING)) for kind in FIELD_KINDS})


def context_type(arguments: Record) -> Record:
    """The `context` of a request: the arguments, what they are and where from, the effect class, session and run."""
    run = {
        "steps": Attribute(Scalar.LONG),
        "calls": Attribute(Scalar.LONG),
        "cost_usd": Attribute(Scalar.DECIMAL, required=False),
    }
    return Record(
        {
            "arguments": Attribute(arguments),
            "effect": Attribute(Scalar.STRING),
            "session": Attribute(Scalar.STRING),
            "run": Attribute(Record(run)),
            "provenance": Attribute(_PROVENANCE),
            "guidance": Attribute(_GUIDANCE),
            "fields": Attribute(_FIELDS),
        }
    )


def cedar_schema(contexts: Mapping[str, Record]) -> dict[str, Json]:
    """Cedar's JSON schema for these tools: a `User` asks for an action (the tool) of an `Agent`."""
    actions: dict[str, Json] = {
        tool: {
            "appliesTo": {"principalTypes": ["User"], "resourceTypes": ["Agent"], "context": _cedar_json(context)},
        }
        for tool, context in contexts.items()
    }
    return {"": {"entityTypes": {"User": {}, "Agent": {}}, "actions": actions}}


def render(path: Path) -> str:
    """A path as Cedar's messages write it: `arguments.price_usd`, `arguments["two words"]`."""
    parts = (f".{name}" if _IDENTIFIER.fullmatch(name) else f'["{name}"]' for name in path)
    return "".join(parts).removeprefix(".")


def has_path(found: CedarType, path: Path) -> bool:
    """Whether a policy may ask for this path at all (present or not in a given call)."""
    for name in path:
        if not isinstance(found, Record) or name not in found.attributes:
            return False
        found = found.attributes[name].type
    return True


def _cedar_json(found: CedarType) -> dict[str, Json]:
    if isinstance(found, SetOf):
        return {"type": "Set", "element": _cedar_json(found.element)}
    if isinstance(found, Record):
        attributes: dict[str, Json] = {
            name: {**_cedar_json(each.type), "required": each.required} for name, each in found.attributes.items()
        }
        return {"type": "Record", "attributes": attributes}
    if found is Scalar.DECIMAL:
        return {"type": "Extension", "name": "decimal"}
    return {"type": found.value}


class _NoCedarType(Exception):
    """This part of a schema has no Cedar type; the message completes 'it ...'."""


_SCALARS = {
    "string": Scalar.STRING,
    "integer": Scalar.LONG,
    "number": Scalar.DECIMAL,
    "boolean": Scalar.BOOLEAN,
}


@dataclass(slots=True)
class _Reader:
    """One walk through one schema. Bounded, since a schema may come from a stranger's server."""

    root: JsonObject
    left_out: dict[str, str] = field(default_factory=dict)
    parts: int = 0
    depth: int = 0

    def read(self, schema: Json, path: Path, open_refs: frozenset[str]) -> tuple[CedarType | None, bool]:
        """The type (None: nothing but null) and whether null is allowed too."""
        self.parts += 1
        if self.depth >= _MAX_DEPTH or self.parts > _MAX_PARTS:
            raise _NoCedarType("is too deep or too large")
        if not isinstance(schema, Mapping):
            raise _NoCedarType("may be of any type")
        self.depth += 1
        try:
            return self._read(schema, path, open_refs)
        finally:
            self.depth -= 1

    def _read(self, schema: JsonObject, path: Path, open_refs: frozenset[str]) -> tuple[CedarType | None, bool]:
        ref, all_of = schema.get("$ref"), schema.get("allOf")
        if isinstance(ref, str):
            if ref in open_refs:
                raise _NoCedarType("contains itself")
            return self.read(self._resolve(ref), path, open_refs | {ref})
        if "type" in schema:
            return self._of_kinds(schema["type"], schema, path, open_refs)
        if isinstance(all_of, (list, tuple)) and len(all_of) == 1:
            return self.read(all_of[0], path, open_refs)
        for union in (schema.get("anyOf"), schema.get("oneOf")):
            if isinstance(union, (list, tuple)):
                return self._union([self.read(member, path, open_refs) for member in union])
        if "const" in schema:
            return self._union([_of_value(schema["const"])])
        values = schema.get("enum")
        if isinstance(values, (list, tuple)):
            return self._union([_of_value(value) for value in values])
        if "properties" in schema:
            return self._record(schema, path, open_refs), False
        raise _NoCedarType("may be of any type")

    def _of_kinds(
        self, declared: Json, schema: JsonObject, path: Path, open_refs: frozenset[str]
    ) -> tuple[CedarType | None, bool]:
        kinds = [declared] if isinstance(declared, str) else declared
        if not isinstance(kinds, (list, tuple)):
            raise _NoCedarType("has no readable type")
        members = [self._of_kind(kind, schema, path, open_refs) for kind in kinds]
        return self._union([(member, member is None) for member in members])

    def _of_kind(self, kind: Json, schema: JsonObject, path: Path, open_refs: frozenset[str]) -> CedarType | None:
        if kind == "null":
            return None
        if kind == "object":
            return self._record(schema, path, open_refs)
        if kind == "array":
            return self._set(schema, path, open_refs)
        if isinstance(kind, str) and kind in _SCALARS:
            return _SCALARS[kind]
        raise _NoCedarType("has no readable type")

    def _set(self, schema: JsonObject, path: Path, open_refs: frozenset[str]) -> SetOf:
        items = schema.get("items")
        if "prefixItems" in schema or not isinstance(items, Mapping):
            raise _NoCedarType("is an array whose items have no single type")
        element, nullable = self.read(items, path, open_refs)
        if nullable or element is None:
            raise _NoCedarType("is an array whose items may be null")
        return SetOf(element)

    def _record(self, schema: JsonObject, path: Path, open_refs: frozenset[str]) -> Record:
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, Mapping) or not properties:
            if path:
                raise _NoCedarType("is an object of any shape")
            return Record({})
        must = set(required) if isinstance(required, (list, tuple)) else set()
        attributes: dict[str, Attribute] = {}
        for name, part in properties.items():
            inner = (*path, name)
            try:
                _check_name(name)
                found, nullable = self.read(part, inner, open_refs)
                if found is None:
                    raise _NoCedarType("is always null")
                attributes[name] = Attribute(found, required=name in must and not nullable)
            except _NoCedarType as why:
                self.left_out[render(inner)] = str(why)
        return Record(attributes)

    @staticmethod
    def _union(members: list[tuple[CedarType | None, bool]]) -> tuple[CedarType | None, bool]:
        types = [found for found, _ in members if found is not None]
        nullable = any(null for _, null in members)
        if not types:
            return None, nullable
        if all(found in (Scalar.LONG, Scalar.DECIMAL) for found in types) and Scalar.DECIMAL in types:
            return Scalar.DECIMAL, nullable
        if any(found != types[0] for found in types):
            raise _NoCedarType("may be of several types")
        return types[0], nullable

    def _resolve(self, ref: str) -> Json:
        """The part of this schema that a local reference points to (RFC 6901)."""
        if not ref.startswith("#") or (ref != "#" and not ref.startswith("#/")):
            raise _NoCedarType("refers to another document")
        found: Json = self.root
        for step in ref.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                raise _NoCedarType("refers to nothing")
            found = found[key]
        return found


def _of_value(value: Json) -> tuple[CedarType | None, bool]:
    if value is None:
        return None, True
    if isinstance(value, bool):
        return Scalar.BOOLEAN, False
    if isinstance(value, str):
        return Scalar.STRING, False
    if isinstance(value, int):
        return Scalar.LONG, False
    if isinstance(value, float):
        return Scalar.DECIMAL, False
    raise _NoCedarType("is a fixed value that is not a scalar")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name in RESERVED:
        raise _NoCedarType("has a name that Cedar reserves")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _NoCedarType("has a name that is not Unicode text") from None
