"""The mounts of a sandbox as a read-only drive: an uncompressed tar archive in a file of one of few sizes.

Depends on names and contents alone: owner root, time 0, permissions 755 or 644. Links are kept as links, so what they
point to on the host stays there. The guest unpacks it in its own memory.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import ConfigError
from lockstep.values import Digest

_SMALLEST_BYTES = 16 * 2**20
_LARGEST_BYTES = 1024 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Drive:
    """A drive file; `digest` names what is in it."""

    path: Path
    digest: Digest
    size_bytes: int
    """Of the file: one of few, so that clones of one snapshot can have different drives."""


def write_drive(path: Path, mounts: Mapping[str, Path]) -> Drive:
    """Write the archive of these mounts (path inside -> directory or file, checked before).

    Raises:
        ConfigError: they are larger than a drive may be.
        OSError: it cannot be written or a source cannot be read.
    """
    with path.open("xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for target, source in sorted(mounts.items()):
                for name, found in _below(target.lstrip("/"), source):
                    _add(archive, name, found)
                    if file.tell() > _LARGEST_BYTES:
                        limit = f"{_LARGEST_BYTES // 2**20} MiB"
                        raise ConfigError(f"The mounts of a microVM are larger than {limit} together.")
        size = _size_for(file.tell())
        file.truncate(size)
    with path.open("rb") as file:
        digest = Digest(hashlib.file_digest(file, "sha256").hexdigest())
    return Drive(path=path, digest=digest, size_bytes=size)


def blank_drive(path: Path, size_bytes: int) -> None:
    """A drive with nothing on it, for a machine whose clones get others."""
    with path.open("xb") as file:
        file.truncate(size_bytes)


def _size_for(content_bytes: int) -> int:
    size = _SMALLEST_BYTES
    while size < content_bytes:
        size *= 4
    return size


def _below(name: str, source: Path) -> Iterator[tuple[str, Path]]:
    parts = name.split("/")
    for length in range(1, len(parts)):
        yield "/".join(parts[:length]), source.parent  # a directory, whichever
    yield name, source
    if source.is_dir() and not source.is_symlink():
        for parent, directories, files in os.walk(source):
            directories.sort()
            for found in sorted([*directories, *files]):
                path = Path(parent, found)
                yield f"{name}/{path.relative_to(source).as_posix()}", path


def _add(archive: tarfile.TarFile, name: str, source: Path) -> None:
    info = tarfile.TarInfo(name)
    found = source.lstat()
    if stat.S_ISLNK(found.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(source), 0o777
        archive.addfile(info)
    elif stat.S_ISDIR(found.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
    elif stat.S_ISREG(found.st_mode):
        with source.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            info.mode = 0o755 if found.st_mode & 0o111 else 0o644
            archive.addfile(info, file)
