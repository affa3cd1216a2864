"""What a server says while a client's call runs, told to that client: progress, log messages, changes of resources.

Nothing of it can hold a call up: what a client does not take is dropped. A stranger wrote it, so each message is read
anew and bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, get_args

import anyio
from mcp import MCPError, types
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
)
from pydantic import ValidationError

from lockstep.runtime.following import Follower
from lockstep.tools.client import LOG_LEVEL, MODERN
from lockstep.tools.port import Listener, Notice, Watched

LEVELS: tuple[str, ...] = get_args(types.LoggingLevel)
UNASKED_LEVEL = "info"
"""From which level on a client of the legacy era hears log messages before it sets one."""
MAX_WAITING = 100
"""Messages that a client has not taken yet; more are dropped."""
_LAST_WORDS_S = 1.0
"""How long a result waits for its client to take what was said before it."""
_MAX_SESSIONS = 1000
_MAX_SUBSCRIBED = 1000
_MAX_WATCHED = 100
_MAX_MESSAGE_CHARACTERS = 1000
_GONE = (anyio.ClosedResourceError, anyio.BrokenResourceError, MCPError, OSError)
"""What a client that is not there any more looks like."""

Told = Callable[[], Awaitable[None]]


class Notices:
    """For all clients of one gateway: from which level each hears, and who subscribed to which resource."""

    def __init__(
        self, may_read: Callable[[str, str], bool], owned: Callable[[str, str, Iterable[str]], frozenset[str]]
    ) -> None:
        """`may_read`: whether this principal may read resources of this server, and so hear that they change. `owned`:
        those of these URIs that this server has, as this principal knows."""
        self._may_read = may_read
        self._owned = owned
        self._levels: OrderedDict[str, str] = OrderedDict()
        self._subscribed: OrderedDict[tuple[str, str], tuple[str, Any]] = OrderedDict()
        """Session and URI -> whose session, and the session itself, of the legacy era."""
        self._buses: dict[str, InMemorySubscriptionBus] = {}
        self._listening: dict[str, ListenHandler] = {}
        """By principal, of the modern era."""
        self._wanted: dict[str, list[types.SubscriptionFilter]] = {}
        """By principal: what is listened for at this moment."""

    def set_level(self, session: str, level: str) -> None:
        self._levels[session] = level
        self._levels.move_to_end(session)
        while len(self._levels) > _MAX_SESSIONS:
            self._levels.popitem(last=False)

    async def listen(self, ctx: Any, params: Any, principal: str) -> types.SubscriptionsListenResult:
        """Tell this request's client of changes until it goes."""
        if principal not in self._buses:
            bus = self._buses[principal] = InMemorySubscriptionBus()
            self._listening[principal] = ListenHandler(bus)
        wanted = self._wanted.setdefault(principal, [])
        wanted.append(params.notifications)
        try:
            return await self._listening[principal](ctx, params)
        finally:
            wanted.remove(params.notifications)

    def subscribe(self, session: str, uri: str, to: Any, principal: str) -> None:
        """Tell this session when a server says that the resource changed. Beyond a bound the oldest makes way."""
        self._subscribed[session, uri] = principal, to
        while len(self._subscribed) > _MAX_SUBSCRIBED:
            self._subscribed.popitem(last=False)

    def unsubscribe(self, session: str, uri: str) -> None:
        self._subscribed.pop((session, uri), None)

    @asynccontextmanager
    async def told(self, ctx: Any, session: str, principal: str) -> AsyncIterator[Follower]:
        """A call of this request's client, who is told of it until the body ends."""
        level = self._level(ctx, session)
        telling = _Telling()

        def hear(notice: Notice) -> None:
            if (tell := self._telling(ctx, notice, level)) is not None:
                telling.add(tell)

        listener = Listener(
            hear=hear,
            progress="progress_token" in (ctx.meta or {}),
            log_level=level,
            watches=lambda source: self._watched(principal, source),
        )
        try:
            yield Follower(listener=listener, insists=lambda: _cancelled(ctx))
            await telling.finish()
        finally:
            await telling.end()

    def _watched(self, principal: str, source: str) -> Watched:
        """What of this server its caller subscribed to; of other servers' resources, and of what others want to know,
        a server hears nothing."""
        if not self._may_read(principal, source):
            return Watched()
        wanted = self._wanted.get(principal, ())
        uris = [uri for (_, uri), (who, _) in self._subscribed.items() if who == principal]
        uris += [str(uri) for each in wanted for uri in each.resource_subscriptions or ()]
        lists = any(each.resources_list_changed for each in wanted)
        return Watched(resources=frozenset(sorted(self._owned(principal, source, uris))[:_MAX_WATCHED]), lists=lists)

    def _level(self, ctx: Any, session: str) -> str:
        if ctx.protocol_version < MODERN:
            return self._levels.get(session, UNASKED_LEVEL)
        asked = (ctx.meta or {}).get(LOG_LEVEL)
        return asked if asked in LEVELS else ""

    def _telling(self, ctx: Any, notice: Notice, level: str) -> Told | None:
        """How the client is told of this; None for what it does not hear."""
        match notice.method:
            case "notifications/progress":
                return _progress(ctx, notice.params)
            case "notifications/message":
                return _log(ctx, notice.params, level)
            case "notifications/resources/updated":
                return self._updated(notice.params, notice.server)
            case "notifications/resources/list_changed":
                return lambda: self._publish(ResourcesListChanged(), notice.server)
            case _:  # that its tools or prompts changed: what clients are offered are those of the lock
                return None

    async def _publish(self, event: ServerEvent, server: str) -> None:
        for principal, bus in list(self._buses.items()):
            if self._may_read(principal, server):
                await bus.publish(event)

    def _updated(self, params: Mapping[str, Any], server: str) -> Told | None:
        uri = params.get("uri")
        if not isinstance(uri, str):
            return None

        async def tell() -> None:
            await self._publish(ResourceUpdated(uri=uri), server)
            for (session, subscribed), (principal, to) in list(self._subscribed.items()):
                if subscribed == uri and self._may_read(principal, server):
                    try:
                        await to.send_resource_updated(uri)
                    except _GONE:
                        self.unsubscribe(session, subscribed)

        return tell


