"""A real proxy on a unix socket, a real server on the loopback behind it, and what a sandbox would send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.sandbox.contract import EgressRecord, SecretBinding
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_exchange import EgressCaps
from lockstep.sandbox.egress_rules import parse_rule

PATIENCE_S = 10.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
QUICK = EgressCaps(head_s=0.3, connect_s=0.3, total_s=1.0)
LOCALHOST = {"localhost": ["127.0.0.1"]}


@dataclass
class Service:
    """A server on the loopback that keeps what it was sent and answers with `reply`."""

    port: int = 0
    reply: bytes = OK
    hang: bool = False
    seen: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            body = await reader.readexactly(length)
            if b"transfer-encoding: chunked" in head.lower():
                body = await reader.readuntil(b"0\r\n\r\n")
            self.seen.append(head + body)
            self.arrived.set()
            if self.hang:
                await reader.read()
            writer.write(self.reply)
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            else:
                writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            self.seen.append(f"broken: {error}".encode())
            writer.transport.abort()
        finally:
            self.arrived.set()


@dataclass
class World:
    socket: Path
    service: Service
    proxy: EgressProxy
    trust: ssl.SSLContext | None = None
    """What a sandbox trusts: the proxy's authority, or the server's where TLS is passed through."""
    placeholders: Mapping[str, str] = field(default_factory=dict)

    def filled(self, text: str | bytes) -> bytes:
        data = text if isinstance(text, bytes) else text.encode()
        for name, placeholder in self.placeholders.items():
            data = data.replace(f"<{name}>".encode(), placeholder.encode())
        return data.replace(b"PORT", str(self.service.port).encode())

    async def talk(self, request: str | bytes, *, finish: bool = False) -> bytes:
        """What the proxy answers to these bytes, also when it hangs up on us; `finish` closes our side first."""
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(self.socket)
            try:
                writer.write(self.filled(request) if isinstance(request, str) else request)
                if finish:
                    writer.write_eof()
                answer = b""
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    while piece := await reader.read(65536):
                        answer += piece
                return answer
            finally:
                writer.close()

    async def inside(
        self, request: str | bytes, *, to: str = "localhost:PORT", sni: str | None = "localhost", cut: int = 0
    ) -> bytes:
        """The answer to a request inside a tunnel, by a TLS client that verifies; `cut` sends it in such pieces.

        Raises:
            OSError: there was no tunnel, or no TLS in it.
        """
        return await asyncio.to_thread(self._inside, self.filled(request), self.filled(to), sni, cut)

    def _inside(self, request: bytes, to: bytes, sni: str | None, cut: int) -> bytes:
        assert self.trust is not None
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(PATIENCE_S)
            plain.connect(str(self.socket))
            plain.sendall(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (to, to))
            opened = plain.recv(4096)
            if not opened.startswith(b"HTTP/1.1 200"):
                raise ConnectionRefusedError(opened.decode())
            with self.trust.wrap_socket(plain, server_hostname=sni, suppress_ragged_eofs=False) as tunnel:
                for at in range(0, len(request), cut or len(request)):
                    tunnel.sendall(request[at : at + (cut or len(request))])
                answer = b""
                while piece := tunnel.recv(65536):
                    answer += piece
                return answer

    def record(self) -> EgressRecord:
        return self.proxy.records()[-1]


@asynccontextmanager
async def world(
    folder: Path,
    *rules: str,
    reply: bytes = OK,
    hang: bool = False,
    caps: EgressCaps | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    resolve: Callable[[str, int], Awaitable[Sequence[str]]] | None = None,
    server: ssl.SSLContext | None = None,
    tls: ssl.SSLContext | None = None,
    trust: ssl.SSLContext | None = None,
    authority: EgressCA | None = None,
    secrets: Sequence[tuple[SecretBinding, str, str]] = (),
    admitted: bool = True,
) -> AsyncIterator[World]:
    """`server` is the TLS of the service, `tls` what the proxy trusts; `secrets`: binding, placeholder, value."""

    async def known(host: str, port: int) -> Sequence[str]:
        if host not in (names or {}):
            raise OSError("no such name")
        return (names or {})[host]

    service = Service(reply=reply, hang=hang)
    listener = await asyncio.start_server(service.serve, "127.0.0.1", 0, ssl=server)
    service.port = listener.sockets[0].getsockname()[1]
    placeholders = {binding.env: placeholder for binding, placeholder, _ in secrets}
    bindings = [
        SecretBinding(env=one.env, host=one.host, port=one.port or service.port, header=one.header)
        for one, _, _ in secrets
    ]
    proxy = EgressProxy(
        [parse_rule(rule.replace("PORT", str(service.port))) for rule in rules],
        secrets=bindings,
        placeholders=placeholders,
        authority=authority,
        caps=caps,
        resolve=resolve or known,
        tls=tls,
    )
    if admitted:
        proxy.admit({"Lockstep-Run": "r1"}, {binding.env: value for binding, _, value in secrets})
    path = folder / "e.sock"
    await proxy.listen(path)
    try:
        yield World(path, service, proxy, trust, placeholders)
    finally:
        await proxy.close()
        listener.close()


@asynccontextmanager
async def https_world(
    folder: Path, *rules: str, served_as: str = "localhost", **options: object
) -> AsyncIterator[World]:
    """A `world` whose service speaks TLS with a certificate of an authority that only the proxy trusts."""
    upstream, authority = EgressCA(folder / "upstream"), EgressCA(folder / "egress-ca")
    trust = ssl.create_default_context(cafile=str(authority.roots()))
    trust.load_verify_locations(str(upstream.roots()))
    async with world(
        folder,
        *rules,
        names=LOCALHOST,
        server=upstream.server(served_as),
        tls=ssl.create_default_context(cafile=str(upstream.roots())),
        trust=trust,
        authority=authority,
        **options,  # type: ignore[arg-type]
    ) as here:
        yield here


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(3 * PATIENCE_S):
            await scene()

    asyncio.run(bounded())


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])
