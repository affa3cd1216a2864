"""MCP servers of other people, as the tests run them: pinned versions, checked against their hashes, installed once.

`data/mcp_servers` says which. To take newer ones: `npm update` there, and `pip install --report` for the two lists.
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

LISTS = Path(__file__).parent / "data" / "mcp_servers"
PYTHON = "/usr/bin/python3"
INSTALL_S = 300


def node_servers() -> Path:
    """The directory whose `node_modules` holds the four reference servers; skips, and says why, where it cannot be."""
    if not os.access("/usr/bin/node", os.X_OK) or shutil.which("npm") is None:
        pytest.skip("no Node in /usr/bin, or no npm (Debian packages nodejs and npm): servers of npm are not tested")
    return _had("npm", ("package.json", "package-lock.json"))


def python_servers(name: str) -> Path:
    """The directory with `modern` (git, time, fetch) or `legacy` (sqlite) servers; skips where it cannot be."""
    if sys.version_info[:2] != (3, 11) or not os.path.exists(f"{PYTHON}.11"):
        pytest.skip("the pinned packages are for Python 3.11 here and in /usr/bin")
    return _had(name, (f"{name}.txt",))


def _had(name: str, files: tuple[str, ...]) -> Path:
    found = _installed(name, files)
    if isinstance(found, str):
        pytest.skip(f"the MCP servers of {name} cannot be installed: {found}")
    return found


@functools.cache
def _installed(name: str, files: tuple[str, ...]) -> Path | str:
    """Where they are; or why they are not."""
    version = hashlib.sha256(b"".join((LISTS / file).read_bytes() for file in files)).hexdigest()[:16]
    target = cache_directory() / "mcp-servers" / f"{name}-{version}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            making = target.with_name(f"{target.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            for file in files:
                shutil.copy(LISTS / file, making)
            try:
                for command in _commands(name, making):
                    subprocess.run(command, cwd=making, check=True, capture_output=True, text=True, timeout=INSTALL_S)
            except subprocess.CalledProcessError as error:
                return f"{error.cmd[0]} failed: {error.stderr.strip()[-300:]}"
            except (OSError, subprocess.TimeoutExpired) as error:
                return str(error)
            making.rename(target)
    return target


def _commands(name: str, target: Path) -> list[list[str]]:
    if name == "npm":
        return [["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-compile"]
    # Bytecode that does not depend on times stays valid when the packages are copied, and is the same every time.
    return [
        [*pip, "--only-binary", ":all:", "--target", str(target), "-r", f"{name}.txt"],
        [PYTHON, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(target)],
    ]
