"""The guest image that tests of microVMs share: this user's own, built once when there is none yet."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
from pathlib import Path

import pytest

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.cache import cache_directory
from lockstep.sandbox.image.build import find_image, setup_microvm


def guest_cache() -> Path:
    """The cache directory with a guest image in it; skips, and says why, where there can be none."""
    if shutil.which(os.environ.get("LOCKSTEP_QEMU") or "qemu-system-x86_64") is None:
        pytest.skip("QEMU is not installed (Debian package qemu-system-x86)")
    trouble = _trouble()
    if trouble:
        pytest.skip(f"no guest image for microVMs: {trouble}")
    return cache_directory()


@functools.cache
def _trouble() -> str:
    """Why there is no image and none can be built; "" when there is one."""
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "tests.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                find_image()
            except SandboxUnavailable:
                setup_microvm(print)
    except (SandboxUnavailable, OSError) as error:
        return str(error)
    return ""
