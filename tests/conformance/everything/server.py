"""A server of everything: what the conformance suite's server scenarios ask for, by the names that they prescribe.

Written as a stranger would, on the SDK's low-level server, over stdio. It knows nothing of Lockstep: it runs in a
sandbox behind the gate like any other server. What asks its client back is in `asking.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import asking
from mcp import MCPError, types
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SOUND = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
STEP_S = 0.05
WORDS = ("paris", "park", "party", "test", "testing")
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
ADDRESS = {"$anchor": "addressDef", "type": "object", "properties": {"street": {"type": "string"}}}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {**ADDRESS, "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

Said = types.CallToolResult | types.InputRequiredResult
Tool = Callable[[Any, types.CallToolRequestParams], Awaitable[Said]]
bus = InMemorySubscriptionBus()


def said(*blocks: Any, **more: Any) -> types.CallToolResult:
    content = [types.TextContent(text=each) if isinstance(each, str) else each for each in blocks]
    return types.CallToolResult(content=content, **more)


def text_of(uri: str, mime_type: str, text: str) -> types.EmbeddedResource:
    return types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def saying(*blocks: Any, **more: Any) -> Tool:
    """A tool that always says the same."""

    async def tool(ctx: Any, params: Any) -> Said:
        return said(*blocks, **more)

    return tool


async def logs(ctx: Any, params: Any) -> Said:
    for number, line in enumerate(("started", "processing data", "completed")):
        if number:
            await asyncio.sleep(STEP_S)
        words = f"Tool {line}" if number == 1 else f"Tool execution {line}"
        await ctx.session.send_log_message("info", words, related_request_id=ctx.request_id)
    return said("Tool with logging executed successfully")


async def progresses(ctx: Any, params: Any) -> Said:
    for done in (0, 50, 100):
        if done:
            await asyncio.sleep(STEP_S)
        await ctx.session.report_progress(done, 100, f"Completed step {done} of 100")
    return said("Tool with progress executed successfully")


async def needs_sampling(ctx: Any, params: Any) -> Said:
    capabilities = ctx.session.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        needed = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs sampling.", needed)
    return said("sampling is there")


async def changes_tools(ctx: Any, params: Any) -> Said:
    await bus.publish(ToolsListChanged())
    await ctx.session.send_tool_list_changed()
    return said("The list of tools is said to have changed.")


async def changes_prompts(ctx: Any, params: Any) -> Said:
    await bus.publish(PromptsListChanged())
    await ctx.session.send_prompt_list_changed()
    return said("The list of prompts is said to have changed.")


MIXED = (
    "Multiple content types test:",
    types.ImageContent(data=PICTURE, mime_type="image/png"),
    text_of("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
)
TOOLS: dict[str, tuple[str, dict[str, Any], Tool]] = {
    "test_simple_text": ("One sentence", NOTHING, saying("This is a simple text response for testing.")),
    "test_image_content": ("An image", NOTHING, saying(types.ImageContent(data=PICTURE, mime_type="image/png"))),
    "test_audio_content": ("A sound", NOTHING, saying(types.AudioContent(data=SOUND, mime_type="audio/wav"))),
    "test_embedded_resource": (
        "A resource in the result",
        NOTHING,
        saying(text_of("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
    ),
    "test_multiple_content_types": ("Text, an image and a resource", NOTHING, saying(*MIXED)),
    "test_error_handling": (
        "Fails on purpose",
        NOTHING,
        saying("This tool intentionally returns an error for testing", is_error=True),
    ),
    "test_tool_with_logging": ("Logs while it works", NOTHING, logs),
    "test_logging_tool": ("Logs while it works", NOTHING, logs),
    "test_tool_with_progress": ("Says how far it is", NOTHING, progresses),
    "test_missing_capability": ("Needs a client that samples", NOTHING, needs_sampling),
    "test_trigger_tool_change": ("Says that the tools changed", NOTHING, changes_tools),
    "test_trigger_prompt_change": ("Says that the prompts changed", NOTHING, changes_prompts),
    "json_schema_2020_12_tool": ("Tool with JSON Schema 2020-12 features", SCHEMA, saying("taken")),
    **asking.TOOLS,
}


async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
    return types.ListToolsResult(
        tools=[
            types.Tool(name=name, description=about, input_schema=schema) for name, (about, schema, _) in TOOLS.items()
        ]
    )


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> Said:
    if params.name not in TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    return await TOOLS[params.name][2](ctx, params)


RESOURCES = {
    "test://static-text": ("text/plain", "This is the content of the static text resource."),
    "test://static-binary": ("image/png", None),
    "test://watched-resource": ("text/plain", "Watched resource content"),
}


async def list_resources(ctx: Any, params: Any) -> types.ListResourcesResult:
    return types.ListResourcesResult(
        resources=[
            types.Resource(
                uri=uri, name=uri.removeprefix("test://"), description=f"A {kind} for testing", mime_type=kind
            )
            for uri, (kind, _) in RESOURCES.items()
        ]
    )


async def list_templates(ctx: Any, params: Any) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(
        uri_template="test://template/{id}/data",
        name="template",
        description="Data of an id",
        mime_type="application/json",
    )
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    uri = str(params.uri)
    head, _, tail = uri.removeprefix("test://template/").partition("/")
    if uri.startswith("test://template/") and tail == "data" and head:
        kind, text = "application/json", json.dumps({"id": head, "templateTest": True, "data": f"Data for ID: {head}"})
    elif uri in RESOURCES:
        kind, known = RESOURCES[uri]
        if known is None:
            blob = types.BlobResourceContents(uri=uri, mime_type=kind, blob=PICTURE)
            return types.ReadResourceResult(contents=[blob])
        text = known
    else:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    return types.ReadResourceResult(contents=[types.TextResourceContents(uri=uri, mime_type=kind, text=text)])


def argument(name: str) -> types.PromptArgument:
    return types.PromptArgument(name=name, description=f"{name} for testing", required=True)


PROMPTS = {
    "test_simple_prompt": ("A prompt without arguments", []),
    "test_prompt_with_arguments": ("A prompt with arguments", [argument("arg1"), argument("arg2")]),
    "test_prompt_with_embedded_resource": ("A prompt with a resource in it", [argument("resourceUri")]),
    "test_prompt_with_image": ("A prompt with an image", []),
    asking.PROMPT: ("A prompt that asks first", []),
}


async def list_prompts(ctx: Any, params: Any) -> types.ListPromptsResult:
    prompts = [types.Prompt(name=name, description=what, arguments=takes) for name, (what, takes) in PROMPTS.items()]
    return types.ListPromptsResult(prompts=prompts)


async def get_prompt(
    ctx: Any, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    given = params.arguments or {}
    blocks: list[Any]
    match params.name:
        case "test_simple_prompt":
            blocks = ["This is a simple prompt for testing."]
        case "test_prompt_with_arguments":
            blocks = [f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'"]
        case "test_prompt_with_embedded_resource":
            embedded = text_of(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
            blocks = [embedded, "Please process the embedded resource above."]
        case "test_prompt_with_image":
            blocks = [types.ImageContent(data=PICTURE, mime_type="image/png"), "Please analyze the image above."]
        case asking.PROMPT:
            return await asking.prompt(ctx, params)
        case other:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {other}")
    return types.GetPromptResult(messages=[asking.message(each) for each in blocks])


async def complete(ctx: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
    found = [word for word in WORDS if word.startswith(params.argument.value)]
    return types.CompleteResult(completion=types.Completion(values=found, total=len(found), has_more=False))


async def nothing(ctx: Any, params: Any) -> types.EmptyResult:
    return types.EmptyResult()


async def main() -> None:
    server: Server[Any] = Server(
        "everything",
        version="1",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=nothing,
        on_unsubscribe_resource=nothing,
        on_subscriptions_listen=ListenHandler(bus),
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
        on_set_logging_level=nothing,
    )
    server.middleware.append(asking.state_boundary())
    async with stdio_server() as (reads, writes):
        await server.run(reads, writes, server.create_initialization_options())


if __name__ == "__main__":
    asyncio.run(main())
