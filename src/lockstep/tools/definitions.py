"""The tool definitions a server offers, read with care: what is of no use is dropped and said, the rest stays usable.

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
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offers: usable definitions with names that differ, and a phrase about each that is of no use."""

    tools: tuple[JsonObject, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to `tools/list`."""

    tools: Sequence[Any]
    cursor: str | None


def read_page(result: Mapping[str, Any]) -> Page | None:
    """A page of a list of tools; None for what is none."""
    tools, cursor = result.get("tools"), result.get("nextCursor")
    return Page(tools, cursor if isinstance(cursor, str) else None) if isinstance(tools, list) else None


def salvage(tools: Sequence[Any]) -> Offer:
    """The definitions that can be used. A name that stands twice is nobody's: which one a call meant is not known."""
    usable: list[JsonObject] = []
    problems: list[str] = []
    named = Counter(tool["name"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("name"), str))
    for place, tool in enumerate(tools):
        if problem := _problem(tool):
            problems.append(f"tool {place}: {problem}")
        elif named[tool["name"]] > 1:
            problems.append(f"tool {place}: its name {tool['name']!r} stands {named[tool['name']]} times")
        else:
            usable.append(tool)
    return Offer(tuple(usable), tuple(problems))


def _problem(tool: Any) -> str:
    if not isinstance(tool, dict) or not isinstance(name := tool.get("name"), str):
        return "it has no name"
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        return f"its name has {len(name)} characters; at most {MAX_NAME_CHARACTERS} are taken"
    if is_deeper(tool, _MAX_DEPTH):
        return f"{name!r} is nested more than {_MAX_DEPTH} levels deep"
    try:
        size = len(msgspec.json.encode(tool))
    except (msgspec.MsgspecError, UnicodeEncodeError, ValueError) as error:
        return f"{name!r} cannot be written down ({error})"
    return f"{name!r} has {size} bytes; at most {MAX_DEFINITION_BYTES} are taken" if size > MAX_DEFINITION_BYTES else ""
