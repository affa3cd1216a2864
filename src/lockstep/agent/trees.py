"""A server's runtime, a directory of packages that somebody else wrote: known by one digest over all its files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lockstep.errors import ConfigError
from lockstep.values import Digest, digest_json, sha256

_MAX_TREE_FILES = 100_000
_REMEDY = "Install the server there, or correct `runtime`."


def tree_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every file below, by path relative to it, sorted. A link to a file inside counts as that file.

    Raises:
        ConfigError: not a directory, too many files, or something in it is neither file nor directory, or leads out.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory.", remedy=_REMEDY)
    inside, found = directory.resolve(), []
    for parent, directories, names in os.walk(directory):
        directories.sort()
        linked = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        for name in (*linked, *names):
            path = Path(parent, name)
            if (
                name in linked
                or not path.is_file()
                or (path.is_symlink() and not path.resolve().is_relative_to(inside))
            ):
                raise ConfigError(
                    f"{path} is neither a file nor a directory inside {directory}.",
                    remedy="Replace the link by what it leads to, or take it away.",
                )
            found.append((path.relative_to(directory).as_posix(), path))
    if len(found) > _MAX_TREE_FILES:
        raise ConfigError(f"{directory} holds {len(found)} files; at most {_MAX_TREE_FILES} are taken.")
    return iter(sorted(found))


class Trees:
    """Digests of directories of packages, each taken once: for one command, to which it is what it was at first."""

    def __init__(self) -> None:
        self._known: dict[Path, Digest] = {}

    def digest(self, directory: Path) -> Digest:
        """As `tree_digest`."""
        if directory not in self._known:
            self._known[directory] = tree_digest(directory)
        return self._known[directory]


def tree_digest(directory: Path) -> Digest:
    """One digest over the names and contents of all files below.

    Raises:
        ConfigError: as `tree_files`, or a file cannot be read.
    """
    try:
        return digest_json({name: sha256(path.read_bytes()) for name, path in tree_files(directory)})
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}.", remedy=_REMEDY) from error
