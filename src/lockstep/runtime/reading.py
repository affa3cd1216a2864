"""Runs read back from the journal: state, history of a session, what waits for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from lockstep.agent.lock import Lock, from_text
from lockstep.errors import JournalCorrupt, RunError, StoreDamaged
from lockstep.journal.events import ENDED, EffectDoubted, Recorded, RunStarted
from lockstep.journal.port import Journal, RunRow, Verification
from lockstep.kernel.apply import fold, start, with_emitted
from lockstep.kernel.state import CallState, Emitted, Phase, Receipt, State, Status
from lockstep.kernel.transcript import UNSEEDED
from lockstep.model.port import Message
from lockstep.runtime.extracts import extract_of, left_in
from lockstep.values import Effect, RunId

CLIENT_WORDS = "(a call of an MCP client)"
"""What stands for the user's words in a run that is a client's call: nothing in its arguments can be traced to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What earlier runs of a session leave to the next: messages, receipts, and what an adapter may emit again."""

    messages: tuple[Message, ...]
    receipts: Mapping[str, Receipt]
    emitted: Mapping[str, tuple[Emitted, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """A run that the list names and nobody can read, and why."""

    row: RunRow
    why: str

    @property
    def finished(self) -> bool:
        return self.row.last in ENDED


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A call that waits for a person: for approval (`Phase.WAITING`), for an answer to its server
    (`Phase.NEEDS_INPUT`), or to be reconciled (`Phase.DOUBTED`)."""

    state: State
    call: CallState


async def read_run(journal: Journal, run: RunId) -> list[Recorded]:
    """The events of a run that exists.

    Raises:
        RunError: there is no such run.
        JournalCorrupt: its first event is not `run.started`.
    """
    recorded = await journal.read(run)
    if not recorded:
        raise RunError(f"There is no run {run} in this store.", remedy="`lockstep runs` lists them.")
    if not isinstance(recorded[0].event, RunStarted):
        raise JournalCorrupt(
            f"Run {run} does not begin with run.started.", remedy=f"`lockstep verify {run}` says more."
        )
    return recorded


async def lock_of_run(journal: Journal, run: RunId) -> tuple[RunStarted, Lock]:
    """How a run began and the lock it runs under, from the record itself.

    Raises:
        RunError, JournalCorrupt, LockError: there is none, or it does not hold.
    """
    started = cast(RunStarted, (await read_run(journal, run))[0].event)
    return started, from_text(started.lock_text, f"the lock of run {run}")


async def read_state(journal: Journal, run: RunId) -> State:
    """The state of a run by itself, without the session's history before it."""
    return fold(start(run, UNSEEDED), await read_run(journal, run))


async def verify_run(journal: Journal, run: RunId) -> Verification:
    """The journal's own check of a run; and that what was kept of it, if anything was, is what its events say."""
    seen = await journal.verify(run)
    if seen.broken_seq is not None:
        return seen
    state = await read_state(journal, run)
    kept = [row.extract for row in await journal.session(state.session) if row.run == run]
    if any(left_in(run, each) is not None and each != extract_of(state.left) for each in kept):
        problem = "the receipts that were kept of it are not those of its events"
        return replace(seen, broken_seq=seen.events, problem=problem)
    return seen


async def read_row(journal: Journal, row: RunRow) -> State | Unreadable:
    """The state of a run of the list; a broken one is a value, so that it hides no other.

    Raises:
        StoreDamaged: not this run alone is broken.
    """
    try:
        return await read_state(journal, row.run)
    except StoreDamaged:
        raise
    except (JournalCorrupt, RunError) as error:
        return Unreadable(row=row, why=error.message)


async def read_history(
    journal: Journal, session: str, previous: Sequence[RunId], *, before: RunId | None, receipts: bool
) -> History:
    """What earlier runs of a session leave to `before`, or to a run that is yet to begin.

    That is the messages and calls of `previous`, the runs in its window; and with `receipts` the receipts of every
    earlier run, because what must not be repeated outlives the window. A finished run is read for them once: what it
    left is kept.

    Raises:
        JournalCorrupt: one that counts cannot be read. What it did is not known, so the session does not go on.
    """
    states = {run: await _read_earlier(journal, session, run) for run in previous}
    kept = await _receipts(journal, session, before, states) if receipts else {}
    messages = tuple(message for state in states.values() for message in state.transcript.messages)
    return History(messages=messages, receipts=kept, emitted=_emitted(states))


