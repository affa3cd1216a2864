"""What is shipped holds: the examples' committed locks, and every command of the README."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)")
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """The `$` lines of the README's console blocks, in order."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    return [line[2:].split("    #")[0].rstrip() for block in blocks for line in block.splitlines() if line[:2] == "$ "]


@pytest.mark.sandbox
@SANDBOX
@pytest.mark.parametrize("agent", ["travel", "airline"])
def test_the_committed_lock_of_an_example_is_what_its_directory_says(agent: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lockstep", "diff", str(ROOT / "examples" / agent), "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("no difference"), done.stdout + done.stderr


@pytest.fixture
def newcomer(tmp_path: Path) -> Path:
    """A directory like a checkout, the travel agent locked for a port that is free here."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns(".lockstep", "__pycache__"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "port").write_text(str(taken.getsockname()[1]))
    agent = tmp_path / "examples/travel"
    (agent / "agent.toml").write_text(
        (agent / "agent.toml").read_text().replace("8931", (tmp_path / "port").read_text())
    )
    command = [sys.executable, "-m", "lockstep", "lock", str(agent), "--store", str(tmp_path / "locking")]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    return tmp_path


FIND_ID = """python -c 'import json,sys;print(json.load(sys.stdin)["waiting"][0]["approval"])'"""


@pytest.mark.sandbox
@SANDBOX
def test_every_lockstep_command_of_the_readme_does_what_it_says(newcomer: Path) -> None:
    """Run in one shell, in order. `ID` becomes the approval that waits; no key is set, since none is to be used."""
    lines = [line for line in commands() if not line.startswith(("make ", "source ", "export OPENAI"))]
    assert len(lines) >= 14, "the README lost its commands"
    script = [f'lockstep() {{ "{sys.executable}" -m lockstep "$@"; }}', f'python() {{ "{sys.executable}" "$@"; }}']
    for number, line in enumerate(lines):
        if line.endswith("&"):
            # Not by way of the function above: `$!` would be a shell, and killing that leaves the service.
            service = line[:-1].replace("8931", (newcomer / "port").read_text())
            service = service.replace("python ", f'"{sys.executable}" ', 1)
            script += [f"{service} > service.log 2>&1 &", "SERVICE=$!"]
            script += ["until grep -q 'service on' service.log; do kill -0 $SERVICE || exit 9; done"]
            continue
        asked = line.replace("approve ID", f"approve $(lockstep approvals --json | {FIND_ID})")
        script += [asked, f'echo "{number} $?" >> codes']
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    command = ["bash", "-c", "\n".join([*script, "kill $SERVICE"])]
    done = subprocess.run(
        command,
        cwd=newcomer,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    codes = dict(line.split() for line in (newcomer / "codes").read_text().splitlines())
    ended = {(number, lines[int(number)]): int(code) for number, code in codes.items()}
    expected = {place: _expected(lines, int(place[0])) for place in ended}
    assert ended == expected, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(ended) == len(lines) - 1, "all but the service in the background"


def _expected(lines: list[str], number: int) -> int:
    """2: the disk differs from the lock, or no key; 3: the booking waits for a person."""
    line = lines[number]
    if line.startswith("lockstep run hello"):
        return 2 if lines[number - 1].startswith("echo ") else 0
    if line.startswith("lockstep run examples/travel"):
        return 2 if "--model openai" in line else 3
    return 0


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"`?make (\w+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert targets >= {"demo", "test", "check", "bench", "airline"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
