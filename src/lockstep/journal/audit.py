"""The record of runs as a file of JSON lines that a stranger can check: `audit_check.py` is all that is needed.

    {"format":"lockstep-audit","version":1,"store":...,"runs":[{"run","events","head","session","principal","agent"}],
     "stops":{"events","head"} or null, "standing":likewise, "bodies":{type:[fields that may be out of line]}}
    {"blob":SHA-256,"text":...}                        before the first event that refers to it; bytes as "base64"
    {"absent":SHA-256}                                 in its place, where the store has lost it
    {"run","seq","at_ms","type","body","hash"}         "body" is what was hashed; where that is its deflated form, that
                                                       stands beside it in base64 as "deflated"; the run of what was
                                                       stopped and started is "stops", of what was approved beforehand
                                                       "standing"
    {"end":{"runs","events","blobs","digest"}}         counts, and SHA-256 over all bytes before this line

What the chain hashes goes out as it is stored: deflating it anew would give other bytes with another zlib. Nothing is
decoded into today's event types either, so an old or a damaged store is handed over as it is. Written as it is read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Protocol

from lockstep.journal.audit_check import BESIDE, FORMAT, VERSION
from lockstep.journal.codec import REFERENCE, unpack
from lockstep.journal.events import EVENT_TYPES
from lockstep.values import Digest

_MENTION = json.dumps(REFERENCE).strip('"').encode()
"""How a reference begins inside a body: looking for these bytes is cheaper than parsing each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """One hash chain: a run, or one of those beside the runs."""

    run: str
    events: int
    head: str
    session: str = ""
    principal: str = ""
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An event as stored."""

    seq: int
    at_ms: int
    type: str
    body: bytes
    hash: bytes


class Source(Protocol):
    """A store as it is at one moment, whoever writes to it meanwhile."""

    def runs(self) -> Sequence[Chain]:
        """What is to be exported, oldest first."""

    def beside(self) -> Sequence[Chain]:
        """Who stopped which agents, and what was approved beforehand, where that is to be exported and there is any."""

    def rows(self, run: str) -> Iterator[Row]: ...

    def blob(self, digest: Digest) -> bytes | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written. Who keeps `digest` elsewhere can tell this record from every other."""

    runs: int
    events: int
    blobs: int
    absent: int
    digest: str


def export(source: Source, file: BinaryIO, *, store: str) -> Exported:
    """Write the record of a source: every run, then what stands beside them."""
    out = _Lines(file)
    runs, beside = source.runs(), source.beside()
    bodies = {kind: list(cls.BODIES) for kind, cls in EVENT_TYPES.items() if hasattr(cls, "BODIES")}
    header = {"format": FORMAT, "version": VERSION, "store": store}
    heads = {chain.run: {"events": chain.events, "head": chain.head} for chain in beside}
    said = {name: heads.get(name) for name in BESIDE}
    out.write({**header, "runs": [asdict(run) for run in runs], **said, "bodies": bodies})
    written: set[bytes] = set()
    absent = events = 0
    for chain in [*runs, *beside]:
        for row in source.rows(chain.run):
            for digest in _references(row):
                if (key := bytes.fromhex(digest)) in written:
                    continue
                data = source.blob(digest)
                if data is None:
                    absent += 1
                    out.write({"absent": digest})
                else:
                    written.add(key)
                    out.write({"blob": digest, **_readable(data)})
            out.write(_event(chain.run, row))
            events += 1
    counts = {"runs": len(runs), "events": events, "blobs": len(written)}
    digest_before = out.digest
    out.write({"end": {**counts, "digest": digest_before}})
    return Exported(**counts, absent=absent, digest=digest_before)


class _Lines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._running = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._running.hexdigest()

    def write(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        self._running.update(line)
        self._file.write(line)


def _event(run: str, row: Row) -> dict[str, Any]:
    text = _text(row)
    # A body that was damaged in the store is no UTF-8 any more: it goes out legibly, and its hash will not follow.
    line = {"run": run, "seq": row.seq, "at_ms": row.at_ms, "type": row.type, "body": text.decode(errors="replace")}
    if text is not row.body:
        line["deflated"] = base64.b64encode(row.body).decode()
    return {**line, "hash": row.hash.hex()}


def _text(row: Row) -> bytes:
    try:
        return unpack(row.body)
    except zlib.error:
        return row.body


def _references(row: Row) -> Iterator[Digest]:
    text = _text(row)
    if _MENTION not in text:
        return
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return
    for name in getattr(EVENT_TYPES.get(row.type), "BODIES", ()):
        said = body.get(name)
        if isinstance(said, str) and said.startswith(REFERENCE):
            try:
                bytes.fromhex(said.removeprefix(REFERENCE))
            except ValueError:
                continue
            yield Digest(said.removeprefix(REFERENCE))


def _readable(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
