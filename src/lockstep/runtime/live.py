"""A run while it is driven: its state, what is not durable yet, who watches, and who is there to be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from lockstep.journal import events as ev
from lockstep.journal.port import Entry, Journal
from lockstep.kernel.apply import apply
from lockstep.kernel.state import CallState, State
from lockstep.runtime.following import Follower
from lockstep.tools.inputs import Asked
from lockstep.values import JsonObject, now_ms


class Attendant(Protocol):
    """Somebody who is there while a run is driven, and can be asked at once what a server waits for."""

    @property
    def offers(self) -> frozenset[str]:
        """Of `elicitation`, `sampling` and `roots`: what it answers."""

    @property
    def by(self) -> str:
        """Who they say they are."""

    @property
    def login(self) -> str:
        """What they are known by here, beside that."""

    async def answer(self, state: State, call: CallState, asked: Asked) -> JsonObject | None:
        """The answers by key, each as the protocol has it; None where there are none."""


class Watcher(Protocol):
    """Sees a run as it happens; for a terminal. Never the source of anything."""

    def event(self, state: State, event: ev.Event) -> None:
        """`event` was just applied; `state` is after it."""

    def text(self, piece: str) -> None:
        """The model streamed this piece of text."""


class Silent:
    """Watches nothing."""

    def event(self, state: State, event: ev.Event) -> None:
        return

    def text(self, piece: str) -> None:
        return


class Live:
    """A run being driven: its state, and events that are not durable yet."""

    def __init__(self, journal: Journal, watcher: Watcher, state: State, attendant: Attendant | None = None) -> None:
        self.state = state
        self.attendant = attendant
        self.follower = Follower()
        self.resumed = False
        """Its session may have gone on without it, since it was last driven."""
        self.asking = asyncio.Lock()
        """Held while somebody is asked what a server waits for: one question at a time."""
        self._journal = journal
        self._watcher = watcher
        self._first_seq = state.next_seq
        self._entries: list[Entry] = []
        self._writing = asyncio.Lock()

    def record(self, event: ev.Event) -> None:
        at_ms = max(now_ms(), self.state.last_at_ms)
        self.state = apply(self.state, event, at_ms)
        self._entries.append((at_ms, event))
        self._tell(lambda watcher: watcher.event(self.state, event))

    def text(self, piece: str) -> None:
        """Show a piece of streamed text."""
        self._tell(lambda watcher: watcher.text(piece))

    def _tell(self, show: Callable[[Watcher], None]) -> None:
        """Tell the watcher; one that fails (a terminal that went away) is told no more, and the run goes on."""
        try:
            show(self._watcher)
        except Exception:  # noqa: BLE001 - showing must never cost a record; what is shown stands in the journal
            self._watcher = Silent()

    async def flush(self) -> None:
        """Make everything recorded so far durable."""
        async with self._writing:  # calls of one batch may ask back while others end
            if self._entries:
                entries, self._entries = self._entries, []
                first_seq, self._first_seq = self._first_seq, self._first_seq + len(entries)
                await self._journal.append(self.state.run, first_seq, entries)
