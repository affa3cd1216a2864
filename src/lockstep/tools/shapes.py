"""What a value on the wire may look like: each shape draws its JSON Schema and turns JSON into the Python value meant.

Built by `hints` from type annotations. Knows nothing of functions or MCP; standard library alone, and `typing` is not
imported here, since start-up time inside a sandbox counts.

    Shape            anything at all
    ├── Scalar       string, integer, number, boolean, null
    ├── Parsed       a string with a meaning: date, datetime, time, UUID, Decimal
    ├── Choice       one of a few values: Literal, Enum
    ├── Items        list, tuple[T, ...], set
    ├── Row          tuple[A, B]
    ├── Table        dict[str, T]
    ├── OneOf        unions
    ├── Record       TypedDict, dataclass
    └── Noted        a shape with a description or more schema keywords
"""

from __future__ import annotations

TYPE_CHECKING = False  # spelled out: see above
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Mismatch(Exception):
    """A JSON value does not have the shape; the text is a sentence that names the place."""


class Draft:
    """One schema being drawn. Only records that contain themselves become `$defs`; all else is written in place.

    `closed` says whether records refuse keys they do not know: yes for what comes in, no for what goes out.
    """

    def __init__(self, *, closed: bool) -> None:
        self.closed = closed
        self.drawing: list[Record] = []
        self.definitions: dict[str, dict[str, Any]] = {}
        self._names: dict[Record, str] = {}

    def refer(self, record: Record) -> dict[str, Any]:
        """A reference to a record, which thereby becomes a definition."""
        if record not in self._names:
            name = record.name
            while name in self._names.values():
                name += "_"
            self._names[record] = name
        return {"$ref": f"#/$defs/{self._names[record]}"}

    def place(self, record: Record, body: dict[str, Any]) -> dict[str, Any]:
        """The finished body where it stands, or a reference when somebody already refers to it."""
        if record not in self._names:
            return body
        self.definitions[self._names[record]] = body
        return self.refer(record)


class Shape:
    """Anything at all."""

    def schema(self, draft: Draft) -> dict[str, Any]:
        """This shape as JSON Schema 2020-12."""
        return {}

    def accept(self, value: Any, where: str) -> Any:
        """The Python value that this JSON value means.

        Raises:
            Mismatch: it is not of this shape; `where` names the place in the sentence.
        """
        return value


class Scalar(Shape):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def schema(self, draft: Draft) -> dict[str, Any]:
        return {"type": self.kind}

    def accept(self, value: Any, where: str) -> Any:
        kind = kind_of(value)
        if kind == self.kind or (self.kind == "number" and kind == "integer"):
            return value
        if self.kind == "integer" and isinstance(value, float) and value.is_integer():
            return int(value)  # JSON has one kind of number: 1.0 is an integer there
        raise Mismatch(f"{where} must be {_a(self.kind)}, not {_a(kind)}.")


class Parsed(Shape):
    def __init__(self, *, format_: str, parse: Callable[[str], Any], noun: str) -> None:
        self.format = format_
        self.parse = parse
        self.noun = noun

    def schema(self, draft: Draft) -> dict[str, Any]:
        return {"type": "string", "format": self.format} if self.format else {"type": "string"}

    def accept(self, value: Any, where: str) -> Any:
        if not isinstance(value, str):
            raise Mismatch(f"{where} must be a string that holds {self.noun}, not {_a(kind_of(value))}.")
        try:
            return self.parse(value)
        except (ValueError, ArithmeticError):  # decimal.InvalidOperation is an ArithmeticError
            raise Mismatch(f"{where} must be {self.noun}, not {_brief(value)}.") from None


class Choice(Shape):
    """`options` maps nothing: it is a list of (JSON value, Python value), since 1 and True are different choices."""

    def __init__(self, options: list[tuple[Any, Any]]) -> None:
        self.options = options

    def schema(self, draft: Draft) -> dict[str, Any]:
        values = [wire for wire, _ in self.options]
        kinds = {kind_of(value) for value in values}
        return {"type": kinds.pop(), "enum": values} if len(kinds) == 1 else {"enum": values}

    def accept(self, value: Any, where: str) -> Any:
        for wire, meant in self.options:
            if value == wire and isinstance(value, bool) == isinstance(wire, bool):
                return meant
        known = ", ".join(_brief(wire) for wire, _ in self.options)
        raise Mismatch(f"{where} must be one of {known}, not {_brief(value)}.")


