"""A machine's memory as an anonymous file: shared with one machine while it is made, sealed and read-only afterwards.

Sealed by the kernel, so that not even a monitor which its guest has taken over can change what other clones start
from. Kept on disk as a sparse file, and in this process for the snapshots used last.
"""

from __future__ import annotations

import fcntl
import os
from collections import OrderedDict
from pathlib import Path

_KEPT = 6
_STEP_BYTES = 2**20
_PAGE_BYTES = 4096
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def blank(size_bytes: int) -> int:
    """A descriptor of new zeroed memory.

    Raises:
        OSError: there is not enough.
    """
    memory = os.memfd_create("lockstep-machine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size_bytes)
    return memory


def copy(memory: int) -> int:
    """Writable memory with the same content; what is empty stays empty."""
    made = blank(os.fstat(memory).st_size)
    _copy(memory, made)
    return made


def seal(memory: int) -> None:
    """From now on it can only be mapped privately, by anybody.

    Raises:
        OSError: somebody still has it mapped to write.
    """
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)


def save(memory: int, path: Path) -> None:
    """Write it to a sparse file."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(target, os.fstat(memory).st_size)
        _copy(memory, target)
    finally:
        os.close(target)


def load(path: Path) -> int:
    """Sealed memory with the content of a file that `save` wrote."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        memory = copy(source)
        seal(memory)
        return memory
    finally:
        os.close(source)


class Kept:
    """The sealed memory of the snapshots this process used last, by file, wherever it has been moved."""

    def __init__(self) -> None:
        self._memories: OrderedDict[tuple[int, int, int], int] = OrderedDict()

    def put(self, path: Path, memory: int) -> None:
        """Keep the memory that was saved to this file; ours to close from now on."""
        self._memories[_identity(path)] = memory
        while len(self._memories) > _KEPT:
            os.close(self._memories.popitem(last=False)[1])

    def get(self, path: Path) -> int:
        """The memory in this file, loaded if need be.

        Raises:
            OSError: it cannot be read.
        """
        key = _identity(path)
        if key not in self._memories:
            self.put(path, load(path))
        self._memories.move_to_end(key)
        return self._memories[key]


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _copy(source: int, target: int) -> None:
    """Copy what is not empty, a step at a time; pages of zeros are left out."""
    size, at = os.fstat(source).st_size, 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            return  # nothing but holes from here on
        until = os.lseek(source, at, os.SEEK_HOLE)
        while at < until:
            data = os.pread(source, min(_STEP_BYTES, until - at), at)
            if data.count(0) != len(data):
                _write_pages(target, data, at)
            at += len(data)


def _write_pages(target: int, data: bytes, at: int) -> None:
    """Write runs of pages that hold anything."""
    empty = bytes(_PAGE_BYTES)
    start: int | None = None
    for offset in range(0, len(data) + _PAGE_BYTES, _PAGE_BYTES):
        page = data[offset : offset + _PAGE_BYTES]
        if page and page != empty[: len(page)]:
            start = offset if start is None else start
        elif start is not None:
            os.pwrite(target, data[start:offset], at + start)
            start = None
