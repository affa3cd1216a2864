"""The wire between host and guest, both real ends over a socket pair; then a guest that breaks its rules."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lockstep.sandbox.guest import wire
from lockstep.sandbox.guest.carrier import Carrier
from lockstep.sandbox.link import CONNECTIONS, Link, LinkError

PATIENCE_S = 20.0


class Guest:
    """An agent's carrier in a thread, with pipes where a tool would be."""

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        self.carrier = Carrier(self._on_control)
        self.carrier.set_link(link.detach(), ends=True)
        self._stop, self.stopper = os.pipe()
        self.tool_in, stdin = os.pipe()
        stdout, self.tool_out = os.pipe()
        stderr, self.tool_err = os.pipe()
        for ours in (stdin, stdout, stderr):
            os.set_blocking(ours, False)
        self.carrier.add(wire.STDIN, sink=stdin)
        self.carrier.add(wire.STDOUT, source=stdout)
        self.carrier.add(wire.STDERR, source=stderr)
        self.requests: list[socket.socket] = []
        self._stopped = False
        self.carrier.watch(self._stop, self._on_stop)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def connect(self) -> socket.socket:
        """A connection as a tool makes it to the egress socket."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.requests.append(theirs)
        os.write(self.stopper, b"c")
        return ours

    def _on_control(self, message: wire.Message) -> None:
        if message["ask"] == "attach":
            self.carrier.renew(bytes.fromhex(message["nonce"]))
        self.carrier.tell({"answer": message["ask"], **({"error": "no"} if message["ask"] == "fail" else {})})

    def _on_stop(self, _: int) -> None:
        order = os.read(self._stop, 1)
        if order == b"c":
            self.carrier.connect(self.requests.pop())
        else:
            self._stopped = True

    def _run(self) -> None:
        while not self._stopped:
            self.carrier.turn()


@asynccontextmanager
async def linked(egress: Path | None = None) -> AsyncIterator[tuple[Link, Guest]]:
    ours, theirs = socket.socketpair()
    guest = Guest(theirs)
    guest.thread.start()
    link = Link(await asyncio.open_unix_connection(sock=ours), egress)
    try:
        await link.attach(PATIENCE_S)
        yield link, guest
    finally:
        await link.close()
        os.write(guest.stopper, b"x")
        await asyncio.to_thread(guest.thread.join, PATIENCE_S)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), PATIENCE_S))  # type: ignore[arg-type]


def test_bytes_pass_unchanged_both_ways_however_many() -> None:
    sent = os.urandom(3 * 2**20)

    def echo(guest: Guest) -> None:
        while data := os.read(guest.tool_in, 2**16):
            while data:
                data = data[os.write(guest.tool_out, data) :]
        os.close(guest.tool_out)

    async def scene() -> None:
        async with linked() as (link, guest):
            echoing = asyncio.create_task(asyncio.to_thread(echo, guest))
            link.stdin.write(sent)
            link.stdin.close()
            received = bytearray()
            while data := await link.stdout.read(2**16):
                received += data
            assert received == sent
            await echoing

    play(scene)


def test_an_output_nobody_reads_stops_at_its_window_and_holds_up_nothing_else() -> None:
    async def scene() -> None:
        async with linked() as (link, guest):
            flood = threading.Thread(target=_write_all, args=(guest.tool_out, bytes(4 * wire.WINDOW)), daemon=True)
            flood.start()
            os.write(guest.tool_err, b"heard")
            assert await link.stderr.read(100) == b"heard"
            while link.stdout.spoken < wire.WINDOW:
                assert (await link.ask("anything"))["answer"] == "anything"
            assert link.stdout.spoken == wire.WINDOW
            received = 0
            while received < 4 * wire.WINDOW:
                received += len(await link.stdout.read(2**16))

    play(scene)


def test_connections_lead_to_the_egress_socket_and_each_half_ends_by_itself(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()  # until the other side has said all
        writer.write(asked.upper() * 1000)
        await writer.drain()
        writer.close()

    def ask(connection: socket.socket) -> bytes:
        with connection:
            connection.sendall(b"question")
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(2**16):
                answer += data
            return answer

    async def scene() -> None:
        server = await asyncio.start_unix_server(serve, tmp_path / "e.sock")
        async with server, linked(tmp_path / "e.sock") as (_, guest):
            answers = await asyncio.gather(*(asyncio.to_thread(ask, guest.connect()) for _ in range(5)))
            assert answers == [b"QUESTION" * 1000] * 5

    play(scene)


@pytest.mark.parametrize("egress", [None, Path("/nowhere/e.sock")])
def test_a_connection_that_leads_nowhere_is_broken_off(egress: Path | None) -> None:
    async def scene() -> None:
        async with linked(egress) as (_, guest):
            connection = guest.connect()
            connection.settimeout(PATIENCE_S)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(connection.recv, 1) == b""
            connection.close()

    play(scene)


def test_what_the_agent_refuses_is_said_in_its_words() -> None:
    async def scene() -> None:
        async with linked() as (link, _):
            with pytest.raises(LinkError, match="no"):
                await link.ask("fail")

    play(scene)


# A guest that was taken over


def frame(kind: int, channel: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return wire.HEADER.pack(kind, channel, len(payload) if length is None else length) + payload


HOSTILE = {
    "an unknown kind": frame(77, 0),
    "a frame that would be huge": frame(wire.DATA, wire.STDOUT, length=2**31),
    "a control message that would be huge": frame(wire.CONTROL, 0, length=wire.GUEST_CONTROL_BYTES + 1),
    "control that is not JSON": frame(wire.CONTROL, 0, b"{"),
    "control that is nested deeply": frame(wire.CONTROL, 0, b"[" * 8000),
    "control that is no object": frame(wire.CONTROL, 0, b"[]"),
    "more than was granted": b"".join(frame(wire.DATA, wire.STDOUT, bytes(wire.CHUNK)) for _ in range(9)),
    "credit never sent for": frame(wire.CREDIT, wire.STDIN, b"\x00\x00\x00\x01"),
    "credit of a wrong size": frame(wire.CREDIT, wire.STDIN, b"\x01"),
    "standard input backwards": frame(wire.DATA, wire.STDIN, b"x"),
    "output after its end": frame(wire.END, wire.STDOUT) + frame(wire.DATA, wire.STDOUT, b"x"),
    "credit for an output": frame(wire.CREDIT, wire.STDERR, b"\x00\x00\x00\x01"),
    "a channel never opened": frame(wire.DATA, 99, b"x"),
    "a channel opened twice": frame(wire.OPEN, 9) * 2,
    "an impossible exit code": frame(wire.CONTROL, 0, b'{"event": "ended", "code": 999}'),
    "two ends": frame(wire.CONTROL, 0, b'{"event": "ended", "code": 0}') * 2,
    "answers without end": frame(wire.CONTROL, 0, b'{"answer": "x"}') * 25_000,
    "stray frames without end": frame(wire.OPEN, 9) + frame(wire.RESET, 9) * 25_000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_guest_that_breaks_the_rules_is_not_believed_any_more(what: str) -> None:
    async def scene() -> None:
        link, theirs = await attached_to_a_puppet()
        await asyncio.to_thread(_send_all, theirs, HOSTILE[what])
        await link.lost.wait()
        assert link.broken
        with pytest.raises(LinkError):
            await link.ask("anything")
        while await link.stdout.read(2**16):
            pass
        await link.close()
        theirs.close()

    play(scene)


def test_what_an_earlier_host_left_half_sent_is_skipped() -> None:
    async def scene() -> None:
        link, theirs = await attached_to_a_puppet(before=b"\x02\x00half a frame")
        theirs.sendall(frame(wire.DATA, wire.STDOUT, b"whole"))
        assert await link.stdout.read(100) == b"whole"
        await link.close()
        theirs.close()

    play(scene)


def test_more_connections_than_are_carried_are_broken_off(tmp_path: Path) -> None:
    async def scene() -> None:
        server = await asyncio.start_unix_server(lambda reader, _: reader.read(), tmp_path / "e.sock")
        async with server:
            link, theirs = await attached_to_a_puppet(tmp_path / "e.sock")
            theirs.sendall(b"".join(frame(wire.OPEN, 10 + number) for number in range(CONNECTIONS + 1)))
            answer = await asyncio.to_thread(theirs.recv, wire.HEADER.size)
            assert wire.HEADER.unpack(answer) == (wire.RESET, 10 + CONNECTIONS, 0)
            await link.close()
            theirs.close()

    play(scene)


async def attached_to_a_puppet(egress: Path | None = None, before: bytes = b"") -> tuple[Link, socket.socket]:
    """A link whose other end is ours to write to, byte by byte."""
    ours, theirs = socket.socketpair()
    link = Link(await asyncio.open_unix_connection(sock=ours), egress)

    def answer() -> None:
        theirs.settimeout(PATIENCE_S)
        decoder = wire.Decoder(wire.CONTROL_BYTES)
        (attach,) = (wire.control_message(payload) for _, _, payload in decoder.feed(theirs.recv(2**16)))
        theirs.sendall(before + bytes.fromhex(attach["nonce"]) + frame(wire.CONTROL, 0, b'{"answer": "attach"}'))
        (clock,) = (wire.control_message(payload) for _, _, payload in decoder.feed(theirs.recv(2**16)))
        assert abs(clock["clock_ns"] - time.time_ns()) < 1e9
        theirs.sendall(frame(wire.CONTROL, 0, b'{"answer": "clock"}'))

    answering = asyncio.create_task(asyncio.to_thread(answer))
    await link.attach(PATIENCE_S)
    await answering
    return link, theirs


def _send_all(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the link may have hung up by then
        connection.sendall(data)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
