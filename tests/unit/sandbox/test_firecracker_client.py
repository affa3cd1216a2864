"""The HTTP client against a real unix socket: what Firecracker says comes through, and nothing wrong makes it hang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.firecracker_api import Action, Describe, InstanceInfo, ask, instance_info

START = Action(action_type="InstanceStart")
NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ok(body: bytes, status: int = 200) -> bytes:
    """An answer as Firecracker writes it: no reason phrase, connection kept."""
    head = b"HTTP/1.1 %d \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n" % status
    return head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@asynccontextmanager
async def answering(socket: Path, answer: bytes, asked: list[bytes]) -> AsyncIterator[None]:
    """A server that reads one request and writes these bytes, then waits for the client to go."""

    done = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(64 * 2**10))
        if answer:
            writer.write(answer)
        else:
            writer.close()
        await reader.read()
        writer.close()
        done.set()

    server = await asyncio.start_unix_server(handle, socket)
    try:
        yield
    finally:
        await asyncio.wait_for(done.wait(), 5.0)
        server.close()


def exchange(tmp_path: Path, answer: bytes, timeout_s: float = 5.0) -> tuple[bytes, bytes]:
    """(the request as sent, the body of the answer)."""
    asked: list[bytes] = []

    async def run() -> bytes:
        async with answering(tmp_path / "api", answer, asked):
            return await ask(tmp_path / "api", START, timeout_s)

    body = asyncio.run(run())
    return asked[0], body


def test_a_request_names_its_length_and_type_and_carries_its_fields(tmp_path: Path) -> None:
    request, body = exchange(tmp_path, NO_CONTENT)
    head, _, sent = request.partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"PUT /actions HTTP/1.1"
    assert b"content-type: application/json" in head.lower()
    assert sent == b'{"action_type": "InstanceStart"}'
    assert b"content-length: %d" % len(sent) in head.lower()
    assert body == b""


def test_a_refusal_says_what_firecracker_said(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match=r"answered 400: No kernel\. \(PUT /actions\)"):
        exchange(tmp_path, ok(b'{"fault_message": "No kernel."}', 400))


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 \r\nContent-Length: 9\r\nContent-Length: 8\r\n\r\n"]
)
def test_an_answer_that_is_not_http_is_a_broken_connection(tmp_path: Path, answer: bytes) -> None:
    with pytest.raises(SandboxUnavailable, match="broke the connection"):
        exchange(tmp_path, answer)


def test_an_unfinished_answer_is_not_waited_for_forever(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match=r"did not answer within 0\.2 s"):
        exchange(tmp_path, b"HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{", timeout_s=0.2)


def test_an_endless_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="broke the connection"):
        exchange(tmp_path, ok(b"x" * 200_000))


def test_nobody_at_the_socket_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="broke the connection"):
        asyncio.run(ask(tmp_path / "nobody", START))


def test_an_instance_describes_itself(tmp_path: Path) -> None:
    body = b'{"id":"demo","state":"Running","vmm_version":"1.16.1","app_name":"Firecracker"}'

    async def run() -> InstanceInfo:
        async with answering(tmp_path / "api", ok(body), []):
            return instance_info(await ask(tmp_path / "api", Describe()))

    assert asyncio.run(run()) == InstanceInfo(id="demo", state="Running", vmm_version="1.16.1")
