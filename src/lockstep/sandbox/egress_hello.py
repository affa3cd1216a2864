"""The first words of TLS: which host a ClientHello asks for. Pure; decrypts nothing, answers nothing.

RFC 8446 (records 5.1, ClientHello 4.1.2) and RFC 6066 (server name). Stricter than a TLS library: whatever could hide
the name, or be read as two names, is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

HELLO_BYTES = 32 * 2**10
"""The longest ClientHello that is read, with its record headers; with post-quantum keys they have about 2 KiB."""

_HANDSHAKE, _CLIENT_HELLO, _TLS_MAJOR = 22, 1, 3
_RECORD_HEADER, _MESSAGE_HEADER = 5, 4
_RECORD_BYTES = 2**14
_SERVER_NAME, _HOST_NAME = 0, 0
_SERVER_HELLO, _SERVER_RANDOM = b"\x02", slice(6, 38)
_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()
"""The random value of a ServerHello that is a HelloRetryRequest."""
_ENCRYPTED = frozenset({0xFE0D, 0xFFCE, *range(0xFE08, 0xFE0D)})
"""Extensions that carry the real name encrypted: Encrypted Client Hello, its drafts, and ESNI before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientHello:
    """What a client says first. `server_name` is in lower case, None when it names none."""

    server_name: str | None
    encrypted: bool
    """Whether it carries, or pretends to carry, another name that only the server can read."""


class HelloReader:
    """Puts a ClientHello together from pieces however they are cut, each byte looked at once."""

    def __init__(self) -> None:
        self.raw = bytearray()
        """Everything fed so far."""
        self._message = bytearray()
        self._at = 0

    @property
    def behind(self) -> bytes:
        """What was fed beyond the last whole record."""
        return bytes(self.raw[self._at :])

    def feed(self, piece: bytes) -> ClientHello | None:
        """The hello when `piece` completes it, else None.

        Raises:
            ValueError: this is not TLS, not a ClientHello, or too long; one phrase that says which.
        """
        self.raw += piece
        while len(self.raw) - self._at >= _RECORD_HEADER or self._at == 0:
            if self.raw and self.raw[self._at] != _HANDSHAKE:
                raise ValueError("it does not begin with a TLS ClientHello")
            record = self._record()
            if record is None:
                break
            self._message += record
            if (body := self._body()) is not None:
                return _parsed(body)
        if len(self.raw) > HELLO_BYTES:
            raise ValueError(f"its ClientHello is longer than {HELLO_BYTES} bytes")
        return None

    def _record(self) -> bytes | None:
        """The next whole record's content."""
        begin = self._at + _RECORD_HEADER
        if len(self.raw) < begin:
            return None
        length = int.from_bytes(self.raw[begin - 2 : begin])
        if self.raw[self._at + 1] != _TLS_MAJOR or not 0 < length <= _RECORD_BYTES:
            raise ValueError("it does not begin with a TLS ClientHello")
        if len(self.raw) < begin + length:
            return None
        self._at = begin + length
        return bytes(self.raw[begin : self._at])

    def _body(self) -> bytes | None:
        """The whole handshake message without its header."""
        if self._message[0] != _CLIENT_HELLO:
            raise ValueError("it does not begin with a TLS ClientHello")
        end = _MESSAGE_HEADER + int.from_bytes(self._message[1:_MESSAGE_HEADER])
        if len(self._message) < _MESSAGE_HEADER or len(self._message) < end:
            return None
        if len(self._message) > end:
            raise ValueError("something stands behind its ClientHello in the same record")
        return bytes(self._message[_MESSAGE_HEADER:])


class HelloWatch:
    """Watches a tunnel that is passed through for a second ClientHello, until none can come any more.

    A server may answer the first with HelloRetryRequest (RFC 8446, 4.1.4). It is then sent another in plain text, which
    need not name the same host; `check` is given that one. Nothing else is looked into.
    """

    def __init__(self, check: Callable[[ClientHello], None]) -> None:
        self._check = check
        self._answer = bytearray()
        self._answered = self._settled = False
        self._second: HelloReader | None = None
        self._held = b""
        self._left = 0
        """Bytes of the client's record under way that are passed on unseen."""

    def from_server(self, piece: bytes) -> bytes:
        """The same; only a ServerHello that asks for no other hello settles it."""
        if self._answered:
            return piece
        self._answer += piece
        message, at = b"", 0
        while len(self._answer) - at >= _RECORD_HEADER and self._answer[at] == _HANDSHAKE:
            begin = at + _RECORD_HEADER
            at = begin + int.from_bytes(self._answer[begin - 2 : begin])
            message += self._answer[begin:at]
        said = message[_SERVER_RANDOM]
        if len(said) == len(_RETRY) or (len(self._answer) > at and self._answer[at] != _HANDSHAKE):
            self._answered = True
            self._settled = message[:1] == _SERVER_HELLO and said != _RETRY
        return piece

    def from_client(self, piece: bytes) -> bytes:
        """What of all that came so far may be passed on now.

        Raises:
            ValueError: it may not; one phrase that says why. Also whatever `check` raises.
        """
        data, self._held = self._held + piece, b""
        passed = b""
        while data and not self._settled:
            if self._left:
                passed += data[: self._left]
                self._left, data = max(0, self._left - len(data)), data[self._left :]
            elif self._second is None and len(data) < _RECORD_HEADER:
                self._held, data = data, b""
            elif self._second is None and data[0] != _HANDSHAKE:
                self._left = _RECORD_HEADER + int.from_bytes(data[_RECORD_HEADER - 2 : _RECORD_HEADER])
            else:
                passed, data = passed + self._hello(data), b""
        return passed + data

    def _hello(self, data: bytes) -> bytes:
        """The second ClientHello and what came with it, once it is whole and checked."""
        if not self._answered:
            raise ValueError("it goes on before the server has answered its ClientHello")
        self._second = self._second or HelloReader()
        hello = self._second.feed(data)
        if hello is None:
            return b""
        self._check(hello)
        self._settled = True
        return bytes(self._second.raw)


class _Fields:
    """Reads length-prefixed fields; running out of bytes is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        if count > len(self.data):
            raise ValueError("its ClientHello is malformed")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """A field whose length stands before it in `size` bytes."""
        return self.take(self.number(size))


def _parsed(body: bytes) -> ClientHello:
    fields = _Fields(body)
    fields.take(2 + 32)  # version, random
    for size in (1, 2, 1):  # session id, cipher suites, compression methods
        fields.vector(size)
    extensions: dict[int, bytes] = {}
    listed = _Fields(fields.vector(2) if fields.data else b"")
    while listed.data:
        kind, content = listed.number(2), listed.vector(2)
        if kind in extensions:
            raise ValueError("its ClientHello says something twice")
        extensions[kind] = content
    if fields.data:
        raise ValueError("its ClientHello is malformed")
    name = extensions.get(_SERVER_NAME)
    return ClientHello(
        server_name=None if name is None else _server_name(name), encrypted=not _ENCRYPTED.isdisjoint(extensions)
    )


def _server_name(content: bytes) -> str:
    whole = _Fields(content)
    names = _Fields(whole.vector(2))
    kind, name = names.number(1), names.vector(2)
    if whole.data or names.data or kind != _HOST_NAME:
        raise ValueError("its ClientHello names more than one server")
    try:
        return name.decode("ascii").lower()
    except UnicodeDecodeError:
        raise ValueError("its server name is not ASCII") from None
