"""Remembers across processes what passed its canary, until something it rests on changes or it fails."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from lockstep.values import Json

Grounds = Sequence[str | int]
"""What a proof rests on: versions, digests, kernel, user."""


class Proven:
    """One proof in one file: what was found to work on these grounds, for `valid_s` seconds."""

    def __init__(self, file: Path, valid_s: float = math.inf) -> None:
        self._file = file
        self._valid_s = valid_s

    def recall(self, grounds: Grounds) -> Json:
        """What was saved for these grounds; None where nothing is known."""
        try:
            if time.time() - self._file.stat().st_mtime > self._valid_s:
                return None
            stored = json.loads(self._file.read_text())
            found: Json = stored["found"] if stored["grounds"] == list(grounds) else None
            return found
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, grounds: Grounds, found: Json) -> None:
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps({"grounds": list(grounds), "found": found}))
            draft.replace(self._file)

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
