"""The host's end of the one byte stream into a microVM: requests to the agent, the tool's pipes, egress connections.

Everything read here is attacker-controlled. What breaks the wire's rules ends the link, and with it the machine: see
`Link.broken`. Each channel has its own credit, so no channel can block another or make memory grow.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from lockstep.sandbox.guest import wire
from lockstep.sandbox.link_channels import Connection, Inlet, Outlet
from lockstep.sandbox.monitor import Stream
from lockstep.values import JsonObject

CONNECTIONS = 32
"""Egress connections open at once; more are broken off."""
_ANSWER_S = 30.0
_CLOCK_S = 0.1
"""How far the guest's clock may be behind after it was set."""
_CLOCK_ATTEMPTS = 5
_READ_BYTES = 64 * 2**10
_BEFORE_NONCE_BYTES = 1 * 2**20
_CONTROL_MESSAGES = 10_000
_STRAY_FRAMES = 20_000


class LinkError(Exception):
    """The agent did not do what it was asked, or cannot be asked any more."""


class Link:
    """One attached agent. `egress` is the unix socket that the guest's connections lead to, if anywhere."""

    def __init__(self, stream: Stream, egress: Path | None = None) -> None:
        self._reader, self._writer = stream
        self._egress = egress
        self._decoder = wire.Decoder(wire.GUEST_CONTROL_BYTES)
        self._answer: asyncio.Future[wire.Message] | None = None
        self._asked = ""
        self._asking = asyncio.Lock()
        self._connections: dict[int, Connection] = {}
        self._last_connection = wire.FIRST_CONNECTION - 1
        self._controls = self._strays = 0
        self._pump: asyncio.Task[None] | None = None
        self.broken = ""
        """Which rule the guest broke, or ""."""
        self.lost = asyncio.Event()
        """Set when nothing more will come."""
        self.ended = asyncio.Event()
        """Set when the tool has ended, or the guest is gone."""
        self.code: int | None = None
        """The tool's exit code; None while it runs, and when nobody knows."""
        self.out_of_memory = False
        self.stdin = Outlet(lambda kind, data: self.send(kind, wire.STDIN, data))
        self.stdout = Inlet(lambda size: self._credit(wire.STDOUT, size))
        self.stderr = Inlet(lambda size: self._credit(wire.STDERR, size))

    async def attach(self, timeout_s: float) -> Mapping[str, str]:
        """Become the agent's host, give the machine randomness of its own and the time; what it says of the guest.

        Raises:
            LinkError: no agent answers, or it breaks the rules.
        """
        nonce = secrets.token_bytes(16)
        try:
            async with asyncio.timeout(timeout_s):
                asked = {"ask": "attach", "nonce": nonce.hex(), "entropy": secrets.token_hex(32)}
                self._writer.write(wire.encode_control(asked))
                rest = await self._find(nonce)
        except (OSError, TimeoutError) as error:
            raise LinkError(f"The agent in the guest does not answer ({error or 'time is over'}).") from error
        self._asked, self._answer = "attach", asyncio.get_running_loop().create_future()
        self._pump = asyncio.create_task(self._receive_all(rest))
        hello = await self._answered()
        await self._set_clock()
        return {key: str(value)[:200] for key, value in hello.items()}

    async def ask(self, what: str, fields: JsonObject | None = None, timeout_s: float = _ANSWER_S) -> wire.Message:
        """Ask the agent one thing and wait for its answer.

        Raises:
            LinkError: it refuses (its words), or does not answer in time.
        """
        async with self._asking:
            self._asked, self._answer = what, asyncio.get_running_loop().create_future()
            if self.lost.is_set():
                raise LinkError(self.broken or "The guest is gone.")
            self._writer.write(wire.encode_control({"ask": what, **(fields or {})}))
            return await self._answered(timeout_s)

    async def _set_clock(self) -> None:
        """Say the time until the guest heard it while it was right: a busy machine wakes its guests late."""
        for _ in range(_CLOCK_ATTEMPTS):
            asked = time.monotonic()
            await self.ask("clock", {"clock_ns": time.time_ns()})
            if time.monotonic() - asked < _CLOCK_S:
                return

    async def close(self) -> None:
        """Stop carrying; everything still under way is broken off."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._finish()
        self._writer.transport.abort()
        await asyncio.gather(*(c.ended() for c in list(self._connections.values())), return_exceptions=True)

    async def _answered(self, timeout_s: float = _ANSWER_S) -> wire.Message:
        assert self._answer is not None
        try:
            answer = await asyncio.wait_for(self._answer, timeout_s)
        except TimeoutError:
            raise LinkError(f"The guest gave no answer to {self._asked!r} in {timeout_s:.0f} s.") from None
        if "error" in answer:
            raise LinkError(str(answer["error"])[:1000])
        return answer

    async def _find(self, nonce: bytes) -> bytes:
        """Skip what an earlier host left half sent; the bytes after the nonce."""
        seen = b""
        while (at := seen.find(nonce)) < 0:
            chunk = await self._reader.read(_READ_BYTES)
            seen += chunk
            if not chunk or len(seen) > _BEFORE_NONCE_BYTES:
                raise LinkError("The agent in the guest does not answer.")
        return seen[at + len(nonce) :]

    # Receiving

    async def _receive_all(self, data: bytes) -> None:
        try:
            while True:
                for kind, channel, payload in self._decoder.feed(data):
                    self._receive(kind, channel, payload)
                data = await self._reader.read(_READ_BYTES)
                if not data:
                    break
        except wire.WireError as error:
            self.broken = f"the guest broke the protocol: {error}"
        except OSError:
            pass
        finally:
            self._finish()

    def _finish(self) -> None:
        self.lost.set()
        self.ended.set()
        self.stdin.break_off()
        for inlet in (self.stdout, self.stderr):
            inlet.end()
        for connection in list(self._connections.values()):
            connection.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result({"error": self.broken or "The guest is gone."})

    def _receive(self, kind: int, channel: int, payload: bytes) -> None:
        if kind == wire.CONTROL:
            self._on_control(wire.control_message(payload))
        elif kind == wire.OPEN:
            self._on_open(channel)
        elif channel == wire.STDIN:
            if kind == wire.CREDIT:
                self.stdin.credit.grant(payload)
                self.stdin.pump()
            elif kind != wire.RESET:
                raise wire.WireError("bytes from standard input")
        elif channel in (wire.STDOUT, wire.STDERR):
            self._on_output(kind, self.stdout if channel == wire.STDOUT else self.stderr, payload)
        elif channel in self._connections:
            self._connections[channel].receive(kind, payload)
        elif wire.FIRST_CONNECTION <= channel <= self._last_connection:
            self._count_stray()  # closed here while that was on its way
        else:
            raise wire.WireError(f"a frame for channel {channel}, which was never opened")

    def _on_control(self, message: wire.Message) -> None:
        self._controls += 1
        if self._controls > _CONTROL_MESSAGES:
            raise wire.WireError("too many control messages")
        if message.get("event") == "ended":
            code = message.get("code")
            if self.code is not None or not isinstance(code, int) or not 0 <= code <= 255:
                raise wire.WireError("an end that cannot be")
            self.code, self.out_of_memory = code, message.get("out_of_memory") is True
            self.stdin.break_off()
            self.ended.set()
        elif self._answer is not None and not self._answer.done() and message.get("answer") == self._asked:
            self._answer.set_result(message)
        else:
            self._count_stray()  # an answer that came too late

    def _on_output(self, kind: int, inlet: Inlet, payload: bytes) -> None:
        if inlet.ended:
            raise wire.WireError("bytes after the end")
        if kind == wire.DATA:
            inlet.credit.take(len(payload))
            inlet.feed_data(payload)
        elif kind in (wire.END, wire.RESET):
            inlet.end()
        else:
            raise wire.WireError("credit for an output")

    def _on_open(self, channel: int) -> None:
        if channel <= self._last_connection:
            raise wire.WireError(f"channel {channel} opened twice")
        self._last_connection = channel
        if self._egress is None or len(self._connections) >= CONNECTIONS:
            self.send(wire.RESET, channel)
            return
        self._connections[channel] = Connection(self.send, self._forget, channel, self._egress)

    def _count_stray(self) -> None:
        self._strays += 1
        if self._strays > _STRAY_FRAMES:
            raise wire.WireError("too many frames that nobody waits for")

    # Sending

    def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        """Send one frame; what is sent is bounded by the credit of its channel."""
        if not self._writer.is_closing():
            self._writer.write(wire.encode(kind, channel, payload))

    def _credit(self, channel: int, size: int) -> None:
        self.send(wire.CREDIT, channel, size.to_bytes(4, "big"))

    def _forget(self, channel: int) -> None:
        self._connections.pop(channel, None)
