"""The service over HTTP: start it, ask it what really happened, stop it."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, cast
from urllib.parse import urlsplit

from travel_world.api import Api, Faults
from travel_world.request import Record, Refusal, Request, bad_request
from travel_world.store import Store

MAX_BODY_BYTES = 64 * 1024


def serve(
    database_path: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    slow_bookings_s: float = 0.0,
    fail_bookings: int = 0,
    fail_bookings_before: int = 0,
) -> TravelService:
    """Start a service in a thread of this process and return it; use it as a context manager or `close()` it.

    Args:
        database_path: SQLite file, made when missing.
        port: 0 takes a free one; `service.port` and `service.url` say which.
        slow_bookings_s, fail_bookings, fail_bookings_before: see `Faults`; later changed through `service.faults`.
    Raises:
        OSError: the address is taken or not ours.
        sqlite3.Error: the file cannot be opened or is no database.
    """
    faults = Faults(
        slow_bookings_s=slow_bookings_s, fail_bookings=fail_bookings, fail_bookings_before=fail_bookings_before
    )
    store = Store(database_path)
    try:
        return TravelService(store, faults, host, port)
    except OSError:
        store.close()
        raise


class TravelService:
    """A running service; made by `serve`. Answers in threads until closed."""

    def __init__(self, store: Store, faults: Faults, host: str, port: int) -> None:
        self.store = store
        self.faults = faults
        self._closing = threading.Event()
        self._http = _HttpServer((host, port), Api(store, faults, self._closing))
        self.host, self.port = self._http.server_name, self._http.server_port
        self.url = f"http://{self.host}:{self.port}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name="travel", daemon=True
        )
        self._thread.start()

    def bookings(self, *, offer_id: str | None = None, passenger: str | None = None) -> list[Record]:
        """Return the bookings that were really made, oldest first."""
        return self.store.bookings(offer_id=offer_id, passenger=passenger)

    def entries(self) -> list[Record]:
        """Return the calendar entries, oldest first."""
        return self.store.entries()

    def requests(self) -> list[Record]:
        """Return every request that arrived: number, at, method, path, session, run, call, status."""
        return self.store.requests()

    def close(self) -> None:
        """Stop answering and close the file; slow replies are cut short. Safe to call twice."""
        self._closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self.store.close()

    def __enter__(self) -> TravelService:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], api: Api) -> None:
        self.api = api
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
    server_version = "travel"
    timeout = 30  # seconds a silent connection is kept
    wbufsize = -1  # head and body leave in one write
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        try:
            target = urlsplit(self.path)  # a proxy may send the absolute form
        except ValueError:
            return self.send_error(HTTPStatus.BAD_REQUEST, "The request target is malformed.")
        api = cast(_HttpServer, self.server).api
        number, status, reply = None, HTTPStatus.INTERNAL_SERVER_ERROR, cast(Record, {})
        try:
            path = target.path + (f"?{target.query}" if target.query else "")
            session, run, call = (self.headers.get(f"Lockstep-{name}") for name in ("Session", "Run", "Call"))
            number = api.store.log_request(self.command, path, session, run, call)
            request = Request(query_text=target.query, body_bytes=self._read_body(), header=self.headers.get)
            status, reply = api.answer(self.command, target.path, request)
        except Refusal as refusal:
            status, reply = refusal.status, {"error": refusal.sentence}
        except sqlite3.Error as error:
            reply = {"error": f"The database failed: {error}."}
        if number is not None:
            self._log_status(api.store, number, status)
        return self._send(status, reply)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _read_body(self) -> bytes:
        """Read the whole body, so that an error reply leaves the connection usable; else have it closed."""
        length = self.headers.get("Content-Length")
        if length is None and "Transfer-Encoding" not in self.headers:
            return b""
        self.close_connection, keep_open = True, not self.close_connection
        if length is None or "Transfer-Encoding" in self.headers:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "Send the body with a Content-Length.")
        if not re.fullmatch(r"[0-9]{1,18}", length):
            raise bad_request("The Content-Length is not a number.")
        if int(length) > MAX_BODY_BYTES:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise bad_request("The body is shorter than its Content-Length.")
        self.close_connection = not keep_open
        return body

    def _log_status(self, store: Store, number: int, status: int) -> None:
        try:
            store.log_status(number, status)
        except sqlite3.Error as error:  # what happened has happened; the reply must still leave
            print(f"travel service: request {number} could not be logged: {error}", file=sys.stderr)

    def _send(self, status: int, reply: Record) -> None:
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what `http.server` itself refuses (a malformed head, an unknown method) in our form too."""
        self.close_connection = True
        self._send(code, {"error": message or HTTPStatus(code).phrase})

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet: the request log is a table."""
