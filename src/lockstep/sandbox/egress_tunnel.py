"""CONNECT: TLS passed through untouched where a rule opens the whole host, else ended here and looked into."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import h11

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.contract import EgressRule
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_dial import Dialer
from lockstep.sandbox.egress_exchange import EgressCaps, Exchange
from lockstep.sandbox.egress_forward import Call, look
from lockstep.sandbox.egress_hello import ClientHello, HelloReader, HelloWatch
from lockstep.sandbox.egress_rules import Target, parse_authority, parse_target, refusal, tunnels
from lockstep.sandbox.egress_tls import TlsStream
from lockstep.sandbox.egress_wire import CHUNK_BYTES, Caller, Refused, Sink, Source
from lockstep.sandbox.secrets import Watch

_ACCESS_DENIED = bytes((21, 3, 3, 0, 2, 2, 49))
"""A TLS alert, so that a client says more than that the connection broke."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tunnels:
    """Opens tunnels for one sandbox; without an `authority` none can be looked into."""

    rules: tuple[EgressRule, ...]
    caps: EgressCaps
    dialer: Dialer
    authority: EgressCA | None

    async def enter(self, call: Call, caller: Caller, exchange: Exchange) -> Caller | None:
        """Serve a CONNECT: None when it was passed through to its end, else who asks inside.

        Raises:
            Refused: no rule permits it, it is not TLS, or it asks for another host than it said.
        """
        look(Watch(call.secrets), exchange.url.encode(), exchange)
        try:
            host, port = parse_authority(exchange.url)
        except ValueError as error:
            raise Refused(400, f"{error}.".capitalize()) from None
        here = [rule for rule in self.rules if (rule.scheme, rule.host, rule.port) == ("https", host, port)]
        if not here:
            raise Refused(403, refusal(f"CONNECT {exchange.url}", self.rules))
        if any(tunnels(rule, host, port) for rule in here) and not call.must_be_seen(host, port):
            await self._pass_through(caller, exchange, host, port)
            return None
        if self.authority is None:
            raise Refused(403, refusal(f"CONNECT {exchange.url}, which would hide method and path,", self.rules))
        return await self._end_here(caller, self.authority, host)

    async def _pass_through(self, caller: Caller, exchange: Exchange, host: str, port: int) -> None:
        addresses = await self.dialer.addresses(host, port)
        reader, writer = await self.dialer.connect(host, port, addresses, tls=False)
        try:
            hello = await self._hello(caller, host)
            exchange.allowed = True
            watch = HelloWatch(functools.partial(_check, host))
            out = _Flow(exchange, "bytes_out", self.caps.request_bytes, watch.from_client)
            back = _Flow(exchange, "bytes_in", self.caps.reply_bytes, watch.from_server)
            first = hello.raw[: len(hello.raw) - len(hello.behind)]
            writer.write(out.counted(bytes(first)) + out.counted(watch.from_client(hello.behind)))
            await _both(out.pour(caller.reader, writer), back.pour(reader, caller.writer))
            exchange.status = 200
        except ValueError as error:
            exchange.allowed = False
            raise _closed(caller, host, error) from None
        finally:
            writer.transport.abort()

    async def _end_here(self, caller: Caller, authority: EgressCA, host: str) -> Caller:
        try:
            context = await asyncio.to_thread(authority.server, host)
        except SandboxUnavailable as error:
            raise Refused(502, str(error)) from None
        hello = await self._hello(caller, host)
        stream = TlsStream(caller.reader, caller.writer, context, bytes(hello.raw))
        try:
            async with asyncio.timeout(self.caps.head_s):
                await stream.handshake()
        except ssl.SSLError as error:
            raise Refused(400, f"TLS inside the tunnel to {host} failed: {error.reason or error}.") from None
        return Caller(stream, stream)

    async def _hello(self, caller: Caller, host: str) -> HelloReader:
        """Say that the tunnel is open, and read the ClientHello that comes first in it, to the byte."""
        await caller.connected()
        try:
            async with asyncio.timeout(self.caps.head_s):
                return await _checked_hello(caller, host)
        except ValueError as error:
            raise _closed(caller, host, error) from None


def inner_target(request: h11.Request, exchange: Exchange) -> Target:
    """What a request inside a terminated tunnel is for; `exchange` still holds the CONNECT, and is told.

    Raises:
        Refused: it is for another place than the tunnel, by its target or its Host, or cannot be understood.
    """
    host, port = parse_authority(exchange.url)
    own = Target(scheme="https", host=host, port=port)
    text = request.target.decode(errors="replace")
    exchange.method, exchange.url = request.method.decode(), f"{own}{text[1:]}" if text.startswith("/") else text
    if request.method == b"CONNECT":
        raise Refused(403, f"A tunnel inside the tunnel to {host} is not permitted.")
    named = next((value.decode(errors="replace") for name, value in request.headers if name == b"host"), "")
    try:
        target = parse_target(exchange.url)
        places = {(target.scheme, target.host, target.port), ("https", *parse_authority(named, 443))}
    except ValueError as error:
        raise Refused(400, f"{error}.".capitalize()) from None
    if places != {("https", host, port)}:
        raise Refused(
            403, f"The request inside the tunnel to {own.authority} is for another host ({target}, Host {named})."
        )
    return target


async def _checked_hello(caller: Caller, host: str) -> HelloReader:
    reader = HelloReader()
    piece = caller.rest
    while (hello := reader.feed(piece)) is None:
        piece = await caller.reader.read(CHUNK_BYTES)
        if not piece:
            raise ValueError("it ended before its ClientHello did")
    _check(host, hello)
    return reader


def _check(host: str, hello: ClientHello) -> None:
    if hello.encrypted:
        raise ValueError("it encrypts the name of the host it asks for (ECH)")
    if hello.server_name != host and not (hello.server_name is None and _is_address(host)):
        raise ValueError(f"inside it asks for {hello.server_name or 'no host at all'}")


def _closed(caller: Caller, host: str, why: Exception) -> Refused:
    caller.writer.write(_ACCESS_DENIED)
    return Refused(403, f"The tunnel to {host} is closed: {why}.")


async def _both(one: Coroutine[None, None, None], other: Coroutine[None, None, None]) -> None:
    """Both to their ends, or as far as the first failure."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(one)
            group.create_task(other)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


@dataclass(frozen=True, slots=True)
class _Flow:
    """One direction of a tunnel: what `passes` lets through, counted in `counter` of the exchange."""

    exchange: Exchange
    counter: str
    cap: int
    passes: Callable[[bytes], bytes]

    async def pour(self, source: Source, sink: Sink) -> None:
        while chunk := await source.read(CHUNK_BYTES):
            sink.write(self.counted(self.passes(chunk)))
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

    def counted(self, chunk: bytes) -> bytes:
        moved = getattr(self.exchange, self.counter) + len(chunk)
        setattr(self.exchange, self.counter, moved)
        if moved > self.cap:
            raise Refused(502, f"The tunnel carried more than {self.cap} bytes.")
        return chunk


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
