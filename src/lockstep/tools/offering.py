"""What a server offers, asked of it: tools, and as read-only tools of their own its resources and prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from lockstep.agent.context import COMPLETE, LISTED, METHODS, READ, definition, offered_by
from lockstep.tools.client import McpClient, ServerError
from lockstep.tools.definitions import Offer, salvage
from lockstep.values import JsonObject

_UNKNOWN_METHOD = -32601


async def offered(client: McpClient, offers: Collection[str]) -> Offer:
    """Everything of these kinds; a definition that is of no use does not take others with it.

    Raises:
        BadReply, ServerError, ProcessEnded: it does not have a list, or nothing in it can be used.
    """
    tools = await client.list_tools() if "tools" in offers else Offer(())
    wanted = [method for method in METHODS if offered_by(offers, method)]
    if "completions" not in client.capabilities:
        wanted = [method for method in wanted if method != COMPLETE]
    problems = list(tools.problems)
    context: list[JsonObject] = []
    for method in wanted:
        found = await _context(client, method)
        context += found.tools
        problems += found.problems
    usable = [each for each in tools.tools if each["name"] not in METHODS]
    problems += [f"{each['name']!r} is called like a method" for each in tools.tools if each["name"] in METHODS]
    return Offer((*usable, *salvage(context).tools), (*problems, *salvage(context).problems))


async def live(client: McpClient, method: str) -> Mapping[str, JsonObject]:
    """The definitions that a call of this method is held against, as they are now, by the server's own names."""
    offer = await _context(client, method) if method in METHODS else await client.list_tools()
    return {str(each["name"]): each for each in offer.tools}


async def _context(client: McpClient, method: str) -> Offer:
    if method not in LISTED:
        return Offer((definition(method),))
    lists, key, name = LISTED[method]
    try:
        listed = await client.listed(lists, key)
    except ServerError as error:
        if method != READ or error.code != _UNKNOWN_METHOD:
            raise
        listed = []  # a server of resources need not have templates
    found = salvage(listed, name)
    return replace(found, tools=(definition(method, found.tools),))
