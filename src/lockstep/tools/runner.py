"""The process inside a sandbox: offers the `@tool` functions of one module over MCP on stdin and stdout.

Started by the command that `guest.command` gives. Speaks newline-delimited JSON-RPC 2.0, one request at a time: the
modern stateless form (2026-07-28, `server/discover`) and the older handshake (`initialize`). Standard library alone.
Refuses to judge: what may be called is the gate's business, and how long and how much is the sandbox's.

A tool cannot disturb the channel by printing: file descriptor 1 is stderr and 0 is empty by the time it is imported.
A tool that exits ends the process with its exit code and without a reply, which the host can see.
"""

from __future__ import annotations

import json
import os
import sys

from lockstep import __version__
from lockstep.tools.results import ERROR_META, IMPORT_FAILED, NotJson, Raw, encode, failure, headline
from lockstep.tools.toolbox import ImportTrouble, Toolbox, UnknownTool, load

TYPE_CHECKING = False  # spelled out: importing `typing` would cost every sandbox start several milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

OUTPUT_BYTES_ENV = "LOCKSTEP_OUTPUT_BYTES"
DEFAULT_OUTPUT_BYTES = 2**20
_KEPT_BYTES = 512
"""Of the output allowance, for the reply that says that another reply was too large."""

HANDSHAKE_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
MODERN_VERSIONS = ("2026-07-28",)
_VERSION_META = "io.modelcontextprotocol/protocolVersion"
_SERVER_META = "io.modelcontextprotocol/serverInfo"

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
UNSUPPORTED_VERSION = -32022


class ProtocolError(Exception):
    """A request that gets a JSON-RPC error instead of a result."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Channel:
    """The private copies of stdin and stdout that the protocol runs on."""

    def __init__(self) -> None:
        """Take the two descriptors away from everybody else in the process: 1 becomes stderr, 0 is at its end."""
        self._requests = open(os.dup(0), "rb")  # noqa: SIM115 - lives as long as the process
        self._replies = os.dup(1)
        self._pid = os.getpid()
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        empty, closed = os.pipe()
        os.close(closed)
        os.dup2(empty, 0)
        os.close(empty)

    def requests(self) -> Iterable[bytes]:
        return self._requests

    def reply(self, frame: str) -> None:
        """Write one frame. A forked copy of the process ends here: there is one reply to a request."""
        if os.getpid() != self._pid:
            os._exit(0)
        left = memoryview(frame.encode() + b"\n")
        while left:
            left = left[os.write(self._replies, left) :]


_REHEARSAL = b'{"jsonrpc":"2.0","id":0,"method":"tools/call","params":{"name":"","arguments":{},"_meta":{}}}'
"""A call of no tool, made of oneself while nobody waits: what it touches first is slow to touch in a sandbox."""


def main(arguments: list[str]) -> None:
    """Serve the module named first in `arguments` until stdin ends; `--only a,b` offers just these tools."""
    limit_bytes = int(os.environ.get(OUTPUT_BYTES_ENV) or DEFAULT_OUTPUT_BYTES)
    channel = Channel()
    file, only = _options(arguments)
    try:
        toolbox = load(file, only)
        for number, line in enumerate(channel.requests()):
            if reply := answer(line, toolbox, limit_bytes):
                channel.reply(reply)
            if number == 0:
                answer(_REHEARSAL, toolbox, limit_bytes)
    except SystemExit as request:
        _leave(request.code)
    except KeyboardInterrupt:
        _leave(130)
    except BrokenPipeError:
        _leave(0)
    _leave(0)


def _options(arguments: list[str]) -> tuple[str, frozenset[str] | None]:
    if len(arguments) == 1:
        return arguments[0], None
    if len(arguments) == 3 and arguments[1] == "--only":
        return arguments[0], frozenset(arguments[2].split(","))
    raise SystemExit("usage: runner MODULE_FILE [--only NAME,NAME]")


def _leave(code: object) -> None:
    """End now, with the meaning `sys.exit` gives a code; threads that a tool left running do not hold us up."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


