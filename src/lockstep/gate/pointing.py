"""Which of a call's values strayed in from text that nobody pointed to, and what they carry out.

"Pay the bill in bill.txt" names no account, and yet it says where the account stands. So a value that only untrusted
text has is *pointed to* when the user's own words lead to the place it stands in:

- the call that brought the text was asked for by the user's words (`read_file("bill.txt")`), or by what such a place
  says (the page that Bob's message names); or
- the record around it has another field that the user named whole, and not every record has the same
  (`{"sender": "Bob", "body": "... www.example.org"}` and "the article that Bob posted").

A text that gives orders is pointed to by nobody: a bill says what to pay, an injection says what to do. All other such
values are *stray*. So are those that stand in a trusted result merely as part of a field: the field is a name, what
stands in it is text. Pure; everything follows from the sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

from lockstep.gate.needles import Needle
from lockstep.gate.passages import Passages, pointer_and_above, scalars_of
from lockstep.gate.provenance import NOTHING_KNOWN, trace_prepared
from lockstep.gate.searching import RANK, Prepared, Searchable
from lockstep.gate.speech import gives_orders
from lockstep.journal.events import Origin
from lockstep.values import Json, JsonObject

_NAMED_CHARACTERS = 3
"""Of a field or an argument that leads somewhere; shorter ones stand everywhere."""
_PRIVATE_CHARACTERS = 6
_MAX_STEPS = 6
"""Of following what one place says to the next."""
_MAX_PRIVATE = 2_000
_ADDRESS = re.compile(
    r"(?:https?://|www\.)[^\s\"'<>()\[\]]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|\b[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}(?:/[^\s\"'<>()\[\]]*)?|\b[A-Z]{2}\d{2}[A-Z0-9]{10,30}\b",
    re.IGNORECASE,
)
"""Where a reader of a text may be led to: web and mail addresses, accounts."""
_MAX_ADDRESSES = 50


@dataclass(frozen=True, slots=True)
class _Place:
    """A passage of a source."""

    source: Searchable
    pointer: str

    @property
    def text(self) -> str:
        return next(iter(reversed(self.source.passages.at(self.pointer))), "")

    @property
    def rank(self) -> int:
        return self.source.rank_at(self.pointer)


@dataclass
class Pointing:
    """What the user's words lead to, in the sources of one call."""

    prepared: Prepared
    private_tools: frozenset[str] = frozenset()
    """Tools whose results are private data."""
    passages: Callable[[str], Passages] = Passages
    _led: dict[tuple[str, str], bool] = field(default_factory=dict)

    @property
    def sources(self) -> Sequence[Searchable]:
        return self.prepared.prepared

    def guidance(self, arguments: JsonObject, origins: Sequence[Origin]) -> dict[str, Json]:
        """`context.guidance` of policies; an object or array is what anything in it is."""
        marks: dict[str, set[str]] = {"stray": set(), "stray_addresses": set(), "private": set()}
        guided = False
        values = dict(scalars_of(arguments))
        for origin in origins:
            value = values.get(origin.pointer)
            found = {
                "stray": self.is_stray(origin, value),
                "stray_addresses": self.names_stray_address(value),
                "private": self.carries_private(value),
            }
            for name, holds in found.items():
                if holds:
                    marks[name].update(pointer_and_above(origin.pointer))
            if not found["stray"] and origin.trust != "none":
                guided = guided or origin.how != "schema" or self.is_recorded(value)
        sets: dict[str, Json] = {name: sorted(each) for name, each in marks.items()}
        return {**sets, "guided": guided, "read_orders": self.reads_orders()}

    def is_stray(self, origin: Origin, value: Json) -> bool:
        """Whether this value of a call came from text alone that the user did not write, vouch for or point to."""
        rank = RANK[origin.trust]
        if origin.how == "schema" or rank not in (RANK["untrusted"], RANK["trusted"]):
            return False
        places = [place for place in map(self._place, origin.refs) if place is not None]
        if rank == RANK["trusted"] and any(_is_name(place, value) for place in places):
            return self._is_ordered(value)
        if origin.how == "composed":
            parts = [place for place in places if place.rank <= RANK["untrusted"]] or places
            return not (rank == RANK["trusted"] or all(self._is_led_to(place, 0) for place in parts))
        return not any(self._is_led_to(place, 0) for place in places)

    def _is_ordered(self, value: Json) -> bool:
        """Whether an order in some text names this value: then the order chose it, wherever else it stands."""
        if not isinstance(value, str):
            return False
        needle = _needle(value)
        return any(
            self.passages(orders).find(needle, 1) for each in self._results() if (orders := each.passages.orders)
        )

    def names_stray_address(self, value: Json) -> bool:
        """Whether a text names an address that strayed in."""
        if not isinstance(value, str):
            return False
        found = list(dict.fromkeys(match[0].rstrip(".,;:!?") for match in _ADDRESS.finditer(value)))[:_MAX_ADDRESSES]
        if not found:
            return False
        origins = trace_prepared({str(place): each for place, each in enumerate(found)}, self.prepared, NOTHING_KNOWN)
        return any(self.is_stray(origin, each) for origin, each in zip(origins, found, strict=True))

    def carries_private(self, value: Json) -> bool:
        """Whether a value contains what a result of private data said, and the user did not."""
        if not isinstance(value, str) or len(value) < _PRIVATE_CHARACTERS:
            return False
        passages = self.passages(value)
        return any(
            passages.find(needle, 1) and not self._is_users(needle)
            for needle in self._private
            if needle.may_be_in(passages.marks)
        )

    def is_recorded(self, value: Json) -> bool:
        """Whether a value that is too small to be traced is a field of a trusted result, as the number of a record."""
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            return False
        trusted = RANK["trusted"]
        return any(
            each.rank_at(pointer) >= trusted
            for each in self._results()
            if each.rank >= trusted
            for pointer in each.passages.fields_with(value)
        )

    def reads_orders(self) -> bool:
        """Whether a result that the run was shown tells its reader what to do."""
        return any(each.passages.gives_orders for each in self._results())

    def _results(self) -> Iterator[Searchable]:
        return (each for each in self.sources if each.source.kind == "tool")

    @cached_property
    def _private(self) -> Sequence[Needle]:
        texts = (
            text
            for each in self._results()
            if each.source.tool in self.private_tools
            for text in each.passages.texts
            if len(text) >= _PRIVATE_CHARACTERS
        )
        return [needle for needle in map(_needle, islice(texts, _MAX_PRIVATE)) if needle.form]

    def _is_users(self, needle: Needle) -> bool:
        users = (source.passages for source in self.sources if source.source.kind == "user")
        return any(passages.find(needle, 1) for passages in users if needle.may_be_in(passages.marks))

    def _place(self, ref: str) -> _Place | None:
        name, _, pointer = ref.partition("#")
        at = self.prepared.place_of(name)
        if at is None or self.sources[at].source.kind != "tool":
            return None
        return _Place(self.sources[at], pointer)

    def _is_led_to(self, place: _Place, steps: int) -> bool:
        key = (place.source.source.ref, place.pointer)
        known = self._led.get(key)
        if known is None:
            self._led[key] = False  # what leads to itself leads nowhere
            known = self._led[key] = (
                steps < _MAX_STEPS
                and not gives_orders(place.text)
                and (self._record_is_named(place) or self._call_is_led_to(place.source, steps))
            )
        return known

    def _record_is_named(self, place: _Place) -> bool:
        record, others = _record_around(place)
        for name, value in record.items():
            if not isinstance(value, str) or len(value) < _NAMED_CHARACTERS or value == place.text:
                continue
            if others and all(other.get(name) == value for other in others):
                continue
            if self._is_users(_needle(value)):
                return True
        return False

    def _call_is_led_to(self, source: Searchable, steps: int) -> bool:
        """Whether the call that brought this was asked for with the user's words, or with what they lead to."""
        at = self.prepared.place_of(f"{source.call}/arguments")
        if at is None:
            return False
        try:
            arguments = _parsed(self.sources[at].source.text)
        except ValueError:
            return False
        values = [(pointer, value) for pointer, value in scalars_of(arguments) if _leads(value)]
        asked: JsonObject = {str(place): value for place, (_, value) in enumerate(values)}
        for origin in trace_prepared(asked, self.prepared.before(at), NOTHING_KNOWN):
            if origin.trust == "user":
                return True
            if origin.trust == "untrusted" and origin.how != "composed":
                places = [place for place in map(self._place, origin.refs) if place is not None]
                if any(self._is_led_to(place, steps + 1) for place in places):
                    return True
        return False


