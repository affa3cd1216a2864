"""One text, prepared once for being searched: its passages, their normal form, and the facts in them.

A text that is JSON has a passage for each scalar, with an RFC 6901 pointer; any other text is one passage. Pure: what
is prepared depends on the text alone, so it may be kept or made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from lockstep.gate.needles import Needle
from lockstep.gate.normal import fold_text, is_spoken, number_fact, spoken_facts, word_of
from lockstep.gate.speech import gives_orders, orders_in
from lockstep.values import Json

MAX_CHARACTERS = 1 << 18
"""Of one text; what stands after that is no source of anything."""
MAX_PASSAGES = 20_000
MAX_DEPTH = 250
"""More than arguments may have."""
MAX_HITS = 8
_SHORT = 4
_NUMBER_BEGINS = re.compile(r"(?<![\w.])")
_NUMBER_ENDS = re.compile(r"(?!\w|\.\d)")
_BREAK = "\0"
_BETWEEN = f" {_BREAK} "
"""What stands between two passages where all are one text: a word of its own."""
_NOTHING: tuple[str, ...] = ()
_ESCAPES = str.maketrans({"~": "~0", "/": "~1"})


Hit = tuple[int, str]
"""A passage that a value stands in, and how: `exact`, `part` or `normalised`."""


class Passages:
    """A text as it can be searched. `pointers[i]` is where passage `i` stands in the JSON, empty for plain text."""

    def __init__(self, text: str) -> None:
        said = _said(text) if len(text) <= MAX_CHARACTERS else None
        self._is_json = said is not None
        if said is None:
            said = _Said()
            said.add("", text[:MAX_CHARACTERS])
        self.pointers: Sequence[str] = said.pointers
        self._raws: Sequence[str] = said.raws
        self._numbers = said.numbers
        folded = fold_text(_joined(self._raws))[: 4 * MAX_CHARACTERS]
        words = folded.split()
        different = set(words)
        self.marks: set[str] = set(filter(str.isalpha, different))
        """Its words, without what joins them, and its facts."""
        spoken = is_spoken(self.marks)
        forms, telling = {_BREAK: "\n"}, {_BREAK: _NOTHING}
        for word in different - self.marks - {_BREAK}:
            read = word_of(word)
            forms[word] = read.form
            self.marks.update(read.pieces)
            spoken = spoken or read.spoken
            if read.facts:
                telling[word] = read.facts
        self._text = f" {' '.join(filter(None, map(forms.get, words, words)))} "
        self.size = len(self._text) + 100
        """What looking for one value costs that may be here, in characters."""
        self._facts: dict[str, list[int]] = {}
        passage = 0
        for word in filter(telling.__contains__, words if len(self._raws) > 1 else different):
            if word == _BREAK:
                passage += 1
            else:
                self._say(passage, telling[word])
        if spoken:
            for passage, facts in spoken_facts(folded.replace("\n", " ").replace(_BETWEEN, "\n")):
                self._say(passage, facts)
        self.marks.update(self._facts)
        self._marked: dict[tuple[str, ...], frozenset[int]] = {}

    def _say(self, passage: int, facts: Iterable[str]) -> None:
        for fact in facts:
            places = self._facts.get(fact)
            if places is None:
                self._facts[fact] = [passage]
            elif len(places) < MAX_HITS and passage not in places:
                places.append(passage)

    def marked(self, pointers: tuple[str, ...]) -> frozenset[int]:
        """The passages at or below these pointers, in which `*` is any one step.

        Of a text that is not JSON it is the whole: nobody can tell which part of it is whose.
        """
        known = self._marked.get(pointers)
        if known is None:
            wanted = [tuple(pointer.split("/")[1:]) for pointer in pointers]
            found = (place for place, each in enumerate(self.pointers) if not self._is_json or _below(each, wanted))
            known = self._marked[pointers] = frozenset(found)
        return known

    @property
    def texts(self) -> Sequence[str]:
        """Every passage as it is written."""
        return self._raws

    def at(self, pointer: str) -> list[str]:
        """The passages at a pointer: a scalar, and the name it stands under where that was not seen before."""
        return self._by_pointer.get(pointer, [])

    def fields_with(self, value: str | int | float) -> list[str]:
        """Where exactly this stands as a field of its own."""
        raw = value if isinstance(value, str) else number_fact(value).removeprefix("n:")
        return self._by_text.get(raw, [])

    @cached_property
    def _by_pointer(self) -> Mapping[str, list[str]]:
        return _grouped(zip(self.pointers, self._raws, strict=True))

    @cached_property
    def _by_text(self) -> Mapping[str, list[str]]:
        return _grouped(zip(self._raws, self.pointers, strict=True))

    @cached_property
    def orders(self) -> str:
        """The sentences in it that tell a reader what to do, a line each."""
        return "\n".join(filter(None, map(orders_in, self._raws)))

    @cached_property
    def gives_orders(self) -> bool:
        """Whether any passage tells its reader what to do."""
        return any(map(gives_orders, self._raws))

    def find(self, needle: Needle, limit: int = MAX_HITS) -> list[Hit]:
        """Where it stands, at most `limit` places: as it is, or in another writing of the same."""
        if not needle.form:
            return self._as_it_is(needle.raw)
        hits = self._as_text(needle, limit) if needle.pieces <= self.marks and not needle.number else []
        if not hits and len(needle.facts) == 1:
            hits = [self._fact_hit(needle, passage) for passage in self._with_fact(needle.facts[0])]
        if not hits and needle.squashed:
            hits = self._spaced(needle)
        return hits

    def _as_it_is(self, raw: str) -> list[Hit]:
        """Of a text without letters and digits no other writing is looked for."""
        held = (place for place, each in enumerate(self._raws) if raw in each)
        return [(place, "exact" if self._raws[place] == raw else "part") for place in islice(held, MAX_HITS)]

    def find_fact(self, readings: Sequence[str]) -> list[Hit]:
        """Where one of these facts is said."""
        return [(passage, "normalised") for passage in self._with_fact(readings)]

    def _as_text(self, needle: Needle, limit: int) -> list[Hit]:
        found = self._with_words(self._text, needle.words, needle.raw, limit)
        if not found and needle.loose_words:
            found = self._with_words(self._loose, needle.loose_words, needle.raw, limit)
        if len(needle.form) < _SHORT and not needle.piece:
            return [hit for hit in found if hit[1] != "normalised"]  # `US` is not in "contact us"
        return found

    def _with_words(self, text: str, words: str, raw: str, limit: int) -> list[Hit]:
        """The first passages that hold these words, in order; `raw` is how they are written in the value."""
        hits: list[Hit] = []
        at, line, counted = text.find(words), 0, 0
        while at >= 0:
            line += text.count("\n", counted, at)
            counted = at
            said = self._raws[line]
            hits.append((line, "exact" if said == raw else "part" if raw in said else "normalised"))
            if len(hits) == limit:
                break
            after = text.find("\n", at + len(words) - 1)
            at = text.find(words, after) if after >= 0 else -1
        return hits

    def _fact_hit(self, needle: Needle, passage: int) -> Hit:
        raw = self._raws[passage]
        if needle.number and passage in self._numbers:
            return (passage, "exact")
        return (passage, "part" if needle.number and _has_number(raw, needle.raw) else "normalised")

    def _with_fact(self, readings: Sequence[str]) -> list[int]:
        found = [passage for fact in readings for passage in self._facts.get(fact, ())]
        if not found:  # a date without its year may be that of any year
            found = [p for fact in readings if fact[0] == "d" for p in self._facts.get(f"d:-{fact[6:]}", ())]
        return list(dict.fromkeys(found))[:MAX_HITS]

    def _spaced(self, needle: Needle) -> list[Hit]:
        """An identifier in groups: `GB29 NWBK 6016 1331` for `GB29NWBK60161331`, and the other way round."""
        if needle.squashed not in self._squashed:
            return []
        pattern = r"(?<![^ \n])" + r"[ _.\-/+]{0,2}".join(map(re.escape, needle.squashed)) + r"(?![^ \n])"
        found = re.search(pattern, self._text)
        return [(self._text.count("\n", 0, found.start()), "normalised")] if found else []

    @cached_property
    def _loose(self) -> str:
        return f" {' '.join(_LOOSE_TOKEN.findall(self._text))} "

    @cached_property
    def _squashed(self) -> str:
        return self._text.translate(_SQUASH)


def _has_number(text: str, number: str) -> bool:
    """Whether it stands there so, and not within another number or a word."""
    at = text.find(number)
    while at >= 0:
        if _NUMBER_BEGINS.match(text, at) and _NUMBER_ENDS.match(text, at + len(number)):
            return True
        at = text.find(number, at + 1)
    return False


def _grouped(pairs: Iterable[tuple[str, str]]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


_LOOSE_TOKEN = re.compile(r"\n|[^\W_]+")
_SQUASH = {code: None for code in range(128) if not chr(code).isalnum() and chr(code) != "\n"}


def _below(pointer: str, wanted: Sequence[Sequence[str]]) -> bool:
    steps = pointer.split("/")[1:]
    return any(
        len(steps) >= len(each) and all(want in ("*", step) for want, step in zip(each, steps, strict=False))
        for each in wanted
    )


def _said(text: str) -> _Said | None:
    """What a JSON object or array says; None for anything else."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    said = _Said()
    said.read(value, "", 0)
    return said


