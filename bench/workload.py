"""The workload every contender runs and the meter it is read with.

A step is one model turn that asks for one tool call, plus that call returning 1 KB of text; one more model turn after
the last step ends the run. Each contender imports this inside its own interpreter, so it knows none of them and needs
only the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

USER_MESSAGE = "Look up every record, one at a time."
FINAL_TEXT = "done"
TOOL_TEXT_CHARS = 1024
WARMUP_STEPS = 3
WINDOW_STEPS = 20


def tool_text(record: int) -> str:
    """Return the tool's 1 KB answer; different for each record, so that no store can fold equal bodies into one."""
    return hashlib.shake_128(b"%d" % record).hexdigest(TOOL_TEXT_CHARS // 2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the harness asked for; `runs` is None for one run alone, else the number of runs at once."""

    steps: int
    directory: Path
    runs: int | None


class Script:
    """The fake model's side of a run, and the clocks around it.

    It starts out as a warm-up of `WARMUP_STEPS` steps in the same store, so that lazy imports and table creation count
    as nobody's step; `begin` turns it into the measured workload.
    """

    def __init__(self) -> None:
        self.steps = WARMUP_STEPS
        self.turns: list[float] = []
        self.wall_s = self.cpu_s = 0.0

    def begin(self, steps: int) -> None:
        """Forget the warm-up and start the clocks for runs of `steps` steps."""
        self.steps = steps
        self.turns.clear()
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Stop the clocks: wall time, and process CPU (user and system, all threads)."""
        self.wall_s, self.cpu_s = time.perf_counter() - self.wall_s, time.process_time() - self.cpu_s

    def next_record(self, messages: int) -> int | None:
        """Return the record to look up after `messages` messages, or None when the model should say `FINAL_TEXT`."""
        self.turns.append(time.process_time())
        step = messages // 2
        return step if step < self.steps else None

    def window_ms(self, first: int) -> float:
        """Return the mean CPU of the `WINDOW_STEPS` steps from `first` on, measured from model turn to model turn."""
        return (self.turns[first + WINDOW_STEPS] - self.turns[first]) / WINDOW_STEPS * 1000


def peak_rss_mb() -> float:
    """Return this process's peak resident memory in MiB.

    `VmHWM` rather than `ru_maxrss`, because Linux carries the latter over from the parent through exec.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def storage_bytes(directory: Path) -> int:
    """Return the size of all files under `directory`, in bytes."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def check_same_workload(script: Script, options: Options, outputs: list[str]) -> None:
    """Raise ValueError unless every run took each of its turns and ended with `FINAL_TEXT`."""
    runs = options.runs or 1
    if len(script.turns) != runs * (options.steps + 1) or outputs != [FINAL_TEXT] * runs:
        raise ValueError(f"{len(script.turns)} model turns, {outputs.count(FINAL_TEXT)} of {runs} runs finished")


def parse_options() -> tuple[Options, list[str]]:
    """Read `--steps N --dir D [--concurrent R]`, create the directory, and return what is left for the contender."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--concurrent", type=int, metavar="R")
    given, rest = parser.parse_known_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    return Options(steps=given.steps, directory=given.dir, runs=given.concurrent), rest


def report(name: str, packages: tuple[str, ...], options: Options, script: Script) -> dict[str, object]:
    """Return a contender's result; call it when the store is closed, since it measures the files."""
    result: dict[str, object] = {
        "name": name,
        "versions": {package: metadata.version(package) for package in packages},
        "steps": options.steps,
        "wall_s": round(script.wall_s, 4),
        "cpu_s": round(script.cpu_s, 4),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "storage_bytes": storage_bytes(options.directory),
    }
    if options.runs:
        steps_per_s = options.runs * options.steps / script.wall_s
        return result | {"concurrent": options.runs, "steps_per_s": round(steps_per_s, 1)}
    if options.steps >= 2 * WINDOW_STEPS:
        first, last = script.window_ms(0), script.window_ms(options.steps - WINDOW_STEPS)
        result["per_step_cpu_ms"] = {"first_20": round(first, 4), "last_20": round(last, 4)}
    return result


def run_contender(
    name: str, packages: tuple[str, ...], options: Options, loop: Callable[[Options, Script], list[str]]
) -> None:
    """Run the workload once and print its result as one JSON object on stdout.

    Args:
        name: the contender's name in the table.
        packages: distributions whose versions are reported.
        options: from `parse_options`.
        loop: opens a store in `options.directory`, runs the warm-up, then `options.runs or 1` runs between
            `script.begin` and `script.end`, closes the store and returns the runs' final texts.
    """
    script = Script()
    outputs = loop(options, script)
    check_same_workload(script, options, outputs)
    print(json.dumps(report(name, packages, options, script)))
