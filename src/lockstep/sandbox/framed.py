"""A child process that speaks newline-delimited frames: its pipes, its output budget, its wall clock.

Knows nothing of how the child is isolated; backends build on it. All it reads is attacker-controlled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from lockstep.sandbox.contract import Limits, ProcessEnded

STDERR_TAIL_BYTES = 8 * 2**10
_CHUNK_BYTES = 64 * 2**10


class Writer(Protocol):
    """Where frames go to."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...


class Child(Protocol):
    """A process with pipes, wherever it runs: `asyncio.subprocess.Process` is one."""

    @property
    def stdin(self) -> Writer | None: ...
    @property
    def stdout(self) -> asyncio.StreamReader | None: ...
    @property
    def stderr(self) -> asyncio.StreamReader | None: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...


class FramedChild:
    """Frames to and from one child.

    `kill` ends it and is called when a limit is hit. `blame` is asked about a child that ended by itself, with its exit
    code, and names the limit that was behind it, or "".
    """

    def __init__(
        self,
        child: Child,
        limits: Limits,
        kill: Callable[[], None],
        blame: Callable[[int], str],
    ) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        self._child = child
        self._stdin = child.stdin
        self._limits = limits
        self._wall_s = limits.wall_s
        self._kill = kill
        self._blame = blame
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._received = 0
        self._tail = bytearray()
        self._wall: asyncio.TimerHandle | None = None
        self._left_s: float | None = None
        """Of a clock that is paused: what is left."""
        self.limit = ""
        """The limit that ended the child, or ""."""
        self.talked = asyncio.Event()
        """Set at the first byte on its standard output."""
        self._pumps = (
            asyncio.create_task(self._pump_frames(child.stdout)),
            asyncio.create_task(self._pump_errors(child.stderr)),
        )
        self.ended = asyncio.create_task(self._await_end())
        """Done when the child has exited and everything it wrote was read."""

    @property
    def exit_code(self) -> int | None:
        """The child's exit code; None while it runs and when a limit killed it."""
        return None if self.limit else self._child.returncode

    def start_clock(self, wall_s: float | None = None) -> None:
        """From now on the child has `wall_s` seconds (None: as many as before) and `output_bytes` bytes."""
        self._wall_s = self._wall_s if wall_s is None else wall_s
        self.stop_clock()
        self._left_s = None
        self._received = 0
        if not self.ended.done():
            self._wall = asyncio.get_running_loop().call_later(self._wall_s, self.hit, "wall_s")

    def stop_clock(self) -> None:
        if self._wall is not None:
            self._wall.cancel()

    def hit(self, limit: str) -> None:
        """End the child because of this limit; the first one counts."""
        if not self.limit and not self.ended.done():
            self.limit = limit
            self._kill()

    def pause_clock(self) -> None:
        if self._wall is not None and not self._wall.cancelled():
            self._left_s = max(0.0, self._wall.when() - asyncio.get_running_loop().time())
            self._wall.cancel()

    def continue_clock(self) -> None:
        """Let a clock that was paused run on for what was left of it."""
        if self._left_s is not None and not self.ended.done():
            self._wall = asyncio.get_running_loop().call_later(self._left_s, self.hit, "wall_s")
        self._left_s = None

    async def send(self, frame: bytes) -> None:
        """Write one frame. To a child that is gone this does nothing: `receive` says how it ended.

        Raises:
            ValueError: the frame contains a newline.
        """
        if b"\n" in frame:
            raise ValueError("a frame must not contain a newline")
        try:
            self._stdin.write(frame + b"\n")
            await self._stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return

    async def receive(self) -> bytes:
        """The next frame; complete frames are delivered even when the child has ended since.

        Raises:
            ProcessEnded: there is none and none will come.
        """
        frame = await self._frames.get()
        if frame is None:
            self._frames.put_nowait(None)
            raise ProcessEnded(exit_code=self.exit_code, limit=self.limit, stderr=self.stderr_tail())
        return frame

    def stderr_tail(self) -> str:
        return self._tail.decode(errors="replace")

    async def close(self, timeout_s: float) -> bool:
        """Kill the child and wait for its end; False when it is still there after `timeout_s`."""
        self.stop_clock()
        if self._child.returncode is None:
            self._kill()
        self._stdin.close()
        done, _ = await asyncio.wait([self.ended], timeout=timeout_s)
        return bool(done)

    async def _await_end(self) -> None:
        try:
            await asyncio.gather(*self._pumps)
            self.limit = self.limit or self._blame(await self._child.wait())
        finally:
            self.stop_clock()
            self._frames.put_nowait(None)

    async def _pump_frames(self, stream: asyncio.StreamReader) -> None:
        pending = bytearray()
        while chunk := await stream.read(_CHUNK_BYTES):
            self.talked.set()
            if not self._within_budget(len(chunk)):
                pending.clear()
                continue  # keep draining, or the exit of the child is never seen
            *complete, rest = chunk.split(b"\n")
            for line in complete:
                self._frames.put_nowait(bytes(pending + line))
                pending.clear()
            pending += rest

    async def _pump_errors(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(_CHUNK_BYTES):
            self._within_budget(len(chunk))
            self._tail = (self._tail + chunk)[-STDERR_TAIL_BYTES:]

    def _within_budget(self, size: int) -> bool:
        self._received += size
        if self._received > self._limits.output_bytes:
            self.hit("output_bytes")
        return self._received <= self._limits.output_bytes
