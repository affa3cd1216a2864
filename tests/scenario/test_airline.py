"""Recorded conversations of a real model through loop, gate and sandboxes: every result and every final state equal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AIRLINE = ROOT / "examples/airline"
DATA = Path(os.environ.get("LOCKSTEP_DATA", ROOT.parent / "shared/data"))
RECORDING = DATA / "tau1_airline_gpt-4o.jsonl.zst"
WORLD = DATA / "worlds_tau1.json.zst"

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
    pytest.mark.skipif(
        not (RECORDING.exists() and WORLD.exists()), reason=f"no recordings at {DATA} (set LOCKSTEP_DATA)"
    ),
]


@pytest.mark.parametrize(
    ("arguments", "counted"),
    [
        pytest.param(
            ("--isolation", "process", "--limit", "20"),
            "results 153/153, states 20/20, runs 157",
            id="twenty in the quickest sandboxes",
            marks=pytest.mark.slow,
        ),
        pytest.param(("--limit", "4"), "results 35/35, states 4/4, runs 26", id="four in gVisor"),
    ],  # `make airline` replays all of them in gVisor
)
def test_recorded_conversations_replay_with_equal_results_and_states(arguments: tuple[str, ...], counted: str) -> None:
    done = _replay("--recording", str(RECORDING), "--world", str(WORLD), *arguments, timeout_s=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == f"airline: {counted}"


def test_a_changed_result_is_seen(tmp_path: Path) -> None:
    sys.path.insert(0, str(AIRLINE))
    from data import read_text

    changed = read_text(RECORDING).splitlines()[0].replace('\\"Mia\\"', '\\"Eve\\"')
    (tmp_path / "changed.jsonl").write_text(changed + "\n")
    done = _replay(
        "--recording", str(tmp_path / "changed.jsonl"), "--world", str(WORLD), "--isolation", "process", timeout_s=120
    )
    assert done.returncode == 1
    assert "states 1/1" in done.stdout
    assert "expected" in done.stdout


def test_a_missing_recording_is_a_sentence(tmp_path: Path) -> None:
    done = _replay("--recording", str(tmp_path / "none.jsonl"), "--world", str(WORLD), timeout_s=60)
    assert done.returncode == 2
    assert "none.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


def _replay(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(AIRLINE / "replay.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
