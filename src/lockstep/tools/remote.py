"""A server that runs elsewhere, with the face of a sandboxed process: frames go out as HTTP, answers come back.

Nothing is sent before a permit is redeemed. From then on each frame is one POST whose answer is JSON or a stream of
events; time, bytes and what may be reached are bounded, every request is recorded, and secrets are taken out of what
comes back. A connection that breaks after a request left is reported as such: nobody knows what became of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx2
import msgspec

from lockstep.agent.mcp_spec import filled_in
from lockstep.gate.permit import Permit
from lockstep.sandbox.contract import EgressRecord, Limits, ProcessEnded, SecretBinding, Use
from lockstep.sandbox.egress_wire import Refused
from lockstep.sandbox.secrets import Held, Scrubber, held, replacements
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.tools.client import CALL, CANCELLED, LISTEN, META, BadReply, ServerError, Unauthorized
from lockstep.tools.event_stream import EventStream
from lockstep.tools.remote_headers import PARAMETER, header_text, routing_headers
from lockstep.tools.remote_http import Log, Lost, Reach, RemoteHttp, Unreached, authorized
from lockstep.tools.remote_listening import MAX_RESUMES, listen, pause
from lockstep.values import Digest, now_ms

_NOTICE_S = 5.0
"""How long a message may take to which no answer is expected."""
_GOODBYE_S = 2.0
_REST_S = 0.05
"""How long the end of an answered stream is waited for: a connection that has come to it serves the next request."""
_SESSION = re.compile(r"[!-~]{1,1024}")
_ERROR_BYTES = 64 * 2**10
_EVENTS = "text/event-stream"
_LISTENING = "listening"


class Credentials(Protocol):
    """How requests to one server are authenticated for one principal."""

    @property
    def auth(self) -> httpx2.Auth: ...

    def in_use(self) -> tuple[str, ...]:
        """What must not be seen in a reply."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """How one server is reached. `headers` have `${NAME}` where a secret stands."""

    http: RemoteHttp
    url: str
    reach: Reach
    headers: Mapping[str, str]
    secrets: tuple[SecretBinding, ...] = ()
    credentials: Credentials | None = None


class RemoteProcess:
    """Implements `Process`. One request at a time, as `McpClient` asks."""

    def __init__(self, line: Line, limits: Limits) -> None:
        self._line = line
        self._limits = limits
        self._wall_s = limits.wall_s
        self._frames: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._log = Log()
        self._identity: Mapping[str, str] = {}
        self._scrubber: Scrubber | None = None
        self._scrubbed_for: tuple[str, ...] = ()
        """The tokens that it takes out of replies beside the secrets."""
        self._values: Mapping[str, str] = {}
        self._admitted = self._sealed = time.monotonic()
        self._open = False
        self._received = 0
        self._session = ""
        self._protocol = ""
        """Of the legacy revisions, once shaken hands on."""
        self._may_ask = False
        """Whether a legacy server was told that it may ask for something while it is called."""
        self._asking: Mapping[str, Any] | None = None
        self._carrier: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._left_s: float | None = None
        """What is left of a clock that stands still."""
        self._end: asyncio.Task[None] | None = None
        self.alive = True

    def admit(
        self,
        permit: Permit,
        call_digest: Digest,
        identity: Mapping[str, str],
        secret_values: Mapping[str, str] | None = None,
        wall_s: float | None = None,
    ) -> None:
        permit.redeem(call_digest, now_ms())
        self._identity, self._values = dict(identity), dict(secret_values or {})
        self._log, self._open, self._scrubber = Log(), True, None
        self._frames = asyncio.Queue()  # what came by a stream after the last call's answer is nothing to this one
        self._admitted = time.monotonic()
        self._wall_s = self._limits.wall_s if wall_s is None else wall_s
        self.renew()
        self._listen_again()

    async def send(self, frame: bytes) -> None:
        message = msgspec.json.decode(frame)
        if "id" not in message or "method" not in message:
            if not self._open or (message.get("method") == CANCELLED and not self._protocol):
                return  # a modern server sees that nobody listens any more
            with contextlib.suppress(Exception):  # of a message that expects no answer nothing is lost
                async with asyncio.timeout(_NOTICE_S):
                    await self._notice(message, frame)
            if message.get("method") == "notifications/initialized":
                self._listen_again()
            return
        if message["method"] == LISTEN:
            await self._watch(message, frame)
            return
        await self._drop()
        self._asking = message
        self._carrier = asyncio.create_task(self._carry(message, frame))
        self._carrier.add_done_callback(self._carried)

    async def receive(self) -> bytes:
        found = await self._frames.get()
        if isinstance(found, ProcessEnded):
            self._frames.put_nowait(found)
        if isinstance(found, Exception):
            raise found
        return found

    def rest(self) -> None:
        """Nothing runs here, so nothing is to be stopped."""

    def pause(self) -> None:
        if self._clock is not None and not self._clock.cancelled():
            self._left_s = max(0.0, self._clock.when() - asyncio.get_running_loop().time())
            self._clock.cancel()

    def go_on(self) -> None:
        if self._left_s is not None and self._open:
            self._clock = asyncio.get_running_loop().call_later(self._left_s, self._hit, "wall_s")
        self._left_s = None

    def renew(self) -> None:
        self._stop_clock()
        self._received, self._left_s = 0, None
        self._clock = asyncio.get_running_loop().call_later(self._wall_s, self._hit, "wall_s")

    async def seal(self) -> None:
        if not self._open:
            return
        self._open, self._sealed = False, time.monotonic()
        self._stop_clock()
        await self._break_off()

    async def close(self) -> None:
        if self._end is None:
            self._end = asyncio.create_task(self._finish())
        await to_the_end(self._end)

    def use(self) -> Use:
        until = time.monotonic() if self._open else self._sealed
        return Use(start_ms=0.0, run_ms=(until - self._admitted) * 1000, cpu_s=None, peak_memory_bytes=None)

    def egress_log(self) -> tuple[EgressRecord, ...]:
        """A server has a say in it: the reason of a broken reply quotes it, and it may name where tokens are had."""
        return tuple(
            replace(each, url=self._scrubbed(each.url), reason=self._scrubbed(each.reason))
            for each in self._log.records()
        )

    def stderr_tail(self) -> str:
        return ""

    async def _carry(self, message: Mapping[str, Any], frame: bytes) -> None:
        """One request to its end; whatever comes of it is in the queue."""
        try:
            await self._request(message, frame)
        except (Unreached, Lost) as error:
            self._broke(str(error), reached=isinstance(error, Lost))
        except Refused as error:
            self._frames.put_nowait(BadReply(self._scrubbed(error.sentence.rstrip("."))))
        except (BadReply, ServerError) as error:
            error.args = (self._scrubbed(str(error)),)
            self._frames.put_nowait(error)
        finally:
            self._asking = None

    def _carried(self, carrier: asyncio.Task[None]) -> None:
        """What should not happen is raised where the answer is waited for."""
        if not carrier.cancelled() and isinstance(error := carrier.exception(), Exception):
            self._frames.put_nowait(error)

    async def _request(self, message: Mapping[str, Any], frame: bytes) -> None:
        if not self._open:
            raise Unreached("no call has been permitted")
        request = httpx2.Request("POST", self._line.url, headers=self._headers(message), content=frame)
        response = await self._authorized(request, str(message["method"]))
        try:
            await self._read(message, response)
        finally:
            await response.aclose()

    async def _authorized(self, request: httpx2.Request, purpose: str) -> httpx2.Response:
        auth = self._line.credentials.auth if self._line.credentials else None
        return await authorized(self._line.http, request, auth, self._line.reach, self._log, purpose)

    async def _read(self, message: Mapping[str, Any], response: httpx2.Response) -> None:
        status, kind = response.status_code, _kind(response)
        if status in (401, 403):
            raise Unauthorized(status, self._challenge(response))
        if status == 404 and self._session:
            self.alive = False
            raise ServerError(0, "its session is over")
        if 300 <= status < 400:
            where = self._scrubbed(response.headers.get("location", ""))  # before it is cut
            raise BadReply(f"it redirects to {where!r:.200}, which is not followed")
        if status >= 400:
            self._frames.put_nowait(await self._error(message, response))
            return
        if status == 202:
            raise BadReply("it took the request and will not answer it")
        if message["method"] == "initialize":
            self._session = _session(response)
        if kind == _EVENTS:
            await self._events(message, response)
        elif kind != "application/json":
            raise BadReply(f"its answer ({status}) is {kind or 'of no type'}, neither JSON nor a stream of events")
        elif not self._deliver(message, await self._whole(response, self._limits.output_bytes)):
            raise BadReply("its answer is not one to the request")

    async def _error(self, message: Mapping[str, Any], response: httpx2.Response) -> bytes | Exception:
        """An answer with a status of failure: the protocol's own error, where there is one in it."""
        status = response.status_code
        if _kind(response) == "application/json":
            with contextlib.suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError, Refused):
                found = msgspec.json.decode(await self._whole(response, _ERROR_BYTES))
                if isinstance(found, dict) and isinstance(found.get("error"), dict):
                    frame = {"jsonrpc": "2.0", "id": message["id"], "error": found["error"]}
                    return self._clean(msgspec.json.encode(frame))
        return ServerError(0, f"its server answered with the status {status}")

    async def _events(self, message: Mapping[str, Any], response: httpx2.Response) -> None:
        """A stream of events until the answer, resumed where the revision has that and the server says how."""
        stream, tries = EventStream(), MAX_RESUMES
        while True:
            before, why = stream.last_id, "the stream ended without an answer"
            try:
                if await self._until_answered(message, stream, response):
                    return
            except Lost as error:
                why = str(error)
            finally:
                await response.aclose()
            tries = MAX_RESUMES if stream.last_id != before else tries - 1
            response, tries = await self._again(stream, tries, why, str(message["method"]))

    async def _until_answered(self, message: Mapping[str, Any], stream: EventStream, response: httpx2.Response) -> bool:
        async for piece in response.stream:  # type: ignore[union-attr]
            self._count(len(piece))
            for event in stream.feed(piece):
                if event.kind == "message" and self._deliver(message, event.data):
                    self._asking = None
                    await _rest_of(response)
                    return True
        return False

    async def _again(self, stream: EventStream, tries: int, why: str, purpose: str) -> tuple[httpx2.Response, int]:
        """The stream goes on where it broke off; and how many tries are left. Raises Lost."""
        while self._protocol and stream.last_id and tries > 0:
            await pause(stream)
            try:
                response = await self._resumed(stream.last_id, purpose)
            except (Lost, Unreached) as error:
                why, tries = str(error), tries - 1
            else:
                stream.begin_again()
                return response, tries
        raise Lost(why)

    def _listen_again(self) -> None:
        if self._may_ask and self._protocol and (self._listener is None or self._listener.done()):
            self._listener = asyncio.create_task(listen(self._own_stream, self._count, self._hear))

    async def _own_stream(self, last_id: str) -> httpx2.Response:
        """What a legacy server asks beside the answer to a request comes by a stream of its own, where it has one."""
        return await self._resumed(last_id, _LISTENING)

    async def _watch(self, message: Mapping[str, Any], frame: bytes) -> None:
        """Listen beside what is asked, as a modern server lets one; begun when this returns, or it does not."""

        async def opened(last_id: str) -> httpx2.Response:
            request = httpx2.Request("POST", self._line.url, headers=self._headers(message), content=frame)
            response = await self._authorized(request, LISTEN)
            if response.status_code == 200 and _kind(response) == _EVENTS:
                return response
            await response.aclose()
            raise ServerError(0, "it does not say what changes")

        begun = asyncio.Event()
        self._listener = asyncio.create_task(listen(opened, self._count, self._hear, begun))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTICE_S):
                await begun.wait()

    def _hear(self, frame: bytes) -> None:
        self._frames.put_nowait(self._clean(frame))

    async def _resumed(self, last_id: str, purpose: str) -> httpx2.Response:
        headers = {**self._common(), "Accept": _EVENTS}
        if last_id:
            headers["Last-Event-ID"] = header_text(last_id)
        response = await self._authorized(httpx2.Request("GET", self._line.url, headers=headers), purpose)
        if response.status_code == 200 and _kind(response) == _EVENTS:
            return response
        await response.aclose()
        if purpose == _LISTENING and 400 <= response.status_code < 500:
            raise ServerError(0, "it has no stream of its own")
        raise Lost(f"the stream broke off and could not be resumed (status {response.status_code})")

    def _deliver(self, message: Mapping[str, Any], frame: bytes) -> bool:
        """Pass a frame on; whether it is the answer."""
        self._frames.put_nowait(self._clean(frame))
        try:
            found = msgspec.json.decode(frame)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return True  # whoever receives it says what it is
        if not isinstance(found, dict):
            return True
        answer = "method" not in found and found.get("id") == message["id"]
        if answer and message["method"] == "initialize" and isinstance(result := found.get("result"), dict):
            self._protocol = str(result.get("protocolVersion", ""))[:40]
            self._may_ask = bool((message.get("params") or {}).get("capabilities"))
        return answer

    async def _notice(self, message: Mapping[str, Any], frame: bytes) -> None:
        """Send a message and let its answer go."""
        request = httpx2.Request("POST", self._line.url, headers=self._headers(message), content=frame)
        response = await self._authorized(request, str(message.get("method", "response")))
        await response.aclose()

    def _headers(self, message: Mapping[str, Any]) -> dict[str, str]:
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        method = str(message.get("method", ""))
        headers = {**self._common(), "Accept": f"application/json, {_EVENTS}", "Content-Type": "application/json"}
        modern = (params.get("_meta") or {}).get(f"{META}protocolVersion")
        if modern is not None:
            headers |= {"MCP-Protocol-Version": str(modern), **routing_headers(method, params)}
        if method == CALL and modern is not None:
            headers |= {name: value for name, value in self._identity.items() if name.startswith(PARAMETER)}
        return headers

    def _common(self) -> dict[str, str]:
        """What every request of a call has."""
        values = dict(self._values)
        identity = {name: value for name, value in self._identity.items() if not name.startswith(PARAMETER)}
        headers = {"User-Agent": "lockstep", **identity}
        headers |= {name: filled_in(text, values) for name, text in self._line.headers.items()}
        if self._protocol:
            headers["MCP-Protocol-Version"] = header_text(self._protocol)
        if self._session:
            headers["Mcp-Session-Id"] = self._session
        return headers

    async def _whole(self, response: httpx2.Response, limit_bytes: int) -> bytes:
        pieces, size = [], 0
        async for piece in response.stream:  # type: ignore[union-attr]
            self._count(len(piece))
            pieces.append(piece)
            if (size := size + len(piece)) > limit_bytes:
                raise Refused(502, f"its answer is larger than {limit_bytes} bytes")
        return b"".join(pieces)

    def _count(self, size: int) -> None:
        self._received += size
        if self._received > self._limits.output_bytes:
            self._hit("output_bytes")
            raise Refused(502, "its answer is too large")

    def _hit(self, limit: str) -> None:
        """A limit ends the line; what is under way is broken off when it is sealed."""
        if self.alive:
            self.alive = False
            self._frames.put_nowait(ProcessEnded(exit_code=None, limit=limit, stderr=""))

    def _broke(self, why: str, *, reached: bool) -> None:
        if self.alive:
            self.alive = False
            said = self._scrubbed(why)
            self._frames.put_nowait(ProcessEnded(exit_code=None, limit="connection", stderr=said, reached=reached))

    def _clean(self, frame: bytes) -> bytes:
        tokens = self._line.credentials.in_use() if self._line.credentials else ()
        if self._scrubber is None or self._scrubbed_for != tokens:
            found = self._to_scrub(tokens)
            self._scrubber, self._scrubbed_for = Scrubber(found) if found else None, tokens
        return self._scrubber.whole(_plainly_written(frame)) if self._scrubber else frame

    def _scrubbed(self, text: str) -> str:
        return self._clean(text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def _challenge(self, response: httpx2.Response) -> str:
        """What a server that refuses says it wants."""
        said = self._scrubbed(response.headers.get("www-authenticate", ""))  # before it is cut
        return f"its server refuses these credentials (status {response.status_code}){f': {said:.300}' if said else ''}"

    def _to_scrub(self, tokens: tuple[str, ...]) -> dict[bytes, bytes]:
        bound = held(self._line.secrets, {one.env: f"[secret {one.env}]" for one in self._line.secrets}, self._values)
        binding = SecretBinding(env="", host="", port=0, header="Authorization")
        bound += [Held(binding=binding, placeholder=b"[token]", value=token.encode()) for token in tokens]
        return replacements(bound, [], []) if bound else {}

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    async def _come_to_rest(self) -> None:
        """Wait for the end of a request that has its answer."""
        if self._carrier is not None and self._asking is None:
            await asyncio.wait([self._carrier], timeout=2 * _REST_S)

    async def _drop(self) -> Mapping[str, Any] | None:
        """Close the connection of a request that nobody waits for any more; which one, if it had no answer."""
        await self._come_to_rest()
        asking, carrier = self._asking, self._carrier
        if carrier is None or carrier.done():
            return None
        carrier.cancel()
        await asyncio.wait([carrier])
        return asking

    async def _break_off(self) -> None:
        """Closing the connection of a request is how it is cancelled; the legacy revisions want to be told besides."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        asking = await self._drop()
        if asking is not None and self._protocol:
            params = {"requestId": asking["id"], "reason": "given up"}
            notice = {"jsonrpc": "2.0", "method": CANCELLED, "params": params}
            with contextlib.suppress(Exception):  # the call is over either way
                async with asyncio.timeout(_GOODBYE_S):
                    await self._notice(notice, msgspec.json.encode(notice))

    async def _finish(self) -> None:
        await self.seal()
        await self._break_off()  # once more, for a seal that was cancelled before it had
        self.alive = False
        if self._session:
            with contextlib.suppress(Exception):  # a server forgets sessions by itself
                async with asyncio.timeout(_GOODBYE_S):
                    request = httpx2.Request("DELETE", self._line.url, headers=self._common())
                    await (await self._authorized(request, "end of session")).aclose()
        self._frames.put_nowait(ProcessEnded(exit_code=None, limit="", stderr=""))


def _plainly_written(frame: bytes) -> bytes:
    """JSON without the escapes that it need not have: what they spell is read by everybody else as it is."""
    if b"\\" in frame:
        with contextlib.suppress(msgspec.MsgspecError, RecursionError, UnicodeError, OverflowError):
            return msgspec.json.encode(msgspec.json.decode(frame))
    return frame


async def _rest_of(response: httpx2.Response) -> None:
    with contextlib.suppress(Lost, TimeoutError):
        async with asyncio.timeout(_REST_S):
            async for _ in response.stream:  # type: ignore[union-attr]
                pass


def _kind(response: httpx2.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _session(response: httpx2.Response) -> str:
    session = str(response.headers.get("mcp-session-id", ""))
    if session and not _SESSION.fullmatch(session):
        raise BadReply("its session has a name that no header can carry")
    return session
