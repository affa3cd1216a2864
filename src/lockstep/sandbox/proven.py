"""Remembers across processes that a way to run sandboxes passed its canary, until something it rests on changes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path


class Proven:
    """One proof in one file: a list of what it rests on (versions, digests, kernel, user)."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def holds(self, grounds: Sequence[str | int]) -> bool:
        try:
            return bool(json.loads(self._file.read_text()) == list(grounds))
        except (OSError, ValueError):
            return False

    def save(self, grounds: Sequence[str | int]) -> None:
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(list(grounds)))
            draft.replace(self._file)
