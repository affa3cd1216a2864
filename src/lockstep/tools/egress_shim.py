"""Inside a sandbox with egress: a listener on the loopback that leads to the egress socket.

HTTP clients know `HTTP_PROXY=http://127.0.0.1:3128` and not unix sockets. Bytes are passed on as they are; what may
leave is decided outside. Standard library alone, one daemon thread however many connections.
"""

from __future__ import annotations

import select
import socket
import threading

PORT = 3128
SOCKET = "/run/egress.sock"

_CHUNK_BYTES = 64 * 1024
_BACKLOG = 16

_started = threading.Lock()
_port = 0


def start(port: int = PORT, path: str = SOCKET) -> int:
    """Listen on 127.0.0.1 and return the port; a second call returns the first one's.

    Raises:
        OSError: the port cannot be bound.
    """
    global _port
    with _started:
        if not _port:
            listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
            bound: int = listener.getsockname()[1]
            threading.Thread(target=_Relay(listener, path).run, name="egress", daemon=True).start()
            _port = bound
        return _port


class _End:
    """One end of a connection: its socket, what still has to be written to it, and its other end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.pending = bytearray()
        self.readable = True
        self.other: _End = self


class _Relay:
    """Moves bytes between both ends of each connection, reading no more than the other end takes."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        self._listener = listener
        self._path = path
        self._poll = select.poll()
        self._ends: dict[int, _End] = {}

    def run(self) -> None:
        self._poll.register(self._listener, select.POLLIN)
        while True:
            for number, event in self._poll.poll():
                if number == self._listener.fileno():
                    self._accept()
                elif number in self._ends:
                    self._step(self._ends[number], event)

    def _accept(self) -> None:
        caller, _ = self._listener.accept()
        outside = socket.socket(socket.AF_UNIX)
        try:
            outside.connect(self._path)
        except OSError:
            caller.close()
            outside.close()
            return
        one, two = _End(caller), _End(outside)
        one.other, two.other = two, one
        for end in (one, two):
            self._ends[end.sock.fileno()] = end
            self._poll.register(end.sock, select.POLLIN)

    def _step(self, end: _End, event: int) -> None:
        try:
            if event & select.POLLOUT:
                del end.pending[: end.sock.send(end.pending)]
                self._finish_writing(end)
            if event & (select.POLLIN | select.POLLHUP | select.POLLERR) and end.readable and not end.other.pending:
                data = end.sock.recv(_CHUNK_BYTES)
                end.readable = bool(data)
                end.other.pending += data
                self._finish_writing(end.other)
        except BlockingIOError:
            pass
        except OSError:
            self._close(end)
            return
        if not (end.readable or end.other.readable or end.pending or end.other.pending):
            self._close(end)
            return
        for one in (end, end.other):
            wanted = select.POLLIN if one.readable and not one.other.pending else 0
            self._poll.modify(one.sock, wanted | (select.POLLOUT if one.pending else 0))

    def _finish_writing(self, end: _End) -> None:
        """When everything the other end will ever say is written, say so."""
        if not end.pending and not end.other.readable:
            end.sock.shutdown(socket.SHUT_WR)

    def _close(self, end: _End) -> None:
        for one in (end, end.other):
            self._ends.pop(one.sock.fileno(), None)
            self._poll.unregister(one.sock)
            one.sock.close()
