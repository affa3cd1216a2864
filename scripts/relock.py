"""Regenerate `requirements/*.lock` from pyproject.toml, hashes included and hosts left out.

    make relock                  keep what is pinned, add what pyproject.toml now asks for
    make relock UPGRADE=1        take the newest versions it allows

Runs with the standard library and the `uv` of `.venv`. See docs/decisions/001-lock-file.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
RUN_EXTRAS = ("openai", "anthropic", "google")
INSTALLER = "uv>=0.9"
EDITABLE_SUPPORT = "editables>=0.5"
"""hatchling asks for it at build time, and the project is built without a network of its own."""

LEAKS = ("UV_", "PIP_")
"""A machine's own mirrors, link directories and cut-off dates must not show in the result."""
SUITES = "agentdojo==0.1.13"
"""The benchmark that `make injections` replays: for an environment of its own, never beside the product's."""
WITHOUT = "agentdojo-without.txt"
ADAPTERS = {
    "langgraph": "langchain langchain-mcp-adapters langchain-openai",
    "openai-agents": "openai-agents",
    "pydantic-ai": "pydantic-ai-slim[openai,mcp]",
}
"""Frameworks that docs/adapters has a page of, as it says they are installed; each in an environment of its own too."""
MIRRORS = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_CACHE_DIR", "UV_SYSTEM_CERTS")
"""Where a machine fetches from is its own affair: the address is not written, and the hashes are the packages'."""


def main() -> int:
    """Write every lock file; return 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description="Regenerate requirements/*.lock from pyproject.toml.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = "\n".join([*project["build-system"]["requires"], EDITABLE_SUPPORT])
    everything = ["pyproject.toml", "-", "--all-extras", "--group", "pyproject.toml:dev"]
    # What runs is a subset of what is tested, version by version: dev.lock constrains it.
    running = ["pyproject.toml", "-", "-c", "requirements/dev.lock"]
    running += [part for extra in RUN_EXTRAS for part in ("--extra", extra)]
    written = (
        compile_lock("installer.lock", ["-", *upgrade], stdin=INSTALLER)
        and compile_lock("dev.lock", [*everything, *upgrade], stdin=build)
        and compile_lock("run.lock", [*running, *upgrade], stdin=build)
        and compile_lock("agentdojo.lock", ["-", "--override", f"requirements/{WITHOUT}", *upgrade], stdin=SUITES)
        and all(
            compile_lock(f"adapter-{name}.lock", ["-", *upgrade], stdin=wanted.replace(" ", "\n"))
            for name, wanted in ADAPTERS.items()
        )
    )
    return 0 if written else 1


def compile_lock(name: str, arguments: list[str], stdin: str) -> bool:
    """Resolve for every platform and Python >= 3.11 into `requirements/name`; say on stderr what stopped it."""
    target = LOCKS / name
    command = [uv(), "--no-config", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-emit-index-url", "--custom-compile-command", "make relock"]
    environment = {k: v for k, v in os.environ.items() if k in MIRRORS or not k.startswith(LEAKS)}
    done = subprocess.run([*command, *arguments, "-o", str(target)], cwd=ROOT, env=environment, input=stdin, text=True)
    if done.returncode != 0:
        print(f"relock: uv could not resolve {name}; what it said stands above", file=sys.stderr)
        return False
    if "://" in target.read_text():
        print(f"relock: {name} names a host; do not commit it", file=sys.stderr)
        return False
    print(f"relock: requirements/{name}")
    return True


def uv() -> str:
    """Return the `uv` of `.venv`, or the one on PATH while there is no lock to install it from yet."""
    own = ROOT / ".venv/bin/uv"
    return str(own) if own.is_file() else "uv"


if __name__ == "__main__":
    sys.exit(main())
