"""The sources of a run's calls, read from its state: what the model was shown, and whose words that was.

Everything follows from the state; what is kept between calls are prepared texts, which could be made again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lockstep.agent.locked import LockedAgent
from lockstep.gate.passages import Passages
from lockstep.gate.provenance import RANK, Known, Source, known_of, trace
from lockstep.journal.events import Origin
from lockstep.kernel.state import CallState, State
from lockstep.model.port import AssistantMessage, ToolMessage, UserMessage
from lockstep.values import Json, JsonObject

MAX_ORIGINS = 40
"""Of one call in the journal."""
MAX_NAME = 200
_KEPT_CHARACTERS = 8_000_000


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
            for pointer in _and_above(origin.pointer):
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


class Tracing:
    """Traces the calls of one locked agent. Keeps texts that it prepared, and nothing of any run."""

    def __init__(self, agent: LockedAgent) -> None:
        self._agent = agent
        self._known: dict[str, Known] = {}
        self._kept: OrderedDict[str, Passages] = OrderedDict()
        self._characters = 0

    def of_call(self, state: State, tool: str, arguments: JsonObject) -> Provenance:
        """Where these arguments of a call that was just asked for came from."""
        sources = list(self.sources(state))
        known = self._known.get(tool)
        if known is None:
            known = self._known[tool] = known_of(self._agent.tools[tool].definition)
        return Provenance(
            origins=trace(arguments, sources, known=known, passages=self._passages),
            read_untrusted=any(self._reads_untrusted(source) for source in sources),
        )

    def sources(self, state: State) -> Iterator[Source]:
        """What the model was shown before its newest calls, in order."""
        yield Source(ref="system", kind="system", trust="system", text=self._agent.system)
        messages = state.transcript.messages
        own = {call.id: call for call in state.all_calls}
        prefix, step = "", 0
        asked: Iterator[str] = iter(())
        runs = iter(state.previous)
        for place, message in enumerate(messages):
            if isinstance(message, UserMessage):
                prefix = f"{next(runs, '-')}/" if place < state.history else ""
                step = 0
                yield Source(ref=f"{prefix}input", kind="user", trust="user", text=message.text)
            elif isinstance(message, AssistantMessage):
                step += 1
                ids = [f"{step}.{position}" for position in range(len(message.calls))]
                asked = iter(ids)
                for call, each in zip(ids, message.calls, strict=True):
                    yield Source(ref=f"{prefix}{call}/arguments", kind="argument", trust="none", text=each.arguments)
            else:
                call = next(asked, "")
                if prefix or not _is_ours(own.get(call)):
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

    def _reads_untrusted(self, source: Source) -> bool:
        if source.kind != "tool" or source.trust == "untrusted":
            return source.trust == "untrusted"
        return bool(source.untrusted_fields) and bool(self._passages(source.text).marked(source.untrusted_fields))

    def _passages(self, text: str) -> Passages:
        kept = self._kept.get(text)
        if kept is not None:
            self._kept.move_to_end(text)
            return kept
        made = self._kept[text] = Passages(text)
        self._characters += len(text) + 1
        while self._characters > _KEPT_CHARACTERS and len(self._kept) > 1:
            dropped, _ = self._kept.popitem(last=False)
            self._characters -= len(dropped) + 1
        return made


def _and_above(pointer: str) -> Iterator[str]:
    """A pointer and everything that it lies in; with `*` for its places in arrays, likewise."""
    steps = pointer.split("/")[1:]
    starred = ["*" if step.isdecimal() else step for step in steps]
    for length in range(len(steps), 0, -1):
        yield "/" + "/".join(steps[:length])
        if steps[:length] != starred[:length]:
            yield "/" + "/".join(starred[:length])


def _short(origin: Origin) -> Origin:
    refs = tuple(ref if len(ref) <= MAX_NAME else f"{ref[:MAX_NAME]}…" for ref in origin.refs)
    return replace(origin, pointer=origin.pointer[:MAX_NAME], refs=refs)


def _is_ours(call: CallState | None) -> bool:
    """Whether the model was told about this call by Lockstep itself, because it did not run."""
    return call is not None and (call.verdict in ("deny", "invalid") or call.outcome == "approval_refused")
