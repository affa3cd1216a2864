"""Snapshots of machines on disk: found by the digest of all they depend on, few, and made once.

A snapshot is a directory that appears whole or not at all. It holds the memory of a guest that has run a tool's code up
to the point where it waits, so the directories are closed to other users.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.values import Digest, new_token

_KEPT = 12
_KEPT_BYTES = 4 * 2**30
_DRAFT_AGE_S = 3600.0
_BLOCK = 512


class Snapshots:
    """The snapshots below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._locks: dict[Digest, asyncio.Lock] = {}

    @classmethod
    def below(cls, cache: Path) -> Snapshots:
        """Those that every store of this cache directory shares."""
        return cls(cache / "snapshots")

    async def get(self, key: Digest, make: Callable[[Path], Awaitable[None]]) -> Path:
        """The snapshot with this key; `make` fills an empty directory when there is none.

        Raises:
            SandboxUnavailable: it cannot be kept. Whatever `make` raises.
        """
        async with self._locks.setdefault(key, asyncio.Lock()):
            path = self._directory / key
            with contextlib.suppress(OSError):
                os.utime(path)
                return path
            return await self._made(path, make)

    async def _made(self, path: Path, make: Callable[[Path], Awaitable[None]]) -> Path:
        draft = self._directory / f".{new_token('d')}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.mkdir(mode=0o700)
            await make(draft)
            try:
                draft.rename(path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                    raise
        except OSError as error:
            raise SandboxUnavailable(
                f"A snapshot cannot be kept in {self._directory}: {error.strerror or error}.",
                remedy="Free some space, or name another directory in LOCKSTEP_CACHE.",
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self.trim()
        return path

    def drop(self, path: Path) -> None:
        """Remove a snapshot that does not load."""
        shutil.rmtree(path, ignore_errors=True)

    def trim(self) -> int:
        """Remove abandoned drafts and what was used longest ago beyond the bounds; returns how many."""
        if not self._directory.is_dir():
            return 0
        found = sorted(self._directory.iterdir(), key=_used_at, reverse=True)
        snapshots = [path for path in found if not path.name.startswith(".")]
        drafts = [path for path in found if path.name.startswith(".") and time.time() - _used_at(path) > _DRAFT_AGE_S]
        sizes = [_size(path) for path in snapshots]
        surplus = [
            path for at, path in enumerate(snapshots) if at >= _KEPT or (at and sum(sizes[: at + 1]) > _KEPT_BYTES)
        ]
        for path in (*drafts, *surplus):
            shutil.rmtree(path, ignore_errors=True)
        return len(drafts) + len(surplus)


def _used_at(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for file in path.iterdir():
            total += file.stat().st_blocks * _BLOCK
    return total
