"""The definitions a server offers (tools, prompts, templates), read with care: what is of no use is dropped and said,
the rest stays usable.

Whether a definition is the one that was approved is the pin's business; here it is only whether it is one at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lockstep.gate.arguments import is_deeper
from lockstep.values import JsonObject

MAX_DEFINITION_BYTES = 256 * 2**10
"""More than a model should read; and what is digested is read by the canonical form, which is not fast."""
MAX_NAME_CHARACTERS = 128
MAX_URI_CHARACTERS = 2000
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offers: usable definitions with names that differ, and a phrase about each that is of no use."""

    tools: tuple[JsonObject, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a method that lists."""

    items: Sequence[Any]
    cursor: str | None


def read_page(result: Mapping[str, Any], key: str) -> Page | None:
    """A page of the list under `key`; None for what is none."""
    items, cursor = result.get(key), result.get("nextCursor")
    return Page(items, cursor if isinstance(cursor, str) else None) if isinstance(items, list) else None


def salvage(items: Sequence[Any], key: str = "name") -> Offer:
    """The definitions that can be used, named by `key`. A name that stands twice is nobody's: which one a call meant
    is not known."""
    what = {"name": "tool"}.get(key, key)
    usable: list[JsonObject] = []
    problems: list[str] = []
    named = Counter(item[key] for item in items if isinstance(item, dict) and isinstance(item.get(key), str))
    for place, item in enumerate(items):
        if problem := _problem(item, key):
            problems.append(f"{what} {place}: {problem}")
        elif named[item[key]] > 1:
            problems.append(f"{what} {place}: its name {item[key]!r} stands {named[item[key]]} times")
        else:
            usable.append(item)
    return Offer(tuple(usable), tuple(problems))


def _problem(tool: Any, key: str) -> str:
    if not isinstance(tool, dict) or not isinstance(name := tool.get(key), str):
        return "it has no name"
    most = MAX_NAME_CHARACTERS if key == "name" else MAX_URI_CHARACTERS
    if not 0 < len(name) <= most:
        return f"its name has {len(name)} characters; at most {most} are taken"
    if is_deeper(tool, _MAX_DEPTH):
        return f"{name!r} is nested more than {_MAX_DEPTH} levels deep"
    try:
        size = len(msgspec.json.encode(tool))
    except (msgspec.MsgspecError, UnicodeEncodeError, ValueError) as error:
        return f"{name!r} cannot be written down ({error})"
    return f"{name!r} has {size} bytes; at most {MAX_DEFINITION_BYTES} are taken" if size > MAX_DEFINITION_BYTES else ""