def _progress(ctx: Any, params: Mapping[str, Any]) -> Told | None:
    done, total, message = params.get("progress"), params.get("total"), params.get("message")
    if not _is_number(done):
        return None
    words = message[:_MAX_MESSAGE_CHARACTERS] if isinstance(message, str) else None
    return lambda: ctx.session.report_progress(done, total if _is_number(total) else None, words)


def _log(ctx: Any, params: Mapping[str, Any], level: str) -> Told | None:
    try:
        said = types.LoggingMessageNotificationParams.model_validate({**params, "_meta": None})
    except ValidationError:
        return None
    if not level or LEVELS.index(said.level) < LEVELS.index(level):
        return None
    return lambda: ctx.session.send_notification(types.LoggingMessageNotification(params=said), ctx.request_id)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cancelled(ctx: Any) -> bool:
    """Whether the client said that this request is cancelled; over modern HTTP there is no way to say it but to go."""
    # The SDK tells a handler of it only so; without it, a client that cancels counts as one that went away.
    asked = getattr(getattr(ctx.session, "_request_outbound", None), "cancel_requested", None)
    return bool(asked is not None and asked.is_set())


class _Telling:
    """What is still to be told of one call, in order. Nothing runs for it before there is anything."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Told | None] = asyncio.Queue(MAX_WAITING)
        self._pump: asyncio.Task[None] | None = None

    def add(self, tell: Told) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._waiting.put_nowait(tell)
        if self._pump is None:
            self._pump = asyncio.create_task(self._tell())

    async def finish(self) -> None:
        """Wait until everything was told, or the client has had its time."""
        if self._pump is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._waiting.put_nowait(None)
            await asyncio.wait([self._pump], timeout=_LAST_WORDS_S)

    async def end(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    async def _tell(self) -> None:
        while (tell := await self._waiting.get()) is not None:
            try:
                await tell()
            except _GONE:
                return
