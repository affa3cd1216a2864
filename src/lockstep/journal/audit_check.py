#!/usr/bin/env python3
"""Check an audit record that `lockstep audit export` wrote. Needs the file, this script and Python 3.8 or newer.

    python3 audit_check.py FILE [DIGEST]

It imports the standard library only and nothing of Lockstep, so it can be copied out and read in full. docs/audit.md
says what the lines are. Memory does not grow with the number of events: a line is read, checked and forgotten; of
each body kept out of line its digest is remembered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import zlib
from typing import Any, BinaryIO, NamedTuple

FORMAT = "lockstep-audit"
VERSION = 1
GENESIS = bytes(32)
ENDS = "run.finished"
AFTER_THE_END = "doubt.settled"
"""A person may still say what became of a call in doubt."""
BESIDE = ("stops", "standing")
"""Chains beside the runs: who stopped which agents, and what was approved beforehand."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REFERENCE = "\0blob:"


class Broken(Exception):
    """The first thing that does not hold, and the line it is in (from 1; 0: the file as a whole)."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}" if line else problem)
        self.line = line
        self.problem = problem


class Checked(NamedTuple):
    """A record that holds. `heads` are the last hashes by run; `digest` is of the whole file before its last line."""

    runs: int
    events: int
    blobs: int
    heads: dict[str, str]
    digest: str


def check(file: BinaryIO, digest: str = "") -> Checked:
    """Check a whole record, line by line; `digest` is the one that the export printed, when it is known.

    Raises:
        Broken: it does not hold.
    """
    reader = _Reader(file)
    checker = _Checker(reader.next("the file is empty"))
    while True:
        place, line = reader.next("the end is missing: the record was cut off")
        if "end" in line:
            break
        checker.add(place, line)
    checked = checker.end(place, line, reader.before_last)
    if reader.more():
        raise Broken(place + 1, "something follows the last line")
    if digest and digest != checked.digest:
        raise Broken(0, f"this is another record: its digest is {checked.digest}, not {digest}")
    return checked


class _Reader:
    """Lines with their numbers, and a running digest over all of them but the newest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0
        self._running = hashlib.sha256()
        self.before_last = ""
        self.raw_last = b""

    def next(self, missing: str) -> tuple[int, dict[str, Any]]:
        self._running.update(self.raw_last)
        self.before_last = self._running.hexdigest()
        self._place += 1
        self.raw_last = self._file.readline()
        if not self.raw_last.endswith(b"\n"):
            raise Broken(self._place, "the line is cut off" if self.raw_last else missing)
        try:
            value = json.loads(self.raw_last)
        except (ValueError, RecursionError):
            raise Broken(self._place, "this is no JSON") from None
        if not isinstance(value, dict):
            raise Broken(self._place, "this is no JSON object")
        if self.raw_last != _written(value):  # one way to write each line, so that nothing hides in another
            raise Broken(self._place, "the line is not as it was written")
        return self._place, value

    def more(self) -> bool:
        return bool(self._file.read(1))


