"""Connections of the HTTP face: what is not asked, sent or taken in time ends, and what waits for nothing makes room.

Before a request has come there is nobody whose rate or share it could count against, so time and number are all that
bounds what a stranger holds here.
"""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
"""How long the head of a request may take, from its connection's first moment or the end of the request before."""
BODY_S = 30.0
"""How long its body may take, also one that nobody wants any more."""
TAKE_S = 60.0
"""How long a client may leave what is said to it untaken, once the buffers are full."""
MAX_CONNECTIONS = 1024


class Connection(H11Protocol):
    """One connection. Its timers run while something is awaited of the client, and are not renewed by a part of it."""

    _awaited: tuple[Any, Any] | None = None
    _patience: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None
    _since = 0.0

    @property
    def is_spare(self) -> bool:
        """Whether no request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        there_is_room = _make_room(self.connections)
        self._since = time.monotonic()
        super().connection_made(transport)
        self._watch()
        if not there_is_room:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._patience, self._untaken):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._untaken = self.loop.call_later(TAKE_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
        super().resume_writing()

    def _unsupported_upgrade_warning(self) -> None:
        """Its own names a package to install for something that is not wanted here."""

    def _watch(self) -> None:
        """Begin the time of what is awaited now, unless it has begun."""
        awaited = (self.conn.their_state, self.cycle)
        if awaited == self._awaited:
            return
        self._awaited = awaited
        if self._patience is not None:
            self._patience.cancel()
        limit_s = {h11.IDLE: HEAD_S, h11.SEND_BODY: BODY_S}.get(self.conn.their_state)
        self._patience = self.loop.call_later(limit_s, self.transport.abort) if limit_s else None


def room() -> int:
    """How many connections there may be: half of the descriptors of this process, and never more than a thousand."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def _make_room(connections: set[Any]) -> bool:
    """Before another connection: where there are too many, end those that have had nothing to answer for longest.
    Whether there is room then; what is being answered is not broken off."""
    too_many = len(connections) + 1 - room()
    if too_many > 0:
        spare = [each for each in connections if isinstance(each, Connection) and each.is_spare]
        for oldest in sorted(spare, key=lambda each: each._since)[:too_many]:
            connections.discard(oldest)
            oldest.transport.abort()
    return len(connections) < room()
