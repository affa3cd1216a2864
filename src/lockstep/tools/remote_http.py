"""HTTP to servers elsewhere, by the rules of egress: names resolved and checked here, no redirect, caps, a record.

One `RemoteHttp` serves a whole process; its connections are pooled and carry no credentials of their own, so they are
shared. What a server says is read raw: a reply that is compressed is refused, because secrets in it could not be seen.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpcore2
import httpx2

from lockstep.sandbox.contract import EgressRecord, EgressRule
from lockstep.sandbox.egress_dial import Dialer, Resolver, default_tls
from lockstep.sandbox.egress_exchange import Exchange
from lockstep.sandbox.egress_rules import Target, fits, is_private, parse_target, refusal
from lockstep.sandbox.egress_wire import Refused
from lockstep.tools.client import GET_TASK

CONNECT_S = 10.0
OAUTH_S = 20.0
"""How long one request to an authorization server may take."""
OAUTH_BYTES = 2**20
MAX_RECORDS = 1000
REPEATED = frozenset({GET_TASK})
"""Of requests for this, one after another and with the same end, the last is recorded."""
OAUTH = "oauth"
"""What stands as the purpose of requests that are about tokens."""
_IDLE_S = 4.0
"""Shorter than the five seconds after which common servers close: a request that meets that would be in doubt."""
_UNREACHED = (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout)
_LOST = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)


class Unreached(Exception):
    """The request was not carried out: no rule permits it, or nothing of it left this machine."""


class Lost(Exception):
    """The connection broke after something of the request had left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """What one server's requests may reach: the server by its rules, and for tokens any public host by https.

    Private addresses and plain http only at what is `named`, which the operator wrote down: origins, since another port
    of the same machine is another service, and hosts where that was said.
    """

    rules: tuple[EgressRule, ...]
    named: frozenset[str] = frozenset()

    def check(self, method: str, target: Target, purpose: str) -> None:
        """Raises Refused where no rule permits the request."""
        if purpose != OAUTH:
            if not any(fits(rule, method, target) for rule in self.rules):
                raise Refused(403, refusal(f"{method} {target}", self.rules))
            return
        private = is_private(target.host)
        if private and not self.named & {target.origin, target.host}:
            raise Refused(403, f"{target.origin} is not public, and neither `url` nor `issuer` in agent.toml names it.")
        if target.scheme != "https" and not private:
            raise Refused(403, f"{target} is not https, so no token may be asked for there.")


@dataclass(kw_only=True)
class Log:
    """The requests of one call, in the order of their ends; those under way last."""

    done: list[EgressRecord] = field(default_factory=list)
    under_way: list[Exchange] = field(default_factory=list)

    def begin(self, request: httpx2.Request, purpose: str) -> Exchange:
        exchange = Exchange(method=request.method, url=str(request.url), purpose=purpose)
        self.under_way.append(exchange)
        return exchange

    def end(self, exchange: Exchange) -> None:
        """Keep its record; a second end changes nothing."""
        if any(each is exchange for each in self.under_way):
            self.under_way = [each for each in self.under_way if each is not exchange]
            record = exchange.record()
            if self.done and record.purpose in REPEATED and _says(record) == _says(self.done[-1]):
                self.done[-1] = record
            elif len(self.done) < MAX_RECORDS:
                self.done.append(record)

    def records(self) -> tuple[EgressRecord, ...]:
        return (*self.done, *(exchange.record() for exchange in self.under_way if exchange.allowed))


def _says(record: EgressRecord) -> tuple[str, int | None, str]:
    return record.purpose, record.status, record.reason


class RemoteHttp:
    """The connections of one process. Bound to the event loop that first uses it."""

    def __init__(self, *, resolve: Resolver | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls or default_tls(),
            max_connections=256,
            max_keepalive_connections=64,
            keepalive_expiry=_IDLE_S,
            network_backend=_Dialing(Dialer(CONNECT_S, resolve)),
        )

    async def ask(self, request: httpx2.Request, reach: Reach, log: Log, purpose: str) -> httpx2.Response:
        """Send one request. The head of the reply has come; whoever has it closes it.

        Raises:
            Unreached: no rule permits it, or the server cannot be had; nothing was sent.
            Lost: the connection broke after something was sent.
            Refused: the reply is of no use.
        """
        exchange = log.begin(request, purpose)
        try:
            try:
                target = parse_target(str(request.url))
                reach.check(request.method, target, purpose)
            except ValueError as error:
                raise Unreached(f"{request.url} cannot be asked: {error}") from None
            except Refused as error:
                raise Unreached(error.sentence.rstrip(".")) from None
            exchange.url = str(target)
            response = await self._sent(request, target, exchange)
            exchange.status = response.status
            return await _readable(request, response, exchange, lambda: log.end(exchange))
        except BaseException as error:
            if isinstance(error, Refused | Unreached | Lost):
                exchange.reason = str(error)
            log.end(exchange)
            raise

    async def close(self) -> None:
        await self._pool.aclose()

    async def _sent(self, request: httpx2.Request, target: Target, exchange: Exchange) -> httpcore2.Response:
        content = await request.aread()
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"accept-encoding"]
        core = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=target.scheme, host=target.host, port=target.port, target=target.path + target.query
            ),
            headers=[*headers, (b"Accept-Encoding", b"identity")],
            content=content,
            extensions={"timeout": {"connect": CONNECT_S, "pool": CONNECT_S}},
        )
        exchange.allowed, exchange.bytes_out = True, len(content)
        try:
            return await self._pool.handle_async_request(core)
        except Refused as error:
            exchange.allowed = False
            raise Unreached(error.sentence.rstrip(".")) from None
        except _UNREACHED as error:
            exchange.allowed = False
            raise Unreached(f"{target.host}:{target.port} cannot be reached: {_why(error)}") from error
        except _LOST as error:
            raise Lost(f"the connection to {target.host}:{target.port} broke: {_why(error)}") from error


