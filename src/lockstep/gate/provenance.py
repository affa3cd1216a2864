"""Where each argument of a call came from: `trace(arguments, sources)`. Pure.

A value has the origin of the text it stands in, the most trusted one when it stands in several. Two things do not make
it more trusted: that a model wrote it before, and that a tool repeats what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from lockstep.gate.needles import Needle
from lockstep.gate.normal import PIECE, fold_text
from lockstep.gate.passages import MAX_CHARACTERS, Passages, scalars_of
from lockstep.gate.searching import (
    MAX_REFS,
    NOWHERE,
    RANK,
    USUAL_CHARACTERS,
    Found,
    Prepared,
    Searchable,
    Source,
    Trust,
)
from lockstep.journal.events import Origin
from lockstep.values import Json, JsonObject

_LABEL: tuple[Trust, ...] = ("none", "untrusted", "trusted", "system", "user")

MAX_SCALARS = 2_000
"""Of one call; what comes after has no origin, so a policy that asks for one stands against it."""
MAX_SEARCHED = 20_000_000
"""Characters searched for one call, about 10 ms; then likewise."""
_MAX_CHUNKS = 40
_MAX_PHRASE = 6
_TRIVIAL = 10
_GLUE = frozenset(
    {"a", "an", "and", "are", "as", "at", "by", "for", "from", "has", "have", "her", "his", "in", "into", "is", "my"}
    | {"no", "of", "on", "or", "our", "per", "please", "re", "that", "the", "their", "this", "to", "via", "was", "will"}
    | {"with", "your"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the tool itself says of its arguments: values its schema names, and words that are no news in a sentence."""

    values: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


NOTHING_KNOWN = Known()


def known_of(definition: JsonObject) -> Known:
    """Read a tool's definition: enumerated, constant and default values; the words of its name and descriptions."""
    values: set[str] = set()
    words: set[str] = set()
    waiting: list[Json] = [definition]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            for name, each in part.items():
                if name in ("const", "default", "enum"):
                    values.update(scalar for _, scalar in scalars_of(each) if isinstance(scalar, str))
                    values.update(repr(scalar) for _, scalar in scalars_of(each) if not isinstance(scalar, str))
                elif name in ("name", "title") and isinstance(each, str):
                    words.update(PIECE.findall(fold_text(each)))
                elif name == "properties" and isinstance(each, Mapping):
                    words.update(piece for key in each for piece in PIECE.findall(fold_text(key)))
                waiting.append(each)
        elif isinstance(part, (list, tuple)):
            waiting.extend(part)
    return Known(values=frozenset(values), words=frozenset(words))


def trace(
    arguments: JsonObject,
    sources: Sequence[Source],
    *,
    known: Known = NOTHING_KNOWN,
    passages: Callable[[str], Passages] = Passages,
) -> tuple[Origin, ...]:
    """The origin of every scalar of these arguments, in order.

    Args:
        sources: in the order the model saw them; the result of a call after its arguments.
        known: what the tool's definition says.
        passages: makes a text searchable; one that remembers gives the same origins sooner.
    """
    prepared = Prepared()
    for source in sources:
        prepared.add(Searchable.of(source, passages(source.text)))
    return trace_prepared(arguments, prepared, known)


def trace_prepared(arguments: JsonObject, sources: Prepared, known: Known) -> tuple[Origin, ...]:
    """As `trace`, with sources that were made searchable before."""
    tracer = _Tracer(sources, known)
    return tuple(
        tracer.origin(pointer, value) if place < MAX_SCALARS else Origin(pointer=pointer, how="none", trust="none")
        for place, (pointer, value) in enumerate(scalars_of(arguments))
    )