class _Said:
    """The passages of a text, in order; a class for speed, since every result of a run passes through it.

    Of JSON, names count as well, each once: in `{"Hotel Ada": 120}` the name is what a model reads.
    """

    __slots__ = ("_names", "numbers", "pointers", "raws")

    def __init__(self) -> None:
        self.pointers: list[str] = []
        self.raws: list[str] = []
        self.numbers: set[int] = set()
        """Which of them are numbers."""
        self._names: set[str] = set()

    def add(self, pointer: str, raw: str) -> None:
        self.pointers.append(pointer)
        self.raws.append(raw)

    def read(self, part: Any, pointer: str, depth: int) -> None:
        """Add what stands in an object or an array, and its names."""
        if depth > MAX_DEPTH or len(self.raws) >= MAX_PASSAGES:
            return
        pointers, raws, names = self.pointers, self.raws, self._names
        named = type(part) is dict
        steps: Iterable[tuple[Any, Any]] = part.items() if named else enumerate(part)
        for step, each in steps:
            inner = f"{pointer}/{step.translate(_ESCAPES) if named and ('/' in step or '~' in step) else step}"
            if named and step not in names:
                names.add(step)
                pointers.append(inner)
                raws.append(step)
            kind = type(each)
            if kind is dict or kind is list:
                self.read(each, inner, depth + 1)
            elif kind is str:
                pointers.append(inner)
                raws.append(each)
            elif kind is int or kind is float:
                self.numbers.add(len(raws))
                pointers.append(inner)
                raws.append(_plain(each))


