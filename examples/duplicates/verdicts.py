"""What became of repeated calls, held against what the data's labels say of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from conversation import Replayed
from data import Recording

from lockstep.agent.locked import LockedAgent
from lockstep.values import Effect, canonical

HANDED_OVER = "transfer_to_human_agents"
"""Has an effect and changes no record: the labels do not count it among the writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """The counts, and a line for everything that is not as it should be."""

    calls: int
    caught: tuple[int, int]
    refused: tuple[int, int]
    served: tuple[int, int]
    lines: tuple[str, ...]
    wrong: int

    @property
    def summary(self) -> str:
        """The line the measurement ends with."""
        (a, b), (c, d), (e, f) = self.caught, self.refused, self.served
        return f"duplicates: caught {a}/{b}, legitimate writes refused {c}/{d}, re-emissions served {e}/{f}"

    @property
    def perfect(self) -> bool:
        """Whether everything was as it should be."""
        return not self.wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """One call that counts: of which kind, whether it went as it should, and what is said when it did not."""

    kind: str
    right: bool
    line: str


def verdicts(replayed: Sequence[tuple[Replayed, LockedAgent]]) -> Verdicts:
    """Count over all conversations."""
    found = [each for one, agent in replayed for each in _found(one, agent)]
    count = {
        kind: (sum(each.right for each in found if each.kind == kind), sum(each.kind == kind for each in found))
        for kind in ("duplicate", "legitimate", "emitted")
    }
    let_through, writes = count["legitimate"]
    return Verdicts(
        calls=sum(len(one.calls) for one, _ in replayed),
        caught=count["duplicate"],
        refused=(writes - let_through, writes),
        served=count["emitted"],
        lines=tuple(each.line for each in found if each.line),
        wrong=sum(not each.right for each in found),
    )


def _found(one: Replayed, agent: LockedAgent) -> Iterator[_Found]:
    recording, labels = one.recording, one.recording.labels
    asked = [call for call, _ in recording.calls()]
    if len(asked) != len(one.calls):
        yield _Found(
            kind="short", right=False, line=f"{recording.id}: {len(one.calls)} of {len(asked)} calls were made"
        )
        return
    failed = frozenset(labels.get("failed_calls", ()))
    duplicates = changed_state(recording)
    emitted = frozenset(labels.get("repeated_call_id_same_call", ()))
    repeats = duplicates | emitted | {second for _, second in labels.get("semantic_duplicate_calls", ())}
    for place in sorted(duplicates):
        yield _judged("duplicate", "missed duplicate", one, place, right=place in one.joined_to)
    for place, call in enumerate(asked):
        writes = agent.tools[call.name].effect is not Effect.READ and call.name != HANDED_OVER
        if writes and place not in repeats and place not in failed:
            yield _judged("legitimate", "refused legitimate write", one, place, right=one.attempts[place] == 1)
    for place in sorted(emitted):
        yield from _emitted(one, agent, place, failed)
    for place in sorted(frozenset(labels.get("repeated_call_id_different_call", ())) - repeats):
        if one.attempts[place] != 1:
            yield _judged("reused", "not run, though only its id was used before", one, place, right=False)


def changed_state(recording: Recording) -> frozenset[int]:
    """The duplicates that changed something; where the data does not name them, those whose second call succeeded."""
    labels = recording.labels
    if "duplicates_that_changed_state" in labels:
        return frozenset(labels["duplicates_that_changed_state"])
    failed = frozenset(labels.get("failed_calls", ()))
    return frozenset(second for _, second in labels.get("semantic_duplicate_calls", ()) if second not in failed)


def _emitted(one: Replayed, agent: LockedAgent, place: int, failed: frozenset[int]) -> Iterator[_Found]:
    """A call that was emitted again. Where the first failed it is made again, and so is a read after a change."""
    asked = [call for call, _ in one.recording.calls()]
    call = asked[place]
    same = (call.id, call.name, canonical(dict(call.arguments)))
    first = next(n for n, each in enumerate(asked) if (each.id, each.name, canonical(dict(each.arguments))) == same)
    if first in failed:
        return
    read = agent.tools[call.name].effect is Effect.READ
    if read and _changed(one, agent, range(first + 1, place)):
        yield _judged("read", "read again, after a change", one, place, right=True, said=True)
        return
    served = place in one.joined_to and one.attempts[place] == 0
    yield _judged("emitted", "re-emission not served", one, place, right=served)


def _changed(one: Replayed, agent: LockedAgent, places: Iterable[int]) -> bool:
    return any(one.attempts[n] and agent.tools[one.calls[n].name].effect is not Effect.READ for n in places)


def _judged(kind: str, what: str, one: Replayed, place: int, *, right: bool, said: bool = False) -> _Found:
    call = one.calls[place]
    why = f"; joined to call {one.joined_to[place]}" if place in one.joined_to else f" ({call.outcome})"
    line = f"{one.recording.id}, call {place} {call.name}: {what}{why}"
    return _Found(kind=kind, right=right, line=line if said or not right else "")
