"""A server elsewhere for tests: an HTTP peer on loopback that says byte by byte what a test wants, and who calls it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from lockstep.agent.locked import LockedTool, Remote, pin
from lockstep.agent.mcp_spec import McpServer
from lockstep.agent.spec import LimitsSection, SecretSection
from lockstep.gate.permit import Permit, PermitMint
from lockstep.gate.rounds import Round
from lockstep.sandbox.egress_dial import Resolver
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.port import Ask, Listener, Outcome, PermittedCall, Tasking
from lockstep.tools.remote_http import RemoteHttp
from lockstep.tools.remote_servers import RemoteServers
from lockstep.tools.starting import Guest
from lockstep.values import Effect, JsonObject, RunId, Tier, digest_json, now_ms

DO: dict[str, Any] = {"name": "do", "description": "Do it.", "inputSchema": {"type": "object"}}
DONE: dict[str, Any] = {"content": [{"type": "text", "text": "done"}]}
MODERN, LEGACY = "2026-07-28", "2025-11-25"


@dataclass(kw_only=True)
class Asked:
    """One request as it came."""

    method: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    path: str = "/mcp"
    raw: bytes = b""

    @property
    def says(self) -> str:
        """The protocol's method, or that of HTTP where there is none."""
        return str(self.body.get("method", self.method))


Say = Callable[[bytes], Awaitable[None]]
Behaviour = Callable[[Asked, Say], Awaitable[None]]
"""Answers a `tools/call`; the connection is closed where it raises ConnectionError."""


def head(status: int = 200, kind: str = "application/json", **more: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", *(f"{k.replace('_', '-')}: {v}" for k, v in more.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def whole(body: bytes, status: int = 200, kind: str = "application/json", **more: str) -> bytes:
    return head(status, kind, Content_Length=str(len(body)), **more) + body


def answer(asked: Asked, result: Any, **more: str) -> bytes:
    return whole(json.dumps({"jsonrpc": "2.0", "id": asked.body["id"], "result": result}).encode(), **more)


def error(asked: Asked, code: int, status: int = 200) -> bytes:
    said = {"jsonrpc": "2.0", "id": asked.body["id"], "error": {"code": code, "message": "no"}}
    return whole(json.dumps(said).encode(), status)


def event(asked: Asked, result: Any) -> bytes:
    return b"data: " + json.dumps({"jsonrpc": "2.0", "id": asked.body["id"], "result": result}).encode() + b"\n\n"


async def done(asked: Asked, say: Say) -> None:
    await say(answer(asked, DONE))


@dataclass(kw_only=True)
class Peer:
    """What was asked, and how calls are answered; `resumed` answers a GET, `tasked` what is about a task."""

    called: Behaviour = done
    tasked: Behaviour = done
    resumed: Behaviour = done
    offered: Mapping[str, Any] = field(default_factory=lambda: DO)
    heard: list[Asked] = field(default_factory=list)
    port: int = 0

    @property
    def said(self) -> list[str]:
        return [asked.says for asked in self.heard]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                asked = await _asked(reader)
                self.heard.append(asked)
                await self.answer(asked, say)
        writer.transport.abort()

    async def answer(self, asked: Asked, say: Say) -> None:
        match asked.says:
            case "tools/call":
                await self.called(asked, say)
            case "GET":
                await self.resumed(asked, say)
            case says if says.startswith("tasks/"):
                await self.tasked(asked, say)
            case "server/discover":
                await say(answer(asked, {"supportedVersions": [MODERN], "capabilities": {}}))
            case "tools/list":
                await say(answer(asked, {"tools": [self.offered]}))
            case "initialize":
                said = {"protocolVersion": LEGACY, "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
                await say(answer(asked, said, Mcp_Session_Id=f"session-{len(self.heard)}"))
            case _:
                await say(whole(b"", 202))


async def _asked(reader: asyncio.StreamReader) -> Asked:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = first.split()
    parsed = json.loads(body) if headers.get("content-type") == "application/json" else {}
    return Asked(method=method, headers=headers, body=parsed, path=path, raw=body)


@contextlib.asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[Peer]:
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0, limit=2**24)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()


@dataclass(kw_only=True)
class Caller:
    """A tool host, and permits of a gate of its own."""

    host: SandboxedTools
    remotes: RemoteServers = field(default_factory=RemoteServers)
    mint: PermitMint = field(default_factory=PermitMint)

    async def call(
        self,
        tool: LockedTool,
        *,
        run: str = "r1",
        permit: Permit | None = None,
        principal: str = "ann",
        ask: Ask | None = None,
        arguments: JsonObject | None = None,
        kept_for: str = "",
        tasks: Tasking | None = None,
        round: Round | None = None,
        listener: Listener | None = None,
    ) -> Outcome:
        digest = digest_json({"run": run, "tool": tool.name})
        permit = permit or self.mint.issue(digest, expires_at_ms=now_ms() + 60_000)
        call = PermittedCall(
            run=RunId(run),
            session="s",
            id="0.0",
            tool=tool,
            arguments=arguments or {},
            digest=digest,
            key="k",
            principal=principal,
            kept_for=kept_for,
            tasks=tasks,
            round=round,
            listener=listener,
        )
        return await self.host.call(call, permit, None, ask)


@contextlib.asynccontextmanager
async def calling(
    place: Path, resolve: Resolver | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Caller]:
    remotes = RemoteServers(http=RemoteHttp(resolve=resolve, tls=tls))
    host = SandboxedTools((), CodeStore(place / "code"), Guest(place / "guest"), remotes=remotes)
    try:
        yield Caller(host=host, remotes=remotes)
    finally:
        await host.close()


def remote_tool(
    port: int,
    *,
    host: str = "127.0.0.1",
    scheme: str = "http",
    protocol: str = MODERN,
    definition: dict[str, Any] = DO,
    effect: Effect = Effect.ONCE,
    timeout_s: float = 10,
    output_kb: int = 1024,
    headers: Mapping[str, str] | None = None,
    secrets: tuple[SecretSection, ...] = (),
    asks: tuple[str, ...] = (),
    task_s: float = 0.0,
) -> LockedTool:
    """The tool of a peer, as a lock has it."""
    url = f"{scheme}://{host}:{port}/mcp"
    server = McpServer(url=url)
    return LockedTool(
        name=definition["name"],
        definition=definition,
        pin=pin(definition, f"mcp:{url}", {}, {}),
        effect=effect,
        dedupe_on=None,
        tier=Tier.REMOTE,
        run_lifetime=True,
        egress=server.egress,
        env={},
        limits=LimitsSection(output_kb=output_kb),
        timeout_s=timeout_s,
        fee_usd=Decimal(0),
        source=f"mcp:{url}",
        code={},
        secrets=secrets,
        protocol=protocol,
        asks=asks,
        task_s=task_s,
        remote=Remote(url=url, headers=headers or {}, oauth=None),
    )
