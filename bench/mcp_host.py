"""Measure a call of an MCP server in a sandbox that serves a whole run, beside the SDK's client on the same server.

`python bench/mcp_host.py [--calls N]` prints each figure beside its target and exits 1 when one is missed. Calls are
taken in turns. Ours are made as the driver makes them, each with a permit of its own, and include asking the server
again what it offers before every call; gate and journal are measured elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from mcp import Client, StdioServerParameters

from lockstep.agent.locked import LockedTool, pin
from lockstep.agent.spec import LimitsSection
from lockstep.errors import SandboxUnavailable
from lockstep.gate.permit import PermitMint
from lockstep.sandbox.contract import Backend
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.port import PermittedCall
from lockstep.tools.starting import Guest
from lockstep.values import Effect, RunId, Tier, digest_json, now_ms, sha256
from lockstep.wiring.stores import Store

MOST_TIMES = 1.5
PYTHON = "/usr/bin/python3"
DEFINITION: dict[str, Any] = {
    "name": "echo",
    "description": "Echo it.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
}
SERVER = f"""
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    answer = {{"jsonrpc": "2.0", "id": asked["id"]}}
    if asked["method"] == "initialize":
        about = {{"name": "echo", "version": "1"}}
        answer["result"] = {{"protocolVersion": "2025-11-25", "capabilities": {{"tools": {{}}}}, "serverInfo": about}}
    elif asked["method"] == "tools/list":
        answer["result"] = {{"tools": [{DEFINITION!r}]}}
    elif asked["method"] == "tools/call":
        text = asked["params"]["arguments"]["text"] * 20
        answer["result"] = {{"content": [{{"type": "text", "text": text}}]}}
    else:
        answer["error"] = {{"code": -32601, "message": "unknown"}}
    sys.stdout.write(json.dumps(answer) + "\\n")
    sys.stdout.flush()
"""
Call = Callable[[int], Awaitable[str]]


def tool(code: CodeStore, tier: Tier) -> LockedTool:
    files = {"server.py": SERVER.encode()}
    code.put(files)
    digests = {name: sha256(data) for name, data in files.items()}
    source = f"mcp:{PYTHON} -I -S server.py"
    return LockedTool(
        name="echo",
        definition=DEFINITION,
        pin=pin(DEFINITION, source, digests, {}),
        effect=Effect.READ,
        dedupe_on=None,
        tier=tier,
        egress=(),
        env={},
        limits=LimitsSection(),
        timeout_s=30.0,
        fee_usd=Decimal(0),
        source=source,
        code=digests,
        protocol="2025-11-25",
        run_lifetime=True,
    )


def host_call(store: Store, backend: Backend, stack: AsyncExitStack) -> Call:
    """A call through the tool host into the one sandbox of a run."""
    code = store.code()
    host = SandboxedTools((backend,), code, Guest(store.directory / "guest"))
    stack.push_async_callback(host.close)
    locked, mint = tool(code, backend.tier), PermitMint()

    async def call(number: int) -> str:
        digest = digest_json({"number": number})
        permit = mint.issue(digest, expires_at_ms=now_ms() + 60_000)
        asked = PermittedCall(
            run=RunId("bench"),
            session="s",
            id=f"{number}.0",
            tool=locked,
            arguments={"text": str(number)},
            digest=digest,
            key=digest,
        )
        outcome = await host.call(asked, permit)
        assert outcome.kind == "ok", outcome
        return outcome.text

    return call


async def bare_call(directory: Path, stack: AsyncExitStack) -> Call:
    """A call of the SDK's client over stdio, with nothing between it and the server."""
    script = directory / "server.py"
    script.write_text(SERVER)
    server = StdioServerParameters(command=PYTHON, args=["-I", "-S", str(script)])
    client = await stack.enter_async_context(Client(server, mode="legacy"))

    async def call(number: int) -> str:
        result = await client.call_tool("echo", {"text": str(number)})
        return str(result.content[0].text)  # type: ignore[union-attr]

    return call


async def measure(calls: int) -> bool:
    """Print the figures; whether every target was met."""
    met = True
    with tempfile.TemporaryDirectory() as name:
        async with AsyncExitStack() as stack:
            store = Store(directory=Path(name) / "store").make()
            kinds: dict[str, Call] = {"bare stdio": await bare_call(Path(name), stack)}
            for backend in store.backends():
                if backend.tier in (Tier.PROCESS, Tier.GVISOR):
                    seen = await backend.available()
                    if not seen.available:
                        raise SandboxUnavailable(f"{backend.tier.value}: {seen.details}", remedy=seen.remedy)
                    kinds[backend.tier.value] = host_call(store, backend, stack)
            took_ms: dict[str, list[float]] = {kind: [] for kind in kinds}
            cpu_ms = dict.fromkeys(kinds, 0.0)
            for number in range(calls):
                for kind, call in kinds.items():
                    began, used = time.perf_counter(), time.process_time()
                    text = await call(number)
                    took_ms[kind].append((time.perf_counter() - began) * 1000)
                    cpu_ms[kind] += (time.process_time() - used) * 1000
                    assert text == str(number) * 20
    bare = median(took_ms["bare stdio"][10:])
    for kind, each in took_ms.items():
        p50, p99, times = median(each[10:]), quantiles(each[10:], n=100)[98], median(each[10:]) / bare
        said = f"{kind:12} p50 {p50:6.2f} ms, p99 {p99:6.2f} ms, own CPU {cpu_ms[kind] / calls:5.2f} ms"
        if kind != "bare stdio":
            met = met and times <= MOST_TIMES
            said += f", {times:4.2f} times  {'ok' if times <= MOST_TIMES else 'MISS'}, at most {MOST_TIMES:g}"
        print(said)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; own CPU is this process's, without the server's")
    return met


def main() -> int:
    """Measure and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=500)
    return 0 if asyncio.run(measure(parser.parse_args().calls)) else 1


if __name__ == "__main__":
    sys.exit(main())
