"""Arguments of a call: from the model's raw text to a value that its tool's JSON Schema accepts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from lockstep.errors import ConfigError
from lockstep.values import Json, JsonObject, canonical

MAX_BYTES = 1 << 20
MAX_DEPTH = 240
"""Objects and lists inside one another: less than what validator and policy, who read them next, can follow."""
MAX_VALUES = 50_000
"""All objects, lists and scalars: everybody who reads them takes time for each, and meanwhile nobody else is served."""
SHOWN_PROBLEMS = 5


class Malformed(ValueError):
    """The text is not arguments for this tool; the message is for the model to correct itself by."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments as a value and as the RFC 8785 bytes that identify it."""

    value: JsonObject
    canonical: bytes


class ArgumentChecker:
    """Compiled validators of the locked tools' input schemas. A `$ref` beyond the schema itself is refused."""

    def __init__(self, schemas: Mapping[str, JsonObject]) -> None:
        self._validators = {name: _compile(name, schema) for name, schema in schemas.items()}

    def check(self, tool: str, arguments: Arguments) -> None:
        """Nothing, where these arguments are valid for this tool. They have a canonical form: nothing else is taken.

        Raises:
            Malformed: not valid.
        """
        validator = self._validators[tool]
        if not validator.is_valid(arguments.value):
            raise Malformed("; ".join(_problems(validator, arguments.value)))


def read(text: str) -> Arguments:
    """The arguments as they stand in a model's text, without asking whether a tool takes them.

    Raises:
        Malformed: not JSON, not an object, or without a canonical form.
    """
    value = _object(text)
    try:
        return Arguments(value, canonical(value))
    except ValueError as error:
        raise Malformed(f"the arguments cannot be used: {error}") from error


def size_problem(text: str) -> str:
    """Why a text is too long for arguments, as a phrase; "" where it is not."""
    return "" if len(text) <= MAX_BYTES else f"{len(text)} characters long; at most {MAX_BYTES} are taken"


def is_more(value: Json, most: int) -> bool:
    """Whether there are more than so many values in this one."""
    layer, found = [value], 1
    while layer and found <= most:
        inner = (each.values() if isinstance(each, dict) else each for each in layer if isinstance(each, dict | list))
        layer = [item for items in inner for item in items]
        found += len(layer)
    return found > most


def _object(text: str) -> JsonObject:
    if problem := size_problem(text):
        raise Malformed(f"the arguments are {problem}")
    if not text.strip():
        return {}  # what several providers send for a call without arguments
    try:
        value = _READER.decode(text)
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"the arguments are not valid JSON: {error}") from error
    except RecursionError:
        raise Malformed("the arguments are nested too deeply") from None
    if not isinstance(value, dict):
        raise Malformed("the arguments must be a JSON object")
    if text.count("{") + text.count("[") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise Malformed(f"the arguments are nested too deeply (more than {MAX_DEPTH} levels)")
    if text.count(",") + text.count("[") + text.count("{") >= MAX_VALUES // 2 and is_more(value, MAX_VALUES):
        raise Malformed(f"the arguments hold more than {MAX_VALUES} values")
    return value


def is_deeper(value: Json, depth: int) -> bool:
    """Whether more than `depth` objects and lists stand inside one another."""
    layer: list[Any] = [[value]]
    for _ in range(depth + 1):
        inner = (item for each in layer for item in (each.values() if isinstance(each, dict) else each))
        layer = [item for item in inner if isinstance(item, dict | list)]
        if not layer:
            return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"the arguments are not valid JSON: {name} is not a JSON value")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A repeated key means two readers could see two different calls."""
    value = dict(pairs)
    if len(value) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise Malformed(f"the key {times.most_common(1)[0][0]!r:.100} stands twice in one object")
    return value


_READER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_repeats)


def _problems(validator: Any, arguments: JsonObject) -> list[str]:
    out: list[str] = []
    for error in validator.iter_errors(arguments):
        if len(out) == SHOWN_PROBLEMS:
            out.append("and more")
            break
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        out.append(f"{place.lstrip('.')}: {error.message}" if place else error.message)
    return [problem[:300] for problem in out]


def _compile(name: str, schema: JsonObject) -> Any:
    import jsonschema_rs  # lazy: 20 ms that those who only read arguments do not pay

    try:
        return jsonschema_rs.Draft202012Validator(dict(schema), offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"The input schema of tool {name!r} is not usable: {reason}.",
            remedy="Correct the schema; references must stay inside it.",
        ) from error
