"""The Python that runs inside sandboxes: the distribution's, because it starts fastest; else the one we run on."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.gvisor_spec import SYSTEM

FLAGS = ("-I", "-S")
"""Isolated from environment and user directories, no site-packages: twice as fast to start."""
_SYSTEM_PYTHON = "/usr/bin/python3"
_PROBE = "import sys, json; raise SystemExit(sys.version_info < (3, 11))"


@functools.cache
def interpreter() -> tuple[tuple[str, ...], Mapping[str, Path]]:
    """The argument prefix that starts Python in a sandbox, and the mounts it needs beyond the system's.

    Raises:
        SandboxUnavailable: neither the system's Python nor our own can be used.
    """
    if _works(_SYSTEM_PYTHON):
        return (_SYSTEM_PYTHON, *FLAGS), {}
    prefix = Path(sys.base_prefix).resolve()
    own = str(prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
    if not _works(own):
        raise SandboxUnavailable(
            f"No Python for the sandbox: {_SYSTEM_PYTHON} is not 3.11 or newer and {own} does not start.",
            remedy="Install Debian's python3.",
        )
    inside = any(own.startswith(f"{path}/") for path in SYSTEM)
    return (own, *FLAGS), {} if inside else {str(prefix): prefix}


def _works(python: str) -> bool:
    if not os.access(python, os.X_OK):
        return False
    try:
        command = [python, *FLAGS, "-c", _PROBE]
        return subprocess.run(command, capture_output=True, timeout=10, check=False, env={}).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
