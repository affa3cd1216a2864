"""Who is measured, the environment each one needs, and one measurement of one of them in its own process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).resolve().parent
STATE = BENCH.parent / ".bench"
SETUP_TIMEOUT_S = 600
RUN_TIMEOUT_S = 180
PEER_SETTINGS = ("PYTHON", "VIRTUAL_ENV", "LANGCHAIN_", "LANGSMITH_", "LANGGRAPH_", "DBOS_", "LOGFIRE_", "OTEL_")
"""Variables that could change what a peer does; a peer is measured without them."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the tables; `requirements` is None for ours, which runs with this interpreter."""

    name: str
    command: tuple[str, ...]
    requirements: str | None = None


OURS = Contender(name="lockstep", command=("lockstep_loop.py",))
PEERS = (
    Contender(
        name="langgraph + SqliteSaver",
        command=("peers/langgraph_sqlite.py",),
        requirements="peers/requirements-langgraph.txt",
    ),
    Contender(
        name="langgraph + SqliteSaver, DeltaChannel (beta)",
        command=("peers/langgraph_sqlite.py", "--channel", "delta"),
        requirements="peers/requirements-langgraph.txt",
    ),
    Contender(
        name="pydantic-ai + DBOS (SQLite)",
        command=("peers/pydantic_ai_dbos.py",),
        requirements="peers/requirements-dbos.txt",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measurement; `first_20_ms` and `last_20_ms` are CPU per step, `steps_per_s` is for many runs at once."""

    versions: dict[str, str]
    cpu_ms_per_step: float
    wall_ms_per_step: float
    peak_rss_mb: float
    storage_kib: float
    first_20_ms: float | None
    last_20_ms: float | None
    steps_per_s: float | None


@dataclass(frozen=True)
class Failure:
    """Why there is no sample, in one line."""

    reason: str


def measure(contender: Contender, python: Path | Failure, *, steps: int, runs: int | None) -> Sample | Failure:
    """Run the workload once in a fresh process and a fresh directory on the repository's disk, removed afterwards.

    Without an interpreter the reason it is missing is the outcome.
    """
    if isinstance(python, Failure):
        return python
    directory = STATE / "store"
    shutil.rmtree(directory, ignore_errors=True)
    script, *extra = contender.command
    command = [str(python), str(BENCH / script), *extra, "--steps", str(steps), "--dir", str(directory)]
    if runs:
        command += ["--concurrent", str(runs)]
    output = run_quietly(command, timeout_s=RUN_TIMEOUT_S, environment=environment_of(contender))
    shutil.rmtree(directory, ignore_errors=True)
    if isinstance(output, Failure):
        return output
    try:
        return parse_sample(output, steps=steps * (runs or 1))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        return Failure(f"unreadable result: {error!r}")


def parse_sample(output: str, *, steps: int) -> Sample:
    """Read the JSON object in the last line of a contender's stdout; `steps` counts those of all its runs."""
    result = json.loads(output.strip().splitlines()[-1])
    window = result.get("per_step_cpu_ms") or {}
    return Sample(
        versions={str(package): str(version) for package, version in result["versions"].items()},
        cpu_ms_per_step=float(result["cpu_s"]) / steps * 1000,
        wall_ms_per_step=float(result["wall_s"]) / steps * 1000,
        peak_rss_mb=float(result["peak_rss_mb"]),
        storage_kib=float(result["storage_bytes"]) / 1024,
        first_20_ms=_float_or_none(window.get("first_20")),
        last_20_ms=_float_or_none(window.get("last_20")),
        steps_per_s=_float_or_none(result.get("steps_per_s")),
    )


def prepare_python(contender: Contender) -> Path | Failure:
    """Return the contender's interpreter, making its environment first when its pins or this interpreter changed."""
    if contender.requirements is None:
        return Path(sys.executable)
    pins = BENCH / contender.requirements
    key = hashlib.sha256(pins.read_bytes() + f"{sys.executable} {sys.version}".encode()).hexdigest()[:12]
    home = STATE / f"{pins.stem.removeprefix('requirements-')}-{key}"
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    for command in setup_commands(home, python, pins):
        output = run_quietly(command, timeout_s=SETUP_TIMEOUT_S, environment=environment_of(contender))
        if isinstance(output, Failure):
            return Failure(f"set-up failed: {output.reason}")
    (home / "complete").touch()
    return python


def setup_commands(home: Path, python: Path, pins: Path) -> list[list[str]]:
    """Return the commands that make a virtual environment with exactly `pins`, by uv when there is one."""
    uv = shutil.which("uv")
    if uv:
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), "-r", str(pins)]
        return [[uv, "venv", "--quiet", "--python", sys.executable, str(home)], install]
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(pins)]
    return [[sys.executable, "-m", "venv", str(home)], install]


def environment_of(contender: Contender) -> dict[str, str]:
    """Return our own environment for us, and for a peer one without settings that could change what it does."""
    if contender.requirements is None:
        return dict(os.environ)
    return {name: value for name, value in os.environ.items() if not name.startswith(PEER_SETTINGS)}


def run_quietly(command: list[str], *, timeout_s: float, environment: dict[str, str]) -> str | Failure:
    """Return the command's stdout, or the last line it said when it failed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Failure(f"no result within {timeout_s:g} s")
    except OSError as error:
        return Failure(str(error))
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
    return Failure(f"exit code {done.returncode}: {said}")


def _float_or_none(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
