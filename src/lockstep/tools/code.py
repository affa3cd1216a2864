"""Tool code as it was locked: copied into the store by digest, so a run's tools cannot change under it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lockstep.agent.trees import Trees, tree_files
from lockstep.errors import StoreError
from lockstep.values import Digest, digest_json, sha256


class CodeStore:
    """Snapshots below `directory`, each named by the digest of its files' digests, and checked when first used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._checked: set[Path] = set()

    def put(self, files: Mapping[str, bytes]) -> Path:
        """Keep these files (relative path -> bytes); returns the snapshot's directory. Appears whole or not at all.

        Raises:
            StoreError: the store cannot be written.
        """
        target = self._path({name: sha256(data) for name, data in files.items()})
        if not target.is_dir():
            try:
                self._make(target, files)
            except OSError as error:
                raise StoreError(
                    f"Tool code cannot be kept in {self._directory}: {error.strerror}.",
                    remedy="Free some space, or name another store with --store.",
                ) from error
        return target

    def get(self, code: Mapping[str, Digest]) -> Path:
        """The directory of a snapshot that holds exactly these files.

        Raises:
            StoreError: it was never put here, was removed, or was changed since.
        """
        target = self._path(code)
        if target not in self._checked:
            names = ", ".join(code) or "(no files)"
            if not target.is_dir():
                raise StoreError(f"The code {names} of this lock is not in the store.", remedy="Run the agent anew.")
            if _digests(target) != dict(code):
                raise StoreError(
                    f"The code {names} of this lock was changed in the store ({target}).",
                    remedy="Remove that directory and run the agent anew.",
                )
            self._checked.add(target)
        return target

    def put_tree(self, directory: Path, trees: Trees) -> Digest:
        """Keep a copy of a directory of packages as it is now; returns its digest, which `trees` may know already.

        Raises:
            ConfigError: something in it cannot be kept.
            StoreError: the store cannot be written.
        """
        digest = trees.digest(directory)
        if not (self._directory / digest[:32]).is_dir():
            self.put({name: path.read_bytes() for name, path in tree_files(directory)})
        return digest

    def tree(self, digest: Digest) -> Path:
        """The kept copy of a directory of packages.

        Raises:
            StoreError: it was never put here, was removed, or was changed since.
        """
        target = self._directory / digest[:32]
        if target not in self._checked:
            if not target.is_dir() or digest_json(_digests(target)) != digest:
                raise StoreError(
                    f"The packages {digest[:12]} of this lock are not in the store, or were changed there.",
                    remedy=f"Remove {target} if it is there, and run the agent anew.",
                )
            self._checked.add(target)
        return target

    def has(self, code: Mapping[str, Digest]) -> bool:
        """Whether a snapshot of these files was put here; `get` says whether it is still the same."""
        return self._path(code).is_dir()

    def _make(self, target: Path, files: Mapping[str, bytes]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o755)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=self._directory) as scratch:
            made = Path(scratch) / "code"
            made.mkdir()
            for name, data in files.items():
                copy = made / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(data)
            for path in (made, *made.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)  # the sandbox reads them as another user
            try:
                os.rename(made, target)
            except OSError:
                if not target.is_dir():
                    raise

    def _path(self, code: Mapping[str, Digest]) -> Path:
        return self._directory / digest_json(dict(sorted(code.items())))[:32]


def _digests(directory: Path) -> dict[str, Digest | None]:
    """Digest by relative path of everything below; None for what is neither a plain file nor a directory."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        path.relative_to(directory).as_posix(): None if path.is_symlink() else sha256(path.read_bytes())
        for path in found
    }
