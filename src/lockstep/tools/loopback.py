"""Where a browser comes back to after somebody logged in: one port of loopback, for as long as that takes.

Anything on this machine can knock there. Only an answer with the `state` of the question is taken; others are told that
they are not meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Mapping
from urllib.parse import parse_qsl, urlsplit

from lockstep.errors import ConfigError

PATH = "/callback"
_HEAD_BYTES = 16 * 2**10
_KNOCK_S = 5.0
_PAGE = "<!doctype html><meta charset=utf-8><title>Lockstep</title><p>{}</p>"


class Return:
    """The way back of one login."""

    def __init__(self) -> None:
        self.port = 0
        self._state = ""
        self._answer: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    def expect(self, authorization_url: str) -> None:
        """The question has been put: its `state` is what the answer must have."""
        self._state = dict(parse_qsl(urlsplit(authorization_url).query)).get("state", "")

    async def answer(self) -> Mapping[str, str]:
        """The parameters of the answer, once it is there."""
        return await self._answer

    async def knocked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(_KNOCK_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, said = self._take(head.split(b" ", 2))
                page = _PAGE.format(said).encode()
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n"
                    "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n".encode()
                    + page
                )
                await writer.drain()
        writer.close()

    def _take(self, line: list[bytes]) -> tuple[str, str]:
        if len(line) < 3:
            raise ValueError("not a request of HTTP")
        target = urlsplit(line[1].decode("ascii"))
        given = dict(parse_qsl(target.query))
        if line[0] != b"GET" or target.path != PATH:
            return "404 Not Found", "There is nothing here."
        if not self._state or given.get("state") != self._state or not ("code" in given or "error" in given):
            return "400 Bad Request", "This is not the answer that is waited for."
        if not self._answer.done():
            self._answer.set_result(given)
        return "200 OK", "That is all. This page can be closed."


@contextlib.asynccontextmanager
async def waiting(port: int | None = None) -> AsyncIterator[Return]:
    """Listen on this port of loopback, or on any.

    Raises:
        ConfigError: it is taken.
    """
    back = Return()
    try:
        server = await asyncio.start_server(back.knocked, "127.0.0.1", port or 0, limit=_HEAD_BYTES)
    except OSError as error:
        why = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(
            f"The port {port} of oauth.redirect_port cannot be listened on: {why}.", remedy="Free it, or try again."
        ) from error
    back.port = server.sockets[0].getsockname()[1]
    try:
        yield back
    finally:
        server.close()
