"""A server of the SDK's low-level kind whose tools ask their user back, in whichever era it is spoken to; one of them
changes resources.

Over stdio, or with `http` as argument on a port that it prints.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourcesListChanged, ResourceUpdated
from mcp.shared.exceptions import UrlElicitationRequiredError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "seats": {"type": "integer", "default": 1}},
    "required": ["name"],
}


VISITS: list[Any] = []
BUS = InMemorySubscriptionBus()


async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
    names = ("book", "wander", "enter", "think", "change")
    return types.ListToolsResult(tools=[types.Tool(name=each, input_schema={"type": "object"}) for each in names])


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> Any:
    if params.name == "enter":
        VISITS.append(params)
        if len(VISITS) == 1:
            page = types.ElicitRequestURLParams(message="Log in.", url="https://in.example/", elicitation_id="e1")
            raise UrlElicitationRequiredError([page])
        return told("entered", params.input_responses)
    if params.name == "change":
        for uri in ("x://1", "x://2"):
            await BUS.publish(ResourceUpdated(uri=uri))
        await BUS.publish(ResourcesListChanged())
        return told("changed")
    if params.name == "think":
        return await think(ctx, params)
    if ctx.protocol_version < "2026-07-28":
        related = ctx.request_id if params.name == "book" else None  # None: over the stream that is nobody's answer
        said = await ctx.session.elicit_form("Who flies?", SCHEMA, related)
        return told(said.action, said.content)
    if not params.input_responses:
        asked = types.ElicitRequestFormParams(message="Who flies?", requested_schema=SCHEMA)
        requests: Any = {"who": types.ElicitRequest(params=asked)}
        return types.InputRequiredResult(input_requests=requests, request_state="mine")
    answer = params.input_responses["who"]
    assert isinstance(answer, types.ElicitResult)
    return told(answer.action, answer.content, params.request_state)


async def think(ctx: Any, params: types.CallToolRequestParams) -> Any:
    words = types.SamplingMessage(role="user", content=types.TextContent(text="Capital of France?"))
    if ctx.protocol_version < "2026-07-28":
        answer = await ctx.session.create_message([words], max_tokens=9, related_request_id=ctx.request_id)
    elif not params.input_responses:
        asked = types.CreateMessageRequestParams(messages=[words], max_tokens=9)
        requests: Any = {"m": types.CreateMessageRequest(params=asked)}
        return types.InputRequiredResult(input_requests=requests, request_state="mine")
    else:
        answer = params.input_responses["m"]
    assert isinstance(answer, types.CreateMessageResult)
    return told(answer.role, getattr(answer.content, "text", ""), answer.model, answer.stop_reason)


def told(*said: Any) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=json.dumps(said))])


async def serve_http(server: Server[Any]) -> None:
    import uvicorn

    config = uvicorn.Config(server.streamable_http_app(), log_level="warning")
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve([listening])


async def main() -> None:
    server: Server[Any] = Server(
        "airline", on_list_tools=list_tools, on_call_tool=call_tool, on_subscriptions_listen=ListenHandler(BUS)
    )
    if sys.argv[1:] == ["http"]:
        await serve_http(server)
        return
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


anyio.run(main)