@dataclass(slots=True)
class _Tracer:
    """One call's worth of looking; remembers what it looked for, and how much it has searched."""

    sources: Prepared
    known: Known
    searched: int = 0
    seen: dict[tuple[type, object], Found] = field(default_factory=dict)

    def origin(self, pointer: str, value: object) -> Origin:
        found = self._found(value)
        return Origin(pointer=pointer, how=found.how, trust=_LABEL[found.rank], refs=found.refs)

    def _found(self, value: object) -> Found:
        if self._trivial(value):
            return _SCHEMA
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            return NOWHERE
        key = (type(value), value)
        found = self.seen.get(key)
        if found is None:
            assert isinstance(value, (str, int, float))
            needle = Needle(value) if isinstance(value, str) and len(value) > USUAL_CHARACTERS else _needle(value)
            found = self._fold(needle)
            if not found.rank and isinstance(value, str):
                found = self._facts(needle) or self._composed(needle) or found
            self.seen[key] = found
        return found

    def _trivial(self, value: object) -> bool:
        """Nothing of its own to say, or a value that the tool's schema names."""
        if value is None or isinstance(value, bool):
            return True
        if isinstance(value, str):
            return len(value) <= 1 or value in self.known.values
        return (isinstance(value, (int, float)) and abs(value) < _TRIVIAL and value == int(value)) or repr(
            value
        ) in self.known.values

    def _fold(self, needle: Needle, facts: Sequence[str] = ()) -> Found:
        """Where it (or one of these facts) stands in all sources."""
        search = self.sources.search(needle, facts)
        if not search.go_on(self.sources, MAX_SEARCHED - self.searched):
            self.searched = MAX_SEARCHED + 1
            return NOWHERE
        self.searched += search.searched
        return search.found

    def _facts(self, needle: Needle) -> Found | None:
        """A date with a time: each may have been said elsewhere."""
        if len(needle.facts) < 2:
            return None
        return _together([self._fold(needle, facts) for facts in needle.facts])

    def _composed(self, needle: Needle) -> Found | None:
        """Words from several places. Connecting ones, and those of the tool's own definition, may be the model's."""
        chunks = needle.form.split()
        if not 2 <= len(chunks) <= _MAX_CHUNKS:
            return None
        glue = [chunk in _GLUE or chunk in self.known.words for chunk in chunks]
        if all(glue):
            return None
        for chunk, free in zip(chunks, glue, strict=True):
            if not free and not self._phrase([chunk]).rank:
                return None
        return _together(list(self._phrases(chunks, glue)))

    def _phrases(self, chunks: list[str], glue: list[bool]) -> Iterator[Found]:
        """The longest runs of words that stand somewhere together, from left to right."""
        at = 0
        while at < len(chunks):
            longest = self._phrase(chunks[at : at + 1])
            end = at + 1
            while longest.rank and end < min(at + _MAX_PHRASE, len(chunks)):
                longer = self._phrase(chunks[at : end + 1])
                if not longer.rank:
                    break
                longest, end = longer, end + 1
            if end > at + 1 or not glue[at]:
                yield longest
            at = end

    def _phrase(self, chunks: list[str]) -> Found:
        text = " ".join(chunks)
        key = (_Tracer, text)
        if key not in self.seen:
            self.seen[key] = (
                _SCHEMA if len(text) <= 1 or text in self.known.values else self._fold(_needle(text, piece=True))
            )
        return self.seen[key]


@lru_cache(maxsize=4096, typed=True)
def _needle(value: str | int | float, *, piece: bool = False) -> Needle:
    return Needle(value, piece=piece)


_SCHEMA = Found(RANK["trusted"], "schema", ())


def _together(pieces: Sequence[Found]) -> Found | None:
    """Pieces as one: no more trusted than the least of them; None when one came from nowhere."""
    if not pieces or not all(piece.rank for piece in pieces):
        return None
    ordered = sorted(pieces, key=lambda piece: piece.rank)
    refs = tuple(dict.fromkeys(ref for piece in ordered for ref in piece.refs[:1]))[:MAX_REFS]
    return Found(ordered[0].rank, "composed", refs)
