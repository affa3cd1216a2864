"""`lockstep setup gvisor`: the runsc of the next Debian suite, kept in the cache directory; the system is not touched.

Debian 12's build knows ptrace alone; the next one's has systrap, which costs less CPU at every system call.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.cache import cache_directory
from lockstep.sandbox.image.packages import Apt, unpack
from lockstep.sandbox.image.suites import sources_of

PACKAGE = "runsc"
_BINARY = "usr/bin/runsc"


def kept(cache: Path | None = None) -> Path | None:
    """The runsc in the cache; None when there is none, or when others than its owner could have written it."""
    binary = _directory(cache) / "runsc"
    try:
        found = binary.stat()
    except OSError:
        return None
    ours = found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return binary if ours and stat.S_ISREG(found.st_mode) and os.access(binary, os.X_OK) else None


def fetch(suite: str, cache: Path | None = None) -> str:
    """Fetch the runsc of this suite into the cache, in place of one that is there; its version.

    Raises:
        SandboxUnavailable: apt cannot get it; what was there is still there.
    """
    source = sources_of(suite)
    if not source:
        raise SandboxUnavailable("apt is given no Debian archive here.")
    with tempfile.TemporaryDirectory(prefix="lockstep-runsc-") as scratch:
        workdir = Path(scratch)
        package = Apt(workdir).of_source(PACKAGE, source)
        unpack(package, workdir / "unpacked")
        try:
            _keep(workdir / "unpacked" / _BINARY, _directory(cache))
            record = {"package": package.name, "version": package.version, "sha256": package.sha256, "suite": suite}
            (_directory(cache) / "manifest.json").write_text(json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise SandboxUnavailable(f"{_directory(cache)} cannot be written: {error.strerror}.") from error
    return package.version


def _directory(cache: Path | None) -> Path:
    return (cache or cache_directory()) / "gvisor"


def _keep(binary: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    draft = directory / f".runsc.{os.getpid()}"
    shutil.copyfile(binary, draft)
    draft.chmod(0o755)  # the sandboxes' own processes run as another user
    draft.replace(directory / "runsc")
