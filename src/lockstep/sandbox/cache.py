"""Where what `lockstep setup` fetched or built for this user is kept: guest images, a newer runsc."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_ENV = "LOCKSTEP_CACHE"


_SYSTEM_CACHE = "/var/cache"


def cache_directory() -> Path:
    """LOCKSTEP_CACHE, else below the user's cache directory; the system's, which only root writes, for one without."""
    named = os.environ.get(CACHE_ENV)
    if named:
        return Path(named)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user id without a name and without HOME
        base = _SYSTEM_CACHE
    return Path(base) / "lockstep"
