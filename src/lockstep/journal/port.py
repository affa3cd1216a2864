"""The journal port. `tests/contract/test_journal.py` holds every implementation to one suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lockstep.journal.events import Event, Recorded
from lockstep.values import RunId

Entry = tuple[int, Event]
"""When it happened (milliseconds, UTC) and what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """One line of the list of runs. `last` is the type of the newest event: the run's status is read from it."""

    run: RunId
    session: str
    principal: str
    agent: str
    started_at_ms: int
    last: str
    last_at_ms: int
    events: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRun:
    """A run of a session; `extract` is what was kept of it, or None where nothing that holds was."""

    run: RunId
    finished: bool
    extract: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentRun:
    """A run of an agent, whose it is, and what was kept of it, as of `SessionRun`."""

    run: RunId
    session: str
    principal: str
    started_at_ms: int
    finished: bool
    extract: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The result of checking one run's chain. `broken_seq` is the first event that does not hold, or None.

    `head` is the hash of the last event that holds, in hexadecimal.
    """

    run: RunId
    events: int
    head: str
    broken_seq: int | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """An agent is stopped: by whom, why, and since when."""

    agent: str
    by: str
    because: str
    at_ms: int


class Stops(Protocol):
    """Which agents are stopped. Every process of a store sees the same."""

    def stop_of(self, agent: str) -> Stop | None:
        """The stop that stands against this agent, or None; read anew each time, in microseconds.

        Raises:
            StoreError: it cannot be read. Whoever asks must not go on then.
        """


class Journal(Stops, Protocol):
    """An append-only record. `(run, seq)` is a fence: of two writers of event 17 exactly one succeeds."""

    async def append(self, run: RunId, first_seq: int, entries: Sequence[Entry]) -> None:
        """Make the entries durable, all or none, as `first_seq`, `first_seq + 1`, ...

        Raises:
            FenceConflict: `first_seq` is not the next event of the run; or it has finished, and these are not what may
                follow (`doubt.settled`); nothing was written.
            StoreFull: no space; nothing was written.
            StoreError: no entries, or a run that does not begin with `run.started`; nothing was written.
        """

    async def read(self, run: RunId, after_seq: int = 0) -> list[Recorded]:
        """The events of a run in order; empty when there is none.

        Raises:
            JournalCorrupt: a body is missing or unreadable.
        """

    async def runs(
        self,
        session: str | None = None,
        limit: int | None = None,
        with_event: str | None = None,
        *,
        principal: str | None = None,
        agent: str | None = None,
    ) -> list[RunRow]:
        """Runs, newest first: all, or those of a session, a principal, an agent, or with an event of a type."""

    async def position(self, run: RunId, seq: int) -> int:
        """Where an event stands among all events of the store; every event appended later stands higher.

        Raises:
            StoreError: there is no such event.
        """

    async def find(self, prefix: str) -> list[RunId]:
        """Runs whose id starts with `prefix`, newest first; at most 10."""

    async def keep(self, extracts: Mapping[RunId, bytes]) -> None:
        """Keep what a reader drew from runs that have finished (JSON objects), so that the next need not read them.

        An extract is never the truth: it is bound to the head of its run, and may be missing at any time. Of a run that
        has not finished nothing is kept.
        """

    async def session(self, session: str, *, before: RunId | None = None) -> list[SessionRun]:
        """The runs of a session, or those before one of them, oldest first, with what was kept of each."""

    async def of_agent(
        self, agent: str, *, session: str | None = None, principal: str | None = None, since_ms: int | None = None
    ) -> list[AgentRun]:
        """The runs of an agent that are of this session, on behalf of this principal or begun since then, oldest first.

        Any of the three is enough; of what is None there are none.
        """

    async def verify(self, run: RunId) -> Verification:
        """Check the run's chain and bodies from the first event on.

        A run that was cut short at its end is whole: only the head, kept elsewhere, tells.
        """

    async def close(self) -> None:
        """Wait for what was appended and let go of the store. Closing again does nothing."""
