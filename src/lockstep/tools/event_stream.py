"""Server-sent events out of a stream of bytes. Linear in what it reads; whoever feeds it bounds how much that is.

Source: the HTML standard, "Server-sent events", 9.2.6 (interpreting an event stream).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerEvent:
    """One event with data."""

    kind: str
    data: bytes


class EventStream:
    """One stream, fed piece by piece. What it says of resuming is kept: `last_id`, and `retry_ms` or None."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self._begun = False
        self._after_cr = False
        self._line = bytearray()
        self._kind = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        """The events that come to their end in this piece."""
        for line in self._lines(piece):
            if not line:
                if (event := self._dispatch()) is not None:
                    yield event
            else:
                self._field(line)

    def begin_again(self) -> None:
        """The stream goes on over another connection; what was cut off is sent anew."""
        self._begun = self._after_cr = False
        self._line, self._kind, self._data = bytearray(), "", []

    def _lines(self, piece: bytes) -> Iterator[bytes]:
        """Whole lines; they end in CRLF, LF or CR, also where a CRLF is cut in two."""
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        if piece:
            self._after_cr = piece.endswith(b"\r")
        *whole, rest = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            self._line += line
            yield self._taken()
        self._line += rest

    def _taken(self) -> bytes:
        line, self._line = bytes(self._line), bytearray()
        if not self._begun:
            self._begun, line = True, line.removeprefix(_BOM)
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._kind = value.decode(errors="replace")
            case b"id" if b"\0" not in value:
                self.last_id = value.decode(errors="replace")
            case b"retry" if value.isdigit() and len(value) < 10:
                self.retry_ms = int(value)

    def _dispatch(self) -> ServerEvent | None:
        kind, data = self._kind or "message", b"\n".join(self._data)
        self._kind, self._data = "", []
        return ServerEvent(kind=kind, data=data) if data else None
