"""An MCP client over a sandboxed process: just enough protocol for one call, and no trust in what comes back.

Everything received is attacker-controlled: frames are capped by the sandbox, parsed strictly, matched by id, and frames
nobody asked for are counted and dropped. Our runner and third-party stdio servers speak the same protocol here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from lockstep.sandbox.contract import Process
from lockstep.values import JsonObject

PROTOCOL_VERSION = "2025-06-18"
MAX_STRAY_FRAMES = 1000
MAX_PAGES = 50


class BadReply(Exception):
    """The server broke the protocol."""


class ServerError(Exception):
    """The server answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class McpClient:
    """One conversation with one server process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._next_id = 1
        self._stray = 0

    async def initialize(self) -> None:
        """The handshake.

        Raises:
            BadReply, ServerError, ProcessEnded: it does not speak MCP.
        """
        client = {"name": "lockstep", "version": "1"}
        params = {"protocolVersion": PROTOCOL_VERSION, "capabilities": {}, "clientInfo": client}
        await self.request("initialize", params)
        await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def list_tools(self) -> list[JsonObject]:
        """Every tool definition the server offers, all pages."""
        tools: list[JsonObject] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            result = await self.request("tools/list", {} if cursor is None else {"cursor": cursor})
            page = result.get("tools")
            if not isinstance(page, list) or not all(
                isinstance(t, dict) and isinstance(t.get("name"), str) for t in page
            ):
                raise BadReply("its list of tools is not a list of named tools")
            tools += page
            cursor = result.get("nextCursor")
            if not isinstance(cursor, str):
                return tools
        raise BadReply(f"its list of tools has more than {MAX_PAGES} pages")

    async def call_tool(self, name: str, arguments: JsonObject, meta: JsonObject) -> Mapping[str, Any]:
        """The raw `tools/call` result."""
        return await self.request("tools/call", {"name": name, "arguments": arguments, "_meta": meta})

    async def request(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        number, self._next_id = self._next_id, self._next_id + 1
        await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        while True:
            frame = await self._receive()
            if "method" in frame:
                await self._decline(frame)
            elif frame.get("id") == number:
                return _result(frame)
            self._count_stray(method)

    async def _decline(self, frame: Mapping[str, Any]) -> None:
        """Requests of a server to us (sampling, roots, elicitation) are declined; notifications are dropped."""
        if "id" in frame and isinstance(frame["id"], str | int):
            error = {"code": -32601, "message": "not offered"}
            await self._send({"jsonrpc": "2.0", "id": frame["id"], "error": error})

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


def _result(frame: Mapping[str, Any]) -> Mapping[str, Any]:
    error = frame.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        raise ServerError(code if isinstance(code, int) else 0, str(error.get("message", ""))[:4000])
    result = frame.get("result")
    if not isinstance(result, dict):
        raise BadReply("its answer has neither result nor error")
    return result