class Items(Shape):
    def __init__(self, item: Shape, *, make: Callable[[list[Any]], Any], unique: bool) -> None:
        self.item = item
        self.make = make
        self.unique = unique

    def schema(self, draft: Draft) -> dict[str, Any]:
        drawn: dict[str, Any] = {"type": "array"}
        if item := self.item.schema(draft):
            drawn["items"] = item
        if self.unique:
            drawn["uniqueItems"] = True
        return drawn

    def accept(self, value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise Mismatch(f"{where} must be an array, not {_a(kind_of(value))}.")
        accepted = [self.item.accept(each, f"{where}[{index}]") for index, each in enumerate(value)]
        try:
            return self.make(accepted)
        except TypeError:
            raise Mismatch(f"{where} must hold values that a set can hold, not arrays or objects.") from None


class Row(Shape):
    def __init__(self, items: list[Shape]) -> None:
        self.items = items

    def schema(self, draft: Draft) -> dict[str, Any]:
        size = len(self.items)
        drawn = [item.schema(draft) for item in self.items]
        return {"type": "array", **({"prefixItems": drawn} if drawn else {}), "minItems": size, "maxItems": size}

    def accept(self, value: Any, where: str) -> Any:
        if not isinstance(value, list) or len(value) != len(self.items):
            raise Mismatch(f"{where} must be an array of exactly {len(self.items)} values.")
        pairs = zip(self.items, value, strict=True)
        return tuple(item.accept(each, f"{where}[{index}]") for index, (item, each) in enumerate(pairs))


class Table(Shape):
    def __init__(self, key: Shape, value: Shape) -> None:
        self.key = key
        self.value = value

    def schema(self, draft: Draft) -> dict[str, Any]:
        drawn: dict[str, Any] = {"type": "object"}
        if (key := self.key.schema(draft)) != {"type": "string"}:
            drawn["propertyNames"] = key
        if value := self.value.schema(draft):
            drawn["additionalProperties"] = value
        return drawn

    def accept(self, value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise Mismatch(f"{where} must be an object, not {_a(kind_of(value))}.")
        return {
            self.key.accept(key, f"a key of {where}"): self.value.accept(each, step_into(where, key))
            for key, each in value.items()
        }


class OneOf(Shape):
    """The first arm that fits decides, in the order the annotation names them."""

    def __init__(self, arms: list[Shape]) -> None:
        self.arms = arms

    def schema(self, draft: Draft) -> dict[str, Any]:
        drawn: list[dict[str, Any]] = []
        for arm in self.arms:
            if (schema := arm.schema(draft)) not in drawn:
                drawn.append(schema)
        return {"anyOf": drawn}

    def accept(self, value: Any, where: str) -> Any:
        complaints = []
        for arm in self.arms:
            try:
                return arm.accept(value, where)
            except Mismatch as complaint:
                complaints.append(str(complaint))
        raise Mismatch(" Or: ".join(dict.fromkeys(complaints)))


class Field:
    """One key of a record. `default` is its JSON form in a list of one, or empty when there is none to show."""

    __slots__ = ("default", "name", "required", "shape")

    def __init__(self, name: str, shape: Shape, *, required: bool, default: list[Any]) -> None:
        self.name = name
        self.shape = shape
        self.required = required
        self.default = default

    def schema(self, draft: Draft) -> dict[str, Any]:
        drawn = self.shape.schema(draft)
        return {**drawn, "default": self.default[0]} if self.default else drawn


class Record(Shape):
    """`fields` are filled in after construction, so that a record can contain itself."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self.name = name
        self.make = make
        self.fields: list[Field] = []
        self.rest: Shape | None = None
        """What keys beyond the fields may hold; None when there may be none."""

    def schema(self, draft: Draft) -> dict[str, Any]:
        if self in draft.drawing:
            return draft.refer(self)
        draft.drawing.append(self)
        body: dict[str, Any] = {
            "type": "object",
            "properties": {field.name: field.schema(draft) for field in self.fields},
        }
        if required := [field.name for field in self.fields if field.required]:
            body["required"] = required
        if self.rest is not None:
            if rest := self.rest.schema(draft):
                body["additionalProperties"] = rest
        elif draft.closed:
            body["additionalProperties"] = False
        draft.drawing.pop()
        return draft.place(self, body)

    def root_schema(self, *, closed: bool) -> dict[str, Any]:
        """This record as a whole schema: the object itself on top, `$defs` beside it when it contains itself."""
        draft = Draft(closed=closed)
        drawn = self.schema(draft)
        if "$ref" in drawn:
            drawn = dict(draft.definitions[drawn["$ref"].removeprefix("#/$defs/")])
        return {**drawn, "$defs": draft.definitions} if draft.definitions else drawn

    def accept(self, value: Any, where: str) -> Any:
        fields = self.accept_fields(value, where)
        try:
            return self.make(**fields)
        except (TypeError, ValueError) as refusal:  # a dataclass may check itself
            raise Mismatch(f"{where} is refused by {self.name}: {refusal}.") from refusal

    def accept_fields(self, value: Any, where: str) -> dict[str, Any]:
        """The keys that were given, each as the Python value it means."""
        if not isinstance(value, dict):
            raise Mismatch(f"{where or 'The arguments'} must be an object, not {_a(kind_of(value))}.")
        known = {field.name: field for field in self.fields}
        accepted = {}
        for key, each in value.items():
            shape = known[key].shape if key in known else self.rest
            if shape is None:
                raise Mismatch(f"{step_into(where, key)} is not known; known are {', '.join(known) or 'none'}.")
            accepted[key] = shape.accept(each, step_into(where, key))
        for field in self.fields:
            if field.required and field.name not in accepted:
                raise Mismatch(f"{step_into(where, field.name)} is required and missing.")
        return accepted


class Noted(Shape):
    def __init__(self, shape: Shape, keywords: dict[str, Any]) -> None:
        self.shape = shape
        self.keywords = keywords

    def schema(self, draft: Draft) -> dict[str, Any]:
        return {**self.shape.schema(draft), **self.keywords}

    def accept(self, value: Any, where: str) -> Any:
        return self.shape.accept(value, where)


def kind_of(value: Any) -> str:
    """The JSON Schema name of a JSON value's type."""
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "value")


def step_into(where: str, key: str) -> str:
    """The place one key further: `passenger.name`, or `seats["12 A"]` for a key that is no plain word."""
    if not key.isidentifier():
        return f'{where}["{key[:40]}"]'
    return f"{where}.{key}" if where else key


def _a(kind: str) -> str:
    if kind == "null":
        return kind
    return f"an {kind}" if kind[0] in "aio" else f"a {kind}"


def _brief(value: Any) -> str:
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
