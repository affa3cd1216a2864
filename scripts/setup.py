"""Make this checkout ready to run: `.venv` from the lock file, and the system packages that sandboxes need.

    python3 scripts/setup.py                what running needs
    python3 scripts/setup.py --dev          also what testing and checking need
    python3 scripts/setup.py --system-only  system packages alone; exit 1 when one is still missing
    python3 scripts/setup.py --no-system    the virtual environment alone

Needs the standard library alone. Done before, it is over in a moment and asks no network.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
STAMP = VENV / "lockstep-setup.txt"
LOG = VENV / "lockstep-setup.log"
INSTALLER_LOCK = ROOT / "requirements/installer.lock"
APT_LISTS = (ROOT / "requirements/apt.txt", ROOT / "requirements/apt-dev.txt")
"""What running needs, and what testing needs beyond that."""
LOG_TAIL_LINES = 15
APT_LOCK_WAIT_S = 120

UNWANTED = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH")
"""Set by some machines; each would send the packages somewhere else than into `.venv`."""


class SetupError(Exception):
    """Set-up cannot go on; the text is the sentence for the user, with the remedy in it."""


def main() -> int:
    """Set up what the flags ask for; return 0 when it is ready, 1 with one sentence on stderr when it is not."""
    parser = argparse.ArgumentParser(description="Make this checkout ready to run.")
    parser.add_argument("--dev", action="store_true", help="also install what testing and checking need")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--system-only", action="store_true", help="system packages alone; exit 1 when one is missing")
    which.add_argument("--no-system", action="store_true", help="the virtual environment alone")
    options = parser.parse_args()
    try:
        require_python()
        with one_setup_at_a_time():
            if not options.system_only:
                ensure_environment("dev" if options.dev else "run")
            lists = APT_LISTS if options.dev else APT_LISTS[:1]
            remedy = None if options.no_system else ensure_system_packages(lists)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    if remedy:
        print(f"setup: {remedy}", file=sys.stderr)
    return 1 if remedy and options.system_only else 0


def require_python() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - it is run by whatever python3 the machine has
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(
            f"Lockstep needs Python 3.11 or newer, this is {found}; name another, as in `make demo PYTHON=python3.12`."
        )


@contextlib.contextmanager
def one_setup_at_a_time() -> Iterator[None]:
    """Hold a lock on the checkout's directory, so that two `make` at once do not build one environment together."""
    directory = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


# The virtual environment


def ensure_environment(kind: str) -> None:
    """Bring `.venv` to what `requirements/{kind}.lock` says, or raise SetupError; "dev" holds all that "run" does."""
    lock = ROOT / f"requirements/{kind}.lock"
    stamps = {name: stamp_of(name) for name in ("run", "dev")}
    present = STAMP.read_text() if STAMP.is_file() else ""
    works = environment_works()
    if works and (present == stamps["dev"] or present == stamps[kind]):
        return
    started_s = time.monotonic()
    moved_here = present and not present.startswith(f"{ROOT}\n")
    if not works or moved_here:
        create_environment()
    STAMP.unlink(missing_ok=True)
    count = sum("==" in line for line in lock.read_text().splitlines())
    say(f"installing up to {count} packages of requirements/{kind}.lock into .venv, each checked against its hash")
    install_locked(lock)
    STAMP.write_text(stamps[kind])
    say(f"Python packages ready after {time.monotonic() - started_s:.0f} s")


def stamp_of(kind: str) -> str:
    """Return what the stamp file holds when `.venv` is current: this place, and the digest of all that went in."""
    sources = (ROOT / f"requirements/{kind}.lock", ROOT / "pyproject.toml", INSTALLER_LOCK, Path(__file__))
    digest = hashlib.sha256(b"".join(hashlib.sha256(source.read_bytes()).digest() for source in sources))
    return f"{ROOT}\n{kind} {digest.hexdigest()}\n"


def environment_works() -> bool:
    """Say whether `.venv` has an interpreter that starts and a pip; not so when it is half made or its base is gone."""
    if not PYTHON.exists():
        return False
    probe = "import importlib.util as u, sys; sys.exit(sys.version_info < (3, 11) or u.find_spec('pip') is None)"
    return subprocess.run([PYTHON, "-I", "-c", probe], capture_output=True).returncode == 0


