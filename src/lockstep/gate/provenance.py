"""Where each argument of a call came from: `trace(arguments, sources)`. Pure.

A value has the origin of the text it stands in, the most trusted one when it stands in several. Two things do not make
it more trusted: that a model wrote it before, and that a tool repeats what it was given.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from lockstep.gate.normal import PIECE, fold_text
from lockstep.gate.passages import MAX_CHARACTERS, MAX_HITS, Needle, Passages, scalars_of, with_any_year
from lockstep.journal.events import Origin
from lockstep.values import Json, JsonObject

Trust = Literal["user", "system", "trusted", "untrusted", "none"]
RANK: Mapping[str, int] = {"none": 0, "untrusted": 1, "trusted": 2, "system": 3, "user": 4}
_LABEL: tuple[Trust, ...] = ("none", "untrusted", "trusted", "system", "user")
_QUALITY: Mapping[str, int] = {"normalised": 0, "part": 1, "exact": 2}

MAX_SCALARS = 2_000
"""Of one call; what comes after has no origin, so a policy that asks for one stands against it."""
MAX_SEARCHED = 20_000_000
"""Characters searched for one call, about 10 ms; then likewise."""
MAX_REFS = 4
_MAX_KEPT = 500
"""Searches of one run."""
_MAX_CHUNKS = 40
_MAX_PHRASE = 6
_TRIVIAL = 10
_USUAL = 200
_GLUE = frozenset(
    {"a", "an", "and", "are", "as", "at", "by", "for", "from", "has", "have", "her", "his", "in", "into", "is", "my"}
    | {"no", "of", "on", "or", "our", "per", "please", "re", "that", "the", "their", "this", "to", "via", "was", "will"}
    | {"with", "your"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A text that a value may have come from, in the order the model saw them.

    `trust` is that of the text as a whole; `untrusted_fields` are JSON pointers (`*` for each item) to what in it
    another party wrote. Of kind `argument`, it is what the model wrote, which grounds nothing.
    """

    ref: str
    """`input`, `system`, `2.0/result`, `2.0/arguments`; of an earlier run with its id and `/` before."""
    kind: Literal["user", "system", "tool", "memory", "argument"]
    trust: Trust
    text: str
    tool: str = ""
    untrusted_fields: tuple[str, ...] = ()

    @property
    def call(self) -> str:
        """The call that it is the result or the arguments of."""
        return self.ref.rpartition("/")[0] if self.kind in ("tool", "argument") else ""


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
        prepared.add(source, passages(source.text))
    return trace_prepared(arguments, prepared, known)


def trace_prepared(arguments: JsonObject, sources: Prepared, known: Known) -> tuple[Origin, ...]:
    """As `trace`, with sources that were made searchable before."""
    tracer = _Tracer(sources, known)
    return tuple(
        tracer.origin(pointer, value) if place < MAX_SCALARS else Origin(pointer=pointer, how="none", trust="none")
        for place, (pointer, value) in enumerate(scalars_of(arguments))
    )


@dataclass(frozen=True, slots=True)
class Searchable:
    """A source with the means to search it."""

    source: Source
    call: str
    passages: Passages
    rank: int
    ceiling: int
    """The best that finding a value here can make of it; of arguments, by what they say of their result."""
    written: bool
    """Whether the model wrote it: the arguments of a call."""
    foreign: frozenset[int]
    """The passages that another party wrote."""

    @classmethod
    def of(cls, source: Source, passages: Passages) -> Searchable:
        foreign = passages.marked(source.untrusted_fields) if source.untrusted_fields else frozenset()
        rank = RANK[source.trust]
        written = source.kind == "argument"
        ceiling = RANK["trusted"] if written else rank
        return cls(source, source.call, passages, rank, ceiling, written, foreign)

    def rank_at(self, pointer: str) -> int:
        """How far the passages at a pointer are trusted."""
        foreign = any(self.passages.pointers[passage] == pointer for passage in self.foreign)
        return min(self.rank, RANK["untrusted"]) if foreign else self.rank

    def ref(self, passage: int) -> str:
        pointer = self.passages.pointers[passage]
        return f"{self.source.ref}#{pointer}" if pointer else self.source.ref


