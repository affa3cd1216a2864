"""The one way out of a sandbox: an HTTP proxy on a unix socket of its own.

It is shut until a call is admitted. Then it permits what the rules name, resolves names itself, stamps who is
calling, and records every request. It follows no redirect, keeps no connection, and serves one request per connection,
so nothing can be smuggled behind another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

import h11

from lockstep.sandbox.contract import EgressRecord, EgressRule, SecretBinding
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_dial import Dialer, Resolver
from lockstep.sandbox.egress_exchange import EgressCaps, Exchange
from lockstep.sandbox.egress_forward import Call, Forwarder
from lockstep.sandbox.egress_rules import parse_target
from lockstep.sandbox.egress_tunnel import Tunnels, inner_target
from lockstep.sandbox.egress_wire import HEAD_BYTES, Caller, Refused
from lockstep.sandbox.secrets import held, scrubbed_text


class EgressProxy:
    """A proxy for one sandbox; each call it is `admit`ted for has its own identity, secrets and records.

    Args:
        secrets: what may be swapped where; `placeholders` are what the sandbox holds for each, by variable.
        authority: signs for hosts whose TLS has to be looked into; without it such a tunnel is refused.
        tls: how servers are verified, in place of the host's own roots.
    """

    def __init__(
        self,
        rules: Sequence[EgressRule],
        *,
        secrets: Sequence[SecretBinding] = (),
        placeholders: Mapping[str, str] | None = None,
        authority: EgressCA | None = None,
        caps: EgressCaps | None = None,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._secrets = tuple(secrets)
        self._placeholders = dict(placeholders or {})
        self._caps = caps or EgressCaps()
        dialer = Dialer(self._caps.connect_s, resolve, tls)
        self._forwarder = Forwarder(rules=tuple(rules), caps=self._caps, dialer=dialer)
        self._tunnels = Tunnels(rules=tuple(rules), caps=self._caps, dialer=dialer, authority=authority)
        self._call: Call | None = None
        self._records: list[EgressRecord] = []
        self._under_way: list[Exchange] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def admit(self, identity: Mapping[str, str], secret_values: Mapping[str, str] | None = None) -> None:
        """Open for one call: `identity` is stamped on its requests as headers, and its records start empty.

        Connections from before are broken off. `secret_values` has the value of every secret, by variable.
        """
        secrets = held(self._secrets, self._placeholders, secret_values or {})
        self._break_off()
        self._records, self._under_way = [], []
        self._call = Call(identity=dict(identity), secrets=tuple(secrets))

    async def shut(self) -> None:
        """Let nothing out until the next `admit`; what is under way is broken off and recorded."""
        self._call = None
        await asyncio.gather(*self._break_off(), return_exceptions=True)

    async def listen(self, path: Path) -> None:
        """Bind the socket; its directory must be closed to other users, the socket itself is open to all."""
        self._server = await asyncio.start_unix_server(self._accept, path, limit=HEAD_BYTES)
        os.chmod(path, 0o666)  # noqa: S103 - the process inside runs as another uid; the directory is 0700

    def records(self) -> tuple[EgressRecord, ...]:
        """Every request so far in the order of their ends, then those let out that have not ended yet.

        A tool may act on the head of a reply, and its call be over, before the reply has come to its end here.
        """
        return (*self._records, *(exchange.record() for exchange in self._under_way if exchange.allowed))

    async def close(self) -> None:
        """Stop listening, and `shut`."""
        if self._server is not None:
            self._server.close()
        await self.shut()

    def _break_off(self) -> list[asyncio.Task[None]]:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        exchange, records = Exchange(), self._records
        self._under_way.append(exchange)
        try:
            try:
                caller = await self._serve(Caller(reader, writer), exchange)
            finally:  # recorded before the caller can know that its request is over
                self._under_way = [each for each in self._under_way if each is not exchange]
                if exchange.method and len(records) < self._caps.requests:
                    records.append(exchange.record())
            await caller.hang_up()
        except (EOFError, asyncio.CancelledError):
            pass  # nothing was asked, or the sandbox has ended: the connection is broken off below
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, caller: Caller, exchange: Exchange) -> Caller:
        """Carry one request to its end; every way to fail becomes a status and a reason.

        Returns who asked in the end: the caller, or the one inside its tunnel.
        """
        call = self._call
        try:
            request = await self._head(caller, exchange)
            if call is None:
                raise Refused(403, "No call has been permitted: a sandbox reaches nothing before its call or after it.")
            async with asyncio.timeout(self._caps.total_s):
                if request.method != b"CONNECT":
                    await self._plain(call, caller, request, exchange)
                elif inner := await self._tunnels.enter(call, caller, exchange):
                    caller = inner  # from here on refusals are told inside the tunnel
                    await self._inside(call, caller, exchange)
            return caller
        except Refused as refused:
            status, sentence = refused.status, refused.sentence
        except TimeoutError:
            status, sentence = 504, "The time for this request is over."
        except h11.LocalProtocolError as error:
            status, sentence = 502, f"Request or reply cannot be passed on: {error}."
        except (OSError, asyncio.IncompleteReadError) as error:
            status, sentence = 502, f"The connection broke: {error}."
        exchange.method = exchange.method or "?"
        exchange.reason = scrubbed_text(sentence, call.secrets if call else ())
        exchange.status = None if caller.replying else status
        if caller.replying:
            caller.writer.transport.abort()  # cut off, so that half a reply never looks like a whole one
        else:
            with contextlib.suppress(OSError):
                await caller.refuse(status, exchange.reason)
        return caller

    async def _head(self, caller: Caller, exchange: Exchange) -> h11.Request:
        if len(self._tasks) > self._caps.connections:
            raise Refused(503, f"More than {self._caps.connections} connections at once are not served.")
        if len(self._records) >= self._caps.requests:
            raise Refused(429, f"More than {self._caps.requests} requests in one call are not served.")
        async with asyncio.timeout(self._caps.head_s):
            request = await caller.head()
        exchange.method = request.method.decode()
        exchange.url = request.target.decode(errors="replace")
        return request

    async def _plain(self, call: Call, caller: Caller, request: h11.Request, exchange: Exchange) -> None:
        try:
            target = parse_target(exchange.url)
        except ValueError as error:
            raise Refused(400, f"{error}.".capitalize()) from None
        exchange.url = str(target)
        await self._forwarder.forward(call, caller, request, target, exchange)

    async def _inside(self, call: Call, caller: Caller, exchange: Exchange) -> None:
        """The one request of a terminated tunnel; its record takes the place of the tunnel's."""
        try:
            async with asyncio.timeout(self._caps.head_s):
                request = await caller.head()
        except EOFError:
            raise Refused(400, "Nothing was asked inside the tunnel.") from None
        await self._forwarder.forward(call, caller, request, inner_target(request, exchange), exchange)
