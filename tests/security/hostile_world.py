"""The host as a payload may aim at it, and the judge of what came of it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "contract"))

from hostile_payloads import PRELUDE, Payload
from test_sandbox import CALL, Here

from lockstep.sandbox.contract import Limits, ProcessEnded, SandboxSpec, SecretBinding
from lockstep.sandbox.egress_rules import parse_rule
from lockstep.sandbox.interpreter import interpreter
from lockstep.tools.client import BadReply, McpClient, ServerError

GRACE_S = 60.0
ENV_TOKEN = "LOCKSTEP_TEST_HOST_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`outcome` is what the host recorded, in a word; `escape` says what got out, or is ""."""

    outcome: str
    escape: str = ""


@dataclass(kw_only=True)
class Host:
    """Bait and traps on this machine. `reached` holds what arrived where nothing may arrive."""

    folder: Path
    tokens: dict[str, str] = field(default_factory=dict)
    reached: list[str] = field(default_factory=list)
    allowed: int = 0
    denied: int = 0
    other: int = 0
    udp: int = 0
    unix: str = ""
    abstract: str = ""

    @property
    def tool(self) -> Path:
        return self.folder / "tool"

    def aims(self) -> dict[str, Any]:
        return {
            "secret": str(self.folder / "secret"),
            "pid": os.getpid(),
            "allowed": f"127.0.0.1:{self.allowed}",
            "denied": self.denied,
            "other": self.other,
            "udp": self.udp,
            "unix": self.unix,
            "abstract": self.abstract,
            "begin": time.monotonic(),
        }


@asynccontextmanager
async def host(folder: Path) -> AsyncIterator[Host]:
    """A host with something to steal, ports to reach and a directory to change."""
    there = Host(folder=folder, tokens={name: secrets.token_hex(16) for name in ("file", "environment", "secret")})
    (folder / "secret").write_text(there.tokens["file"])
    (there.tool / "deep").mkdir(parents=True)
    (there.tool / "code.py").write_text("CODE = 1\n")
    for link in ("link", "deep/link"):
        (there.tool / link).symlink_to(folder / "secret")
    os.environ[ENV_TOKEN] = there.tokens["environment"]
    there.unix, there.abstract = str(folder / "host.sock"), "\0lockstep-" + secrets.token_hex(4)
    servers = [
        await asyncio.start_server(_service(there), "127.0.0.1", 0),
        await asyncio.start_server(_trap(there, "a closed port"), "127.0.0.1", 0),
        await asyncio.start_server(_trap(there, "a port its secret is not for"), "127.0.0.1", 0),
        await asyncio.start_unix_server(_trap(there, "a socket of the host"), there.unix),
        await asyncio.start_unix_server(_trap(there, "an abstract socket"), there.abstract),
    ]
    there.allowed, there.denied, there.other = (server.sockets[0].getsockname()[1] for server in servers[:3])
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(there), local_addr=("127.0.0.1", 0))
    there.udp = transport.get_extra_info("sockname")[1]
    try:
        yield there
    finally:
        transport.close()
        for server in servers:
            server.close()
        del os.environ[ENV_TOKEN]


async def attack(here: Here, payload: Payload) -> Verdict:
    """Run one payload to its end, twice where the second is to find what the first left; whether anything got out."""
    with tempfile.TemporaryDirectory(prefix="lockstep-hostile-") as folder:
        async with host(Path(folder)) as there:
            if payload.twice:
                await _run(here, there, payload)
            return await _run(here, there, payload)


async def _run(here: Here, there: Host, payload: Payload) -> Verdict:
    python, mounts = interpreter()
    secret = SecretBinding(env="KEY", host="127.0.0.1", port=there.allowed, header="Authorization")
    rules = (f"http://127.0.0.1:{there.allowed} GET,POST /v1", f"http://127.0.0.1:{there.other} GET,POST /v1")
    spec = SandboxSpec(
        argv=(*python, "-c", PRELUDE + payload.code),
        mounts={**mounts, "/tool": there.tool},
        egress=tuple(parse_rule(rule) for rule in rules) if payload.egress else (),
        secrets=(secret,) if payload.egress else (),
        limits=payload.limits,
    )
    began = time.monotonic()
    async with here.started(spec) as process:
        process.admit(here.permit(), CALL, {"Lockstep-Run": "r1"}, {"KEY": there.tokens["secret"]})
        await process.send(json.dumps(there.aims()).encode())
        said, outcome = None, "answered"
        try:
            async with asyncio.timeout(payload.limits.wall_s + GRACE_S):
                said = json.loads(await process.receive())
        except ProcessEnded as ended:
            outcome = f"ended: {ended.limit or ended.exit_code}"
        except ValueError:
            outcome = "answered without sense"
        except TimeoutError:
            return Verdict(outcome="hung", escape="neither ended nor answered within its time")
        log = process.egress_log()
    escape = _escape(here, there, payload, said, time.monotonic() - began)
    if not escape and said is None and not payload.may_end:
        escape = f"did not answer ({outcome})"
    if not escape and any(record.allowed and f":{there.denied}" in record.url for record in log):
        escape = "the proxy let a denied host through"
    return Verdict(outcome=outcome, escape=escape)


async def serve(here: Here, name: str, code: str) -> Verdict:
    """Speak the protocol with a server that does not: it must end in a typed failure within its time."""
    python, mounts = interpreter()
    argv = (*python, "-c", f"import json, os, sys\n{code}\nsys.stdout.flush()\nimport time; time.sleep(1000)")
    spec = SandboxSpec(argv=argv, mounts=mounts, limits=Limits(wall_s=6, output_bytes=2 * 2**20))
    async with here.started(spec) as process:
        process.admit(here.permit(), CALL, {})
        client = McpClient(process)
        try:
            async with asyncio.timeout(GRACE_S):
                await client.initialize()
                await client.list_tools()
                await client.call_tool("x", {}, {})
        except (ProcessEnded, BadReply, ServerError) as error:
            return Verdict(outcome=type(error).__name__)
        except TimeoutError:
            return Verdict(outcome="hung", escape="the client waited without end")
    return Verdict(outcome="answered", escape=f"{name}: what it said was taken for an answer")


def _escape(here: Here, there: Host, payload: Payload, said: Any, took_s: float) -> str:
    text = json.dumps(said)
    if stolen := [name for name, token in there.tokens.items() if token in text]:
        return f"it read the host's {', '.join(stolen)}"
    if there.reached:
        reached, there.reached = there.reached, []
        return f"it reached {', '.join(sorted(set(reached)))}"
    if (there.tool / "code.py").read_text() != "CODE = 1\n" or (there.folder / "secret").read_text() != there.tokens[
        "file"
    ]:
        return "it changed a file of the host"
    if said is not None and not payload.passes(said):
        return f"it got {text[:300]}"
    if left := here.traces():
        return f"it left {left}"
    return f"it took {took_s:.0f} s" if took_s > payload.limits.wall_s + GRACE_S else ""


def _trap(there: Host, name: str) -> Any:
    async def fall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.reached.append(name)
        writer.close()

    return fall


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, there: Host) -> None:
        self._there = there

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._there.reached.append("a datagram port of the host")


def _service(there: Host) -> Any:
    """The service that is permitted, below /v1: it redirects, echoes what it heard and says what Host it was."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        if not path.startswith("/v1"):
            there.reached.append(f"the path {path}")
        status, extra, body = "200 OK", "", head
        if path == "/v1/redirect":
            status, extra = "302 Found", f"Location: http://127.0.0.1:{there.denied}/\r\n"
        data = body.encode()
        writer.write(f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        writer.close()

    return serve
