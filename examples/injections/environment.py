"""Make `.agentdojo`, the environment of AgentDojo alone: every package of requirements/agentdojo.lock, by its hash.

    python examples/injections/environment.py

Run by `make injections` after `.venv` is there. Done before, it is over in a moment and asks no network.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".agentdojo"
PYTHON = VENV / "bin/python"
LOCK = ROOT / "requirements/agentdojo.lock"
STAMP = VENV / "lockstep-setup.txt"


class NoSuites(Exception):
    """AgentDojo cannot be had here; the text is one sentence that says what to do."""


def ensure_suites() -> Path:
    """The interpreter of an environment with exactly what the lock file names.

    Raises:
        NoSuites: it cannot be made, with the end of what the installer said.
    """
    stamp = f"{VENV}\n{hashlib.sha256(LOCK.read_bytes()).hexdigest()}\n"
    if STAMP.is_file() and STAMP.read_text() == stamp and PYTHON.exists():
        return PYTHON
    print(f"setup: installing {LOCK.relative_to(ROOT)} into {VENV.name}, each package checked against its hash")
    _run([sys.executable, "-I", "-m", "venv", "--clear", str(VENV)])
    arguments = ["install", "--no-deps", "--require-hashes", "-r", str(LOCK)]
    uv = Path(sys.executable).with_name("uv")
    pip = [str(PYTHON), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    # The lock leaves out what AgentDojo asks for and nothing here uses, so dependencies are not looked at again.
    fast = [str(uv), "pip", arguments[0], "--python", str(PYTHON), *arguments[1:]]
    try:
        _run(fast if uv.is_file() else pip)
    except NoSuites:
        _run(pip)  # pip knows mirrors and certificates from its own configuration
    STAMP.write_text(stamp)
    return PYTHON


def _run(command: list[str]) -> None:
    unwanted = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
        raise NoSuites(f"{VENV.name} could not be made from {LOCK.relative_to(ROOT)}; the installer said:\n{said}")


if __name__ == "__main__":
    try:
        ensure_suites()
    except NoSuites as error:
        sys.exit(f"setup: {error}")
