"""The sources of a run's calls, read from its state: what the model was shown, and whose words that was.

Everything follows from the state; what is kept between calls are prepared texts, which could be made again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import Generic, TypeVar

from lockstep.agent.locked import LockedAgent
from lockstep.gate.passages import Passages, pointer_and_above
from lockstep.gate.pointing import Pointing
from lockstep.gate.provenance import Known, known_of, trace_prepared
from lockstep.gate.searching import RANK, Prepared, Searchable, Source
from lockstep.journal.events import Origin
from lockstep.kernel.state import State
from lockstep.model.port import AssistantMessage, Message, ToolMessage, UserMessage
from lockstep.values import Json, JsonObject, RunId

MAX_ORIGINS = 40
"""Of one call in the journal."""
MAX_NAME = 200
_KEPT_CHARACTERS = 8_000_000
_KEPT_EACH = 2_000
"""Characters as which a text counts beside its own: what is found in it takes memory even where it is short."""
_KEPT_RUNS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where the arguments of one call came from, and whether the run had been shown untrusted text by then."""

    origins: tuple[Origin, ...]
    read_untrusted: bool

    def recorded(self) -> tuple[tuple[Origin, ...], int]:
        """The origins as an event holds them, and how many are left out."""
        kept = self.origins
        if len(kept) > MAX_ORIGINS:
            least = sorted(range(len(kept)), key=lambda place: RANK[kept[place].trust])[:MAX_ORIGINS]
            kept = tuple(kept[place] for place in sorted(least))
        return tuple(map(_short, kept)), len(self.origins) - len(kept)

    def context(self) -> dict[str, Json]:
        """`context.provenance` of policies: which arguments are what, by pointer.

        An object or array is untrusted or ungrounded when anything in it is; the user's or trusted when all of it is.
        `*` in a pointer stands for every item of an array.
        """
        lowest: dict[str, int] = {}
        untrusted: set[str] = set()
        ungrounded: set[str] = set()
        for origin in self.origins:
            rank = RANK[origin.trust]
            for pointer in pointer_and_above(origin.pointer):
                lowest[pointer] = min(rank, lowest.get(pointer, rank))
                if rank == RANK["untrusted"]:
                    untrusted.add(pointer)
                elif rank == RANK["none"]:
                    ungrounded.add(pointer)
        return {
            "untrusted": sorted(untrusted),
            "ungrounded": sorted(ungrounded),
            "user": sorted(pointer for pointer, rank in lowest.items() if rank == RANK["user"]),
            "trusted": sorted(pointer for pointer, rank in lowest.items() if rank >= RANK["trusted"]),
            "read_untrusted": self.read_untrusted,
        }


@dataclass(slots=True)
class _Reading:
    """One run, as its messages are read one after another."""

    earlier: bool = False
    """Whether it is a run before the one that is judged."""
    prefix: str = ""
    """Of what is called by a run's own steps: empty in the run itself, its id and `/` in later ones."""
    step: int = 0
    asked: list[str] = field(default_factory=list)
    """Calls of the newest step whose results are still to come."""


@dataclass(slots=True)
class _Shown:
    """What the model of one run was shown so far."""

    messages: list[Message] = field(default_factory=list)
    prepared: Prepared = field(default_factory=Prepared)
    read_untrusted: bool = False
    reading: _Reading = field(default_factory=_Reading)

    def is_of(self, messages: Sequence[Message]) -> bool:
        """Whether these messages begin with those; they are the same objects as long as the process lives."""
        seen = len(self.messages)
        return seen <= len(messages) and (not seen or messages[seen - 1] is self.messages[-1])

    def add(self, messages: Iterable[Message], sources: Iterable[Searchable]) -> None:
        """Add messages with what can be found in them."""
        self.messages.extend(messages)
        for source in sources:
            self.prepared.add(source)
            self.read_untrusted = self.read_untrusted or source.untrusted


K = TypeVar("K")
V = TypeVar("V")


class _Kept(Generic[K, V]):
    """Things that could be made again, the least used of which are given up."""

    def __init__(self) -> None:
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._characters = 0

    def get(self, key: K) -> V | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

    def keep(self, key: K, made: V, characters: int) -> V:
        """Keep it, and count it as so many characters."""
        _, before = self._kept.pop(key, (made, 0))
        self._kept[key] = made, characters
        self._characters += characters - before
        while self._characters > _KEPT_CHARACTERS and len(self._kept) > 1:
            self._characters -= self._kept.popitem(last=False)[1][1]
        return made


