"""A server on the SDK with the tasks extension: bookings that are made when somebody lets them, and a record of it all.

`task_server.py DIRECTORY` serves Streamable HTTP on a port that it prints, then prints what it does, a line each. A
task is carried out once a file `go` is in the directory, and unknown while there is a file `forget`.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from mcp import types
from mcp.server import MCPServer
from mcp.server.extension import Extension, MethodBinding
from mcp.shared.exceptions import MCPError

PLACE = Path(sys.argv[1])
TASKS = "io.modelcontextprotocol/tasks"
MODERN = frozenset({"2026-07-28"})
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FORM = {"method": "elicitation/create", "params": {"mode": "form", "message": "Who flies?", "requestedSchema": SCHEMA}}


def did(line: str) -> None:
    print(line, flush=True)


class Named(types.RequestParams):
    task_id: str
    input_responses: dict[str, Any] | None = None


class Tasks(Extension):
    identifier = TASKS

    def __init__(self) -> None:
        self.status: dict[str, str] = {}
        self.said: dict[str, Any] = {}

    def methods(self) -> Sequence[MethodBinding]:
        by_method = {"tasks/get": self.get, "tasks/update": self.update, "tasks/cancel": self.cancel}
        return [
            MethodBinding(method=method, params_type=Named, handler=handler, protocol_versions=MODERN)
            for method, handler in by_method.items()
        ]

    async def intercept_tool_call(self, params: types.CallToolRequestParams, ctx: Any, call_next: Any) -> Any:
        declared = ctx.session.client_capabilities
        did(f"called {params.name}")
        if not (declared and declared.extensions and TASKS in declared.extensions):
            return await call_next(ctx)
        task = f"task-{len(self.status) + 1}"
        self.status[task] = "input_required" if params.name == "ask" else "working"
        return {"resultType": "task", **self.as_said(task)}

    def as_said(self, task: str) -> dict[str, Any]:
        at = "2026-12-01T00:00:00Z"
        times = {"createdAt": at, "lastUpdatedAt": at, "ttlMs": None, "pollIntervalMs": 250}
        return {"taskId": task, "status": self.status[task], **times}

    async def get(self, ctx: Any, params: Named) -> dict[str, Any]:
        task = self.known(params)
        did(f"asked after {task}")
        if self.status[task] == "working" and (PLACE / "go").exists():
            self.status[task] = "completed"
            did(f"booked {task}")
        said: dict[str, Any] = {"resultType": "complete", **self.as_said(task)}
        if self.status[task] == "input_required":
            said["inputRequests"] = {"who": FORM}
        if self.status[task] == "completed":
            text = f"booked as {task} for {self.said.get(task, 'nobody')}"
            said["result"] = {"content": [{"type": "text", "text": text}], "isError": False}
        return said

    async def update(self, ctx: Any, params: Named) -> dict[str, Any]:
        task = self.known(params)
        answer = (params.input_responses or {})["who"]
        self.said[task], self.status[task] = answer.get("content", {}).get("name", answer["action"]), "working"
        did(f"told {task} {self.said[task]}")
        return {"resultType": "complete"}

    async def cancel(self, ctx: Any, params: Named) -> dict[str, Any]:
        task = self.known(params)
        if self.status[task] != "completed":
            self.status[task] = "cancelled"
        did(f"cancelled {task}")
        return {"resultType": "complete"}

    def known(self, params: Named) -> str:
        if params.task_id not in self.status or (PLACE / "forget").exists():
            raise MCPError(types.INVALID_PARAMS, "Task not found")
        return params.task_id


server = MCPServer("airline", extensions=[Tasks()])


@server.tool(structured_output=False)
def book(flight: str) -> str:
    """Book it."""
    did("booked at once")
    return f"booked {flight} at once"


@server.tool(structured_output=False)
def ask(flight: str) -> str:
    """Book it for somebody who is asked for."""
    return f"{flight}?"


async def main() -> None:
    config = uvicorn.Config(server.streamable_http_app(), log_level="warning")
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve([listening])


if __name__ == "__main__":
    anyio.run(main)
