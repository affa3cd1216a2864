"""One HTTP request from a sandbox to its server, and the reply back: rules, identity, secrets, caps.

Plain requests and those inside a terminated tunnel come here alike, already with the target they are for.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import h11

from lockstep.sandbox.contract import EgressRule
from lockstep.sandbox.egress_dial import Dialer
from lockstep.sandbox.egress_exchange import EgressCaps, Exchange
from lockstep.sandbox.egress_rules import Target, fits, refusal
from lockstep.sandbox.egress_wire import Caller, Headers, Refused, Server, declared_length, incoming, outgoing
from lockstep.sandbox.secrets import Held, Scrubber, Watch, bound_to, emptied, filled, replacements

KEY_HEADER = "Idempotency-Key"
MISPLACED = "secret_misplaced"
_HINDERS_SCRUBBING = frozenset({b"accept-encoding", b"range", b"if-range"})
"""What a server that knows a secret is not asked for: a reply that is compressed or in parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What all requests of one permitted call share."""

    identity: Mapping[str, str]
    secrets: tuple[Held, ...] = ()

    def must_be_seen(self, host: str, port: int) -> bool:
        """Whether requests to this place need something from us that cannot be put into a tunnel: a secret, or the
        key by which a service knows a repeated effect."""
        return KEY_HEADER in self.identity or bool(bound_to(self.secrets, host, port))


@dataclass(frozen=True, kw_only=True, slots=True)
class Forwarder:
    """Carries requests out for one sandbox."""

    rules: tuple[EgressRule, ...]
    caps: EgressCaps
    dialer: Dialer

    async def forward(
        self, call: Call, caller: Caller, request: h11.Request, target: Target, exchange: Exchange
    ) -> None:
        """Carry one request to its end; `exchange` tells how far it came.

        Raises:
            Refused: no rule permits it, a secret is misplaced, it is too large, or the server cannot be had.
        """
        bound = bound_to(call.secrets, target.host, target.port)
        watch = Watch(call.secrets)
        for line in (str(target).encode(), *(b": ".join(each) for each in emptied(request.headers, bound))):
            look(watch, line + b"\r\n", exchange)
        self._check(request, target, exchange)
        body = _watched(caller.body(), watch, exchange)
        # Most bodies are one piece: with secrets about, it is looked at before anything leaves.
        begun = await anext(body, b"") if call.secrets else b""
        addresses = await self.dialer.addresses(target.host, target.port)
        exchange.allowed = True
        tls = target.scheme == "https"
        server = Server(*await self.dialer.connect(target.host, target.port, addresses, tls=tls))
        try:
            headers = filled(request.headers, bound)
            await server.ask(_request(request, target, headers, call.identity, bound))
            with contextlib.suppress(ConnectionError):  # a server may answer before it has read everything
                await self._send_body(server, begun, body, exchange)
            scrubber = Scrubber(replacements(bound, headers, request.headers)) if bound else None
            await self._pass_reply(caller, server, scrubber, exchange)
        finally:
            server.close()

    def _check(self, request: h11.Request, target: Target, exchange: Exchange) -> None:
        if request.method.upper() == b"CONNECT":  # servers may not mind the case
            raise Refused(403, "A tunnel is asked for by CONNECT to its own host, and not inside another.")
        if any(name == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers):
            raise Refused(403, "WebSockets are not permitted: what they carry cannot be looked into.")
        if not any(fits(rule, exchange.method, target) for rule in self.rules):
            raise Refused(403, refusal(f"{exchange.method} {target}", self.rules))
        if declared_length(request.headers) > self.caps.request_bytes:
            raise Refused(413, f"The request is larger than {self.caps.request_bytes} bytes.")

    async def _send_body(self, server: Server, begun: bytes, body: AsyncIterator[bytes], exchange: Exchange) -> None:
        await self._send(server, begun, exchange)
        async for piece in body:
            await self._send(server, piece, exchange)
        await server.end()

    async def _send(self, server: Server, piece: bytes, exchange: Exchange) -> None:
        exchange.bytes_out += len(piece)
        if exchange.bytes_out > self.caps.request_bytes:
            raise Refused(413, f"The request is larger than {self.caps.request_bytes} bytes.")
        await server.data(piece)

    async def _pass_reply(self, caller: Caller, server: Server, scrubber: Scrubber | None, exchange: Exchange) -> None:
        response = await server.answer()
        too_large = Refused(502, f"The reply is larger than {self.caps.reply_bytes} bytes.")
        if exchange.method != "HEAD" and declared_length(response.headers) > self.caps.reply_bytes:
            raise too_large
        headers = incoming(response)
        if scrubber is not None:
            headers = _scrubbed(headers, scrubber)
        exchange.status = response.status_code  # before the caller can know it: see `EgressProxy.records`
        await caller.reply(response.status_code, headers)
        async for piece in server.body():
            exchange.bytes_in += len(piece)
            if exchange.bytes_in > self.caps.reply_bytes:
                raise too_large
            if clean := piece if scrubber is None else scrubber.feed(piece):
                await caller.data(clean)
        if scrubber is not None and (rest := scrubber.end()):
            await caller.data(rest)
        await caller.end()


async def _watched(pieces: AsyncIterator[bytes], watch: Watch, exchange: Exchange) -> AsyncIterator[bytes]:
    async for piece in pieces:
        look(watch, piece, exchange)
        yield piece


def look(watch: Watch, piece: bytes, exchange: Exchange) -> None:
    """Raise Refused, and flag the exchange, when a placeholder comes to its end in this piece."""
    if watch.sees(piece):
        exchange.flag = MISPLACED
        raise Refused(403, "The placeholder of a secret stands where the secret may not go.")


def _request(
    request: h11.Request, target: Target, headers: Headers, identity: Mapping[str, str], bound: list[Held]
) -> h11.Request:
    if bound:
        headers = [(name, value) for name, value in headers if name not in _HINDERS_SCRUBBING]
        headers.append((b"accept-encoding", b"identity"))
    sent = outgoing(headers, target.authority, identity)
    return h11.Request(method=request.method, target=target.path + target.query, headers=sent)


def _scrubbed(headers: Headers, scrubber: Scrubber) -> Headers:
    """Without values, and without the length that the body had with them."""
    if any(name == b"content-encoding" and value.strip().lower() != b"identity" for name, value in headers):
        raise Refused(
            502, "The reply is compressed although that was not asked for, so a secret in it could not be seen."
        )
    return [
        (name, scrubber.whole(value))
        for name, value in headers
        if name != b"content-length" and scrubber.whole(name) == name
    ]
