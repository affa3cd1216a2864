"""What a server elsewhere says on a stream that is nobody's answer: opened again where it breaks off, for so long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import httpx2
import msgspec

from lockstep.sandbox.egress_wire import Refused
from lockstep.tools.client import ServerError
from lockstep.tools.event_stream import EventStream
from lockstep.tools.remote_http import Lost, Unreached

MAX_RESUMES = 5
"""Attempts to go on with a stream, without one event between them."""
_RETRY_MS, _MAX_RETRY_MS = 1000, 60_000

Opened = Callable[[str], Awaitable[httpx2.Response]]
"""Opens the stream, after the event with this id. Raises ServerError where there is none."""


async def listen(
    opened: Opened, count: Callable[[int], None], heard: Callable[[bytes], None], begun: asyncio.Event | None = None
) -> None:
    """Pass on what comes, until the server has no such stream or `count`, told of all bytes, raises Refused.

    Calls go on without it. `begun` is set when the first of it has come, or nothing will.
    """
    stream, failures = EventStream(), 0
    begun = begun or asyncio.Event()
    with contextlib.suppress(Refused, ServerError):
        while failures < MAX_RESUMES:
            before = stream.last_id
            with contextlib.suppress(Lost, Unreached):
                response = await opened(stream.last_id)
                try:
                    async for piece in response.stream:  # type: ignore[union-attr]
                        count(len(piece))
                        for event in stream.feed(piece):
                            if not _is_answer(event.data):  # which would be to what is asked next
                                heard(event.data)
                            begun.set()
                finally:
                    await response.aclose()
            failures = 0 if stream.last_id != before else failures + 1
            await pause(stream)
            stream.begin_again()
    begun.set()


async def pause(stream: EventStream) -> None:
    """As long as the server wants a connection that broke off to wait."""
    delay_ms = stream.retry_ms if stream.retry_ms is not None else _RETRY_MS
    await asyncio.sleep(min(delay_ms, _MAX_RETRY_MS) / 1000)


def _is_answer(frame: bytes) -> bool:
    with contextlib.suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        found = msgspec.json.decode(frame)
        return isinstance(found, dict) and "method" not in found
    return False
