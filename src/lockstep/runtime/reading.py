"""Runs read back from the journal: state, history of a session, what waits for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.errors import JournalCorrupt, RunError
from lockstep.journal.events import Recorded, RunStarted
from lockstep.journal.port import Journal
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


async def read_history(journal: Journal, run: RunId, started: RunStarted, *, receipts: bool) -> History:
    """What earlier runs of the session leave to this one: messages of those in its window, and all their receipts.

    With `receipts` every earlier run of the session is read: what must not be repeated outlives the window.
    """
    runs = await _earlier(journal, started.session, run) if receipts else started.previous
    messages: list[Message] = []
    kept: Mapping[str, Receipt] = {}
    for earlier in runs:
        state = fold(start(earlier, UNSEEDED, kept), await read_run(journal, earlier))
        kept = state.receipts
        if earlier in started.previous:
            messages.extend(state.transcript.messages)
    return History(messages=tuple(messages), receipts=kept)


async def _earlier(journal: Journal, session: str, run: RunId) -> list[RunId]:
    """The runs of a session before this one, oldest first."""
    oldest_first = [row.run for row in reversed(await journal.runs(session=session))]
    return oldest_first[: oldest_first.index(run)]


async def waiting(journal: Journal) -> list[Waiting]:
    """Everything that waits for a person, oldest first."""
    out: list[Waiting] = []
    for row in reversed(await journal.runs()):
        if row.last == "run.finished":
            continue
        state = await read_state(journal, row.run)
        if state.status is not Status.FINISHED:
            out += [
                Waiting(state=state, call=call) for call in state.calls if call.phase in (Phase.WAITING, Phase.DOUBTED)
            ]
    return out
