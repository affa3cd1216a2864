"""What servers asked for before they went on with a call, and what became of it, as the readings of a run have it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from lockstep.journal import events as ev
from lockstep.journal.events import Recorded


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """What the agent's own model said to one part of a question; or the attempt that failed."""

    key: str
    event: int
    at_ms: int
    model: str
    prompt_sha256: str
    ignored: tuple[str, ...]
    text: str
    cost_usd: str | None
    failure: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One question of a server. What it said is untrusted; `given` is what it was told, None while it is not."""

    id: str
    asked: str
    """As the event has it: JSON."""
    live: bool
    event: int
    at_ms: int
    sampled: tuple[Sampled, ...] = ()
    """What the agent's own model said to it."""
    given: str | None = None
    """JSON; empty where it was told nothing, which ended the call."""
    by: str = ""
    because: str = ""
    given_at_ms: int = 0

    @property
    def words(self) -> str:
        """What it asked for, in a line."""
        asked = json.loads(self.asked)["requests"]
        said = [str(each["params"].get("message") or each["method"]) for each in asked.values()]
        return "; ".join(said) or "nothing, but to be called again"


def with_input(
    inputs: list[Input], event: ev.InputAsked | ev.InputGiven | ev.ModelSampled, item: Recorded
) -> list[Input]:
    """The same with this question, or this answer in its place."""
    if isinstance(event, ev.InputAsked):
        asked = Input(id=event.input, asked=event.asked, live=event.live, event=item.seq, at_ms=item.at_ms)
        return [*inputs, asked]
    if isinstance(event, ev.ModelSampled):
        said = Sampled(
            key=event.key,
            event=item.seq,
            at_ms=item.at_ms,
            model=f"{event.provider}:{event.model}",
            prompt_sha256=event.digest,
            ignored=event.ignored,
            text=event.text,
            cost_usd=event.cost_usd,
            failure=event.failure,
        )
        return [replace(each, sampled=(*each.sampled, said)) if each.id == event.input else each for each in inputs]
    return [
        replace(each, given=event.responses, by=event.by, because=event.because, given_at_ms=item.at_ms)
        if each.id == event.input
        else each
        for each in inputs
    ]


def in_words(event: ev.InputGiven) -> str:
    """What a server was told, in a word or two; the values themselves are in the record."""
    if not event.responses:
        return "refused"
    actions = {str(each.get("action", "answered")) for each in json.loads(event.responses).values()}
    return ", ".join(sorted(actions)) or "called again"
