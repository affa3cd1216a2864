"""What one principal may take of what all share: requests a minute, requests at once, sessions of the legacy era.

Nobody's use of the gateway is to be felt by another.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lockstep.gateway.principals import Principal

AT_ONCE = 128
"""Requests of one principal that may be under way: calls, and streams that are listened to."""
SESSIONS = 200
"""Of one principal, in the legacy era; beyond that the one that was used longest ago ends."""
_SESSION = b"mcp-session-id"


@dataclass(kw_only=True, slots=True)
class _Share:
    under_way: int = 0
    sessions: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """The requests under way of each; the one that was used longest ago first."""


class Shares:
    """The bounds of each principal, before the application that answers its requests."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        named: Callable[[str], Principal],
        wait_s: Callable[[Principal], float],
        open_to: Principal | None,
    ) -> None:
        """`open_to`: whose requests they are where no token is asked for; these have no rate."""
        self._app = app
        self._named = named
        self._wait_s = wait_s
        self._open_to = open_to
        self._shares: dict[str, _Share] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = scope.get("user")
        if isinstance(user, AuthenticatedUser):
            principal = self._named(user.access_token.client_id)
        else:
            assert self._open_to is not None
            principal = self._open_to
        share = self._shares.setdefault(principal.name, _Share())
        wait_s = 0.0 if self._open_to is not None else self._wait_s(principal)
        if not wait_s and share.under_way >= AT_ONCE:
            wait_s = 1.0
        if wait_s:
            headers = {"Retry-After": str(math.ceil(wait_s))}
            await JSONResponse({"error": "too_many_requests"}, 429, headers)(scope, receive, send)
            return
        share.under_way += 1
        try:
            await self._in_session(share, scope, receive, send)
        finally:
            share.under_way -= 1

    async def _in_session(self, share: _Share, scope: Scope, receive: Receive, send: Send) -> None:
        session = next((value for name, value in scope["headers"] if name == _SESSION), b"")
        if session in share.sessions:
            share.sessions.move_to_end(session)
            share.sessions[session] += 1
            try:
                await self._app(scope, receive, send)
            finally:
                if session in share.sessions:
                    share.sessions[session] -= 1
            return
        begun: list[bytes] = []

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                begun.extend(value for name, value in message["headers"] if name.lower() == _SESSION)
            await send(message)

        await self._app(scope, receive, seen)
        for name in begun:
            await self._began(share, name, scope)

    async def _began(self, share: _Share, session: bytes, scope: Scope) -> None:
        share.sessions[session] = 0
        idle = [name for name, under_way in share.sessions.items() if not under_way]
        if len(share.sessions) > SESSIONS and idle[0] != session:
            del share.sessions[idle[0]]
            await self._end(idle[0], scope)

    async def _end(self, session: bytes, scope: Scope) -> None:
        """As its client would, who is the one that this request is of."""
        kept = [(name, value) for name, value in scope["headers"] if name in (b"host", b"authorization")]
        end = {**scope, "method": "DELETE", "headers": [*kept, (_SESSION, session)]}

        async def nothing() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def unheard(message: Message) -> None:
            """Nobody waits for the answer."""

        await self._app(end, nothing, unheard)
