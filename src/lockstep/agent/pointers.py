"""JSON pointers (RFC 6901) into arguments and results; a `*` step stands for every item of an array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.values import Json

EVERY = "*"


class Missing(Exception):
    """Nothing stands where a pointer points."""


def check(pointer: str) -> str:
    """The pointer as it is kept; a plain name is the field of that name at the top.

    Raises:
        ValueError: it is neither.
    """
    if not pointer:
        raise ValueError('is "": it must be a JSON pointer such as /offer_id')
    if not pointer.startswith("/"):
        return "/" + pointer.replace("~", "~0").replace("/", "~1")
    if any("~" in step.replace("~0", "").replace("~1", "") for step in steps(pointer, raw=True)):
        raise ValueError(f"is {pointer!r}: in a JSON pointer, ~ stands only in ~0 and ~1")
    return pointer


def steps(pointer: str, *, raw: bool = False) -> list[str]:
    """The names and indexes of a pointer, unescaped unless `raw`."""
    found = pointer.split("/")[1:]
    return found if raw or "~" not in pointer else [step.replace("~1", "/").replace("~0", "~") for step in found]


def select(value: Json, pointer: str) -> Json:
    """What stands there; through `*`, the list of what stands there in every item.

    Raises:
        Missing: nothing does, not even null.
    """
    return _select(value, steps(pointer))


def _select(value: Any, rest: Sequence[str]) -> Json:
    for place, step in enumerate(rest):
        if step == EVERY and isinstance(value, list | tuple):
            return [_select(item, rest[place + 1 :]) for item in value]
        value = _inside(value, step)
    found: Json = value
    return found


def _inside(value: Any, step: str) -> Any:
    if isinstance(value, Mapping) and step in value:
        return value[step]
    if isinstance(value, list | tuple) and step.isascii() and step.isdigit() and int(step) < len(value):
        return value[int(step)]
    raise Missing(step)