class _Checker:
    """Holds each line against the header and against the line before it."""

    def __init__(self, header: tuple[int, dict[str, Any]]) -> None:
        place, line = header
        if line.get("format") != FORMAT:
            raise Broken(place, f"this is no {FORMAT} file")
        if line.get("version") != VERSION:
            raise Broken(place, f"format version {line.get('version')!r} is not {VERSION}: use a newer verifier")
        self._bodies = _of(place, line, "bodies", dict)
        self._runs = _of(place, line, "runs", list)
        """In the order in which their events follow."""
        self._count = len(self._runs)
        beside = [name for name in BESIDE if line.get(name) is not None]
        self._runs = [*self._runs, *({**_of(place, line, name, dict), "run": name} for name in beside)]
        if len({_of(place, run, "run", str) for run in self._runs}) < len(self._runs):
            raise Broken(place, "a run stands in the header twice")
        self._at = -1
        self._seq = 0
        self._head = GENESIS
        self._ended = False
        self._blobs: set[bytes] = set()
        self._events = 0
        self._heads: dict[str, str] = {}

    def add(self, place: int, line: dict[str, Any]) -> None:
        if "blob" in line:
            self._blob(place, line)
        elif "absent" in line:
            raise Broken(place, f"the body {line['absent']} was not in the store any more")
        else:
            self._event(place, line)

    def _blob(self, place: int, line: dict[str, Any]) -> None:
        digest = _of(place, line, "blob", str)
        if "base64" in line:
            data = _base64(place, line["base64"])
        else:
            data = _of(place, line, "text", str).encode("utf-8", "surrogatepass")
        if hashlib.sha256(data).hexdigest() != digest:
            raise Broken(place, f"the body {digest} was changed")
        self._blobs.add(bytes.fromhex(digest))

    def _event(self, place: int, line: dict[str, Any]) -> None:
        run, seq = _of(place, line, "run", str), _of(place, line, "seq", int)
        at_ms, kind = _of(place, line, "at_ms", int), _of(place, line, "type", str)
        if seq == 1:
            self._begin(place)
        if not 0 <= self._at < len(self._runs) or run != self._runs[self._at]["run"]:
            raise Broken(place, f"an event of run {run} stands where none of it is expected")
        if seq != self._seq + 1:
            raise Broken(place, f"event {seq} of run {run} stands where event {self._seq + 1} is expected")
        if self._ended and kind != AFTER_THE_END:
            raise Broken(place, f"{kind} follows {ENDS} in run {run}")
        stored, body = _stored(place, line)
        said = b"%b%b\0%d\0%d\0%b\0%b" % (self._head, run.encode(), seq, at_ms, kind.encode(), stored)
        head = hashlib.sha256(said).digest()
        if head.hex() != line.get("hash"):
            raise Broken(place, f"event {seq} of run {run} ({kind}) was changed: its hash does not follow")
        self._references(place, kind, body)
        if seq == 1 and run not in BESIDE:
            self._beginning(place, kind, body)
        self._seq, self._head, self._events = seq, head, self._events + 1
        self._ended = self._ended or kind == ENDS

    def _begin(self, place: int) -> None:
        self._done(place)
        self._at += 1
        self._seq, self._head, self._ended = 0, GENESIS, False

    def _done(self, place: int) -> None:
        """Done with a run: it must be as the header says."""
        if not 0 <= self._at < len(self._runs):
            return
        said = self._runs[self._at]
        if self._seq != said.get("events"):
            raise Broken(place, f"run {said['run']} has {self._seq} events here and {said.get('events')} in the header")
        if self._head.hex() != said.get("head"):
            raise Broken(place, f"the last hash of run {said['run']} is not the one in the header")
        self._heads[said["run"]] = self._head.hex()

    def _references(self, place: int, kind: str, body: dict[str, Any]) -> None:
        for name in self._bodies.get(kind, ()):
            text = body.get(name)
            if not isinstance(text, str) or not text.startswith(_REFERENCE):
                continue
            digest = text[len(_REFERENCE) :]
            if not _DIGEST.fullmatch(digest) or bytes.fromhex(digest) not in self._blobs:
                raise Broken(place, f"the body {digest!r:.80} that this event refers to does not stand before it")

    def _beginning(self, place: int, kind: str, body: dict[str, Any]) -> None:
        said = self._runs[self._at]
        if kind != "run.started":
            raise Broken(place, f"run {said['run']} does not begin with run.started")
        for name in ("session", "principal", "agent"):
            if body.get(name) != said.get(name):
                raise Broken(place, f"the {name} of run {said['run']} is not the one in the header")

    def end(self, place: int, line: dict[str, Any], digest: str) -> Checked:
        """Hold the last line against everything that came before it."""
        said = _of(place, line, "end", dict)
        self._done(place)
        if self._at + 1 < len(self._runs):
            raise Broken(place, f"run {self._runs[self._at + 1]['run']} of the header has no events here")
        found = {"runs": self._count, "events": self._events, "blobs": len(self._blobs), "digest": digest}
        for name, value in found.items():
            if said.get(name) != value:
                raise Broken(place, f"{name}: the last line says {said.get(name)!r}, the lines before it {value!r}")
        return Checked(self._count, self._events, len(self._blobs), self._heads, digest)


def _stored(place: int, line: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The bytes that were hashed, and the JSON they stand for. Larger bodies are stored deflated."""
    if "deflated" in line:
        stored = _base64(place, line["deflated"])
    else:
        stored = _of(place, line, "body", str).encode("utf-8", "surrogatepass")
    text = stored
    if "deflated" in line:
        text = _of(place, line, "body", str).encode("utf-8", "surrogatepass")
        try:
            inflated = zlib.decompressobj().decompress(stored, len(text) + 1)
        except zlib.error:
            inflated = b""
        if inflated != text:
            raise Broken(place, "the body is not what its deflated form holds")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Broken(place, "the body of this event is no JSON") from None
    if not isinstance(value, dict):
        raise Broken(place, "the body of this event is no JSON object")
    return stored, value


def _of(place: int, line: Any, name: str, kind: type) -> Any:
    value = line.get(name) if isinstance(line, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Broken(place, f"{name!r} is missing or of another kind")
    return value


def _base64(place: int, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise Broken(place, "this is no base64") from None


def _written(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print("usage: python3 audit_check.py FILE [DIGEST]", file=sys.stderr)
        return 2
    digest: str | None = arguments[1] if len(arguments) > 1 else None
    try:
        with open(arguments[0], "rb") as file:
            checked = check(file, digest or "")
    except OSError as error:
        print(f"{arguments[0]}: {error.strerror}", file=sys.stderr)
        return 2
    except Broken as broken:
        print(f"broken: {broken}")
        return 1
    print(f"whole: {checked.runs} runs, {checked.events} events, {checked.blobs} bodies, digest {checked.digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
