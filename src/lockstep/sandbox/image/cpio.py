"""A cpio archive (format "newc") that depends on nothing but what is put into it: what Linux unpacks at boot.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

_MAGIC = b"070701"
_END = "TRAILER!!!"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file (`data`, with permissions), a directory or a symbolic link (`data` is its target)."""

    mode: int
    data: bytes = b""


def directory() -> Entry:
    return Entry(mode=stat.S_IFDIR | 0o755)


def file(data: bytes, *, executable: bool = False) -> Entry:
    return Entry(mode=stat.S_IFREG | (0o755 if executable else 0o644), data=data)


def link(target: str) -> Entry:
    return Entry(mode=stat.S_IFLNK | 0o777, data=target.encode())


def write(entries: Mapping[str, Entry], into: BinaryIO) -> None:
    """Write the entries, by path without a leading slash, in sorted order: owner root, time 0, inodes counted up.

    Missing parent directories are added.
    """
    complete = dict(entries)
    for path in entries:
        parts = path.split("/")[:-1]
        for length in range(1, len(parts) + 1):
            complete.setdefault("/".join(parts[:length]), directory())
    for inode, path in enumerate(sorted(complete), 1):
        _write_entry(into, inode, path, complete[path])
    _write_entry(into, 0, _END, Entry(mode=0))
    into.write(bytes(-into.tell() % 512))


def _write_entry(into: BinaryIO, inode: int, path: str, entry: Entry) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % number for number in fields) + name
    into.write(head + bytes(-len(head) % 4))
    into.write(entry.data + bytes(-len(entry.data) % 4))
