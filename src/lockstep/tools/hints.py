"""Reads the type annotations of a tool function into shapes. Runs nothing; standard library alone.

Annotations are recognised by the names of their types rather than by importing `typing`, `enum`, `datetime` or
`inspect`: whoever annotates with a type has imported it already, and whoever does not need not pay for it.
"""

from __future__ import annotations

import sys

from lockstep.tools.shapes import Choice, Field, Items, Noted, OneOf, Parsed, Record, Row, Scalar, Shape, Table

TYPE_CHECKING = False  # spelled out: see above
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_VARARGS, _VARKEYWORDS = 0x04, 0x08  # co_flags, as in `inspect`
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_SUPPORTED = (
    "use str, int, float, bool, None, Literal, an Enum, a date, list, tuple, set, dict with str keys, "
    "a union of these, a TypedDict or a dataclass"
)
_STRINGS = {
    "datetime.date": ("date", "fromisoformat", "a date such as 2026-03-01"),
    "datetime.datetime": ("date-time", "fromisoformat", "a date and time such as 2026-03-01T09:30:00Z"),
    "datetime.time": ("time", "fromisoformat", "a time such as 09:30:00"),
    "uuid.UUID": ("uuid", "", "a UUID"),
    "decimal.Decimal": ("", "", "a decimal number such as 12.50"),
}
_ARRAYS = ("Sequence", "MutableSequence", "Iterable", "Collection", "List", "list")
_SETS = {"set": set, "frozenset": frozenset, "Set": set, "MutableSet": set, "FrozenSet": frozenset}
_TABLES = ("Mapping", "MutableMapping", "Dict", "dict")
_QUALIFIERS = ("Required", "NotRequired", "ReadOnly")


class UnsupportedHint(ValueError):
    """An annotation that cannot be said in JSON; the text says why and what to use instead."""


class Signature:
    """What a tool function takes and gives: `parameters` as a record; `result` only where it is a record."""

    __slots__ = ("parameters", "result")

    def __init__(self, parameters: Record, result: Record | None) -> None:
        self.parameters = parameters
        self.result = result


def signature(function: Any) -> Signature:
    """Read a function's annotations.

    Raises:
        ValueError: a parameter cannot be offered to a model; one sentence names function, parameter and remedy.
    """
    function = _innermost(function)
    name = function.__name__
    code = function.__code__
    if code.co_posonlyargcount:
        first = code.co_varnames[0]
        raise ValueError(f'{name}(): parameter "{first}" is positional-only; arguments come by name, remove the "/".')
    count = code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames[:count]
    extra = code.co_varnames[count:]
    if code.co_flags & _VARARGS:
        raise ValueError(f'{name}(): "*{extra[0]}" cannot be offered; arguments come by name, take a list instead.')
    scope = Scope(function.__globals__)
    parameters = Record(name, dict)
    defaults = _defaults(function)
    annotations = _annotations(function, name)
    for each in names:
        shape = _parameter(scope, annotations, name, each)
        has_default = each in defaults
        default = to_json_default(defaults[each]) if has_default else []
        parameters.fields.append(Field(each, shape, required=not has_default, default=default))
    if code.co_flags & _VARKEYWORDS:
        parameters.rest = _parameter(scope, annotations, name, extra[-1])
    return Signature(parameters, _result(scope, annotations.get("return"), name))


def _result(scope: Scope, hint: Any, function: str) -> Record | None:
    """The record a function promises to return; None for every other annotation, which is judged by its value."""
    try:
        hint = scope.resolve(hint)
        while hasattr(hint, "__metadata__"):
            hint = scope.resolve(hint.__origin__)
    except UnsupportedHint:
        return None
    if not _is_record(hint):
        return None
    try:
        return scope.record(hint)
    except UnsupportedHint as reason:
        raise ValueError(f"{function}(): the result {reason}.") from None


def _innermost(function: Any) -> Any:
    """The function whose signature counts, below decorators made with functools.wraps."""
    seen = 0
    while hasattr(function, "__wrapped__") and seen < 100:
        function, seen = function.__wrapped__, seen + 1
    if not hasattr(function, "__code__"):
        raise ValueError(f"{function!r} is not a function; put @tool on a function defined with def.")
    return function


def _annotations(function: Any, name: str) -> dict[str, Any]:
    try:
        return dict(function.__annotations__)
    except NameError as error:  # Python 3.14 evaluates them here
        raise ValueError(f"{name}(): an annotation cannot be read: {error}; import the name at run time.") from None


def _defaults(function: Any) -> dict[str, Any]:
    code = function.__code__
    positional = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(positional) : code.co_argcount]
    return {**dict(zip(names, positional, strict=True)), **(function.__kwdefaults__ or {})}


