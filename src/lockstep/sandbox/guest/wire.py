"""The wire between host and guest: many byte channels on one stream, none able to block or flood another.

A frame is kind (1 byte), channel (4), length (4), payload. Each direction of a channel starts with `WINDOW` bytes of
credit; CREDIT returns what the receiver has passed on. Control messages are JSON objects on channel 0. Used by both
ends; does no input or output of its own.
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False  # spelled out: importing `typing` would cost every boot under emulation
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Message = dict[str, Any]
    Frame = tuple[int, int, bytes]

CONTROL, OPEN, DATA, END, CREDIT, RESET = range(6)
"""CONTROL: JSON. OPEN: the guest has a new egress connection. END: no more bytes this way. RESET: broken off."""
CONTROL_CHANNEL, STDIN, STDOUT, STDERR, FIRST_CONNECTION = range(5)

HEADER = struct.Struct("!BII")
WINDOW = 256 * 2**10
CHUNK = 32 * 2**10
"""The most that one DATA frame carries."""
CONTROL_BYTES = 1 * 2**20
GUEST_CONTROL_BYTES = 16 * 2**10
"""The host takes no larger control message than this from a guest."""


class WireError(Exception):
    """The other end broke the rules of the wire; nothing more can be believed of it."""


def encode(kind: int, channel: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, channel, len(payload)) + payload


def encode_control(message: Message) -> bytes:
    return encode(CONTROL, CONTROL_CHANNEL, json.dumps(message).encode())


def encode_credit(channel: int, size: int) -> bytes:
    return encode(CREDIT, channel, size.to_bytes(4, "big"))


class Decoder:
    """Bytes in, frames out; keeps at most one incomplete frame."""

    def __init__(self, control_bytes: int) -> None:
        self._control_bytes = control_bytes
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that these bytes complete.

        Raises:
            WireError: a frame of no known kind, or longer than its kind may be.
        """
        self._pending += data
        start = 0
        while len(self._pending) - start >= HEADER.size:
            kind, channel, length = HEADER.unpack_from(self._pending, start)
            if length > self._longest(kind):
                raise WireError(f"a frame of kind {kind} with {length} bytes")
            end = start + HEADER.size + length
            if len(self._pending) < end:
                break
            payload = bytes(self._pending[start + HEADER.size : end])
            start = end
            yield kind, channel, payload
        del self._pending[:start]

    def _longest(self, kind: int) -> int:
        if kind == CONTROL:
            return self._control_bytes
        if kind == DATA:
            return CHUNK
        if kind == CREDIT:
            return 4
        if kind in (OPEN, END, RESET):
            return 0
        raise WireError(f"a frame of unknown kind {kind}")


def control_message(payload: bytes) -> Message:
    """The object in a CONTROL frame.

    Raises:
        WireError: it is not a JSON object.
    """
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError("a control message that is not JSON") from error
    if not isinstance(message, dict):
        raise WireError("a control message that is not an object")
    return message


class Credit:
    """What may be sent on one direction of a channel."""

    def __init__(self) -> None:
        self.left = WINDOW

    def take(self, size: int) -> None:
        """Account for received or sent bytes.

        Raises:
            WireError: they exceed the credit.
        """
        self.left -= size
        if self.left < 0:
            raise WireError("more bytes than were granted")

    def grant(self, payload: bytes) -> None:
        """Take a CREDIT frame.

        Raises:
            WireError: it grants more than was ever sent.
        """
        self.left += int.from_bytes(payload, "big")
        if len(payload) != 4 or self.left > WINDOW:
            raise WireError("credit for bytes that were never sent")
