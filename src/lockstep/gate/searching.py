"""The texts that a value may have come from, and looking for values in them. Pure.

Sources are in the order the model saw them, and there are more of them with every call. What was looked for once is
looked for in the new ones only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lockstep.gate.needles import Needle, with_any_year
from lockstep.gate.passages import MAX_HITS, Passages

Trust = Literal["user", "system", "trusted", "untrusted", "none"]
RANK: Mapping[str, int] = {"none": 0, "untrusted": 1, "trusted": 2, "system": 3, "user": 4}
_QUALITY: Mapping[str, int] = {"normalised": 0, "part": 1, "exact": 2}

MAX_REFS = 4
USUAL_CHARACTERS = 200
"""Of a value that is worth remembering."""
_FEW = 48
"""Sources that are looked at one by one; of more, an index by what they say leaves out most."""
_MAX_KEPT = 500
"""Searches of one run."""


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

    @property
    def untrusted(self) -> bool:
        """Whether another party wrote it, or something in it."""
        return not self.written and (self.rank <= RANK["untrusted"] or bool(self.foreign))

    def rank_at(self, pointer: str) -> int:
        """How far the passages at a pointer are trusted."""
        foreign = any(self.passages.pointers[passage] == pointer for passage in self.foreign)
        return min(self.rank, RANK["untrusted"]) if foreign else self.rank

    def ref(self, passage: int) -> str:
        pointer = self.passages.pointers[passage]
        return f"{self.source.ref}#{pointer}" if pointer else self.source.ref


class Prepared:
    """Sources that can be searched, in the order the model saw them. More may be added."""

    __slots__ = ("_by_mark", "_by_ref", "_marked", "_searches", "prepared")

    def __init__(self) -> None:
        self.prepared: list[Searchable] = []
        self._by_ref: dict[str, int] = {}
        self._by_mark: defaultdict[str, list[int]] = defaultdict(list)
        self._marked = 0
        """How many of them are in the index by what they say: it is made when it is first needed."""
        self._searches: dict[Hashable, Search] = {}

    def add(self, source: Searchable) -> None:
        """Add the next source."""
        self._by_ref.setdefault(source.source.ref, len(self.prepared))
        self.prepared.append(source)

    def place_of(self, ref: str) -> int | None:
        """Which source is called so."""
        return self._by_ref.get(ref)

    def before(self, place: int) -> Prepared:
        """The sources before this one, to be searched; nothing is added to what this gives."""
        earlier = Prepared()
        earlier.prepared, earlier._by_mark, earlier._marked = self.prepared[:place], self._index(), len(self.prepared)
        return earlier

    def _index(self) -> defaultdict[str, list[int]]:
        for number in range(self._marked, len(self.prepared)):
            for mark in self.prepared[number].passages.marks:
                self._by_mark[mark].append(number)
        self._marked = max(self._marked, len(self.prepared))
        return self._by_mark

    def search(self, needle: Needle, facts: Sequence[str]) -> Search:
        """The search for it, or for one of these facts, as far as it got: calls of a run have values in common."""
        if len(needle.raw) > USUAL_CHARACTERS:
            return Search(needle, facts)
        key = tuple(facts) if facts else (needle.raw, needle.number, needle.piece)
        known = self._searches.get(key)
        if known is None:
            if len(self._searches) >= _MAX_KEPT:
                self._searches.clear()
            known = self._searches[key] = Search(needle, facts)
        return known

    def that_may_have(self, needle: Needle) -> Sequence[int]:
        """Which sources are worth looking for it in, in order: those with its rarest word, or another sign of it."""
        if not needle.form:
            return range(len(self.prepared))
        index = self._index()
        rarest = min([index.get(piece, ()) for piece in needle.pieces], key=len)
        others = self.with_any(index.keys() & (needle.said | needle.begins))
        return sorted({*rarest, *others}) if rarest and others else rarest or others

    def with_any(self, marks: Collection[str]) -> Sequence[int]:
        """Which sources have one of these words or facts, in order."""
        index = self._index()
        lists = [found for mark in marks if (found := index.get(mark))]
        if len(lists) < 2:
            return lists[0] if lists else ()
        return sorted({number for found in lists for number in found})


class Found(NamedTuple):
    """Where one value stands: the trust of the best place, how it stands there, and the places, best first."""

    rank: int
    how: str
    refs: tuple[str, ...]


NOWHERE = Found(0, "none", ())


@dataclass(slots=True)
class Search:
    """Looking for one value, or for one of some facts, in sources that grow: each is looked at once.

    What a call's result repeats of its arguments is worth what it was before.
    """

    needle: Needle
    facts: Sequence[str]
    found: Found = NOWHERE
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
        for number in self._new(sources):
            each = sources.prepared[number]
            if each.ceiling <= self._best and len(self._places) >= MAX_REFS:
                continue
            if not self._may_be_in(each.passages.marks):
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

    def _new(self, sources: Prepared) -> Sequence[int]:
        """The sources that were not looked at yet; where they are many, without most that it cannot be in."""
        first, end = self.looked_at, len(sources.prepared)
        if end - first <= _FEW:
            return range(first, end)
        numbers = sources.with_any(with_any_year(self.facts)) if self.facts else sources.that_may_have(self.needle)
        return numbers[bisect_left(numbers, first) : bisect_left(numbers, end)]

    def _may_be_in(self, marks: AbstractSet[str]) -> bool:
        if self.facts:
            return not marks.isdisjoint(with_any_year(self.facts))
        return self.needle.may_be_in(marks)

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


def _best(places: Sequence[tuple[int, int, int, int, str]], sources: Prepared) -> Found:
    rank, how = places[0][0], places[0][-1]
    refs = dict.fromkeys(sources.prepared[-number].ref(-passage) for _, _, number, passage, _ in places)
    return Found(rank, how if rank else "none", tuple(refs)[:MAX_REFS])
