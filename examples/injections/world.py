"""A suite's server as a child process, and the tool host that calls it: one permit per call, one pin per tool.

No sandbox: the suites are fixed code of a pinned package that reach nothing outside, and a sandbox for each of the
thousands of calls would measure the sandbox. All else is as for any agent: driver, gate, journal, permits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from records import Record

from lockstep.gate.permit import Permit
from lockstep.sandbox.contract import ProcessEnded
from lockstep.tools.client import BadReply, McpClient, ServerError
from lockstep.tools.content import read_content
from lockstep.tools.port import Ask, Outcome, PermittedCall
from lockstep.values import JsonObject, RunId, digest_json, now_ms

SERVER = Path(__file__).with_name("server.py")
FRAME_BYTES = 64 << 20


class World:
    """A running suite. Requests wait for one another: the suite holds one environment."""

    def __init__(self, suite: str, child: asyncio.subprocess.Process) -> None:
        self.suite = suite
        self._child = child
        self._client = McpClient(self)  # type: ignore[arg-type] - it sends and receives, and asks for nothing else
        self._turn = asyncio.Lock()
        self.definitions: Mapping[str, JsonObject] = {}

    @classmethod
    async def start(cls, python: Path, suite: str) -> World:
        """Start the suite's server and greet it.

        Raises:
            ProcessEnded, ServerError, BadReply: it does not serve.
        """
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            str(python), "-I", str(SERVER), suite, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL,
            limit=FRAME_BYTES,
        )  # fmt: skip
        world = cls(suite, child)
        await world._client.initialize()
        world.definitions = {str(each["name"]): each for each in (await world._client.list_tools()).tools}
        return world

    async def begin(self, record: Record) -> None:
        """A fresh environment with the record's injections."""
        await self._client.request(
            "world/begin", {"user_task": record.user_task, "injections": dict(record.injections)}
        )

    async def read(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Recorded arguments as the suite reads them: more lenient than JSON Schema, and the record is its."""
        found = await self._client.request("world/read", {"name": name, "arguments": dict(arguments)})
        return dict(found["arguments"])

    async def check(self, record: Record) -> Mapping[str, Any]:
        """What the suite's own checks say: `utility`, `attack` (None of a benign run), `words`."""
        tasks = {"user_task": record.user_task, "injection_task": record.injection_task}
        return await self._client.request("world/check", {**tasks, "output": record.said})

    async def call(self, name: str, arguments: JsonObject) -> Mapping[str, Any]:
        async with self._turn:
            return await self._client.call_tool(name, arguments, {})

    async def close(self) -> None:
        if self._child.returncode is None:
            self._child.kill()
        await self._child.wait()

    async def send(self, frame: bytes) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(frame + b"\n")
        await self._child.stdin.drain()

    async def receive(self) -> bytes:
        assert self._child.stdout is not None
        line = await self._child.stdout.readline()
        if not line:
            raise ProcessEnded(exit_code=await self._child.wait(), limit="", stderr="")
        return line


class SuiteTools:
    """A `ToolHost` on a suite's world. A tool that fails has done nothing: the suites raise before they change."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def call(
        self,
        call: PermittedCall,
        permit: Permit,
        on_overdue: Callable[[], None] | None = None,
        ask: Ask | None = None,
    ) -> Outcome:
        permit.redeem(call.digest, now_ms())
        name = call.tool.name
        if digest_json(self._world.definitions[name]) != digest_json(call.tool.definition):
            return Outcome(
                kind="pin_mismatch", text=f"Not run: the definition of {name} is not the one that was locked."
            )
        began = time.perf_counter()
        try:
            result = await self._world.call(name, call.arguments)
        except (ProcessEnded, ServerError, BadReply) as error:
            return Outcome(kind="process_ended", text=f"{name} failed: {error}", unknown=True)
        text, _ = read_content(result["content"])
        kind = "tool_error" if result.get("isError") is True else "ok"
        return Outcome(kind=kind, text=text, run_ms=round((time.perf_counter() - began) * 1000, 3))

    async def end(self, run: RunId) -> None:
        """Nothing is kept for a run but the environment, which the next record replaces."""

    async def sweep(self) -> None:
        """Nothing outlives the process."""