class Prepared:
    """Sources that can be searched, in the order the model saw them. More may be added."""

    __slots__ = ("_by_mark", "_by_ref", "_searches", "prepared")

    def __init__(self) -> None:
        self.prepared: list[Searchable] = []
        self._by_ref: dict[str, int] = {}
        self._by_mark: defaultdict[str, list[int]] = defaultdict(list)
        self._searches: dict[Hashable, _Search] = {}

    def add(self, source: Source, passages: Passages) -> bool:
        """Add the next source; says whether anything in it is untrusted."""
        made = Searchable.of(source, passages)
        number = len(self.prepared)
        for mark in passages.marks:
            self._by_mark[mark].append(number)
        self._by_ref.setdefault(source.ref, number)
        self.prepared.append(made)
        return source.kind != "argument" and (made.rank <= RANK["untrusted"] or bool(made.foreign))

    def place_of(self, ref: str) -> int | None:
        """Which source is called so."""
        return self._by_ref.get(ref)

    def before(self, place: int) -> Prepared:
        """The sources before this one, to be searched; nothing is added to what this gives."""
        earlier = Prepared()
        earlier.prepared, earlier._by_mark = self.prepared[:place], self._by_mark
        return earlier

    def search(self, needle: Needle, facts: Sequence[str]) -> _Search:
        """The search for it, or for one of these facts, as far as it got: calls of a run have values in common."""
        if len(needle.raw) > _USUAL:
            return _Search(needle, facts)
        key = tuple(facts) if facts else (needle.raw, needle.number, needle.piece)
        known = self._searches.get(key)
        if known is None:
            if len(self._searches) >= _MAX_KEPT:
                self._searches.clear()
            known = self._searches[key] = _Search(needle, facts)
        return known

    def that_may_have(self, needle: Needle) -> Sequence[int]:
        """Which sources are worth looking for it in, in order: those with its rarest word, or another sign of it."""
        if not needle.form:
            return range(len(self.prepared))
        rarest = min([self._by_mark.get(piece, ()) for piece in needle.pieces], key=len)
        others = self.with_any(self._by_mark.keys() & needle.others) if needle.others else ()
        return sorted({*rarest, *others}) if rarest and others else rarest or others

    def with_any(self, marks: Collection[str]) -> Sequence[int]:
        """Which sources have one of these words or facts, in order."""
        lists = [found for mark in marks if (found := self._by_mark.get(mark))]
        if len(lists) < 2:
            return lists[0] if lists else ()
        return sorted({number for found in lists for number in found})


class _Found(NamedTuple):
    """Where one value stands: the trust of the best place, how it stands there, and the places, best first."""

    rank: int
    how: str
    refs: tuple[str, ...]


_NOWHERE = _Found(0, "none", ())


