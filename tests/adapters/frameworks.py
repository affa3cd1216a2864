"""The frameworks of docs/adapters, as the tests run them: each in an environment of its own, from its lock file.

Made once for a lock file and kept in the user's cache. `make relock` takes newer versions.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.sandbox.cache import cache_directory

LOCKS = Path(__file__).resolve().parents[2] / "requirements"
INSTALL_S = 300


def framework(name: str) -> Path:
    """The interpreter that has it; skips, and says why, where it cannot be installed."""
    found = _installed(name)
    if isinstance(found, str):
        pytest.skip(f"{name} cannot be installed, so its page is not tested: {found}")
    return found


@functools.cache
def _installed(name: str) -> Path | str:
    lock = LOCKS / f"adapter-{name}.lock"
    version = hashlib.sha256(f"{sys.version} {sys.prefix}".encode() + lock.read_bytes()).hexdigest()[:16]
    target = cache_directory() / "adapters" / f"{name}-{version}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not target.is_dir():
            making = target.with_name(f"{target.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            try:
                _make(making, lock)
            except subprocess.CalledProcessError as error:
                return f"{Path(error.cmd[0]).name} failed: {error.stderr.strip()[-300:]}"
            except (OSError, subprocess.TimeoutExpired) as error:
                return str(error)
            making.rename(target)
    return target / "bin/python"


def _make(directory: Path, lock: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    install = [str(uv), "pip", "install", "--python", str(directory / "bin/python")]
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    for command in (
        [sys.executable, "-I", "-m", "venv", "--without-pip", str(directory)],
        [*install, "--compile-bytecode", "--no-deps", "--require-hashes", "-r", str(lock)],
    ):
        subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=INSTALL_S)
