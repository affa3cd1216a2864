"""`make demo`: the main job, start to end, as a newcomer sees it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of a checkout that the demo needs, where its files disturb nobody."""
    tmp_path = tmp_path_factory.mktemp("demo")
    for name in ("scripts/demo.py", "examples/travel"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".lockstep"))
        else:
            shutil.copy(source, target)
    return tmp_path


@pytest.fixture(scope="module")
def done(checkout: Path) -> subprocess.CompletedProcess[str]:
    """The first time it is run there."""
    return _demo(checkout)


def test_the_demo_ends_with_one_booking_and_one_calendar_entry(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    last = done.stdout.rstrip().splitlines()[-1]
    assert re.fullmatch(r"demo ok: 1 booking at \$[1-4]\d\d\.\d\d, 1 calendar entry, run r[0-9a-z]{16}", last)
    assert "approval" in done.stdout
    assert "lockstep trace" in done.stdout


def test_the_demo_can_be_run_again(checkout: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0
    assert _demo(checkout).returncode == 0


def test_the_demo_fails_closed_with_the_remedy_where_there_is_no_sandbox(checkout: Path) -> None:
    done = _demo(checkout, LOCKSTEP_RUNSC=str(checkout / "nowhere"))
    assert done.returncode == 1
    assert "demo ok" not in done.stdout
    assert "runsc" in done.stderr
    assert "Traceback" not in done.stderr


def _demo(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/demo.py"]
    plain = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(checkout), **environment}
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=180, check=False, env=plain)
