"""Tools that come with Lockstep: which there are, and the files they are made of.

Their code is read as bytes and locked, copied and mounted like an agent's own, so a change of it is a change of the
lock. Nothing of it is imported: like all tool code it runs in sandboxes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Builtin = Literal["python"]

MODULES: Mapping[str, str] = {"python": "builtin_python.py"}
"""Built-in -> its file, by the name it is mounted under at `/tool`."""

_SHIPPED = Path(__file__).parent.parent / "tools"


def builtin_files(name: str) -> dict[str, bytes]:
    """The files of a built-in by the name they have in a sandbox."""
    file = MODULES[name]
    return {file: (_SHIPPED / file).read_bytes()}
