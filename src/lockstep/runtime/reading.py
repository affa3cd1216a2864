"""Runs read back from the journal: state, history of a session, what waits for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lockstep.errors import JournalCorrupt, RunError, StoreDamaged
from lockstep.journal.events import Recorded, RunFinished, RunStarted
from lockstep.journal.port import Journal, RunRow
from lockstep.kernel.apply import fold, start
from lockstep.kernel.state import CallState, Phase, Receipt, State, Status
from lockstep.kernel.transcript import Transcript
from lockstep.model.port import Message
from lockstep.values import RunId

UNSEEDED = Transcript((), b"")
"""An opening for readers who do not compare prompt digests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What earlier runs of a session leave to the next: messages and receipts."""

    messages: tuple[Message, ...]
    receipts: Mapping[str, Receipt]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """A run that the list names and nobody can read, and why."""

    row: RunRow
    why: str

    @property
    def finished(self) -> bool:
        return self.row.last == RunFinished.TYPE


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A call that waits for a person: for approval (`Phase.WAITING`) or to be reconciled (`Phase.DOUBTED`)."""

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


async def read_state(journal: Journal, run: RunId) -> State:
    """The state of a run by itself, without the session's history before it."""
    return fold(start(run, UNSEEDED), await read_run(journal, run))


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

    That is the messages of `previous`, the runs in its window. With `receipts` every earlier run of the session is
    read: what must not be repeated outlives the window.

    Raises:
        JournalCorrupt: one of them cannot be read. What it did is not known, so the session does not go on.
    """
    runs = await _earlier(journal, session, before) if receipts else previous
    messages: list[Message] = []
    kept: dict[str, Receipt] = {}
    for earlier in runs:
        state = await _read_earlier(journal, session, earlier)
        kept |= state.receipts
        if earlier in previous:
            messages.extend(state.transcript.messages)
    return History(messages=tuple(messages), receipts=kept)


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


async def _earlier(journal: Journal, session: str, before: RunId | None) -> list[RunId]:
    """The runs of a session before one of them, or all, oldest first."""
    oldest_first = [row.run for row in reversed(await journal.runs(session=session))]
    return oldest_first if before is None else oldest_first[: oldest_first.index(before)]


async def unfinished(journal: Journal) -> list[State | Unreadable]:
    """Every run that has not finished, oldest first."""
    rows = [row for row in reversed(await journal.runs()) if row.last != RunFinished.TYPE]
    return [await read_row(journal, row) for row in rows]


def waiting(runs: Iterable[State | Unreadable]) -> list[Waiting]:
    """Everything in these runs that waits for a person."""
    return [
        Waiting(state=state, call=call)
        for state in runs
        if isinstance(state, State) and state.status is not Status.FINISHED
        for call in state.calls
        if call.phase in (Phase.WAITING, Phase.DOUBTED)
    ]
