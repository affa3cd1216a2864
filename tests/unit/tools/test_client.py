"""What is said to a server in either era, and how the two sides settle on one. The server is a function here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from lockstep.agent.context import listed_in
from lockstep.tools import client as module
from lockstep.tools.client import MODERN, BadReply, McpClient, ServerError
from lockstep.tools.offering import offered

Answer = Callable[[dict[str, Any]], list[Any]]
UNKNOWN = {"code": -32601, "message": "Method not found"}


class Server:
    """A process that answers each frame with the frames that `answer` makes of it."""

    def __init__(self, answer: Answer) -> None:
        self.heard: list[dict[str, Any]] = []
        self._answer = answer
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()

    async def send(self, frame: bytes) -> None:
        self.heard.append(asked := json.loads(frame))
        for reply in self._answer(asked) if "id" in asked and "method" in asked else ():
            self._frames.put_nowait(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **reply}).encode())

    async def receive(self) -> bytes:
        return await self._frames.get()

    @property
    def methods(self) -> list[str]:
        return [asked["method"] for asked in self.heard if "method" in asked]


def speaking(**results: Any) -> Answer:
    """Answers by method, with `_` for `/`; an error for any other."""

    def answer(asked: dict[str, Any]) -> list[Any]:
        known = results.get(asked["method"].replace("/", "_"))
        return [{"error": UNKNOWN} if known is None else {"result": known}]

    return answer


def settled(answer: Answer) -> tuple[str, Server]:
    async def settle() -> tuple[str, Server]:
        server = Server(answer)
        return await McpClient(server).negotiate(), server  # type: ignore[arg-type]

    return asyncio.run(asyncio.wait_for(settle(), 20))


def shaking(version: Any = "2025-06-18") -> dict[str, Any]:
    return {"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}


def test_a_modern_server_is_settled_with_in_one_question() -> None:
    protocol, server = settled(speaking(server_discover={"supportedVersions": [MODERN, "2025-11-25"]}))
    assert (protocol, server.methods) == (MODERN, ["server/discover"])


@pytest.mark.parametrize(
    "discover", [None, {"supportedVersions": ["2027-01-01"]}, {}], ids=["unknown", "newer alone", "says nothing"]
)
def test_a_server_that_does_not_know_the_modern_revision_is_shaken_hands_with(discover: Any) -> None:
    protocol, server = settled(speaking(server_discover=discover, initialize=shaking()))
    assert (protocol, server.methods) == ("2025-06-18", ["server/discover", "initialize", "notifications/initialized"])
    assert "_meta" not in server.heard[1]["params"]


def test_a_server_that_waits_for_its_handshake_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISCOVER_S", 0.05)
    legacy = speaking(initialize=shaking())
    protocol, _ = settled(lambda asked: [] if asked["method"] == "server/discover" else legacy(asked))
    assert protocol == "2025-06-18"


def test_a_modern_server_that_is_slow_to_start_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISCOVER_S", 0.05)
    modern = speaking(server_discover={"supportedVersions": [MODERN]})
    starting = iter([True])
    protocol, server = settled(lambda asked: [] if next(starting, False) else modern(asked))
    assert (protocol, server.methods) == (MODERN, ["server/discover", "initialize", "server/discover"])


@pytest.mark.parametrize("version", ["1.0", MODERN, None, 7], ids=["old", "modern", "none", "number"])
def test_a_handshake_on_an_unknown_revision_is_refused(version: Any) -> None:
    with pytest.raises(BadReply, match="which is not known here"):
        settled(speaking(initialize=shaking(version)))


def test_a_server_that_knows_neither_says_so() -> None:
    with pytest.raises(ServerError, match="Method not found"):
        settled(speaking())


LISTS: dict[str, Any] = {
    "tools/list": {"tools": [{"name": "do", "inputSchema": {}}, {"name": "prompts/get", "inputSchema": {}}]},
    "prompts/list": {"prompts": [{"name": "greet", "arguments": [{"name": "whom"}]}, {"title": "no name"}]},
    "resources/templates/list": {"resourceTemplates": [{"uriTemplate": "x://{id}", "name": "x"}]},
    "resources/list": {"resources": [{"uri": "x://1", "name": "one"}]},
}


def listing(asked: dict[str, Any]) -> list[Any]:
    known = LISTS.get(asked["method"])
    return [{"error": UNKNOWN} if known is None else {"result": known}]


async def _offer(kinds: tuple[str, ...], answer: Answer = listing) -> tuple[Any, Server]:
    server = Server(answer)
    client = McpClient(server)  # type: ignore[arg-type]
    client.capabilities = {"completions": {}}
    return await offered(client, kinds), server


def test_a_server_is_asked_for_what_is_taken_of_it_and_no_more() -> None:
    offer, server = asyncio.run(_offer(("resources",)))
    assert server.methods == ["resources/templates/list"]
    assert [each["name"] for each in offer.tools] == ["resources/list", "resources/read", "completion/complete"]
    assert listed_in(offer.tools[1]) == LISTS["resources/templates/list"]["resourceTemplates"]
    assert "x://{id}" in offer.tools[1]["description"]


def test_prompts_are_locked_whole_and_no_tool_takes_their_place() -> None:
    offer, _ = asyncio.run(_offer(("tools", "prompts")))
    assert [each["name"] for each in offer.tools] == ["do", "prompts/get", "completion/complete"]
    assert listed_in(offer.tools[1]) == [{"name": "greet", "arguments": [{"name": "whom"}]}]
    assert offer.tools[1]["inputSchema"]["properties"]["name"]["enum"] == ["greet"]
    assert sorted(offer.problems) == ["'prompts/get' is called like a method", "tool 1: it has no name"]


def test_a_server_of_resources_need_not_have_templates_and_one_of_prompts_needs_prompts() -> None:
    offer, _ = asyncio.run(_offer(("resources",), lambda asked: [{"error": UNKNOWN}]))
    assert listed_in(offer.tools[1]) == []
    with pytest.raises(ServerError):
        asyncio.run(_offer(("prompts",), lambda asked: [{"error": UNKNOWN}]))


async def _said(protocol: str) -> Server:
    server = Server(speaking(initialize=shaking(), tools_call={"content": []}))
    client = McpClient(server)  # type: ignore[arg-type]
    await client.resume(protocol)
    await client.call_tool("do", {"a": 1}, {"traceparent": "00-1"})
    return server


def test_what_was_settled_costs_no_round_trip_and_every_request_says_the_revision() -> None:
    server = asyncio.run(_said(MODERN))
    assert server.methods == ["tools/call"]
    assert server.heard[0]["params"]["_meta"] == {
        "traceparent": "00-1",
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "lockstep", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }


def test_a_legacy_server_is_asked_for_what_was_settled() -> None:
    server = asyncio.run(_said("2025-03-26"))
    assert server.methods == ["initialize", "notifications/initialized", "tools/call"]
    assert server.heard[0]["params"]["protocolVersion"] == "2025-03-26"
    assert server.heard[2]["params"]["_meta"] == {"traceparent": "00-1"}


def test_all_pages_are_read_and_what_is_of_no_use_is_said() -> None:
    pages: dict[Any, Any] = {
        None: {"tools": [{"name": "a", "inputSchema": {}}, {"title": "no name"}], "nextCursor": "two"},
        "two": {"tools": [{"name": "b", "inputSchema": {}}, {"name": "c"}, {"name": "c"}]},
    }

    async def ask() -> tuple[list[str], tuple[str, ...]]:
        client = McpClient(Server(lambda asked: [{"result": pages[asked["params"].get("cursor")]}]))  # type: ignore[arg-type]
        offer = await client.list_tools()
        return [str(each["name"]) for each in offer.tools], offer.problems

    names, problems = asyncio.run(ask())
    assert names == ["a", "b"]
    assert problems == ("tool 1: it has no name", *(f"tool {n}: its name 'c' stands 2 times" for n in (3, 4)))


def test_a_ping_is_answered_and_a_wish_is_declined_and_kept() -> None:
    async def ask() -> tuple[Server, dict[str, int]]:
        def answer(asked: dict[str, Any]) -> list[Any]:
            wishes = [{"id": "p", "method": "ping"}, {"id": "s", "method": "sampling/createMessage"}]
            return [*wishes, {"id": True, "method": "roots/list"}, {"result": {"content": []}}]

        server = Server(answer)
        client = McpClient(server)  # type: ignore[arg-type]
        await client.call_tool("do", {}, {})
        return server, client.declined

    server, declined = asyncio.run(ask())
    assert declined == {"sampling/createMessage": 1}
    replies = {each["id"]: each for each in server.heard if "method" not in each}
    assert replies["p"]["result"] == {}
    assert replies["s"]["error"]["code"] == -32601
    assert set(replies) == {"p", "s"}
