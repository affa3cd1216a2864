"""A look at tool definitions for what a person should read twice: hidden characters, orders to the model, names.

Advice only. Nothing here blocks a tool, and nothing it does not find is thereby safe: the pin is what blocks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lockstep.agent.context import METHODS
from lockstep.values import Json, JsonObject

MAX_FINDINGS = 200
_PER_TOOL = 10
_SHOWN = 80
_ORDERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:ignore|disregard|forget|override)\b.{0,30}\b(?:instruction|prompt|rule|polic)",
        r"<\s*/?\s*(?:important|system|instructions?|secret|admin)\s*>",
        r"\b(?:do not|don't|never|without)\b.{0,20}\b(?:tell|telling|mention|inform|informing|notify|ask|asking|show)"
        r"\w*\b.{0,20}\buser\b",
        r"\bsystem prompt\b",
        r"\byou (?:must|should|have to|need to)\b.{0,40}\b(?:first|always|before|also|instead)\b",
        r"\bbefore (?:using|calling|you use|you call) (?:this|any)\b",
        r"\b(?:use|call|prefer) this tool (?:instead|rather|before|for (?:all|every))",
        r"(?:~/\.|\.ssh\b|id_rsa|\.env\b|/etc/passwd|credentials\.json|api[_ ]?key)",
        r"\b(?:send|forward|post|upload|copy|bcc)\b.{0,60}(?:https?://|\S+@\S+\.\w)",
    )
)
_LOOK_ALIKE = str.maketrans(
    "авекмнорстухіјѕԁɡαβεικνορτυχ0135$@" + "ɑ",
    "abekmhopctyxijsdgabeiknoptuxoless" + "a" + "a",
)
"""Letters that are drawn like Latin ones, and digits that stand in for letters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offered:
    """A definition and the server it comes from."""

    source: str
    definition: JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something a person should look at. `what` is `hidden`, `order`, `name` or `elsewhere`."""

    tool: str
    """Made visible: safe to print."""
    source: str
    what: str
    text: str


def scan(offered: Iterable[Offered]) -> tuple[Finding, ...]:
    """Every finding in these definitions, in their order; at most `MAX_FINDINGS`."""
    tools = list(offered)
    found: list[Finding] = []
    for tool in tools:
        name = visible(str(tool.definition.get("name", "")))
        problems = [*_hidden(tool.definition), *_orders(tool.definition), *_names(tool, tools)]
        found += [Finding(tool=name, source=tool.source, what=w, text=t) for w, t in problems[:_PER_TOOL]]
    return tuple(found[:MAX_FINDINGS])


def visible(text: str) -> str:
    """The text with every character that does not print as itself written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _hidden(definition: JsonObject) -> Iterator[tuple[str, str]]:
    for place, text in _texts("", definition):
        seen = sorted({c for c in text if _is_hidden(c)})
        if seen:
            named = ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, 'control character')}" for c in seen[:5])
            yield "hidden", f"{place or 'the definition'} holds characters that do not show: {named}"


def _is_hidden(character: str) -> bool:
    kind = unicodedata.category(character)
    return (
        kind in ("Cf", "Co", "Cs", "Cc", "Zl", "Zp") and character not in "\n\t\r"
    ) or character in "\u115f\u3164\u2800"


def _orders(definition: JsonObject) -> Iterator[tuple[str, str]]:
    for place, text in _texts("", definition):
        plain = unicodedata.normalize("NFKC", "".join(c for c in text if not _is_hidden(c)))
        for pattern in _ORDERS:
            if found := pattern.search(plain):
                begin = max(0, found.start() - 20)
                said = visible(" ".join(plain[begin : begin + _SHOWN].split()))
                yield "order", f"{place} reads like an instruction to the model: …{said}…"
                break


def _names(tool: Offered, tools: Iterable[Offered]) -> Iterator[tuple[str, str]]:
    name = str(tool.definition.get("name", ""))
    if not name.isascii():
        yield "name", f"its name {visible(name)!r} holds letters that are not ASCII"
    words = frozenset(re.findall(r"\w{4,}", " ".join(text for _, text in _texts("", tool.definition))))
    for other in tools:
        if other.source == tool.source or name in METHODS:
            continue
        theirs = str(other.definition.get("name", ""))
        if theirs == name:
            yield "name", f"{other.source} has a tool of the same name"
        elif _skeleton(theirs) == _skeleton(name):
            yield "name", f"its name looks like {visible(theirs)!r} of {other.source}"
        if theirs != name and "_" in theirs and theirs in words:
            yield "elsewhere", f"it speaks of {visible(theirs)!r}, a tool of {other.source}"


def _skeleton(name: str) -> str:
    """What is left of a name when letters that look alike are one, and case, dashes and marks are gone."""
    flat = unicodedata.normalize("NFKD", name).casefold().translate(_LOOK_ALIKE)
    return "".join(c for c in flat if c.isalnum())


def _texts(place: str, value: Json) -> Iterator[tuple[str, str]]:
    """Every string in a definition, keys too, with where it stands."""
    waiting: list[tuple[str, Json]] = [(place, value)]
    while waiting:
        where, each = waiting.pop(0)
        if isinstance(each, str):
            yield where, each
        elif isinstance(each, dict):
            for key, inner in each.items():
                below = f"{where}.{visible(key)}" if where else visible(key)
                yield below, key
                waiting.append((below, inner))
        elif isinstance(each, list):
            waiting += [(f"{where}[{index}]", inner) for index, inner in enumerate(each)]
