"""Measure what the gateway adds to a call: the SDK's client on the SDK's server, and on the gateway over the same tool.

`python bench/gateway.py [--calls N] [--clients N] [--flat N] [--no-peer]` prints each figure beside its target and
exits 1 when one is missed. All servers are processes of their own, side by side in one sitting, calls taken in turns;
FastMCP's proxy, which has neither gate nor journal, is one of them where it can be installed. The tool is a function in
the serving process, so what is compared is protocol, gate and journal; a sandbox comes on top and is measured by
`bench/sandboxes.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from contenders import BENCH, Contender, Failure, environment_of, prepare_python
from mcp import Client, StdioServerParameters, types
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel.server import Server

from lockstep.agent.locked import Budget, LockedAgent, LockedTool
from lockstep.agent.spec import LimitsSection, ModelSection
from lockstep.gate.approvals import Terms
from lockstep.gate.gate import Gate
from lockstep.gate.policy import Policies
from lockstep.gateway.http import Door, build_app
from lockstep.gateway.principals import Principal, Principals
from lockstep.gateway.server import Served, build_server
from lockstep.gateway.serving import configured
from lockstep.gateway.stdio import serve_stdio
from lockstep.journal.events import RunStarted
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.model.port import Settings
from lockstep.runtime.calling import Desk
from lockstep.runtime.driver import Driver
from lockstep.tools.inprocess import InProcessTools
from lockstep.values import Digest, Effect, Tier, digest_json

MOST_TIMES_NORMAL = 2.0
MOST_ADDED_FULL_MS = 3.0
MOST_GROWTH_MIB = 32.0
ERA = "2026-07-28"
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
KINDS = ("direct", "normal", "full")
PEER = Contender(name="fastmcp", command=("peers/fastmcp_proxy.py",), requirements="peers/requirements-fastmcp.txt")


def echo(text: str) -> str:
    """What the tool does."""
    return f"{text} " * 20


# The serving side, in a process of its own.


def direct_server() -> Server[Any]:
    """The function on the SDK's own server."""

    async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="echo", description="Echo it", input_schema=SCHEMA)])

    async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text=echo(**(params.arguments or {})))])

    return Server("direct", on_list_tools=list_tools, on_call_tool=call_tool)


@asynccontextmanager
async def gateway_server(directory: Path, kind: str) -> AsyncIterator[Server[Any]]:
    """The function as a read tool of an agent, behind gate and journal."""
    agent = locked()
    journal = SQLiteJournal.open(directory, full_sync=kind == "full")
    tools: Any = InProcessTools({"echo": echo})
    model: Any = None
    gate = Gate(agent, Policies.parse(agent.policies), journal)
    driver = Driver(agent=agent, settings=Settings(), journal=journal, gate=gate, model=model, tools=tools)
    template = RunStarted(
        agent="bench", lock=agent.digest, lock_text="{}", directory="/bench", principal="", session="", input=""
    )
    desk = Desk(driver, journal, template)
    principal = Principal(name="bench")
    served = Served(
        desk=desk,
        journal=journal,
        version="1",
        description="",
        who=lambda ctx: principal,
        terms_now=lambda started: Terms.of(agent),
        asks=False,
    )
    try:
        yield build_server(served)
    finally:
        await desk.close(5)
        await journal.close()


def locked() -> LockedAgent:
    definition = {"name": "echo", "description": "Echo it", "inputSchema": SCHEMA}
    tool = LockedTool(
        name="echo",
        definition=definition,
        pin=digest_json(definition),
        effect=Effect.READ,
        dedupe_on=None,
        tier=Tier.NONE,
        egress=(),
        env={},
        limits=LimitsSection(),
        timeout_s=10.0,
        fee_usd=Decimal(0),
        source="python:bench",
        code={},
    )
    return LockedAgent(
        digest=Digest("1" * 64),
        name="bench",
        model=ModelSection(name="scripted:none"),
        model_file=None,
        system="",
        tools={"echo": tool},
        policies={"p": "permit (principal, action, resource);"},
        budget=Budget(),
        approval_expires_s=3600.0,
        window_runs=10,
    )


async def serve(kind: str, directory: Path, fd: int | None) -> None:
    """Serve over stdio, or HTTP on a socket that was handed over."""
    async with AsyncExitStack() as stack:
        server = (
            direct_server() if kind == "direct" else await stack.enter_async_context(gateway_server(directory, kind))
        )
        if fd is None:
            if kind == "direct":
                from mcp.server.stdio import stdio_server

                async with stdio_server() as (read, write):
                    await server.run(read, write, server.create_initialization_options())
            else:
                await serve_stdio(server)
            return
        import uvicorn

        app = (
            server.streamable_http_app()
            if kind == "direct"
            else build_app(server, Door(principals=Principals({}), open_to=Principal(name="bench")))
        )
        await uvicorn.Server(configured(app)).serve([socket.socket(fileno=fd)])


# The asking side.


def served_by(kind: str, directory: Path, peer: Path | None) -> tuple[list[str], dict[str, str]]:
    """The command that serves this kind, and its environment."""
    if kind == PEER.name:
        return [str(peer), str(BENCH / PEER.command[0])], environment_of(PEER)
    return [sys.executable, __file__, "--serve", kind, str(directory)], dict(os.environ)