def answer(line: bytes, toolbox: Toolbox, limit_bytes: int) -> str:
    """The reply frame for one line; empty for what needs none (notifications, blank lines).

    `limit_bytes` may be sent for one call; a longer reply is replaced by an error.
    """
    if not line.strip():
        return ""
    request_id: str | int | None = None
    try:
        message = _parse(line)
        if "id" not in message or "result" in message or "error" in message:
            return ""
        request_id = _request_id(message)
        result = _perform(message["method"], message.get("params"), toolbox)
        frame = _frame(request_id, "result", result)
        size_bytes = len(frame.encode()) + 1
        if size_bytes <= limit_bytes - _KEPT_BYTES:
            return frame
        text = f"The reply has {size_bytes} bytes; at most {limit_bytes} bytes may be sent."
        return _too_large(request_id, message["method"], result, text)
    except NotJson as reason:
        return _frame(request_id, "error", {"code": INTERNAL_ERROR, "message": f"The reply is not JSON: {reason}."})
    except ProtocolError as error:
        body = {"code": error.code, "message": error.message}
        return _frame(request_id, "error", body if error.data is None else {**body, "data": error.data})


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as trouble:
        raise ProtocolError(PARSE_ERROR, f"Not JSON: {headline(trouble)}") from None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise ProtocolError(INVALID_REQUEST, 'Not a JSON-RPC message: expected an object with "jsonrpc": "2.0".')
    return message


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _request_id(message: dict[str, Any]) -> str | int:
    request_id = message["id"]
    if not isinstance(request_id, str | int) or isinstance(request_id, bool) or not str(request_id).isprintable():
        raise ProtocolError(INVALID_REQUEST, "A request's id must be a printable string or an integer.")
    if not isinstance(message.get("method"), str):
        raise ProtocolError(INVALID_REQUEST, 'A request must have a "method".')
    return request_id


def _perform(method: Any, params: Any, toolbox: Toolbox) -> dict[str, Any]:
    """`_handle`, with what the tools cannot give said in JSON-RPC."""
    try:
        return _handle(method, params, toolbox)
    except UnknownTool as reason:
        raise ProtocolError(INVALID_PARAMS, str(reason)) from None
    except ImportTrouble as reason:
        data = {ERROR_META: {"type": reason.kind, "stage": "import", "unknown": False, "place": reason.place}}
        raise ProtocolError(IMPORT_FAILED, str(reason), data) from None


def _handle(method: Any, params: Any, toolbox: Toolbox) -> dict[str, Any]:
    if params is None:
        params = {}
    if not isinstance(params, dict):
        raise ProtocolError(INVALID_PARAMS, "params must be an object.")
    modern = _is_modern(params)
    if method == "initialize":
        return _initialized(params)
    if method == "ping":
        result: dict[str, Any] = {}
    elif method == "server/discover":
        modern = True
        versions = [*MODERN_VERSIONS, *HANDSHAKE_VERSIONS]
        result = {"supportedVersions": versions, "capabilities": {"tools": {}}, **_uncached()}
    elif method == "tools/list":
        result = {"tools": toolbox.definitions(), **(_uncached() if modern else {})}
    elif method == "tools/call":
        _draw_anew()
        arguments = params.get("arguments")
        result = toolbox.call(params.get("name"), {} if arguments is None else arguments)
    else:
        raise ProtocolError(METHOD_NOT_FOUND, f"Method not found: {method}")
    if modern:
        result = {"resultType": "complete", **result, "_meta": {**result.get("_meta", {}), _SERVER_META: _identity()}}
    return result


def _draw_anew() -> None:
    """Give what draws random numbers a state of its own: this process may be one of many copies of a machine.

    The kernel's generator, and so `secrets` and `uuid4`, is renewed by whoever made the copy. A generator that a tool
    made itself while it was imported is its own business.
    """
    if (random := sys.modules.get("random")) is not None:
        random.seed()
    if (ssl := sys.modules.get("_ssl")) is not None:
        ssl.RAND_add(os.urandom(32), 32.0)


def _is_modern(params: dict[str, Any]) -> bool:
    """Whether a request carries the stateless form's envelope."""
    meta = params.get("_meta")
    version = meta.get(_VERSION_META) if isinstance(meta, dict) else None
    if version is None:
        return False
    if version not in MODERN_VERSIONS:
        data = {"supported": [*MODERN_VERSIONS, *HANDSHAKE_VERSIONS], "requested": version}
        raise ProtocolError(UNSUPPORTED_VERSION, f"Unsupported protocol version: {version}", data)
    return True


def _initialized(params: dict[str, Any]) -> dict[str, Any]:
    asked = params.get("protocolVersion")
    version = asked if asked in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[0]
    return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": _identity()}


def _identity() -> dict[str, Any]:
    return {"name": "lockstep-runner", "version": __version__}


def _uncached() -> dict[str, Any]:
    return {"ttlMs": 0, "cacheScope": "private"}


def _frame(request_id: str | int | None, key: str, body: dict[str, Any]) -> str:
    """One JSON-RPC reply as text; a Raw `structuredContent` is written in as it stands."""
    raw = body.get("structuredContent")
    if isinstance(raw, Raw):
        body = {name: each for name, each in body.items() if name != "structuredContent"}
        text = f'{encode(body)[:-1]},"structuredContent":{raw.text}}}'
    else:
        text = encode(body)
    return f'{{"jsonrpc":"2.0","id":{encode(request_id)},"{key}":{text}}}'


def _too_large(request_id: str | int, method: str, result: dict[str, Any], text: str) -> str:
    if method != "tools/call":
        raise ProtocolError(INTERNAL_ERROR, text)
    kept = {key: result[key] for key in ("resultType",) if key in result}
    return _frame(request_id, "result", {**kept, **failure("OutputTooLarge", text, stage="result")})
