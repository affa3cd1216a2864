"""Measure Lockstep side by side with its durable peers and exit 1 when one of our targets is not met.

Standard library only. `python bench/run.py` makes the peers' environments under `.bench/` when they are missing, takes
two to four minutes, prints the tables and writes `.bench/results.json`. See `bench/README.md`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from contenders import OURS, PEERS, STATE, Contender, Failure, environment_of, measure, prepare_python, run_quietly
from report import Book, Case, Check, check_targets, print_checks, print_table

TARGETS = {
    "cpu_ms_per_step_max": 0.8,
    "ratio_to_best_peer_max": 1 / 3,
    "step400_vs_step20_max": 1.2,
    "storage_kib_400_max": 700.0,
    "help_ms_max": 150.0,
    "rss_mb_max": 60.0,
    "concurrent_steps_per_s_min": 2000.0,
}

CASES = (
    Case(title="20 steps", steps=20, runs=None, repetitions=7, peer_repetitions=7),
    Case(title="400 steps", steps=400, runs=None, repetitions=4, peer_repetitions=4),
    Case(title="200 runs of 20 steps at once", steps=20, runs=200, repetitions=3, peer_repetitions=1),
)
HELP_REPETITIONS = 10
HELP_TIMEOUT_S = 30


def main() -> int:
    """Run everything and return the exit code."""
    STATE.mkdir(exist_ok=True)
    started, load = datetime.now(UTC), os.getloadavg()
    pythons = {contender.name: prepare(contender) for contender in (OURS, *PEERS)}
    book = measure_all(pythons)
    help_ms = measure_help()
    for case in CASES:
        print_table(case, book)
    checks = check_targets(TARGETS, CASES, book, help_ms)
    print_checks(checks, help_ms)
    machine = describe_machine(load)
    print("\n" + ", ".join(f"{fact} {value}" for fact, value in machine.items()))
    write_results(STATE / "results.json", started=started, machine=machine, book=book, help_ms=help_ms, checks=checks)
    return 0 if all(check.met for check in checks) else 1


def prepare(contender: Contender) -> Path | Failure:
    """Return the contender's interpreter, saying what is being waited for."""
    say(f"preparing {contender.name}")
    return prepare_python(contender)


def measure_all(pythons: dict[str, Path | Failure]) -> Book:
    """Measure every contender in every case, repetitions interleaved; a cell that failed once is not tried again."""
    book: Book = {(contender.name, case.title): [] for contender in (OURS, *PEERS) for case in CASES}
    for repetition in range(max(case.repetitions for case in CASES)):
        for case in CASES:
            for contender in (OURS, *PEERS):
                outcomes = book[contender.name, case.title]
                wanted = case.repetitions if contender is OURS else case.peer_repetitions
                if repetition >= wanted or any(isinstance(outcome, Failure) for outcome in outcomes):
                    continue
                say(f"{case.title}, repetition {repetition + 1} of {wanted}: {contender.name}")
                outcomes.append(measure(contender, pythons[contender.name], steps=case.steps, runs=case.runs))
    return book


def measure_help() -> list[float] | Failure:
    """Return the wall time of `lockstep --help` in ms, once per repetition, after one call that does not count."""
    command = [sys.executable, "-m", "lockstep", "--help"]
    times_ms = []
    for _ in range(HELP_REPETITIONS + 1):
        before = time.perf_counter()
        output = run_quietly(command, timeout_s=HELP_TIMEOUT_S, environment=environment_of(OURS))
        times_ms.append((time.perf_counter() - before) * 1000)
        if isinstance(output, Failure):
            return output
    return times_ms[1:]


def describe_machine(load_before: tuple[float, float, float]) -> dict[str, object]:
    """Return what a reader needs to judge the figures by."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(load_before[0], 2),
        "load_after": round(os.getloadavg()[0], 2),
    }


def write_results(
    path: Path,
    *,
    started: datetime,
    machine: dict[str, object],
    book: Book,
    help_ms: list[float] | Failure,
    checks: list[Check],
) -> None:
    """Write every single measurement and every check as JSON."""
    results = {
        "started": started.isoformat(timespec="seconds"),
        "machine": machine,
        "measurements": [
            {"contender": name, "case": case, "outcomes": [asdict(outcome) for outcome in outcomes]}
            for (name, case), outcomes in book.items()
        ],
        "help_ms": asdict(help_ms) if isinstance(help_ms, Failure) else help_ms,
        "checks": [asdict(check) | {"met": check.met} for check in checks],
    }
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"every measurement: {path.relative_to(STATE.parent)}")


def say(progress: str) -> None:
    """Tell a waiting person where we are, apart from the results on stdout."""
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
