"""An MCP client over a sandboxed process: just enough protocol for one call, and no trust in what comes back.

Everything received is attacker-controlled: frames are capped by the sandbox, parsed strictly, matched by an id that
nobody can guess, and frames nobody asked for are counted and dropped: what was left of an earlier call, or said before
it was asked, is an answer to nothing. Our runner and third-party servers speak the same protocol here; a server
elsewhere has the face of a process.

Two eras: the modern revision has no handshake, every request says in `_meta` which revision it is; the legacy ones
begin with `initialize`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from lockstep.agent.context import LIST
from lockstep.gate.rounds import Round
from lockstep.sandbox.contract import Process, ProcessEnded
from lockstep.tools.definitions import Offer, read_page, salvage
from lockstep.tools.inputs import ONE, WORDS, BadQuestion, read_request
from lockstep.tools.port import Ask, Notice, Watched
from lockstep.values import JsonObject

MODERN = "2026-07-28"
CALL = "tools/call"
GET_TASK, UPDATE_TASK, CANCEL_TASK = "tasks/get", "tasks/update", "tasks/cancel"
LISTEN, CANCELLED = "subscriptions/listen", "notifications/cancelled"
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
RUNNER_PROTOCOL = "2025-06-18"
"""What our own runner is spoken to in."""
MAX_STRAY_FRAMES = 1000
MAX_NOTICES = 500
MAX_PAGES = 50
MAX_DEFINITIONS = 1000
DISCOVER_S = 5.0
"""How long a server may think about a request that only the modern revision knows, before it is taken for a legacy
one that is waiting for its handshake."""
LINGER_S = 0.05
META = "io.modelcontextprotocol/"
_ID_BITS = 30
"""With one more a number that fits into 32 bits with a sign, which is what some servers hold an id in. Few guesses are
listened to in one request."""
TASKS = f"{META}tasks"
"""The extension by which a server may answer a call with a task."""
LOG_LEVEL = f"{META}logLevel"
_UNSUPPORTED_VERSION = -32022
_CLIENT: JsonObject = {"name": "lockstep", "version": "1"}
CAPABILITIES: Mapping[str, JsonObject] = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}


class BadReply(Exception):
    """The server broke the protocol."""


class ServerError(Exception):
    """The server answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data

    @property
    def message(self) -> str:
        return str(self)


class Unauthorized(ServerError):
    """A server elsewhere refuses who asks (`code` is 401 or 403), or a token for it cannot be had."""


