"""The TLS server of a terminated tunnel, with the face of a stream reader and writer.

Not asyncio's own start_tls: the ClientHello has been read by the time it is known that TLS is to end here, and what
was read cannot be put back there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import TypeVar

from lockstep.sandbox.egress_wire import CHUNK_BYTES, Sink, Source

_T = TypeVar("_T")


class TlsStream:
    """One connection inside another; `begun` is what its client has sent already."""

    def __init__(self, source: Source, sink: Sink, context: ssl.SSLContext, begun: bytes) -> None:
        self._source = source
        self._sink = sink
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._in.write(begun)
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    async def handshake(self) -> None:
        """Raises ssl.SSLError: the client does not trust us, or speaks no TLS we speak."""
        await self._until(self._tls.do_handshake)

    async def read(self, limit_bytes: int) -> bytes:
        """At most so many bytes; none when the client has ended."""
        try:
            return await self._until(lambda: self._tls.read(limit_bytes))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._sink.write(self._out.read())

    async def drain(self) -> None:
        await self._sink.drain()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # says that we end; waits for nothing
        self._sink.write(self._out.read())
        if self._sink.can_write_eof():
            self._sink.write_eof()

    def close(self) -> None:
        self._sink.close()

    @property
    def transport(self) -> asyncio.WriteTransport:
        return self._sink.transport

    async def _until(self, step: Callable[[], _T]) -> _T:
        """The result of a step of TLS, with everything carried in and out that it needs."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._sink.write(self._out.read())
                await self._sink.drain()
                if piece := await self._source.read(CHUNK_BYTES):
                    self._in.write(piece)
                else:
                    self._in.write_eof()
            finally:
                if self._out.pending:
                    self._sink.write(self._out.read())
