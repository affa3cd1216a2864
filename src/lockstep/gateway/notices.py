"""What a server says while a client's call runs, told to that client: progress, log messages, changes of resources.

Nothing of it can hold a call up: what a client does not take is dropped. A stranger wrote it, so each message is read
anew and bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, defaultdict
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
_TAKE_S = 0.5
_MAX_LEVELS = 1000
_MAX_SUBSCRIBED = 1000
"""By each principal: what one wants to know pushes out nothing that another does."""
_MAX_URI_CHARACTERS = 2048
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
        self._levels: defaultdict[str, OrderedDict[str, str]] = defaultdict(OrderedDict)
        """By principal: session -> level."""
        self._subscribed: defaultdict[str, OrderedDict[tuple[str, str], Any]] = defaultdict(OrderedDict)
        """By principal: session and URI -> the session itself, of the legacy era."""
        self._buses: dict[str, InMemorySubscriptionBus] = {}
        self._listening: dict[str, ListenHandler] = {}
        """By principal, of the modern era."""
        self._wanted: dict[str, list[types.SubscriptionFilter]] = {}
        """By principal: what is listened for at this moment."""

    def set_level(self, session: str, level: str, principal: str) -> None:
        levels = self._levels[principal]
        levels[session] = level
        levels.move_to_end(session)
        while len(levels) > _MAX_LEVELS:
            levels.popitem(last=False)

    async def listen(self, ctx: Any, params: Any, principal: str) -> types.SubscriptionsListenResult:
        """Tell this request's client of changes until it goes.

        Raises:
            MCPError: it names too many resources, or one whose name is too long.
        """
        uris = params.notifications.resource_subscriptions or ()
        if len(uris) > _MAX_SUBSCRIBED:
            raise MCPError(types.INVALID_PARAMS, f"At most {_MAX_SUBSCRIBED} resources can be listened for at once.")
        for uri in uris:
            _require_short(str(uri))
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
        """Tell this session when a server says that the resource changed. Beyond a bound its principal's oldest
        subscription makes way.

        Raises:
            MCPError: the resource's name is too long.
        """
        _require_short(uri)
        subscribed = self._subscribed[principal]
        subscribed[session, uri] = to
        while len(subscribed) > _MAX_SUBSCRIBED:
            subscribed.popitem(last=False)

    def unsubscribe(self, session: str, uri: str, principal: str) -> None:
        self._subscribed[principal].pop((session, uri), None)

    @asynccontextmanager
    async def told(self, ctx: Any, session: str, principal: str) -> AsyncIterator[Follower]:
        """A call of this request's client, who is told of it until the body ends."""
        level = self._level(ctx, session, principal)
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
        uris = [uri for _, uri in self._subscribed.get(principal, ())]
        uris += [str(uri) for each in wanted for uri in each.resource_subscriptions or ()]
        lists = any(each.resources_list_changed for each in wanted)
        return Watched(resources=frozenset(sorted(self._owned(principal, source, uris))[:_MAX_WATCHED]), lists=lists)

    def _level(self, ctx: Any, session: str, principal: str) -> str:
        if ctx.protocol_version < MODERN:
            return self._levels[principal].get(session, UNASKED_LEVEL)
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
            telling = [
                self._tell_subscriber(principal, session, uri, to)
                for principal, each in list(self._subscribed.items())
                if self._may_read(principal, server)
                for (session, subscribed), to in list(each.items())
                if subscribed == uri
            ]
            await asyncio.gather(*telling)

        return tell

    async def _tell_subscriber(self, principal: str, session: str, uri: str, to: Any) -> None:
        """Somebody else than whose call it is, who must not hold that up: who does not take it is told no more."""
        try:
            async with asyncio.timeout(_TAKE_S):
                await to.send_resource_updated(uri)
        except (*_GONE, TimeoutError):
            self.unsubscribe(session, uri, principal)


def _require_short(uri: str) -> None:
    if len(uri) > _MAX_URI_CHARACTERS:
        raise MCPError(types.INVALID_PARAMS, f"The name of a resource has at most {_MAX_URI_CHARACTERS} characters.")


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
