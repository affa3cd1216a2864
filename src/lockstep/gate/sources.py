"""The sources of a run's calls, read from its state: what the model was shown, and whose words that was.

Everything follows from the state; what is kept between calls are prepared texts, which could be made again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from lockstep.agent.locked import LockedAgent
from lockstep.gate.passages import Passages, pointer_and_above
from lockstep.gate.pointing import Pointing
from lockstep.gate.provenance import Known, known_of, trace_prepared
from lockstep.gate.searching import RANK, Prepared, Source
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
class _Shown:
    """What the model of one run was shown so far."""

    messages: list[Message] = field(default_factory=list)
    prepared: Prepared = field(default_factory=Prepared)
    read_untrusted: bool = False
    prefix: str = ""
    runs: int = 0
    step: int = 0
    asked: list[str] = field(default_factory=list)

    def is_of(self, messages: Sequence[Message]) -> bool:
        """Whether these messages begin with those; they are the same objects as long as the process lives."""
        seen = len(self.messages)
        return seen <= len(messages) and (not seen or messages[seen - 1] is self.messages[-1])


class Tracing:
    """Traces the calls of one locked agent. What it keeps of texts and runs only saves making it again."""

    def __init__(self, agent: LockedAgent) -> None:
        self._agent = agent
        self._private = frozenset(name for name, tool in agent.tools.items() if tool.output_private)
        self._known: dict[str, Known] = {}
        self._runs: OrderedDict[RunId, _Shown] = OrderedDict()
        self._texts: OrderedDict[str, Passages] = OrderedDict()
        self._characters = 0

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
            shown.prepared.add(system, self._passages(system.text))
        self._runs.move_to_end(state.run)
        if len(self._runs) > _KEPT_RUNS:
            self._runs.popitem(last=False)
        for message in messages[len(shown.messages) :]:
            for source in self._sources(state, shown, message):
                foreign = shown.prepared.add(source, self._passages(source.text))
                shown.read_untrusted = shown.read_untrusted or foreign
            shown.messages.append(message)
        return shown

    def _sources(self, state: State, shown: _Shown, message: Message) -> Iterator[Source]:
        place = len(shown.messages)
        if isinstance(message, UserMessage):
            earlier = place < state.history
            shown.prefix = f"{state.previous[shown.runs]}/" if earlier and shown.runs < len(state.previous) else ""
            shown.runs, shown.step = shown.runs + 1, 0
            yield Source(ref=f"{shown.prefix}input", kind="user", trust="user", text=message.text)
        elif isinstance(message, AssistantMessage):
            shown.step += 1
            shown.asked = [f"{shown.step}.{position}" for position in range(len(message.calls))]
            for call, each in zip(shown.asked, message.calls, strict=True):
                ref = f"{shown.prefix}{call}/arguments"
                yield Source(ref=ref, kind="argument", trust="none", text=each.arguments, tool=each.name)
        else:
            call = shown.asked.pop(0) if shown.asked else ""
            if place < state.history or not _is_ours(state, call):
                yield self._result(f"{shown.prefix}{call}/result", message)

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

    def _passages(self, text: str) -> Passages:
        kept = self._texts.get(text)
        if kept is not None:
            self._texts.move_to_end(text)
            return kept
        made = self._texts[text] = Passages(text)
        self._characters += len(text) + _KEPT_EACH
        while self._characters > _KEPT_CHARACTERS and len(self._texts) > 1:
            dropped, _ = self._texts.popitem(last=False)
            self._characters -= len(dropped) + _KEPT_EACH
        return made


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
