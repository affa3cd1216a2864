"""What changed between two locks, by dimension, in words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lockstep.agent.lock import DIMENSIONS, Lock, Part
from lockstep.values import Json, JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One part that differs. `lines` say how, ready to print."""

    dimension: str
    part: str
    kind: str
    """`added`, `removed` or `changed`."""
    lines: tuple[str, ...]


def diff(a: Lock, b: Lock) -> tuple[Change, ...]:
    """Every difference from `a` to `b`, in dimension order; empty when the digests are equal."""
    return tuple(_Comparison(a, b).changes())


def definition_changes(old: JsonObject, new: JsonObject) -> Iterator[str]:
    """What differs between two definitions of a tool, field by field. The new one may be anybody's: control and
    direction characters in it are shown as escapes."""
    nothing = Lock(agent="", parts={})
    return (visible(line) for line in _Comparison(nothing, nothing).json("", old, new))


def visible(text: str) -> str:
    """The text with every character that does not print, or prints as something else, as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


class _Comparison:
    """Two locks side by side. Code that several tools share is shown with the first of them."""

    def __init__(self, a: Lock, b: Lock) -> None:
        self._a = a
        self._b = b
        self._shown: set[tuple[str, str, str]] = set()

    def changes(self) -> Iterator[Change]:
        a, b = self._a, self._b
        if a.agent != b.agent:
            yield Change(dimension="agent", part="name", kind="changed", lines=(f"{a.agent!r} -> {b.agent!r}",))
        for dimension in DIMENSIONS:
            left, right = a.parts[dimension], b.parts[dimension]
            for name in sorted({*left, *right}):
                kind = "added" if name not in left else "removed" if name not in right else "changed"
                if kind != "changed":
                    yield Change(dimension=dimension, part=name, kind=kind, lines=())
                elif left[name].sha256 != right[name].sha256:
                    lines = tuple(self._part(name, left[name], right[name]))
                    yield Change(dimension=dimension, part=name, kind=kind, lines=lines)

    def _part(self, name: str, old: Part, new: Part) -> Iterator[str]:
        if old.value is not None and new.value is not None:
            yield from self.json("", old.value, new.value)
        elif old.text is not None and new.text is not None:
            yield from _text(old.text, new.text)
        else:
            yield from self._file(name.removeprefix("file "), old.sha256, new.sha256)

    def json(self, path: str, old: Json, new: Json) -> Iterator[str]:
        """What differs below `path`."""
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for key in [*old, *(k for k in new if k not in old)]:
                below = f"{path}.{key}" if path else key
                if path == "code":
                    yield from self._file(key, str(old.get(key, "")), str(new.get(key, "")))
                elif key not in old:
                    yield f"{below}: added {_short(new[key])}"
                elif key not in new:
                    yield f"{below}: removed {_short(old[key])}"
                else:
                    yield from self.json(below, old[key], new[key])
        elif isinstance(old, str) and isinstance(new, str) and old != new and ("\n" in old or "\n" in new):
            yield f"{path}:"
            yield from _text(old, new)
        elif old != new or isinstance(old, bool) != isinstance(new, bool):
            yield f"{path}: {_short(old)} -> {_short(new)}"

    def _file(self, name: str, old: str, new: str) -> Iterator[str]:
        """A file by its digests, either of which may be empty; with its lines when both sides are at hand."""
        if old == new:
            return
        if not old or not new:
            yield f"file {name}: {'removed' if old else 'added'}"
            return
        yield f"file {name}: {old[:12]} -> {new[:12]}"
        before, after = self._a.files.get(name), self._b.files.get(name)
        if before is None or after is None or (name, old, new) in self._shown:
            return
        self._shown.add((name, old, new))
        yield from _text(before.decode(errors="replace"), after.decode(errors="replace"))


def _text(old: str, new: str) -> Iterator[str]:
    lines = difflib.unified_diff(_lines_of(old), _lines_of(new), lineterm="", n=1)
    return (line for line in lines if line not in ("--- ", "+++ "))


def _lines_of(text: str) -> list[str]:
    """Lines; a missing newline at the end is a difference too."""
    *lines, last = text.split("\n")
    return [*lines, f"{last} (no newline at the end)"] if last else lines


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