class Tracing:
    """Traces the calls of one locked agent. What it keeps of texts and runs only saves making it again."""

    def __init__(self, agent: LockedAgent) -> None:
        self._agent = agent
        self._private = frozenset(name for name, tool in agent.tools.items() if tool.output_private)
        self._known: dict[str, Known] = {}
        self._runs: OrderedDict[RunId, _Shown] = OrderedDict()
        self._texts: _Kept[str, Passages] = _Kept()
        self._earlier: _Kept[str, tuple[Sequence[Message], Sequence[Searchable]]] = _Kept()
        """By their prefix: runs of a session, which each of its later runs is shown."""

    def of_call(self, state: State, tool: str, arguments: JsonObject) -> Provenance:
        """Where these arguments of a call that was just asked for came from."""
        shown = self._shown(state)
        known = self._known.get(tool)
        if known is None:
            known = self._known[tool] = known_of(self._agent.tools[tool].definition)
        origins = trace_prepared(arguments, shown.prepared, known)
        return Provenance(origins=origins, read_untrusted=shown.read_untrusted)

    def pointing(self, state: State) -> Pointing:
        """What the user's words lead to in what the model was shown."""
        return Pointing(self._shown(state).prepared, self._private, self._passages)

    def _shown(self, state: State) -> _Shown:
        """What the model was shown before its newest calls. A run only grows, so the rest of it is prepared once."""
        messages = state.transcript.messages
        if messages and isinstance(messages[-1], AssistantMessage):
            messages = messages[:-1]  # what is being judged; it is a source once it has been answered
        shown = self._runs.get(state.run)
        if shown is None or not shown.is_of(messages):
            shown = self._runs[state.run] = _Shown()
            system = Source(ref="system", kind="system", trust="system", text=self._agent.system)
            shown.add((), [self._searchable(system)])
            for prefix, earlier in _earlier_runs(state):
                shown.add(earlier, self._sources_of(state, prefix, earlier))
        self._runs.move_to_end(state.run)
        if len(self._runs) > _KEPT_RUNS:
            self._runs.popitem(last=False)
        for message in messages[len(shown.messages) :]:
            shown.add((message,), map(self._searchable, self._sources(state, shown.reading, message)))
        return shown

    def _sources_of(self, state: State, prefix: str, messages: Sequence[Message]) -> Sequence[Searchable]:
        """What can be found in an earlier run."""
        kept = self._earlier.get(prefix)
        if kept is not None and kept[0] == messages:
            return kept[1]
        reading = _Reading(True, prefix)
        made = [self._searchable(each) for message in messages for each in self._sources(state, reading, message)]
        size = sum(len(each.source.text) + _KEPT_EACH for each in made)
        return self._earlier.keep(prefix, (messages, made), size)[1]

    def _sources(self, state: State, reading: _Reading, message: Message) -> Iterator[Source]:
        prefix = reading.prefix
        if isinstance(message, UserMessage):
            yield Source(ref=f"{prefix}input", kind="user", trust="user", text=message.text)
        elif isinstance(message, AssistantMessage):
            reading.step += 1
            reading.asked = [f"{reading.step}.{position}" for position in range(len(message.calls))]
            for call, each in zip(reading.asked, message.calls, strict=True):
                ref = f"{prefix}{call}/arguments"
                yield Source(ref=ref, kind="argument", trust="none", text=each.arguments, tool=each.name)
        else:
            call = reading.asked.pop(0) if reading.asked else ""
            if reading.earlier or not _is_ours(state, call):
                yield self._result(f"{prefix}{call}/result", message)

    def _result(self, ref: str, message: ToolMessage) -> Source:
        tool = self._agent.tools.get(message.name)
        return Source(
            ref=ref,
            kind="tool",
            trust="trusted" if tool is not None and tool.output_trusted else "untrusted",
            text=message.text,
            tool=message.name,
            untrusted_fields=tool.untrusted_fields if tool is not None else (),
        )

    def _searchable(self, source: Source) -> Searchable:
        return Searchable.of(source, self._passages(source.text))

    def _passages(self, text: str) -> Passages:
        return self._texts.get(text) or self._texts.keep(text, Passages(text), len(text) + _KEPT_EACH)


def _earlier_runs(state: State) -> Iterator[tuple[str, Sequence[Message]]]:
    """The runs before it that its model was shown: what their calls begin with, and their messages."""
    history = state.transcript.messages[: state.history]
    begins = [place for place, message in enumerate(history) if isinstance(message, UserMessage) or not place]
    runs = state.previous[: len(begins)]
    for run, begin, end in zip_longest(runs, begins, [*begins[1:], len(history)]):
        yield f"{run}/" if run else "", history[begin:end]


def _short(origin: Origin) -> Origin:
    if len(origin.pointer) <= MAX_NAME and all(len(ref) <= MAX_NAME for ref in origin.refs):
        return origin
    refs = tuple(ref if len(ref) <= MAX_NAME else f"{ref[:MAX_NAME]}…" for ref in origin.refs)
    return replace(origin, pointer=origin.pointer[:MAX_NAME], refs=refs)


def _is_ours(state: State, call_id: str) -> bool:
    """Whether the model was told about this call by Lockstep itself, because it did not run."""
    newest_first = chain(reversed(state.calls), reversed(state.settled))
    call = next((call for call in newest_first if call.id == call_id), None)
    return call is not None and (call.verdict in ("deny", "invalid") or call.outcome == "approval_refused")