class McpClient:
    """One conversation with one server process, in `protocol` once that is settled."""

    def __init__(self, process: Process, offers: Collection[str] = ()) -> None:
        """`offers`: what a server may ask for, of `tools.inputs.WORDS`."""
        self._process = process
        self.offers = frozenset(offers)
        self.takes_tasks = False
        """Whether the server is told that it may answer a call with a task."""
        self._stray = 0
        self._watching: int | None = None
        """The number of the request by which the server says what changes."""
        self.ask: Ask | None = None
        """Who answers what a server asks for that holds its call open; only of a legacy one."""
        self.protocol = ""
        self.capabilities: Mapping[str, Any] = {}
        """What the server said it has, where it was asked."""
        self.hear: Callable[[Notice], None] | None = None
        """Told what the server says unasked, while it is set: at most `MAX_NOTICES` times a request."""
        self.declined: dict[str, int] = {}
        """What the server asked of us and did not get: method -> how often."""

    async def negotiate(self) -> str:
        """Settle on a revision: the modern one where the server knows it, else what it shakes hands on.

        Raises:
            BadReply, ServerError, ProcessEnded: it does not speak MCP.
        """
        silent = False
        try:
            async with asyncio.timeout(DISCOVER_S):
                if await self._is_modern():
                    return self.protocol
        except TimeoutError:
            silent = True
        try:
            await self.initialize(LEGACY[0])
        except Unauthorized:
            raise
        except ServerError:  # one that was only slow to start answers by now, and may know nothing else
            if not silent or not await self._is_modern():
                raise
        return self.protocol

    async def _is_modern(self) -> bool:
        """Whether the server says that it knows the modern revision, which is then the one spoken."""
        self.protocol = MODERN
        for _ in range(2):
            try:
                found = await self.request("server/discover", {})
            except Unauthorized:
                raise
            except ServerError as error:
                if error.code == _UNSUPPORTED_VERSION and MODERN in _supported(error.data):
                    continue  # it says that it takes what it refused: asked once more
                return False
            versions = found.get("supportedVersions")
            if isinstance(versions, list) and MODERN in versions:
                self._take_capabilities(found)
                return True
            return False
        return False

    async def resume(self, protocol: str) -> None:
        """Speak a revision that was settled on before: without a round trip where the revision has no handshake.

        Raises:
            BadReply, ServerError, ProcessEnded: it does not speak MCP.
        """
        if protocol == MODERN:
            self.protocol = MODERN
        else:
            await self.initialize(protocol or RUNNER_PROTOCOL)

    async def initialize(self, protocol: str = RUNNER_PROTOCOL) -> None:
        """The handshake of the legacy revisions; the server may answer with another of them.

        Raises:
            BadReply, ServerError, ProcessEnded: it does not speak MCP.
        """
        self.protocol = protocol
        result = await self.request(
            "initialize", {"protocolVersion": protocol, "capabilities": self._capabilities, "clientInfo": _CLIENT}
        )
        answered = result.get("protocolVersion")
        if answered not in LEGACY:
            raise BadReply(f"it wants to speak the revision {answered!r:.40}, which is not known here")
        self.protocol = str(answered)
        self._take_capabilities(result)
        await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def list_tools(self) -> Offer:
        """The tool definitions the server offers, all pages; one that is of no use does not take others with it.

        Raises:
            BadReply, ServerError, ProcessEnded: it has no list, or nothing in it can be used.
        """
        tools = await self.listed("tools/list", "tools")
        offer = salvage(tools)
        if tools and not offer.tools:
            raise BadReply(f"its list of tools is not a list of named tools: {'; '.join(offer.problems)}")
        return offer

    async def listed(self, method: str, key: str, meta: JsonObject | None = None) -> list[Any]:
        """What the server lists under `key`, all pages of it.

        Raises:
            BadReply, ServerError, ProcessEnded: it has no such list, or one without end.
        """
        items: list[Any] = []
        more: dict[str, Any] = {} if meta is None else {"_meta": meta}
        for _ in range(MAX_PAGES):
            page = read_page(await self.request(method, more), key)
            if page is None:
                raise BadReply(f"its list of {key} is not a list of named {key}")
            items += page.items
            if len(items) > MAX_DEFINITIONS:
                raise BadReply(f"it offers more than {MAX_DEFINITIONS} {key}")
            if page.cursor is None:
                return items
            more["cursor"] = page.cursor
        raise BadReply(f"its list of {key} has more than {MAX_PAGES} pages")

    async def call_tool(
        self, name: str, arguments: JsonObject, meta: JsonObject, round: Round | None = None
    ) -> Mapping[str, Any]:
        """The raw `tools/call` result; with `round` the call goes on that a result which required input had ended."""
        return await self.request(CALL, {"name": name, "arguments": arguments, **self._going_on(round), "_meta": meta})

    async def ask_task(self, method: str, task: str, more: JsonObject | None = None) -> Mapping[str, Any]:
        """The raw result of one of the methods that are about a task."""
        return await self.request(method, {"taskId": task, **(more or {})})

    async def ask_context(
        self, method: str, arguments: JsonObject, meta: JsonObject, round: Round | None = None
    ) -> Mapping[str, Any]:
        """The raw result of a method that reads; of a list, all pages of it. `round` as for a tool."""
        if method == LIST:
            return {"resources": await self.listed(method, "resources", meta)}
        return await self.request(method, {**arguments, **self._going_on(round), "_meta": meta})

    async def watch(self, watched: Watched) -> None:
        """Have a modern server say what changes of this, beside what it is asked, until `unwatch`."""
        number = _new_id()
        changes: JsonObject = {"resourceSubscriptions": sorted(watched.resources)} if watched.resources else {}
        changes = {**changes, "resourcesListChanged": True} if watched.lists else changes
        params = self._enveloped({"notifications": changes})
        self._watching = number
        await self._send({"jsonrpc": "2.0", "id": number, "method": LISTEN, "params": params})

    async def linger(self) -> None:
        """Hear what is said of changes a moment after an answer: it comes on another way, also of what the call did."""
        if self._watching is None:
            return
        with contextlib.suppress(TimeoutError, ProcessEnded, BadReply):  # the answer is there, whatever comes now
            async with asyncio.timeout(LINGER_S):
                while "method" in (frame := await self._receive()):
                    self._tell(frame)
                    self._stray += 1

    async def unwatch(self) -> None:
        """Whatever else it says of that is said to nobody."""
        number, self._watching = self._watching, None
        if number is not None:
            await self._send({"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": number}})

    def _going_on(self, round: Round | None) -> JsonObject:
        """What a request says beyond its first round."""
        more: dict[str, Any] = {}
        if round is not None:
            if round.responses and self.protocol == MODERN:
                more["inputResponses"] = round.responses
            if round.state is not None:
                more["requestState"] = round.state
        return more

    async def request(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        number = _new_id()
        self._stray = 0
        await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": self._enveloped(params)})
        while True:
            frame = await self._receive()
            if "method" in frame and "id" not in frame:
                self._tell(frame)
            elif "method" in frame:
                if not await self._answered(frame):
                    await self._decline(frame)
            elif frame.get("id") == number:
                return _result(frame)
            self._count_stray(method)

    @property
    def _capabilities(self) -> JsonObject:
        extensions: JsonObject = {"extensions": {TASKS: {}}} if self.takes_tasks else {}
        return {**{name: CAPABILITIES[name] for name in sorted(self.offers)}, **extensions}

    def _enveloped(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.protocol != MODERN:
            return params
        envelope = {
            f"{META}protocolVersion": MODERN,
            f"{META}clientInfo": _CLIENT,
            f"{META}clientCapabilities": self._capabilities,
        }
        return {**params, "_meta": {**params.get("_meta", {}), **envelope}}

    async def _answered(self, frame: Mapping[str, Any]) -> bool:
        """Put a request to whoever is there, if there is somebody and the server may ask this."""
        number, method = frame.get("id"), frame["method"]
        word = next((word for word, known in WORDS.items() if known == method and word in self.offers), None)
        if self.ask is None or word is None or self.protocol == MODERN or not _is_id(number):
            return False
        try:
            asked = read_request(frame, self.offers)
        except BadQuestion as problem:
            raise BadReply(str(problem)) from problem
        result = (await self.ask(asked) or {}).get(ONE)
        if result is None:
            return False
        await self._send({"jsonrpc": "2.0", "id": number, "result": result})
        return True

    async def _decline(self, frame: Mapping[str, Any]) -> None:
        """Requests of a server to us (sampling, roots, elicitation) are declined."""
        number = frame.get("id")
        if not _is_id(number):
            return
        if frame["method"] == "ping":
            await self._send({"jsonrpc": "2.0", "id": number, "result": {}})
            return
        asked = str(frame["method"])[:60]
        if asked in self.declined or len(self.declined) < 10:
            self.declined[asked] = self.declined.get(asked, 0) + 1
        error = {"code": -32601, "message": "not offered"}
        await self._send({"jsonrpc": "2.0", "id": number, "error": error})

    def _tell(self, frame: Mapping[str, Any]) -> None:
        params = frame.get("params")
        if self.hear is not None and self._stray < MAX_NOTICES:
            self.hear(Notice(method=str(frame["method"]), params=params if isinstance(params, dict) else {}))

    def _take_capabilities(self, said: Mapping[str, Any]) -> None:
        capabilities = said.get("capabilities")
        self.capabilities = capabilities if isinstance(capabilities, dict) else {}

    def _count_stray(self, method: str) -> None:
        self._stray += 1
        if self._stray > MAX_STRAY_FRAMES:
            raise BadReply(f"it sent more than {MAX_STRAY_FRAMES} frames nobody asked for during {method}")

    async def _send(self, frame: Mapping[str, Any]) -> None:
        await self._process.send(json.dumps(frame).encode())

    async def _receive(self) -> Mapping[str, Any]:
        data = await self._process.receive()
        try:
            frame = msgspec.json.decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise BadReply(f"it sent a frame that is not JSON ({error})") from error
        if not isinstance(frame, dict):
            raise BadReply("it sent a frame that is not an object")
        return frame


def _supported(data: Any) -> list[Any]:
    supported = data.get("supported") if isinstance(data, dict) else None
    return supported if isinstance(supported, list) else []


def _new_id() -> int:
    """The id of a request: chance, so that it is new in every process and no answer to it is there beforehand."""
    return 1 << _ID_BITS | secrets.randbits(_ID_BITS)


def _is_id(number: Any) -> bool:
    return isinstance(number, str | int) and not isinstance(number, bool)


def _result(frame: Mapping[str, Any]) -> Mapping[str, Any]:
    error = frame.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        said = str(error.get("message", ""))[:4000]
        raise ServerError(code if isinstance(code, int) else 0, said, error.get("data"))
    result = frame.get("result")
    if not isinstance(result, dict):
        raise BadReply("its answer has neither result nor error")
    return result
