"""The one way out of a sandbox: an HTTP proxy on a unix socket of its own, for one call.

It permits what the rules name, resolves names itself, stamps who is calling, and records every request. It follows no
redirect, keeps no connection, and serves one request per connection, so nothing can be smuggled behind another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h11

from lockstep.sandbox.contract import EgressRecord, EgressRule
from lockstep.sandbox.egress_dial import Dialer, Resolver
from lockstep.sandbox.egress_rules import (
    fits,
    parse_authority,
    parse_target,
    refusal,
    tunnels,
)
from lockstep.sandbox.egress_wire import (
    CHUNK_BYTES,
    HEAD_BYTES,
    Caller,
    Refused,
    Server,
    declared_length,
    incoming,
    outgoing,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EgressCaps:
    """Bounds of one proxy. Sizes in bytes of body, times in seconds."""

    request_bytes: int = 8 * 2**20
    reply_bytes: int = 32 * 2**20
    head_s: float = 10.0
    connect_s: float = 10.0
    total_s: float = 120.0
    connections: int = 16
    requests: int = 1000


@dataclass(kw_only=True, slots=True)
class Exchange:
    """One request on its way: what becomes its record."""

    began: float = field(default_factory=time.monotonic)
    method: str = ""
    url: str = ""
    allowed: bool = False
    status: int | None = None
    reason: str = ""
    bytes_out: int = 0
    bytes_in: int = 0

    def record(self) -> EgressRecord:
        return EgressRecord(
            method=self.method[:32],
            url=self.url[:2048],
            allowed=self.allowed,
            status=self.status,
            reason=self.reason,
            bytes_out=self.bytes_out,
            bytes_in=self.bytes_in,
            duration_ms=(time.monotonic() - self.began) * 1000,
        )


class EgressProxy:
    """A proxy for one sandbox, which has one call at a time. Between calls it is shut: every request is refused."""

    def __init__(
        self,
        rules: Sequence[EgressRule],
        *,
        caps: EgressCaps | None = None,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = tuple(rules)
        self._identity: Mapping[str, str] | None = None
        self._caps = caps or EgressCaps()
        self._dialer = Dialer(self._caps.connect_s, resolve, tls)
        self._records: list[EgressRecord] = []
        self._under_way: list[Exchange] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        """Bind the socket; its directory must be closed to other users, the socket itself is open to all."""
        self._server = await asyncio.start_unix_server(self._accept, path, limit=HEAD_BYTES)
        os.chmod(path, 0o666)  # noqa: S103 - the process inside runs as another uid; the directory is 0700

    def admit(self, identity: Mapping[str, str]) -> None:
        """Open for one call, whose `identity` is stamped on every request as headers; its records start empty."""
        self._identity = dict(identity)
        self._records = []

    async def shut(self) -> None:
        """The call is over: break off what is under way, each broken request recorded, and refuse what comes."""
        self._identity = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def records(self) -> tuple[EgressRecord, ...]:
        """Every request so far in the order of their ends, then those let out that have not ended yet.

        A tool may act on the head of a reply, and its call be over, before the reply has come to its end here.
        """
        return (*self._records, *(exchange.record() for exchange in self._under_way if exchange.allowed))

    async def close(self) -> None:
        """Stop listening and break off what is under way; each broken request is recorded."""
        if self._server is not None:
            self._server.close()
        await self.shut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        exchange = Exchange()
        caller = Caller(reader, writer)
        self._under_way.append(exchange)
        try:
            try:
                await self._serve(caller, exchange)
            finally:  # recorded before the caller can know that its request is over
                self._under_way = [each for each in self._under_way if each is not exchange]
                if exchange.method and len(self._records) < self._caps.requests:
                    self._records.append(exchange.record())
            await caller.hang_up()
        except (EOFError, asyncio.CancelledError):
            pass  # nothing was asked, or the sandbox has ended: the connection is broken off below
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, caller: Caller, exchange: Exchange) -> None:
        """Carry one request to its end; every way to fail becomes a status and a reason."""
        try:
            await self._attempt(caller, exchange)
            return
        except Refused as refused:
            status, sentence = refused.status, refused.sentence
        except TimeoutError:
            status, sentence = 504, "The time for this request is over."
        except h11.LocalProtocolError as error:
            status, sentence = 502, f"Request or reply cannot be passed on: {error}."
        except (OSError, asyncio.IncompleteReadError) as error:
            status, sentence = 502, f"The connection broke: {error}."
        exchange.method = exchange.method or "?"
        exchange.reason = sentence
        exchange.status = None if caller.replying else status
        if caller.replying:
            caller.writer.transport.abort()  # cut off, so that half a reply never looks like a whole one
        else:
            with contextlib.suppress(OSError):
                await caller.refuse(status, sentence)

    async def _attempt(self, caller: Caller, exchange: Exchange) -> None:
        if len(self._tasks) > self._caps.connections:
            raise Refused(503, f"More than {self._caps.connections} connections at once are not served.")
        if len(self._records) >= self._caps.requests:
            raise Refused(429, f"More than {self._caps.requests} requests in one call are not served.")
        async with asyncio.timeout(self._caps.head_s):
            request = await caller.head()
        exchange.method = request.method.decode()
        exchange.url = request.target.decode(errors="replace")
        if self._identity is None:
            raise Refused(403, "No call has been permitted: a sandbox reaches nothing before its call or after it.")
        async with asyncio.timeout(self._caps.total_s):
            if request.method == b"CONNECT":
                await self._tunnel(caller, exchange)
            else:
                await self._forward(caller, request, exchange, self._identity)

    async def _forward(
        self, caller: Caller, request: h11.Request, exchange: Exchange, identity: Mapping[str, str]
    ) -> None:
        try:
            target = parse_target(exchange.url)
        except ValueError as error:
            raise Refused(400, f"{error}.".capitalize()) from None
        exchange.url = str(target)
        if not any(fits(rule, exchange.method, target) for rule in self._rules):
            raise Refused(403, refusal(f"{exchange.method} {target}", self._rules))
        if declared_length(request.headers) > self._caps.request_bytes:
            raise Refused(413, f"The request is larger than {self._caps.request_bytes} bytes.")
        addresses = await self._dialer.addresses(target.host, target.port)
        exchange.allowed = True
        tls = target.scheme == "https"
        server = Server(*await self._dialer.connect(target.host, target.port, addresses, tls=tls))
        try:
            headers = outgoing(request, target.authority, identity)
            await server.ask(h11.Request(method=request.method, target=target.path + target.query, headers=headers))
            with contextlib.suppress(ConnectionError):  # a server may answer before it has read everything
                await self._send_body(caller, server, exchange)
            await self._pass_reply(caller, server, exchange)
        finally:
            server.close()

    async def _send_body(self, caller: Caller, server: Server, exchange: Exchange) -> None:
        async for piece in caller.body():
            exchange.bytes_out += len(piece)
            if exchange.bytes_out > self._caps.request_bytes:
                raise Refused(413, f"The request is larger than {self._caps.request_bytes} bytes.")
            await server.data(piece)
        await server.end()

    async def _pass_reply(self, caller: Caller, server: Server, exchange: Exchange) -> None:
        response = await server.answer()
        too_large = Refused(502, f"The reply is larger than {self._caps.reply_bytes} bytes.")
        if exchange.method != "HEAD" and declared_length(response.headers) > self._caps.reply_bytes:
            raise too_large
        exchange.status = response.status_code  # before the caller can know it: see `records`
        await caller.reply(response.status_code, incoming(response))
        async for piece in server.body():
            exchange.bytes_in += len(piece)
            if exchange.bytes_in > self._caps.reply_bytes:
                raise too_large
            await caller.data(piece)
        await caller.end()

    async def _tunnel(self, caller: Caller, exchange: Exchange) -> None:
        try:
            host, port = parse_authority(exchange.url)
        except ValueError as error:
            raise Refused(400, f"{error}.".capitalize()) from None
        if not any(tunnels(rule, host, port) for rule in self._rules):
            what = f"CONNECT {exchange.url}, which would hide method and path,"
            raise Refused(403, refusal(what, self._rules))
        addresses = await self._dialer.addresses(host, port)
        exchange.allowed = True
        reader, writer = await self._dialer.connect(host, port, addresses, tls=False)
        try:
            caller.replying = True
            caller.writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pour(caller.reader, writer, exchange, "bytes_out", self._caps.request_bytes))
                group.create_task(self._pour(reader, caller.writer, exchange, "bytes_in", self._caps.reply_bytes))
            exchange.status = 200
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            writer.transport.abort()

    async def _pour(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, exchange: Exchange, counter: str, cap: int
    ) -> None:
        while chunk := await source.read(CHUNK_BYTES):
            moved = getattr(exchange, counter) + len(chunk)
            setattr(exchange, counter, moved)
            if moved > cap:
                raise Refused(502, f"The tunnel carried more than {cap} bytes.")
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
