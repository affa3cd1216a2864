"""Remembers across processes that a way to run sandboxes passed its canary, until something it rests on changes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path


class Proven:
    """One proof in one file: a list of what it rests on (versions, digests, kernel, user), for `valid_s` seconds."""

    def __init__(self, file: Path, valid_s: float = math.inf) -> None:
        self._file = file
        self._valid_s = valid_s

    def holds(self, grounds: Sequence[str | int]) -> bool:
        try:
            if time.time() - self._file.stat().st_mtime > self._valid_s:
                return False
            return bool(json.loads(self._file.read_text()) == list(grounds))
        except (OSError, ValueError):
            return False

    def save(self, grounds: Sequence[str | int]) -> None:
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(list(grounds)))
            draft.replace(self._file)
