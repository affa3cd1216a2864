"""`agent.lock`: an agent resolved into four dimensions of digested parts, one digest over all.

The lock holds what shapes behaviour, readable in a diff: values and texts in full, code by the digest of its files. A
part's digest is SHA-256 over RFC 8785 JSON or over file bytes; a dimension's, over the map of its parts' digests; the
lock's, over the map of its dimensions' digests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.agent.files import read_text
from lockstep.errors import ConfigError, LockError
from lockstep.values import Digest, JsonObject, digest_json, sha256

LOCK_FILE = "agent.lock"
FORMAT = 1
_ANEW = "Run `lockstep lock` to write it anew."
DIMENSIONS = ("model", "prompt", "tools", "memory")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One thing that shapes behaviour: a JSON `value`, a `text`, or only the digest of a file."""

    sha256: Digest
    value: JsonObject | None = None
    text: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """A resolved agent. `files` are the bytes behind file digests, kept in memory only."""

    agent: str
    parts: Mapping[str, Mapping[str, Part]]
    """Dimension -> part name -> part; every dimension is present."""
    files: Mapping[str, bytes] = field(default_factory=dict, compare=False)

    def dimension_digest(self, dimension: str) -> Digest:
        return digest_json({name: part.sha256 for name, part in self.parts[dimension].items()})

    @property
    def digest(self) -> Digest:
        """The one version number: of the agent's name and its four dimensions."""
        dimensions = {dimension: self.dimension_digest(dimension) for dimension in DIMENSIONS}
        return digest_json({"agent": self.agent, "dimensions": dimensions, "lockstep": FORMAT})

    def tools(self) -> dict[str, JsonObject]:
        """Locked tools by name, in name order."""
        return {
            name.removeprefix("tool "): part.value
            for name, part in self.parts["tools"].items()
            if name.startswith("tool ") and part.value is not None
        }

    def policies(self) -> dict[str, str]:
        """Cedar text by file name."""
        return {
            name.removeprefix("policy "): part.text
            for name, part in self.parts["tools"].items()
            if name.startswith("policy ") and part.text is not None
        }


def differing_parts(a: Lock, b: Lock) -> tuple[str, ...]:
    """`dimension: part` for each part that differs, in dimension order."""
    out = []
    for dimension in DIMENSIONS:
        left, right = a.parts[dimension], b.parts[dimension]
        for name in sorted({*left, *right}):
            if name not in left or name not in right or left[name].sha256 != right[name].sha256:
                out.append(f"{dimension}: {name}")
    if a.agent != b.agent:
        out.append("agent: name")
    return tuple(out)


def to_text(lock: Lock) -> str:
    """The file: JSON, two spaces, texts as lists of lines so that a diff shows the changed line."""
    document = {
        "lockstep": FORMAT,
        "agent": lock.agent,
        "digest": lock.digest,
        "dimensions": {
            dimension: {
                "digest": lock.dimension_digest(dimension),
                "parts": {name: _part_document(part) for name, part in lock.parts[dimension].items()},
            }
            for dimension in DIMENSIONS
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def from_text(text: str, origin: str) -> Lock:
    """Read a lock and check every digest in it.

    Raises:
        LockError: not a lock, of a newer format, or edited by hand (names the part).
    """
    try:
        document = json.loads(text)
        if document["lockstep"] != FORMAT:
            raise LockError(f"{origin} has format {document['lockstep']!r}; this version knows {FORMAT}.", remedy=_ANEW)
        stated = {name: document["dimensions"][name] for name in DIMENSIONS}
        parts = {
            dimension: {name: _part_from(part) for name, part in sorted(stated[dimension]["parts"].items())}
            for dimension in DIMENSIONS
        }
        lock = Lock(agent=document["agent"], parts=parts)
        wrong = _first_wrong(lock, {name: stated[name]["digest"] for name in DIMENSIONS}, document["digest"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LockError(f"{origin} is not a readable lock ({type(error).__name__}: {error}).", remedy=_ANEW) from error
    if wrong:
        raise LockError(f"{origin}: {wrong} was edited by hand: its digest does not hold.", remedy=_ANEW)
    return lock


def _first_wrong(lock: Lock, dimensions: Mapping[str, str], whole: str) -> str:
    """The first part, dimension or lock whose stated digest is not the one it has; empty when all hold."""
    for dimension in DIMENSIONS:
        for name, part in lock.parts[dimension].items():
            if _expected(part) not in (None, part.sha256):
                return f"{dimension}: {name}"
    for dimension in DIMENSIONS:
        if lock.dimension_digest(dimension) != dimensions[dimension]:
            return f"the dimension {dimension}"
    return "" if lock.digest == whole else "the digest of the whole, or the agent's name,"


def read_lock(directory: Path) -> Lock:
    """The committed lock of an agent directory.

    Raises:
        LockError: missing or not valid.
    """
    path = directory / LOCK_FILE
    if not path.exists():
        raise LockError(
            f"{path} does not exist: this agent was never locked.", remedy=f"Run `lockstep lock {directory}`."
        )
    return from_text(read_text(path, remedy="Run `lockstep lock`."), str(path))


def write_lock(directory: Path, lock: Lock) -> None:
    """Write the agent's lock; the file changes whole or not at all.

    Raises:
        ConfigError: the directory cannot be written.
    """
    path = directory / LOCK_FILE
    beside = path.with_name(f".{LOCK_FILE}.{os.getpid()}")
    try:
        beside.write_text(to_text(lock), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        remedy = "Check space and permissions, then lock again."
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", remedy=remedy) from error


def _part_document(part: Part) -> dict[str, Any]:
    if part.value is not None:
        return {"sha256": part.sha256, "value": part.value}
    if part.text is not None:
        return {"sha256": part.sha256, "text": part.text.split("\n")}
    return {"sha256": part.sha256}


def _part_from(document: Mapping[str, Any]) -> Part:
    text = document.get("text")
    return Part(
        sha256=Digest(document["sha256"]),
        value=document.get("value"),
        text=None if text is None else "\n".join(text),
    )


def _expected(part: Part) -> Digest | None:
    if part.value is not None:
        return digest_json(part.value)
    return None if part.text is None else sha256(part.text.encode())
