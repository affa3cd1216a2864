"""A server of the SDK's low-level kind whose one tool asks its user back, in whichever era it is spoken to."""

from __future__ import annotations

import json
from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "seats": {"type": "integer", "default": 1}},
    "required": ["name"],
}


async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[types.Tool(name="book", input_schema={"type": "object"})])


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> Any:
    if ctx.protocol_version < "2026-07-28":
        said = await ctx.session.elicit_form("Who flies?", SCHEMA, ctx.request_id)
        return told(said.action, said.content)
    if not params.input_responses:
        asked = types.ElicitRequestFormParams(message="Who flies?", requested_schema=SCHEMA)
        requests: Any = {"who": types.ElicitRequest(params=asked)}
        return types.InputRequiredResult(input_requests=requests, request_state="mine")
    answer = params.input_responses["who"]
    assert isinstance(answer, types.ElicitResult)
    return told(answer.action, answer.content, params.request_state)


def told(*said: Any) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=json.dumps(said))])


async def main() -> None:
    server: Server[Any] = Server("airline", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


anyio.run(main)
