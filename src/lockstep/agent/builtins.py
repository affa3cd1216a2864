"""What comes with Lockstep: tools, with the files they are made of, and policy packs.

The code of a tool is read as bytes and locked, copied and mounted like an agent's own, and a pack stands in the lock
as text, so a change of either is a change of the lock. No tool's code is imported: it runs in sandboxes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Builtin = Literal["python"]
Pack = Literal["injection", "injection-strict"]

MODULES: Mapping[str, str] = {"python": "builtin_python.py"}
"""Built-in -> its file, by the name it is mounted under at `/tool`."""

_SHIPPED = Path(__file__).parent.parent / "tools"
_PACKS = Path(__file__).parent.parent / "packs"


def builtin_files(name: str) -> dict[str, bytes]:
    """The files of a built-in by the name they have in a sandbox."""
    file = MODULES[name]
    return {file: (_SHIPPED / file).read_bytes()}


def pack_text(name: str) -> str:
    """The Cedar text of a pack."""
    return (_PACKS / f"{name}.cedar").read_text(encoding="utf-8")
