"""The host's ends of a link's channels: the tool's pipes, and connections carried to the egress socket.

Each keeps to its own credit. What they receive is attacker-controlled: see `link`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lockstep.sandbox.guest import wire


class Send(Protocol):
    """Sends one frame: kind, channel, payload."""

    def __call__(self, kind: int, channel: int, payload: bytes = b"") -> None: ...


class Inlet(asyncio.StreamReader):
    """One of the tool's output pipes. Reading it returns credit to the guest."""

    def __init__(self, grant: Callable[[int], None]) -> None:
        super().__init__()
        self.credit = wire.Credit()
        self.ended = False
        self._grant = grant
        self._preface_bytes = 0

    def begin_with(self, data: bytes) -> None:
        """What is read before anything of the guest."""
        self._preface_bytes = len(data)
        self.feed_data(data)

    def end(self) -> None:
        self.ended = True
        self.feed_eof()

    @property
    def spoken(self) -> int:
        """How many bytes of the guest nobody has read yet."""
        return wire.WINDOW - self.credit.left

    async def read_now(self) -> bytes:
        """What has come and was not read yet; does not wait."""
        return await self.read(self.spoken) if self.spoken else b""

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        ours = min(len(data), self._preface_bytes)
        self._preface_bytes -= ours
        if (theirs := len(data) - ours) and not self.ended:
            self.credit.left += theirs
            self._grant(theirs)
        return data


class Outlet:
    """The tool's standard input, as `FramedChild` uses a pipe."""

    def __init__(self, send: Callable[[int, bytes], None]) -> None:
        self.credit = wire.Credit()
        self._send = send
        self._pending = bytearray()
        self._ending = False
        self._broken = False
        self._moved = asyncio.Event()

    def write(self, data: bytes) -> None:
        if not self._broken:
            self._pending += data
            self.pump()

    async def drain(self) -> None:
        """Wait until all that was written is on its way.

        Raises:
            BrokenPipeError: it never will be.
        """
        while self._pending and not self._broken:
            self._moved.clear()
            await self._moved.wait()
        if self._broken:
            raise BrokenPipeError

    def close(self) -> None:
        self._ending = True
        self.pump()

    def pump(self) -> None:
        """Send what the credit allows."""
        while self._pending and self.credit.left and not self._broken:
            piece = bytes(self._pending[: min(wire.CHUNK, self.credit.left)])
            del self._pending[: len(piece)]
            self.credit.take(len(piece))
            self._send(wire.DATA, piece)
        if self._ending and not self._pending and not self._broken:
            self._send(wire.END, b"")
            self._broken = True
        self._moved.set()

    def break_off(self) -> None:
        self._broken = True
        self._moved.set()


class Connection:
    """One connection of the guest, carried to the egress socket and back."""

    def __init__(self, send: Send, forget: Callable[[int], None], channel: int, path: Path) -> None:
        self._send = send
        self._forget = forget
        self._channel = channel
        self._path = path
        self._incoming = wire.Credit()
        self._outgoing = wire.Credit()
        self._granted = asyncio.Event()
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ended_by_guest = False
        self._task = asyncio.create_task(self._run())

    def receive(self, kind: int, payload: bytes) -> None:
        if kind == wire.DATA:
            if self._ended_by_guest:
                raise wire.WireError("bytes after the end")
            self._incoming.take(len(payload))
            self._pieces.put_nowait(payload)
        elif kind == wire.END:
            self._ended_by_guest = True
            self._pieces.put_nowait(None)
        elif kind == wire.CREDIT:
            self._outgoing.grant(payload)
            self._granted.set()
        else:
            self._task.cancel()

    def abort(self) -> None:
        self._task.cancel()

    async def ended(self) -> None:
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
            try:
                await asyncio.gather(self._to_proxy(writer), self._to_guest(reader))
            finally:
                writer.transport.abort()
        except OSError:
            self._send(wire.RESET, self._channel)
        except asyncio.CancelledError:
            self._send(wire.RESET, self._channel)
            raise
        finally:
            self._forget(self._channel)

    async def _to_proxy(self, writer: asyncio.StreamWriter) -> None:
        while (piece := await self._pieces.get()) is not None:
            writer.write(piece)
            await writer.drain()
            self._incoming.left += len(piece)
            self._send(wire.CREDIT, self._channel, len(piece).to_bytes(4, "big"))
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _to_guest(self, reader: asyncio.StreamReader) -> None:
        while True:
            while not self._outgoing.left:
                self._granted.clear()
                await self._granted.wait()
            data = await reader.read(min(wire.CHUNK, self._outgoing.left))
            if not data:
                self._send(wire.END, self._channel)
                return
            self._outgoing.take(len(data))
            self._send(wire.DATA, self._channel, data)
