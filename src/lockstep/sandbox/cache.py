"""Where what `lockstep setup` fetched or built for this user is kept: guest images, a newer runsc."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_ENV = "LOCKSTEP_CACHE"


def cache_directory() -> Path:
    """LOCKSTEP_CACHE, else below the user's cache directory."""
    named = os.environ.get(CACHE_ENV)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lockstep"
