"""The airline as an HTTP service, so that its state lives outside the single-use sandboxes its tools run in.

    python service.py --port 8701

`POST /v1/<tool>` with a JSON object of arguments answers `{"result": "<text>"}`. The header `Lockstep-Session`, which
Lockstep's egress proxy stamps on every request, says whose airline is meant: each session has its own, made when first
named. Errors are `{"error": "<one sentence>"}`. What a session changed is read in Python alone, by `changes`: nothing
in a sandbox can ask for it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from backend import TOOLS, Airline, Record
from data import WORLDS, DataError, data_directory, load_world

SESSION_HEADER = "Lockstep-Session"
PREFIX = "/v1/"
MAX_BODY_BYTES = 256 * 1024
MAX_SESSION_CHARACTERS = 200


class BadRequest(Exception):
    """A request that cannot be carried out; nothing was changed."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def serve(database: Mapping[str, Mapping[str, Record]], port: int = 0, host: str = "127.0.0.1") -> AirlineService:
    """Start a service in a thread of this process and return it; use it as a context manager or `close()` it.

    Args:
        database: shared by all sessions and never written to.
        port: 0 takes a free one; `service.port` and `service.url` say which.
    Raises:
        OSError: the address is taken or not ours.
    """
    return AirlineService(database, host, port)


class AirlineService:
    """A running service; made by `serve`. Answers in threads until closed."""

    def __init__(self, database: Mapping[str, Mapping[str, Record]], host: str, port: int) -> None:
        self._database = database
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()
        self._http = _HttpServer((host, port), self)
        self.host, self.port = self._http.server_name, self._http.server_port
        self.url = f"http://{self.host}:{self.port}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name="airline", daemon=True
        )
        self._thread.start()

    def call(self, session: str, tool: str, arguments: dict[str, Any]) -> str:
        """Run one tool in a session's airline and return its text; calls of one session run one after another.

        Raises:
            BadRequest: no such tool, or the arguments are not the tool's.
        """
        if tool not in TOOLS:
            raise BadRequest(HTTPStatus.NOT_FOUND, f"There is no tool {tool!r}; there are {', '.join(sorted(TOOLS))}.")
        with self._lock:
            state = self._sessions.setdefault(session, _Session(self._database))
        method = getattr(state.airline, tool)
        try:
            inspect.signature(method).bind(**arguments)
        except TypeError as error:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"These are not the arguments of {tool}: {error}.") from error
        with state.lock:
            try:
                return cast(str, method(**arguments))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                # Tools store their changes last, so a value of the wrong shape has changed nothing.
                sentence = f"An argument of {tool} has not the shape its schema asks for ({error!r})."
                raise BadRequest(HTTPStatus.BAD_REQUEST, sentence) from error

    def changes(self, session: str) -> dict[str, dict[str, Record]]:
        """Return the records a session changed, by collection and id; none for a session that never called."""
        with self._lock:
            state = self._sessions.get(session)
        if state is None:
            return {}
        with state.lock:
            return state.airline.changes()

    def forget(self, session: str) -> None:
        """Drop a session's state; a later call starts from the database again."""
        with self._lock:
            self._sessions.pop(session, None)

    def close(self) -> None:
        """Stop answering. Safe to call twice."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def __enter__(self) -> AirlineService:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Session:
    def __init__(self, database: Mapping[str, Mapping[str, Record]]) -> None:
        self.airline = Airline(database)
        self.lock = threading.Lock()


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], service: AirlineService) -> None:
        self.service = service
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask DNS for the host's full name, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is its own business
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "airline"
    timeout = 30  # seconds a silent connection is kept
    wbufsize = -1  # head and body leave in one write
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        service = cast(_HttpServer, self.server).service
        try:
            body = self._read_body()
            text = service.call(self._session(), self._tool(), _arguments(body))
        except BadRequest as refusal:
            self._reply(refusal.status, {"error": str(refusal)})
        else:
            self._reply(HTTPStatus.OK, {"result": text})

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True  # where this request ends is not known
            raise BadRequest(HTTPStatus.LENGTH_REQUIRED, "The request has no Content-Length.")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise BadRequest(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The arguments are longer than {MAX_BODY_BYTES} bytes."
            )
        return self.rfile.read(int(length))

    def _session(self) -> str:
        session = self.headers.get(SESSION_HEADER, "").strip()
        if not session:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"The request has no {SESSION_HEADER} header.")
        if len(session) > MAX_SESSION_CHARACTERS:
            sentence = f"The {SESSION_HEADER} header is longer than {MAX_SESSION_CHARACTERS} characters."
            raise BadRequest(HTTPStatus.BAD_REQUEST, sentence)
        return session

    def _tool(self) -> str:
        try:
            path = unquote(urlsplit(self.path).path)  # a proxy may send the absolute form
        except ValueError:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "The request target is malformed.") from None
        if not path.startswith(PREFIX):
            raise BadRequest(HTTPStatus.NOT_FOUND, f"There is nothing at {path!r}; tools are at {PREFIX}<tool>.")
        return path.removeprefix(PREFIX)

    def _reply(self, status: HTTPStatus, body: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what `http.server` refuses itself, such as another method, in the same form."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._reply(status, {"error": message or status.phrase})

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet: the egress proxy records every request."""


def _arguments(body: bytes) -> dict[str, Any]:
    try:
        arguments = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(HTTPStatus.BAD_REQUEST, f"The body is not JSON ({error}).") from error
    if not isinstance(arguments, dict):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "The body is not a JSON object of arguments.")
    return arguments


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def main() -> int:
    """Serve until interrupted; 2 when the world cannot be read or the port not be had."""
    parser = argparse.ArgumentParser(description="Serve the airline's tools over HTTP.")
    parser.add_argument("--world", type=Path, help="JSON file with the database (default: in LOCKSTEP_DATA)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8701)
    options = parser.parse_args()
    try:
        world = load_world(options.world or data_directory() / WORLDS)
        service = serve(world.database, options.port, options.host)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, OverflowError) as error:
        print(f"Port {options.port} of {options.host} cannot be used: {error}.", file=sys.stderr)
        return 2
    with service:
        print(f"airline: {service.url}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