@asynccontextmanager
async def http_process(kind: str, directory: Path, peer: Path | None = None) -> AsyncIterator[tuple[str, int]]:
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    os.set_inheritable(listening.fileno(), True)
    command, env = served_by(kind, directory, peer)
    fd = listening.fileno()
    process = await asyncio.create_subprocess_exec(*command, "--fd", str(fd), pass_fds=[fd], env=env)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp", process.pid
    finally:
        process.terminate()
        await process.wait()
        listening.close()


def over_stdio(kind: str, directory: Path, peer: Path | None) -> Client:
    (program, *arguments), env = served_by(kind, directory, peer)
    return Client(StdioServerParameters(command=program, args=arguments, env=env), mode=ERA)


def over_http(url: str) -> Client:
    return Client(streamable_http_client(url), mode=ERA)


async def timed(client: Client, number: int) -> float:
    before = time.perf_counter()
    result = await client.call_tool("echo", {"text": f"call {number}"})
    assert not result.is_error, result
    return (time.perf_counter() - before) * 1000


async def in_turns(clients: dict[str, Client], calls: int) -> dict[str, list[float]]:
    """One call of each in turn, so that whatever else the machine does meets them all."""
    for number in range(20):
        for client in clients.values():
            await timed(client, -number)
    taken: dict[str, list[float]] = {kind: [] for kind in clients}
    for number in range(calls):
        for kind, client in clients.items():
            taken[kind].append(await timed(client, number))
    return taken


async def measure(scratch: Path, calls: int, peer: Path | None) -> dict[str, dict[str, list[float]]]:
    kinds = (*KINDS, PEER.name) if peer else KINDS
    async with AsyncExitStack() as stack:
        pipes = {}
        for kind in kinds:
            pipes[kind] = await stack.enter_async_context(over_stdio(kind, scratch / f"pipe-{kind}", peer))
        piped = await in_turns(pipes, calls)
    async with AsyncExitStack() as stack:
        web = {}
        for kind in kinds:
            url, _ = await stack.enter_async_context(http_process(kind, scratch / f"web-{kind}", peer))
            web[kind] = await stack.enter_async_context(over_http(url))
        return {"stdio": piped, "http": await in_turns(web, calls)}


async def crowd(url: str, clients: int, each: int) -> int:
    """How many calls of so many clients at once ended in an error."""

    async def one(number: int) -> int:
        try:
            async with over_http(url) as client:
                for step in range(each):
                    await timed(client, number * each + step)
        except Exception as error:  # noqa: BLE001 - counted
            print(f"  client {number}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        return 0

    return sum(await asyncio.gather(*(one(number) for number in range(clients))))


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


async def growth(url: str, pid: int, calls: int) -> float:
    """What the gateway's memory grew by over so many calls, after as many again of the first tenth."""
    async with over_http(url) as client:
        for number in range(calls // 10):
            await timed(client, number)
        before = resident_mib(pid)
        for number in range(calls):
            await timed(client, number)
        return resident_mib(pid) - before


def fsync_ms(scratch: Path) -> float:
    """What making a record durable takes on this disk now: twice that is in every call with the journal in FULL."""
    taken = []
    with (scratch / "fsync").open("wb") as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            before = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - before) * 1000)
    return median(taken)


async def main(calls: int, clients: int, flat: int, peer: Path | None) -> int:
    missed = 0

    def judge(what: str, value: float, most: float, unit: str) -> None:
        nonlocal missed
        missed += value > most
        print(f"{'ok  ' if value <= most else 'MISS'} {what:58} {value:8.2f} {unit}  at most {most:g}")

    with tempfile.TemporaryDirectory() as scratch:
        figures = await measure(Path(scratch), calls, peer)
        print(f"     one fdatasync on this disk, p50 {fsync_ms(Path(scratch)):.2f} ms")
        for face, taken in figures.items():
            for kind, each in taken.items():
                print(f"     {face:5} {kind:7} p50 {median(each):6.2f} ms   p99 {quantiles(each, n=100)[98]:7.2f} ms")
            direct, normal, full = (median(taken[kind]) for kind in KINDS)
            judge(f"{face}: journal NORMAL against direct, p50", normal / direct, MOST_TIMES_NORMAL, "times")
            judge(f"{face}: journal FULL adds, p50", full - direct, MOST_ADDED_FULL_MS, "ms")
        async with http_process("full", Path(scratch) / "crowd") as (url, pid):
            judge(f"{clients} clients at once, errors", await crowd(url, clients, 20), 0, "errors")
            if flat:
                judge(f"memory over {flat} calls", await growth(url, pid, flat), MOST_GROWTH_MIB, "MiB")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 1 if missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--flat", type=int, default=20_000)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "DIRECTORY"))
    parser.add_argument("--fd", type=int)
    asked = parser.parse_args()
    if asked.serve:
        asyncio.run(serve(asked.serve[0], Path(asked.serve[1]), asked.fd))
    else:
        found = Failure("not asked for") if asked.no_peer else prepare_python(PEER)
        if isinstance(found, Failure):
            print(f"     without FastMCP's proxy: {found.reason}")
        peer = None if isinstance(found, Failure) else found
        sys.exit(asyncio.run(main(asked.calls, asked.clients, asked.flat, peer)))