def create_environment() -> None:
    if not has_ensurepip():
        install_venv_support()
    if VENV.is_symlink() or (VENV.exists() and not VENV.is_dir()):
        raise SetupError(f"{VENV} is not a directory; move it away and run this again.")
    say(f"creating .venv with Python {'.'.join(map(str, sys.version_info[:3]))}")
    made = subprocess.run(
        [sys.executable, "-I", "-m", "venv", "--clear", VENV], env=clean_environment(), capture_output=True, text=True
    )
    if made.returncode != 0:
        raise SetupError(f"could not create .venv: {tail(made.stdout + made.stderr)}")


def has_ensurepip() -> bool:
    """Ask a fresh interpreter: Debian ships `venv` without the `ensurepip` it needs until python3-venv is installed."""
    asked = subprocess.run([sys.executable, "-I", "-c", "import ensurepip, venv"], capture_output=True)
    return asked.returncode == 0


def install_venv_support() -> None:
    package = "python3-venv"
    if not can_install_packages():
        raise SetupError(f"this Python cannot create virtual environments; run `{apt_command([package])}` first.")
    say(f"installing {package} with apt-get")
    failure = apt_install([package])
    if failure or not has_ensurepip():
        raise SetupError(
            f"this Python ({sys.executable}) cannot create virtual environments and {package} did not help; {failure}"
        )


def install_locked(lock: Path) -> None:
    """Install `lock` with hashes and the project itself, with the pinned uv or, where that cannot be had, with pip."""
    pip: list[str | Path] = [PYTHON, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    LOG.write_text("")
    if logged([*pip, "--only-binary=:all:", "--require-hashes", "-r", INSTALLER_LOCK]):
        uv: list[str | Path] = [VENV / "bin/uv", "pip", "install", "--python", PYTHON]
        if install_with(uv, lock):
            return
        say("uv could not; trying the same with pip")  # pip knows mirrors and certificates from its own configuration
    else:
        say("uv cannot be had here; using pip")
    if not install_with(pip, lock):
        raise SetupError(f"could not install the packages; {LOG} has it all and ends:\n{tail(LOG.read_text())}")


def install_with(installer: list[str | Path], lock: Path) -> bool:
    # The build backend is in the lock as well: nothing is fetched that no hash vouches for.
    return logged([*installer, "--require-hashes", "-r", lock]) and logged(
        [*installer, "--no-deps", "--no-build-isolation", "-e", ROOT]
    )


def logged(command: list[str | Path]) -> bool:
    """Run `command` with all it prints going to the log; say whether it succeeded."""
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(map(str, command))}\n")
        log.flush()
        done = subprocess.run(command, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return done.returncode == 0


# System packages


def ensure_system_packages(lists: Sequence[Path]) -> str | None:
    """Install what these lists name and the machine lacks; return the remedy when that cannot be done."""
    missing = missing_packages(lists)
    if not missing:
        return None
    if not can_install_packages():
        what = "on Debian 12 or newer, run" if not shutil.which("apt-get") else "run"
        return f"sandboxes need {' and '.join(missing)}, not installed here: {what} `{apt_command(missing)}`."
    say(f"installing {', '.join(missing)} with apt-get")
    failure = apt_install(missing)
    still = missing_packages(lists)
    if still:
        return f"{' and '.join(still)} could not be installed; `{apt_command(still)}` says:\n{failure}"
    return None


def missing_packages(lists: Sequence[Path]) -> list[str]:
    """Return the packages of these lists whose command is not there."""
    lines = (line.split("#")[0].split() for each in lists for line in each.read_text().splitlines())
    return [package for package, command in filter(None, lines) if shutil.which(command) is None]


def can_install_packages() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_command(packages: list[str]) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install --no-install-recommends {' '.join(packages)}"


def apt_install(packages: list[str]) -> str:
    """Install Debian packages without a question asked; return "" or the end of what apt-get said."""
    apt = ["apt-get", "-q", "-o", f"DPkg::Lock::Timeout={APT_LOCK_WAIT_S}"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    said = ""
    # A failing update is no reason to stop: the lists that are there may do, and install has the last word.
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            [*apt, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        said += done.stdout
        if command[0] == "install" and done.returncode == 0:
            return ""
    return tail(said)


# Odds and ends


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in UNWANTED}


def tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-LOG_TAIL_LINES:])


def say(line: str) -> None:
    print(f"setup: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
