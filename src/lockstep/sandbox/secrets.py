"""Secrets a tool may use and never see: placeholders inside, values outside. Pure; opens nothing, asks nobody.

A placeholder is worth nothing by itself: it becomes the value only in the one header, towards the one host, that its
binding names. So finding it elsewhere is a matter of telling, and scrubbing replies is what protects the value.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
import secrets as chance
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from lockstep.sandbox.contract import SecretBinding

MIN_VALUE_CHARACTERS = 8
PLACEHOLDER = "lockstep-placeholder-"

_BASIC = re.compile(rb"(basic +)([A-Za-z0-9+/=]+) *", re.IGNORECASE)
_DECODINGS = 3
_WIDEST = 9
"""Bytes that one byte may take in the forms that are looked for: percent-encoded twice (`%252D`) and some."""

Headers = list[tuple[bytes, bytes]]


def new_placeholder() -> str:
    """What stands for one secret in one sandbox."""
    return PLACEHOLDER + chance.token_hex(16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One secret of one sandbox during one call."""

    binding: SecretBinding
    placeholder: bytes
    value: bytes = field(repr=False)


def held(bindings: Iterable[SecretBinding], placeholders: Mapping[str, str], values: Mapping[str, str]) -> list[Held]:
    """The secrets of a call; `placeholders` and `values` are by the variable inside."""
    return [
        Held(binding=one, placeholder=placeholders[one.env].encode(), value=values[one.env].encode())
        for one in bindings
    ]


def bound_to(secrets: Iterable[Held], host: str, port: int) -> list[Held]:
    """Those whose value this server may be sent."""
    return [one for one in secrets if (one.binding.host, one.binding.port) == (host, port)]


def filled(headers: Iterable[tuple[bytes, bytes]], secrets: Sequence[Held]) -> Headers:
    """The headers with values in place of placeholders, each only in the header of its binding."""
    return [(name, _in_header(name, text, [(s, s.value) for s in secrets])) for name, text in headers]


def emptied(headers: Iterable[tuple[bytes, bytes]], secrets: Sequence[Held]) -> Headers:
    """The headers without the placeholders that `filled` would swap: what is left of them is misplaced."""
    return [(name, _in_header(name, text, [(s, b"") for s in secrets])) for name, text in headers]


class Watch:
    """Looks for placeholders in a stream of pieces, also where one is cut in two: plain, percent-encoded, base64."""

    def __init__(self, secrets: Iterable[Held]) -> None:
        placeholders = [one.placeholder for one in secrets]
        self._forms = [form for one in placeholders for form in (one, *_base64_forms(one))]
        self._kept_bytes = _WIDEST * max(map(len, placeholders), default=0)
        self._kept = b""

    def sees(self, piece: bytes) -> bool:
        """Whether one has come to its end in this piece."""
        if not self._forms:
            return False
        window = self._kept + piece
        self._kept = window[-self._kept_bytes :]
        return any(form in text for text in _readings(window) for form in self._forms)


class Scrubber:
    """Replaces byte strings in a stream; holds back only what may be the beginning of one."""

    def __init__(self, replacements: Mapping[bytes, bytes]) -> None:
        self._replacements = replacements
        longest_first = sorted(replacements, key=len, reverse=True)
        self._any = re.compile(b"|".join(map(re.escape, longest_first)))
        self._longest = len(longest_first[0])
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """What can be passed on by now."""
        buffer = self._held + piece
        return self._scrubbed(buffer, len(buffer) - self._open_bytes(buffer))

    def end(self) -> bytes:
        """The rest: the stream is over, so nothing begins in it any more."""
        return self._scrubbed(self._held, len(self._held))

    def whole(self, text: bytes) -> bytes:
        """A text of its own, beside the stream."""
        return self._any.sub(lambda found: self._replacements[found[0]], text)

    def _scrubbed(self, buffer: bytes, end: int) -> bytes:
        out, at = bytearray(), 0
        for found in self._any.finditer(buffer):
            if found.start() >= end:
                break  # a longer one may begin here
            out += buffer[at : found.start()] + self._replacements[found[0]]
            at = found.end()
        end = max(end, at)
        self._held = buffer[end:]
        return bytes(out + buffer[at:end])

    def _open_bytes(self, buffer: bytes) -> int:
        """The length of the longest end of the buffer that begins something to be replaced."""
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            tail = buffer[-length:]
            if any(len(one) > length and one.startswith(tail) for one in self._replacements):
                return length
        return 0


def replacements(secrets: Sequence[Held], sent: Headers, written: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """What must not be in a reply -> what stands there instead: values in the forms services echo them in.

    `sent` are the headers with values, `written` the same ones as the sandbox wrote them.
    """
    found: dict[bytes, bytes] = {}
    for one in secrets:
        for form in (*_base64_forms(one.value), *_text_forms(one.value), one.value):
            found[form] = one.placeholder
    for (_, filled_in), (_, original) in zip(sent, written, strict=True):
        if (was := _BASIC.fullmatch(original)) and (now := _BASIC.fullmatch(filled_in)) and was[2] != now[2]:
            found[now[2]] = was[2]
    return found


def scrubbed_text(text: str, secrets: Sequence[Held]) -> str:
    """A sentence of ours that may quote a server."""
    return Scrubber(replacements(secrets, [], [])).whole(text.encode()).decode() if secrets else text


def _in_header(name: bytes, text: bytes, secrets: Iterable[tuple[Held, bytes]]) -> bytes:
    for secret, new in secrets:
        if name.lower() == secret.binding.header.lower().encode():
            text = _in_basic(name, text, secret.placeholder, new) or text.replace(secret.placeholder, new)
    return text


def _in_basic(name: bytes, text: bytes, placeholder: bytes, new: bytes) -> bytes:
    """`Authorization: Basic` with the placeholder in its credentials replaced; empty when this is not that."""
    basic = _BASIC.fullmatch(text) if name.lower() == b"authorization" else None
    if basic is None:
        return b""
    try:
        credentials = base64.b64decode(basic[2], validate=True)
    except binascii.Error:
        return b""
    if placeholder not in credentials:
        return b""
    return basic[1] + base64.b64encode(credentials.replace(placeholder, new))


def _readings(text: bytes) -> Iterator[bytes]:
    """The text, and what it is when percent-decoded, once or more often."""
    for _ in range(_DECODINGS):
        yield text
        decoded = unquote_to_bytes(text) if b"%" in text else text
        if decoded == text:
            return
        text = decoded


def _base64_forms(text: bytes) -> tuple[bytes, ...]:
    """What of `text` stands in the base64 of anything that contains it, for each way its bytes may fall."""
    forms = []
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text)
        whole = encoded[-(-before * 8 // 6) : (before + len(text)) * 8 // 6]
        forms += [whole, whole.translate(bytes.maketrans(b"+/", b"-_"))]
    return tuple(dict.fromkeys(forms))


def _text_forms(value: bytes) -> set[bytes]:
    """How a value looks in an URL, in JSON, in HTML, and quoted in an error of ours."""
    text = value.decode()
    as_json = json.dumps(text)[1:-1]
    url = quote(text, safe="")
    lower = re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), url)
    quoted = text.replace("\\", "\\\\")
    forms = {url, lower, url.replace("%20", "+"), as_json, as_json.replace("/", r"\/"), html.escape(text)}
    return {form.encode() for form in forms | {quoted, quoted.replace("'", r"\'")}}