def _emitted(states: Mapping[RunId, State]) -> Mapping[str, tuple[Emitted, ...]]:
    """The calls of earlier runs that may be emitted again; of the reads, those after which nothing was changed."""
    changed = False
    kept: list[tuple[RunId, list[CallState]]] = []
    for run, state in reversed(list(states.items())):
        current = None if changed else state.effects
        calls = [call for call in state.all_calls if call.effect is not Effect.READ or call.effects_seen == current]
        kept.append((run, [replace(call, effects_seen=0) for call in calls]))
        changed = changed or state.effects > 0
    found: Mapping[str, tuple[Emitted, ...]] = {}
    for run, calls in reversed(kept):
        found = with_emitted(found, run, calls)
    return found


async def _receipts(
    journal: Journal, session: str, before: RunId | None, states: Mapping[RunId, State]
) -> dict[str, Receipt]:
    """By key, the newest receipt that the earlier runs left. Where events were read they count, not what was kept."""
    receipts: dict[str, Receipt] = {}
    drawn: dict[RunId, bytes] = {}
    for row in await journal.session(session, before=before):
        left = None if row.run in states else left_in(row.run, row.extract)
        if left is None:
            left = (states.get(row.run) or await _read_earlier(journal, session, row.run)).left
            if row.finished and row.extract != (extract := extract_of(left)):
                drawn[row.run] = extract
        receipts = left.after(receipts)
    if drawn:
        await journal.keep(drawn)
    return receipts


async def _read_earlier(journal: Journal, session: str, run: RunId) -> State:
    try:
        return await read_state(journal, run)
    except StoreDamaged:
        raise
    except (JournalCorrupt, RunError) as error:
        raise JournalCorrupt(
            f"Session {session!r} cannot go on, because what its run {run} did is not known: {error.message}",
            remedy=f"Begin another session; `lockstep verify {run}` says where its record stops holding.",
        ) from error


async def unfinished(journal: Journal) -> list[State | Unreadable]:
    """Every run that has not finished, oldest first."""
    rows = [row for row in reversed(await journal.runs()) if row.last not in ENDED]
    return [await read_row(journal, row) for row in rows]


async def doubts(journal: Journal) -> list[Waiting | Unreadable]:
    """Every call in doubt, also of runs that have finished, oldest run first; and what of such runs cannot be read."""
    found: list[Waiting | Unreadable] = []
    for row in reversed(await journal.runs(with_event=EffectDoubted.TYPE)):
        state = await read_row(journal, row)
        if isinstance(state, Unreadable):
            found.append(state)
        else:
            doubted = [call for call in state.all_calls if call.phase is Phase.DOUBTED]
            found += [Waiting(state=state, call=call) for call in doubted]
    return found


def waiting(runs: Iterable[State | Unreadable]) -> list[Waiting]:
    """Everything in these runs that waits for a person."""
    return [
        Waiting(state=state, call=call)
        for state in runs
        if isinstance(state, State) and state.status is not Status.FINISHED
        for call in state.calls
        if call.phase in (Phase.WAITING, Phase.NEEDS_INPUT, Phase.DOUBTED)
    ]


def require_free(started: RunStarted, newest: RunRow) -> None:
    """That a run may begin in the session whose newest one this is.

    Raises:
        RunError: it is of somebody else or another agent, or that run has not finished.
    """
    session = started.session
    if (newest.agent, newest.principal) != (started.agent, started.principal):
        raise RunError(
            f"Session {session!r} is a conversation of {newest.principal} with {newest.agent}.",
            remedy="Use another --session.",
        )
    if newest.last not in ENDED:
        raise RunError(
            f"Session {session!r} has an unfinished run {newest.run}.",
            remedy=f"`lockstep resume {newest.run}` or `lockstep cancel {newest.run}`, or use another --session.",
        )
