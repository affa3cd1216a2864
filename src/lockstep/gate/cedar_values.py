"""JSON values to Cedar's JSON format, exactly or not at all.

A value is written by its declared type alone, so nothing inside it can pass for an entity or an extension call, and
only what a policy reads is written: an argument no policy mentions cannot stop a call. Refuses to round: a value that
Cedar cannot hold raises `Unmappable`, and the gate denies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal

from lockstep.gate.cedar_schema import Attribute, CedarType, Path, Record, Scalar, SetOf, render
from lockstep.values import Json

_LONG_LIMIT = 2**63
_PLACES = 4
_COST_LIMIT = Decimal(10) ** 12


class Unmappable(Exception):
    """A value that a policy may read has no exact Cedar form; the message is a clause for the operator."""


def paths_read(conditions: Json) -> frozenset[Path]:
    """Every path below `context` that these conditions read, in Cedar's JSON policy format.

    `()` stands for the whole context. A path that ends at a record reads everything in it. Never too few: an access
    chain on anything but `context` itself counts as a read of whatever that thing is made of.
    """
    found: set[Path] = set()
    waiting: list[Json] = [conditions]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            root, names = _chain(node)
            if root == {"Var": "context"}:
                found.add(names)
            elif names:
                waiting.append(root)
            else:
                waiting.extend(node.values())
    return frozenset(found)


def _chain(node: Json) -> tuple[Json, Path]:
    """Split `root.a.b` and `root.a has b` into root and names."""
    names: list[str] = []
    while isinstance(node, dict) and len(node) == 1:
        access = node.get(".", node.get("has"))
        if not isinstance(access, dict) or access.keys() != {"left", "attr"}:
            break
        names.append(str(access["attr"]))
        node = access["left"]
    return node, tuple(reversed(names))


def prune(record: Record, reads: Iterable[Path]) -> Record:
    """The part of a record type that these paths can see; pruning the types prunes every later value."""
    steps: dict[str, list[Path]] = {}
    for path in reads:
        if not path:
            return record
        steps.setdefault(path[0], []).append(path[1:])
    kept: dict[str, Attribute] = {}
    for name, attribute in record.attributes.items():
        if name not in steps:
            continue
        inner = attribute.type
        kept[name] = (
            Attribute(prune(inner, steps[name]), attribute.required) if isinstance(inner, Record) else attribute
        )
    return Record(kept)


def to_cedar(value: object, declared: CedarType, path: Path = ()) -> Json:
    """Write one value as its declared type.

    Raises:
        Unmappable: it is not of that type, or Cedar has no such value (integers beyond 64 bits, more than four
            decimal places, text that is not Unicode).
    """
    if isinstance(declared, Record):
        return _record(value, declared, path)
    if isinstance(declared, SetOf):
        if not isinstance(value, (list, tuple)):
            raise _misfit(path, "an array")
        if isinstance(declared.element, Scalar):
            write = _WRITERS[declared.element]
            return [write(item, path) for item in value]
        return [to_cedar(item, declared.element, path) for item in value]
    return _WRITERS[declared](value, path)


def cost_to_decimal(cost_usd: Decimal | None) -> Decimal | None:
    """Spent money as policies see it: rounded *up* to four places, so that a limit is never passed unseen.

    Raises:
        Unmappable: not an amount.
    """
    if cost_usd is None:
        return None
    if not cost_usd.is_finite() or abs(cost_usd) >= _COST_LIMIT:
        raise Unmappable("`run.cost_usd` is not an amount of money")
    return cost_usd.quantize(Decimal("0.0001"), rounding=ROUND_CEILING)


def _record(value: object, declared: Record, path: Path) -> Json:
    if not isinstance(value, Mapping):
        raise _misfit(path, "an object")
    written: dict[str, Json] = {}
    for name, attribute in declared.attributes.items():
        part = value.get(name)
        if part is not None:
            written[name] = to_cedar(part, attribute.type, (*path, name))
        elif attribute.required:
            raise _misfit((*path, name), "present")
    return written


def _string(value: object, path: Path) -> Json:
    if not isinstance(value, str):
        raise _misfit(path, "a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unmappable(f"`{render(path)}` holds half a surrogate pair, which is not Unicode text") from None
    return str(value)


def _boolean(value: object, path: Path) -> Json:
    if not isinstance(value, bool):
        raise _misfit(path, "true or false")
    return value


def _long(value: object, path: Path) -> Json:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _misfit(path, "an integer")
    if value != value // 1:
        raise _misfit(path, "an integer")
    if not -_LONG_LIMIT <= value < _LONG_LIMIT:
        raise Unmappable(f"`{render(path)}` is an integer beyond 64 bits")
    return int(value)  # JSON Schema counts 5.0 as an integer


def _decimal(value: object, path: Path) -> Json:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise _misfit(path, "a number")
    if not isinstance(value, int) and not math.isfinite(value):
        raise Unmappable(f"`{render(path)}` is not a finite number")
    if not -_LONG_LIMIT < value < _LONG_LIMIT:
        raise _beyond(path)
    whole, _, fraction = format(Decimal(repr(value) if isinstance(value, float) else value), "f").partition(".")
    fraction = fraction.rstrip("0")
    if len(fraction) > _PLACES:
        raise Unmappable(f"`{render(path)}` is {value}, which has more than four decimal places")
    if not -_LONG_LIMIT <= int(whole + fraction.ljust(_PLACES, "0")) < _LONG_LIMIT:
        raise _beyond(path)
    return {"__extn": {"fn": "decimal", "arg": f"{whole}.{fraction or '0'}"}}


_WRITERS = {
    Scalar.STRING: _string,
    Scalar.BOOLEAN: _boolean,
    Scalar.LONG: _long,
    Scalar.DECIMAL: _decimal,
}


def _misfit(path: Path, wanted: str) -> Unmappable:
    return Unmappable(f"`{render(path)}` is not {wanted}")


def _beyond(path: Path) -> Unmappable:
    return Unmappable(f"`{render(path)}` is a number beyond the range of a Cedar decimal (about 9.2e14)")