@dataclass(slots=True)
class _Search:
    """Looking for one value, or for one of some facts, in sources that grow: each is looked at once.

    What a call's result repeats of its arguments is worth what it was before.
    """

    needle: Needle
    facts: Sequence[str]
    found: _Found = _NOWHERE
    looked_at: int = 0
    """How many sources."""
    searched: int = 0
    """How many characters of those."""
    _best: int = 0
    _before: dict[str, int] = field(default_factory=dict)
    """By call that was given it: the best that it was until then."""
    _places: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    """The best so far: rank, quality, place of the source and of the passage (both negative), how it stands there."""
    _kept: int = 0
    """How many of them there were when `found` was said."""

    def go_on(self, sources: Prepared, room: int) -> bool:
        """Look at the sources that are new; whether all that was searched is at most `room` characters."""
        if self.looked_at == len(sources.prepared):
            return self.searched <= room
        numbers = sources.with_any(with_any_year(self.facts)) if self.facts else sources.that_may_have(self.needle)
        for number in numbers[bisect_left(numbers, self.looked_at) : bisect_left(numbers, len(sources.prepared))]:
            each = sources.prepared[number]
            if each.ceiling <= self._best and len(self._places) >= MAX_REFS:
                continue
            if self.searched + each.passages.size > room:
                self.looked_at = number
                return False
            self.searched += each.passages.size
            self._look_at(number, each)
        self.looked_at = len(sources.prepared)
        if len(self._places) > self._kept:
            self._places = sorted(self._places, reverse=True)[: 2 * MAX_REFS]  # a name and its value have one ref
            self._kept = len(self._places)
            self.found = _best(self._places, sources)
        return self.searched <= room

    def _look_at(self, number: int, each: Searchable) -> None:
        limit = 1 if each.written else MAX_HITS
        hits = each.passages.find_fact(self.facts) if self.facts else each.passages.find(self.needle, limit)
        if not hits:
            return
        if each.written:
            self._before.setdefault(each.call, self._best)
        usual = min(each.rank, self._before.get(each.call, each.rank)) if each.call else each.rank
        for passage, how in hits:
            rank = min(usual, RANK["untrusted"]) if passage in each.foreign else usual
            self._places.append((rank, _QUALITY[how], -number, -passage, how))
            self._best = max(self._best, rank)


def _best(places: Sequence[tuple[int, int, int, int, str]], sources: Prepared) -> _Found:
    rank, how = places[0][0], places[0][-1]
    refs = dict.fromkeys(sources.prepared[-number].ref(-passage) for _, _, number, passage, _ in places)
    return _Found(rank, how if rank else "none", tuple(refs)[:MAX_REFS])


@dataclass(slots=True)
class _Tracer:
    """One call's worth of looking; remembers what it looked for, and how much it has searched."""

    sources: Prepared
    known: Known
    searched: int = 0
    seen: dict[tuple[type, object], _Found] = field(default_factory=dict)

    def origin(self, pointer: str, value: object) -> Origin:
        found = self._found(value)
        return Origin(pointer=pointer, how=found.how, trust=_LABEL[found.rank], refs=found.refs)

    def _found(self, value: object) -> _Found:
        if self._trivial(value):
            return _SCHEMA
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            return _NOWHERE
        key = (type(value), value)
        found = self.seen.get(key)
        if found is None:
            assert isinstance(value, (str, int, float))
            needle = Needle(value) if isinstance(value, str) and len(value) > _USUAL else _needle(value)
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

    def _fold(self, needle: Needle, facts: Sequence[str] = ()) -> _Found:
        """Where it (or one of these facts) stands in all sources."""
        search = self.sources.search(needle, facts)
        if not search.go_on(self.sources, MAX_SEARCHED - self.searched):
            self.searched = MAX_SEARCHED + 1
            return _NOWHERE
        self.searched += search.searched
        return search.found

    def _facts(self, needle: Needle) -> _Found | None:
        """A date with a time: each may have been said elsewhere."""
        if len(needle.facts) < 2:
            return None
        return _together([self._fold(needle, facts) for facts in needle.facts])

    def _composed(self, needle: Needle) -> _Found | None:
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

    def _phrases(self, chunks: list[str], glue: list[bool]) -> Iterator[_Found]:
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

    def _phrase(self, chunks: list[str]) -> _Found:
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


_SCHEMA = _Found(RANK["trusted"], "schema", ())


def _together(pieces: Sequence[_Found]) -> _Found | None:
    """Pieces as one: no more trusted than the least of them; None when one came from nowhere."""
    if not pieces or not all(piece.rank for piece in pieces):
        return None
    ordered = sorted(pieces, key=lambda piece: piece.rank)
    refs = tuple(dict.fromkeys(ref for piece in ordered for ref in piece.refs[:1]))[:MAX_REFS]
    return _Found(ordered[0].rank, "composed", refs)