def _plain(number: int | float) -> str:
    fact = number_fact(number) if number - number == 0 else "n:"
    return fact.removeprefix("n:")


def _joined(raws: Sequence[str]) -> str:
    """All passages in one text, with a break between them that no passage holds."""
    text = _BETWEEN.join(raws)
    if text.count(_BREAK) < len(raws):
        return text
    return _BETWEEN.join([raw.replace(_BREAK, "\1") for raw in raws])


def pointer_and_above(pointer: str) -> list[str]:
    """A pointer and everything that it lies in; with `*` for its places in arrays, likewise."""
    steps = pointer.split("/")[1:]
    if len(steps) == 1 and not steps[0].isdecimal():
        return [pointer]
    starred = ["*" if step.isdecimal() else step for step in steps]
    found = []
    for length in range(len(steps), 0, -1):
        found.append("/" + "/".join(steps[:length]))
        if steps[:length] != starred[:length]:
            found.append("/" + "/".join(starred[:length]))
    return found


def scalars_of(value: Json) -> Iterator[tuple[str, Any]]:
    """Every scalar in a JSON value with its RFC 6901 pointer, in order; what lies too deep is not looked at."""
    waiting: list[tuple[str, int, Json]] = [("", 0, value)]
    while waiting:
        pointer, depth, part = waiting.pop()
        if isinstance(part, (Mapping, list, tuple)):
            steps: list[tuple[object, Json]]
            if isinstance(part, Mapping):
                steps = [(key.translate(_ESCAPES), each) for key, each in part.items()]
            else:
                steps = list(enumerate(part))
            if depth <= MAX_DEPTH:
                waiting.extend([(f"{pointer}/{step}", depth + 1, each) for step, each in reversed(steps)])
        else:
            yield pointer, part
