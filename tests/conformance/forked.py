"""Clients for the conformance suite, forked from one process that has imported what they need.

The suite starts a client for each of some fifty scenarios, and most of what a client takes is its imports.

    forked.py serve SOCKET     says "ready", and forks a client for each that asks, until it is ended
    forked.py SOCKET URL       what the suite starts: asks for a client that has our environment and our output
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

MAX_ASKED_BYTES = 2**17


def serve(path: str) -> NoReturn:
    import client  # and below, what it imports only where it is needed

    import lockstep.tools.login
    import lockstep.tools.remote
    import lockstep.tools.remote_http
    import lockstep.tools.token_auth  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    work(client.main, connection)


def work(main: Callable[[], int], connection: socket.socket) -> NoReturn:
    """Be the client that was asked for, and say with which code it ended."""
    asked, (out, err), *_ = socket.recv_fds(connection, MAX_ASKED_BYTES, 2)
    os.dup2(out, 1)
    os.dup2(err, 2)
    said = json.loads(asked)
    os.environ.clear()
    os.environ.update(said["environment"])
    sys.argv[1:] = said["arguments"]
    code = 1
    try:
        code = main()
    finally:
        if sys.exception():
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(str(code).encode())
        os._exit(code)


def ask(path: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        asked = json.dumps({"environment": dict(os.environ), "arguments": arguments})
        socket.send_fds(connection, [asked.encode()], [1, 2])
        return int(connection.recv(16) or b"1")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