async def authorized(
    http: RemoteHttp, request: httpx2.Request, auth: httpx2.Auth | None, reach: Reach, log: Log, purpose: str
) -> httpx2.Response:
    """As `RemoteHttp.ask`, with the requests that authentication takes before or after it.

    Raises:
        Exception: what `auth` raises where it cannot have a token.
    """
    if auth is None:
        return await http.ask(request, reach, log, purpose)
    flow = auth.async_auth_flow(request)
    try:
        outgoing = await anext(flow)
        while True:
            own = outgoing is request
            try:
                response = await (
                    http.ask(outgoing, reach, log, purpose) if own else _of_tokens(http, outgoing, reach, log)
                )
            except (Lost, Refused) as error:
                if own:
                    raise
                raise Unreached(str(error).rstrip(".")) from error  # the request itself has not been carried out
            try:
                outgoing = await flow.asend(response)
            except StopAsyncIteration:
                return response
            except BaseException:
                await response.aclose()
                raise
            await response.aclose()
    finally:
        await flow.aclose()


async def _of_tokens(http: RemoteHttp, request: httpx2.Request, reach: Reach, log: Log) -> httpx2.Response:
    """As `RemoteHttp.ask`, of an authorization server, whole and in time."""
    try:
        async with asyncio.timeout(OAUTH_S):
            response = await http.ask(request, reach, log, OAUTH)
    except TimeoutError:
        raise Unreached(f"{request.url.host} did not answer within {OAUTH_S:g} s") from None
    await read_whole(response, OAUTH_BYTES, OAUTH_S)
    return response


async def read_whole(response: httpx2.Response, limit_bytes: int, timeout_s: float) -> bytes:
    """The body of a reply; it stays readable.

    Raises:
        Refused: it is larger, or does not come in time.
    """
    pieces, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in response.stream:  # type: ignore[union-attr]
                pieces.append(piece)
                if (size := size + len(piece)) > limit_bytes:
                    raise Refused(502, f"The reply of {response.url.host} is larger than {limit_bytes} bytes.")
    except TimeoutError:
        raise Refused(504, f"{response.url.host} did not answer within {timeout_s:g} s.") from None
    response._content = b"".join(pieces)  # what `aread` then returns
    await response.aclose()
    return response._content


class _Dialing(httpcore2.AsyncNetworkBackend):
    """Connects to the very address that was checked."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is the library's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failed: Exception = httpcore2.ConnectError("it has no address")
        for address in await self._dialer.addresses(host, port):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Body(httpx2.AsyncByteStream):
    """The body of a reply as it comes; `ended` is told once, when it is over or let go."""

    def __init__(self, response: httpcore2.Response, exchange: Exchange, ended: Callable[[], None]) -> None:
        self._response = response
        self._exchange = exchange
        self._ended = ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.stream:  # type: ignore[union-attr]
                self._exchange.bytes_in += len(piece)
                yield piece
        except _LOST as error:
            self._exchange.reason = f"the reply broke off: {_why(error)}"
            raise Lost(self._exchange.reason) from error

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        finally:
            self._ended()


async def _readable(
    request: httpx2.Request, response: httpcore2.Response, exchange: Exchange, ended: Callable[[], None]
) -> httpx2.Response:
    body = _Body(response, exchange, ended)
    coded = [value.strip().lower() for name, value in response.headers if name.lower() == b"content-encoding"]
    if any(each not in (b"", b"identity") for each in coded):
        await body.aclose()
        raise Refused(
            502, "The reply is compressed although that was not asked for, so a secret in it could not be seen."
        )
    return httpx2.Response(status_code=response.status, headers=response.headers, stream=body, request=request)


def _why(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