@lru_cache(maxsize=8192)
def _needle(text: str) -> Needle:
    return Needle(text)


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """JSON to be looked at, never changed.

    Raises:
        ValueError: it is none.
    """
    return json.loads(text)


def _leads(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= _NAMED_CHARACTERS


def _is_name(place: _Place, value: Json) -> bool:
    """Whether a trusted place is this value and does not merely contain it; a text without fields is vouched for."""
    if place.rank < RANK["trusted"]:
        return False
    if not place.pointer or not isinstance(value, str):
        return True
    form = Needle(value).form
    return any(Needle(text).form == form for text in place.source.passages.at(place.pointer))


def _record_around(place: _Place) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """The object that a place lies in, and the others beside it in the same list."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in place.pointer.split("/")[1:]]
    try:
        value = _parsed(place.source.source.text) if steps else None
    except ValueError:
        return {}, ()
    record: Mapping[str, Any] = {}
    others: Sequence[Any] = ()
    for step in steps:
        if isinstance(value, list):
            beside = [each for n, each in enumerate(value) if str(n) != step]
            value = value[int(step)] if step.isdecimal() and int(step) < len(value) else None
            if isinstance(value, dict):
                record, others = value, [each for each in beside if isinstance(each, dict)]
        elif isinstance(value, dict):
            if not record:
                record = value
            value = value.get(step)
        else:
            break
    return record, others
