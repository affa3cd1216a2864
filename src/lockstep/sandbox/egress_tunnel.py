"""CONNECT: TLS passed through untouched where a rule opens the whole host, else ended here and looked into."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from dataclasses import dataclass

import h11

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.contract import EgressRule
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_dial import Dialer
from lockstep.sandbox.egress_exchange import EgressCaps, Exchange
from lockstep.sandbox.egress_forward import Call, look
from lockstep.sandbox.egress_hello import HelloReader
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
            _count(exchange, "bytes_out", hello, self.caps.request_bytes)
            writer.write(hello)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pour(caller.reader, writer, exchange, "bytes_out", self.caps.request_bytes))
                group.create_task(_pour(reader, caller.writer, exchange, "bytes_in", self.caps.reply_bytes))
            exchange.status = 200
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            writer.transport.abort()

    async def _end_here(self, caller: Caller, authority: EgressCA, host: str) -> Caller:
        try:
            context = await asyncio.to_thread(authority.server, host)
        except SandboxUnavailable as error:
            raise Refused(502, str(error)) from None
        hello = await self._hello(caller, host)
        stream = TlsStream(caller.reader, caller.writer, context, hello)
        try:
            async with asyncio.timeout(self.caps.head_s):
                await stream.handshake()
        except ssl.SSLError as error:
            raise Refused(400, f"TLS inside the tunnel to {host} failed: {error.reason or error}.") from None
        return Caller(stream, stream)

    async def _hello(self, caller: Caller, host: str) -> bytes:
        """Say that the tunnel is open, and read the ClientHello that comes first in it, to the byte."""
        await caller.connected()
        try:
            async with asyncio.timeout(self.caps.head_s):
                return await _checked_hello(caller, host)
        except ValueError as error:
            caller.writer.write(_ACCESS_DENIED)
            raise Refused(403, f"The tunnel to {host} is closed: {error}.") from None


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


async def _checked_hello(caller: Caller, host: str) -> bytes:
    reader = HelloReader()
    piece = caller.rest
    while (hello := reader.feed(piece)) is None:
        piece = await caller.reader.read(CHUNK_BYTES)
        if not piece:
            raise ValueError("it ended before its ClientHello did")
    if hello.encrypted:
        raise ValueError("it encrypts the name of the host it asks for (ECH)")
    if hello.server_name != host and not (hello.server_name is None and _is_address(host)):
        raise ValueError(f"inside it asks for {hello.server_name or 'no host at all'}")
    return bytes(reader.raw)


async def _pour(source: Source, sink: Sink, exchange: Exchange, counter: str, cap: int) -> None:
    while chunk := await source.read(CHUNK_BYTES):
        _count(exchange, counter, chunk, cap)
        sink.write(chunk)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


def _count(exchange: Exchange, counter: str, chunk: bytes, cap: int) -> None:
    moved = getattr(exchange, counter) + len(chunk)
    setattr(exchange, counter, moved)
    if moved > cap:
        raise Refused(502, f"The tunnel carried more than {cap} bytes.")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