def _parameter(scope: Scope, annotations: dict[str, Any], function: str, parameter: str) -> Shape:
    if parameter not in annotations:
        raise ValueError(
            f'{function}(): parameter "{parameter}" has no annotation; a model must be told its type, {_SUPPORTED}.'
        )
    try:
        return scope.shape(annotations[parameter])
    except UnsupportedHint as reason:
        raise ValueError(f'{function}(): parameter "{parameter}" {reason}.') from None


def to_json_default(value: Any) -> list[Any]:
    """The default's JSON form in a list of one; empty when it has none worth showing."""
    if value is None or type(value) in (str, int, bool) or (type(value) is float and value - value == 0):
        return [value]
    if _is_enum(type(value)):
        return to_json_default(value.value)
    if _name(type(value)) in _STRINGS:
        return [value.isoformat() if hasattr(value, "isoformat") else str(value)]
    if type(value) in (list, tuple):
        items = [to_json_default(each) for each in value]
        return [[item[0] for item in items]] if all(items) else []
    if type(value) is dict and all(type(key) is str for key in value):
        pairs = {key: to_json_default(each) for key, each in value.items()}
        return [{key: each[0] for key, each in pairs.items()}] if all(pairs.values()) else []
    return []


class Scope:
    """The names an annotation may use, and the records met so far (a record may contain itself)."""

    def __init__(self, names: dict[str, Any], records: dict[type, Record] | None = None) -> None:
        self.names = names
        self.records: dict[type, Record] = {} if records is None else records

    def shape(self, hint: Any) -> Shape:
        """The shape an annotation stands for.

        Raises:
            UnsupportedHint: it has no JSON form, or a name in it is not known.
        """
        hint = self.resolve(hint)
        if hint is None:
            return Scalar("null")
        if isinstance(hint, type) and hint in _SCALARS:
            return Scalar(_SCALARS[hint])
        name = _name(hint)
        if hint is object or name == "typing.Any":
            return Shape()
        if name in _STRINGS:
            format_, parser, noun = _STRINGS[name]
            return Parsed(format_=format_, parse=getattr(hint, parser) if parser else hint, noun=noun)
        if isinstance(hint, type) and _is_enum(hint):
            return Choice([(_choice(member.value, hint), member) for member in hint])  # type: ignore[attr-defined]
        if _is_record(hint):
            return self.record(hint)
        return self._generic(hint)

    def resolve(self, hint: Any) -> Any:
        """Follow strings, forward references, NewType and type aliases to what they name."""
        for _ in range(50):
            if type(hint).__name__ == "ForwardRef":
                hint = hint.__forward_arg__
            if isinstance(hint, str):
                try:
                    hint = eval(hint, self.names)
                except Exception as error:  # noqa: BLE001 - an annotation is an expression: it may raise anything
                    raise UnsupportedHint(f'has the annotation "{hint}", which cannot be read: {error}') from None
            elif hasattr(hint, "__supertype__"):
                hint = hint.__supertype__
            elif type(hint).__name__ == "TypeAliasType":
                hint = hint.__value__
            else:
                return hint
        raise UnsupportedHint("has an annotation that only names itself; write the type out")

    def _generic(self, hint: Any) -> Shape:
        origin = getattr(hint, "__origin__", None)
        arguments: tuple[Any, ...] = getattr(hint, "__args__", ())
        name = _name(origin if origin is not None else hint).rpartition(".")[2]
        if hasattr(hint, "__metadata__"):
            return self._noted(origin, hint.__metadata__)
        if arguments and (type(hint).__name__ in ("UnionType", "_UnionGenericAlias", "Union") or name == "Union"):
            return OneOf([self.shape(arm) for arm in arguments])
        if arguments and name == "Literal":
            return Choice([(_choice(value, hint), value) for value in arguments])
        if arguments and name in _QUALIFIERS:
            return self.shape(arguments[0])
        if not _is_builtin_container(origin if origin is not None else hint):
            raise UnsupportedHint(f"has the annotation {_show(hint)}, which has no JSON form; {_SUPPORTED}")
        if name in ("tuple", "Tuple"):
            return self._tuple(hint, arguments)
        if name in _TABLES:
            return self._table(hint, arguments)
        item = self.shape(arguments[0]) if arguments else Shape()
        if name in _SETS:
            return Items(item, make=_SETS[name], unique=True)
        if name in _ARRAYS:
            return Items(item, make=list, unique=False)
        raise UnsupportedHint(f"has the annotation {_show(hint)}, which has no JSON form; {_SUPPORTED}")

    def _noted(self, hint: Any, metadata: Iterable[Any]) -> Shape:
        shape = self.shape(hint)
        keywords: dict[str, Any] = {}
        for note in metadata:
            if isinstance(note, str):
                keywords["description"] = note
            elif isinstance(note, dict):
                keywords.update(note)
        return Noted(shape, keywords) if keywords else shape

    def _tuple(self, hint: Any, arguments: tuple[Any, ...]) -> Shape:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return Items(self.shape(arguments[0]), make=tuple, unique=False)
        if not arguments and not hasattr(hint, "__args__"):
            return Items(Shape(), make=tuple, unique=False)
        return Row([self.shape(item) for item in arguments])

    def _table(self, hint: Any, arguments: tuple[Any, ...]) -> Shape:
        if not arguments:
            return Table(Scalar("string"), Shape())
        key = self.shape(arguments[0])
        strings = isinstance(key, Choice) and all(isinstance(wire, str) for wire, _ in key.options)
        if not (strings or isinstance(key, Parsed) or (isinstance(key, Scalar) and key.kind == "string")):
            raise UnsupportedHint(
                f"has the annotation {_show(hint)}, but keys of a JSON object are strings; use str keys"
            )
        return Table(key, self.shape(arguments[1]))

    def record(self, hint: type) -> Record:
        """The record that a TypedDict or dataclass stands for; the same one each time, so it may contain itself."""
        if hint in self.records:
            return self.records[hint]
        record = self.records[hint] = Record(hint.__name__, hint)
        try:
            fields = self._dataclass_fields(hint) if hasattr(hint, "__dataclass_fields__") else self._keys(hint)
            record.fields.extend(fields)
        except UnsupportedHint:
            del self.records[hint]
            raise
        return record

    def _keys(self, hint: Any) -> Iterable[Field]:
        """The keys of a TypedDict. Required or not is read here, since Python 3.11 misses it in string annotations."""
        for name, given in hint.__annotations__.items():
            module = getattr(given, "__forward_module__", None) or hint.__module__
            scope = self._of_module(module if isinstance(module, str) else module.__name__)
            required = name in hint.__required_keys__
            marked = scope.resolve(given)
            while hasattr(marked, "__metadata__") or _qualifier(marked):
                if _qualifier(marked) in ("Required", "NotRequired"):
                    required = _qualifier(marked) == "Required"
                marked = marked.__origin__ if hasattr(marked, "__metadata__") else marked.__args__[0]
                marked = scope.resolve(marked)
            shape = scope._field(hint, name, given)
            yield Field(name, shape, required=required, default=[])

    def _dataclass_fields(self, hint: Any) -> Iterable[Field]:
        missing = sys.modules["dataclasses"].MISSING
        for name, each in hint.__dataclass_fields__.items():
            if each._field_type.name != "_FIELD" or not each.init:
                continue
            owner = next((base for base in hint.__mro__ if name in vars(base).get("__annotations__", ())), hint)
            shape = self._of_module(owner.__module__)._field(hint, name, each.type)
            required = each.default is missing and each.default_factory is missing
            default = [] if each.default is missing else to_json_default(each.default)
            yield Field(name, shape, required=required, default=default)

    def _field(self, record: type, name: str, hint: Any) -> Shape:
        try:
            return self.shape(hint)
        except UnsupportedHint as reason:
            raise UnsupportedHint(f'is a {record.__name__}, whose field "{name}" {reason}') from None

    def _of_module(self, name: str) -> Scope:
        module = sys.modules.get(name)
        return Scope({**self.names, **vars(module)} if module else self.names, self.records)


def _name(hint: Any) -> str:
    return f"{getattr(hint, '__module__', '')}.{getattr(hint, '__qualname__', None) or getattr(hint, '_name', '')}"


def _qualifier(hint: Any) -> str:
    name = getattr(getattr(hint, "__origin__", None), "_name", None)
    return name if name in _QUALIFIERS else ""


def _is_builtin_container(hint: Any) -> bool:
    return getattr(hint, "__module__", "") in ("builtins", "collections.abc", "typing")


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and (hasattr(hint, "__total__") or hasattr(hint, "__dataclass_fields__"))


def _is_enum(hint: type) -> bool:
    return any(_name(base) == "enum.Enum" for base in hint.__mro__)


def _choice(value: Any, hint: Any) -> Any:
    plain = to_json_default(value)
    if not plain or not (value is None or isinstance(value, str | int | float)):
        raise UnsupportedHint(f"has the annotation {_show(hint)}, whose value {value!r} has no JSON form")
    return plain[0]


def _show(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) else str(hint).replace("typing.", "")
