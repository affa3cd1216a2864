"""A small travel service: flights to search, bookings that cost money, a calendar.

It is deliberately as careless as many real services are: the same booking sent twice is two bookings, and an
`Idempotency-Key` is stored but not honoured.

    python service.py --db travel.db --port 8700

Every reply is JSON; every error is `{"error": "<one sentence>"}`. State is one SQLite file (WAL), readable while it
runs. This file is the command line; what a request means is in `travel_world/api.py`.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sqlite3
import sys
import threading

from travel_world.server import serve


def main(arguments: list[str] | None = None) -> int:
    """Run the service until SIGTERM or SIGINT; 2 when it cannot start."""
    options = _parse_options(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        service = serve(
            options.db,
            options.host,
            options.port,
            slow_bookings_s=options.slow_bookings,
            fail_bookings=options.fail_bookings,
            fail_bookings_before=options.fail_bookings_before,
        )
    except sqlite3.Error as error:
        return _cannot_start(f"{options.db} cannot be used as its database ({error})")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _cannot_start(f"port {options.port} is in use; choose another with --port")
        return _cannot_start(f"it cannot listen on {options.host} port {options.port} ({error.strerror or error})")
    with service:
        print(f"travel service on {service.url}", flush=True)
        stop.wait()
    return 0


def _cannot_start(because: str) -> int:
    print(f"The travel service cannot start: {because}.", file=sys.stderr)
    return 2


def _parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="service.py", description="A small travel service for the Lockstep example.")
    parser.add_argument("--db", required=True, metavar="FILE", help="SQLite file, made when missing")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=0, help="0 (the default) takes a free one")
    parser.add_argument(
        "--slow-bookings", type=_seconds, default=0.0, metavar="SECONDS", help="book, then reply that much later"
    )
    parser.add_argument(
        "--fail-bookings",
        type=_count,
        default=0,
        metavar="N",
        help="the first N booking requests book, then answer 503",
    )
    parser.add_argument(
        "--fail-bookings-before", type=_count, default=0, metavar="N", help="the first N answer 503 and book nothing"
    )
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
