"""The Streamable HTTP face: both eras on one path, behind bearer tokens, a rate for each principal, and bounds.

The order a request meets: whether it can be read in one way, which host and page it comes from (DNS rebinding), whose
token it carries, whether that principal's share has room, how large its body is; then the SDK's session manager, which
lets a session be used only by the principal that began it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware, get_access_token
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lockstep.gateway.asking import Context
from lockstep.gateway.principals import Principal, Principals
from lockstep.gateway.shares import Shares
from lockstep.gateway.tokens import Issuer

PATH = "/mcp"
MAX_BODY_BYTES = 4 * 2**20
MAX_SESSIONS = 4000
_ONCE = (b"host", b"origin", b"authorization", b"content-type", b"mcp-session-id", b"lockstep-session")
"""Headers that decide something: where one stands twice, two readers of a request could see two different ones."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """Who is let in, and by which names. `open_to` is whose requests they are where no token is asked for."""

    principals: Principals
    issuer: Issuer | None = None
    open_to: Principal | None = None
    hosts: Sequence[str] = ()
    """Host names beside the loopback ones, as clients write them (`gateway.example`, `gateway.example:8080`)."""
    origins: Sequence[str] = ()

    def who(self, ctx: Context) -> Principal:
        """Whose request this is; the middleware has let nobody else through."""
        if self.open_to is not None:
            return self.open_to
        token = get_access_token()
        if token is None:
            raise PermissionError("a request without a principal")
        return self.named(token.client_id)

    def named(self, name: str) -> Principal:
        return self.principals.find(name) or Principal(name=name)


class _Verifier:
    """Bearer tokens to principals: one of ours, or one that the issuer signed for this resource."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def verify_token(self, token: str) -> AccessToken | None:
        known = self._door.principals.of_token(token)
        if known is not None:
            return AccessToken(token="", client_id=known.name, scopes=[])
        return self._door.issuer.verify(token) if self._door.issuer else None


class _Guard:
    """Hosts and pages, before anything else is looked at."""

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings) -> None:
        self._app = app
        self._security = TransportSecurityMiddleware(security)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refused: Response | None = _ambiguous([name for name, _ in scope["headers"]])
            if refused is None:
                refused = await self._security.validate_request(Request(scope))
            if refused is not None:
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


class CutOff:
    """Requests that are cut off because the gateway stops end as responses do: whoever has no answer yet gets 503."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sends(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sends)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await JSONResponse({"error": "stopping"}, 503, {"Retry-After": "1"})(scope, receive, send)


class _Whole:
    """A request once all of it is there: a client that goes in the middle of one has asked for nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces: deque[Message] = deque()
        left = MAX_BODY_BYTES
        while left >= 0 and (not pieces or pieces[-1].get("more_body", False)):
            pieces.append(await receive())
            if pieces[-1]["type"] == "http.disconnect":
                return
            left -= len(pieces[-1].get("body", b""))  # whoever reads it next refuses what is too large

        async def again() -> Message:
            return pieces.popleft() if pieces else await receive()

        await self._app(scope, again, send)


def _ambiguous(names: Sequence[bytes]) -> Response | None:
    """What is said of a request that whoever passed it on may have read otherwise; its connection ends."""
    if any(names.count(name) > 1 for name in _ONCE):
        why = "A header stands twice."
    elif b"transfer-encoding" in names and b"content-length" in names:
        why = "The length of the body is given in two ways."
    else:
        return None
    return PlainTextResponse(why, 400, {"Connection": "close"})


def build_app(server: Server[Any], door: Door) -> Starlette:
    """The ASGI application."""
    names = [*(f"{name}{port}" for name in _LOOPBACK for port in ("", ":*")), *door.hosts]
    pages = [*(f"http://{name}{port}" for name in _LOOPBACK for port in ("", ":*")), *door.origins]
    security = TransportSecuritySettings(allowed_hosts=names, allowed_origins=pages)
    manager = StreamableHTTPSessionManager(
        server, security_settings=security, max_request_body_size=MAX_BODY_BYTES, max_sessions=MAX_SESSIONS
    )
    endpoint: Any = Shares(
        _Whole(StreamableHTTPASGIApp(manager)), named=door.named, wait_s=door.principals.wait_s, open_to=door.open_to
    )
    routes: list[BaseRoute] = []
    middleware = [Middleware(CutOff), Middleware(_Guard, security=security)]
    if door.open_to is None:
        resource = AnyHttpUrl(door.issuer.resource) if door.issuer else None
        metadata = build_resource_metadata_url(resource) if resource else None
        endpoint = RequireAuthMiddleware(endpoint, [], metadata)
        middleware.append(Middleware(AuthenticationMiddleware, backend=BearerAuthBackend(_Verifier(door))))
        middleware.append(Middleware(AuthContextMiddleware))
        if door.issuer and resource:
            issuers = [AnyHttpUrl(door.issuer.issuer)]
            routes.extend(create_protected_resource_routes(resource_url=resource, authorization_servers=issuers))
    routes.append(Route(PATH, endpoint=endpoint))
    return Starlette(routes=routes, middleware=middleware, lifespan=lambda app: manager.run())
