"""HTTP/1.1 on both sides of the egress proxy: strict towards the sandbox, careful towards the server.

Parsing and framing are h11's; what h11 tolerates and we do not is refused here, before h11 sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Protocol

import h11

HEAD_BYTES = 32 * 2**10
CHUNK_BYTES = 64 * 2**10
_LINGER_S = 1.0
_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te"),
    *(b"trailer", b"transfer-encoding", b"upgrade", b"expect"),
}
_HEAD_END = b"\r\n\r\n"
_OWN_PREFIX = b"lockstep-"
_LONE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_ONCE = (b"host", b"content-length", b"transfer-encoding")

Headers = list[tuple[bytes, bytes]]


class Refused(Exception):
    """The request ends here, with this status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Source(Protocol):
    """What can be read from: a stream reader, or TLS over one."""

    async def read(self, limit_bytes: int, /) -> bytes: ...


class Sink(Protocol):
    """What can be written to: a stream writer, or TLS over one."""

    def write(self, data: bytes, /) -> None: ...
    async def drain(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    @property
    def transport(self) -> asyncio.WriteTransport: ...


class Caller:
    """The sandbox's side of one connection: one request in, one reply out."""

    def __init__(self, reader: Source, writer: Sink) -> None:
        self.reader = reader
        self.writer = writer
        self.rest = b""
        """What came behind the head and has not been used."""
        self._http = h11.Connection(our_role=h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self.replying = False
        """Whether a status line has been written, so that no other can be."""

    async def head(self) -> h11.Request:
        """The request line and headers.

        Raises:
            Refused: they are too long, malformed, or could be framed in two ways.
            EOFError: the caller went away without asking anything.
        """
        raw = await self._raw_head()
        _refuse_ambiguous_framing(raw)
        self._http.receive_data(raw)
        event = self._next()
        if not isinstance(event, h11.Request) or event.http_version not in (b"1.0", b"1.1"):
            raise Refused(400, "This is not an HTTP/1.1 request.")
        return event

    async def body(self) -> AsyncIterator[bytes]:
        """The pieces of the request body, as they arrive.

        Raises:
            Refused: its framing is broken.
        """
        while True:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            event = self._next()
            if event is h11.NEED_DATA:
                self._http.receive_data(self.rest or await self.reader.read(CHUNK_BYTES))
                self.rest = b""
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    async def connected(self) -> None:
        """Answer a CONNECT: from here on the connection is a tunnel."""
        self.replying = True
        self.writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await self.writer.drain()

    async def reply(self, status: int, headers: Headers) -> None:
        self.replying = True
        await self._write(h11.Response(status_code=status, headers=[*headers, (b"connection", b"close")]))

    async def data(self, piece: bytes) -> None:
        await self._write(h11.Data(data=piece))

    async def end(self) -> None:
        await self._write(h11.EndOfMessage())

    async def refuse(self, status: int, sentence: str) -> None:
        """Answer with one plain sentence, also when the request could not even be parsed."""
        text = f"{sentence}\n".encode()
        kind = b"text/plain; charset=utf-8"
        self.replying = True
        self.writer.write(
            b"HTTP/1.1 %d Refused\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, kind, len(text), text)
        )
        await self.writer.drain()

    async def hang_up(self) -> None:
        """Close so that the caller can still read the reply although it has not sent everything."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                if self.writer.can_write_eof():
                    self.writer.write_eof()
                while await self.reader.read(CHUNK_BYTES):
                    pass
        self.writer.close()

    async def _raw_head(self) -> bytes:
        raw = bytearray()
        while _HEAD_END not in raw and len(raw) <= HEAD_BYTES:
            piece = await self.reader.read(CHUNK_BYTES)
            if not piece and not raw.strip():
                raise EOFError
            if not piece:
                raise Refused(400, "The request ended in the middle of its head.")
            raw += piece
        head, end, rest = raw.partition(_HEAD_END)
        if not end or len(head) > HEAD_BYTES:
            raise Refused(431, f"The request head is longer than {HEAD_BYTES} bytes.")
        self.rest = bytes(rest)
        return bytes(head + end)

    def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, f"The request is malformed: {error}.") from None

    async def _write(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self.writer.write(data)
            await self.writer.drain()


class Server:
    """The server's side: an open connection that gets one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(our_role=h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)

    async def ask(self, request: h11.Request) -> None:
        await self._write(request)

    async def data(self, piece: bytes) -> None:
        await self._write(h11.Data(data=piece))

    async def end(self) -> None:
        await self._write(h11.EndOfMessage())

    async def answer(self) -> h11.Response:
        """The final response; informational ones are dropped.

        Raises:
            Refused: the server does not speak HTTP, or closed without an answer.
        """
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise Refused(502, "The server closed the connection without an answer.")

    async def body(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    def close(self) -> None:
        self._writer.transport.abort()

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise Refused(502, f"The server's reply is malformed: {error}.") from None
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            self._http.receive_data(await self._reader.read(CHUNK_BYTES))

    async def _write(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self._writer.write(data)
            await self._writer.drain()


def outgoing(given: Headers, authority: str, identity: Mapping[str, str]) -> Headers:
    """The headers the server sees: the caller's without what is ours to say, then ours."""
    own = {_folded(name.encode()) for name in identity} | {b"host"}
    headers: Headers = [(b"host", authority.encode())]
    headers += [
        (name, value)
        for name, value in _end_to_end(given)
        if _folded(name) not in own and not _folded(name).startswith(_OWN_PREFIX)
    ]
    if any(name == b"transfer-encoding" for name, _ in given):
        headers.append((b"transfer-encoding", b"chunked"))
    headers += [(name.encode(), value.encode()) for name, value in identity.items()]
    return [*headers, (b"connection", b"close")]


def incoming(response: h11.Response) -> Headers:
    """The headers of a reply that the sandbox sees; h11 frames the body anew."""
    chunked = any(name == b"transfer-encoding" for name, _ in response.headers)
    return [
        (name, value) for name, value in _end_to_end(response.headers) if not (chunked and name == b"content-length")
    ]


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    listed = list(headers)
    named = b",".join(value for name, value in listed if name == b"connection").lower().split(b",")
    dropped = _HOP_BY_HOP | {token.strip() for token in named} - {b"content-length", b"host"}
    return [(name, value) for name, value in listed if name not in dropped]


def _folded(name: bytes) -> bytes:
    """Some servers read `_` in a header name as `-`."""
    return name.lower().replace(b"_", b"-")


def _refuse_ambiguous_framing(raw: bytes) -> None:
    if _LONE.search(raw):
        raise Refused(400, "The request head has a carriage return or line feed on its own.")
    lines = raw.split(b"\r\n")[1:-2]
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise Refused(400, "The request head has a folded header line.")
    names = Counter(line.partition(b":")[0].strip().lower() for line in lines)
    if any(names[name] > 1 for name in _ONCE):
        raise Refused(400, "The request repeats Host, Content-Length or Transfer-Encoding.")
    lengths = [line.partition(b":")[2].strip() for line in lines if line.lower().startswith(b"content-length")]
    if not all(length.isdigit() for length in lengths):
        raise Refused(400, "The Content-Length is not a number.")
    if names[b"content-length"] and names[b"transfer-encoding"]:
        raise Refused(400, "The request has both Content-Length and Transfer-Encoding.")
