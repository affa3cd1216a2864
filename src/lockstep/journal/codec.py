"""Events to bytes and back, and the hash that chains them.

Defaults are left out, so events stay small and an added optional field reads back from old records. A large body is
kept out of line: its place holds a reference by digest, so the chain covers it all the same.

Models and tools say things that are not Unicode text: half of a surrogate pair, from an escape cut in two. Those are
kept as they came, as JSON escapes, which only the standard library's codec reads and writes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import msgspec

from lockstep.errors import JournalCorrupt
from lockstep.journal.events import EVENT_TYPES, Event
from lockstep.values import Digest, RunId, sha256

INLINE_BYTES = 4096
COMPRESS_BYTES = 512
"""Bodies above this are deflated when that makes them smaller; JSON never begins like a zlib stream, so no flag."""
GENESIS = bytes(32)
REFERENCE = "\0blob:"  # a body that itself starts with NUL is always stored out of line, so this cannot be forged


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """An event as stored; `blobs` are the bodies kept out of line."""

    type: str
    body: bytes
    blobs: tuple[tuple[Digest, bytes], ...]


def encode(event: Event) -> Encoded:
    blobs: list[tuple[Digest, bytes]] = []
    values: dict[str, Any] = {}
    bodies = getattr(event, "BODIES", ())
    for name, default in _FIELDS[event.TYPE]:
        value = getattr(event, name)
        if value == default:
            continue
        if name in bodies and (len(value) > INLINE_BYTES // 4 or value.startswith("\0")):
            value = _out_of_line(value, blobs)
        values[name] = value
    return Encoded(type=event.TYPE, body=pack(_to_json(values)), blobs=tuple(blobs))


def decode(kind: str, body: bytes, load: Callable[[Digest], bytes]) -> Event:
    """The event a stored row stands for.

    Raises:
        JournalCorrupt: the type is unknown, the body does not parse, or a blob is missing or altered.
    """
    if kind not in EVENT_TYPES:
        raise JournalCorrupt(f"Event type {kind!r} is unknown to this version.", remedy="Use a newer Lockstep.")
    try:
        event = _from_json(kind, unpack(body))
    except (ValueError, zlib.error) as error:
        raise JournalCorrupt(f"A {kind} event does not parse: {error}.") from error
    changes: dict[str, Any] = {
        name: load(Digest(text.removeprefix(REFERENCE))).decode(errors="surrogatepass")
        for name in getattr(event, "BODIES", ())
        if (text := getattr(event, name)).startswith(REFERENCE)
    }
    return replace(event, **changes) if changes else event


def pack(data: bytes) -> bytes:
    """Event JSON as stored."""
    if len(data) <= COMPRESS_BYTES:
        return data
    packed = zlib.compress(data, 1)
    return packed if len(packed) < len(data) else data


def unpack(body: bytes) -> bytes:
    """Event JSON as written; the inverse of `pack`."""
    return body if body[:1] == b"{" else zlib.decompress(body)


def link(previous: bytes, run: RunId, seq: int, at_ms: int, kind: str, body: bytes) -> bytes:
    """The next hash of the chain: SHA-256 over the previous hash and everything the row says."""
    return hashlib.sha256(b"%b%b\0%d\0%d\0%b\0%b" % (previous, run.encode(), seq, at_ms, kind.encode(), body)).digest()


def seal(head: bytes, extract: bytes) -> bytes:
    """What binds an extract to the run it was drawn from: the run's last hash is of all its events."""
    return hashlib.sha256(b"%b\0%b" % (head, extract)).digest()


def _to_json(values: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(values)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(values), separators=(",", ":")).encode()


def _from_json(kind: str, data: bytes) -> Event:
    try:
        return _DECODERS[kind].decode(data)
    except msgspec.DecodeError as error:
        if isinstance(error, msgspec.ValidationError) or b"\\ud" not in data:
            raise
        return msgspec.convert(json.loads(data), EVENT_TYPES[kind])


def _out_of_line(text: str, blobs: list[tuple[Digest, bytes]]) -> str:
    data = text.encode(errors="surrogatepass")
    if len(data) <= INLINE_BYTES and not text.startswith("\0"):
        return text
    digest = sha256(data)
    blobs.append((digest, data))
    return REFERENCE + digest


_NO_DEFAULT = object()
_ENCODER = msgspec.json.Encoder()
_DECODERS: dict[str, msgspec.json.Decoder[Event]] = {
    kind: msgspec.json.Decoder(cls) for kind, cls in EVENT_TYPES.items()
}
_FIELDS = {
    kind: tuple((f.name, _NO_DEFAULT if f.default is MISSING else f.default) for f in fields(cls))
    for kind, cls in EVENT_TYPES.items()
}
