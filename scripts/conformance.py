"""Run the Model Context Protocol's conformance suite against host and gateway, and say how much of it passes.

The suite needs Node 24, which its package brings; npm sets both up under `.conformance/` from the lock file in
`tests/conformance`. Where npm is missing the run is skipped and says so. The gateway stands before the server in
`tests/conformance/everything`, which runs in a sandbox, behind gate and journal. As a client the suite starts
`tests/conformance/client.py`, which locks and runs an agent.

Usage: conformance.py [client|gateway] [SCENARIO...]. One half alone, or of the client some scenarios.

A required scenario that fails is tried once more, and named. Ends with 0 when all pass, or npm is missing; with 1 when
one does not pass; with 3 when the suite could not be set up, which says nothing about us.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests/conformance"
WORK = ROOT / ".conformance"
PACKAGES = ROOT / "tests/contract/data/mcp_servers/modern.txt"
"""Packages of servers on the SDK, for the Python of the system, which is the one that a sandbox sees."""
SUITE = "node_modules/@modelcontextprotocol/conformance/dist/index.js"
REVISIONS = {"2026-07-28": 37, "2025-11-25": 30}
"""Revision -> server scenarios that it requires."""
CLIENT = {"2026-07-28": 32, "2025-11-25": 18}
"""Revision -> client scenarios that it requires."""
CLIENT_S = 60
PASSED, SOME_FAILED, NOT_SET_UP = 0, 1, 3
_LINE = re.compile(r"^([\u2713\u2717]) ([\w.-]+): (\d+) passed, (\d+) failed", re.MULTILINE)
_UNSCORED = re.compile(r"^  [\u2713\u2717] ([\w.-]+) \(", re.MULTILINE)


def main() -> int:
    """Run both revisions and return the exit code."""
    npm = shutil.which("npm")
    if npm is None:
        print("conformance: skipped: npm is not installed")
        return PASSED
    half, only = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    try:
        set_up(npm)
        if half != "client":
            set_up_server()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"conformance: the suite could not be set up: {error}")
        return NOT_SET_UP
    with clients(half != "gateway") as command:
        client = scores(half != "gateway", CLIENT, lambda revision: played(revision, command, only))
    with gateway(half != "client") as url:
        served = scores(half != "client", REVISIONS, lambda revision: scored(revision, url))
    print(f"conformance: client {written(client, CLIENT)}, gateway {written(served, REVISIONS)}")
    enough = (only or reaches(client, CLIENT)) and reaches(served, REVISIONS)
    failed = any(score.failed for score in [*client.values(), *served.values()])
    return PASSED if enough and not failed else SOME_FAILED


def set_up(npm: str) -> None:
    """The suite."""
    WORK.mkdir(exist_ok=True)
    files = (SOURCE / "package.json", SOURCE / "package-lock.json")
    with once(*files) as anew:
        if anew:
            for file in files:
                shutil.copy(file, WORK)
            subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--silent"], cwd=WORK, check=True)


def set_up_server() -> None:
    """The packages that the server of everything needs."""
    with once(PACKAGES) as anew:
        if anew:
            install(WORK / "python")


def everything() -> Path:
    """The locked agent that has the server of everything."""
    agent = WORK / "everything"
    shutil.rmtree(agent, ignore_errors=True)
    shutil.copytree(SOURCE / "everything", agent)
    written = agent / "agent.toml"
    written.write_text(written.read_text().replace("/PYTHON", str(WORK / "python")))
    subprocess.run([sys.executable, "-m", "lockstep", "lock", str(agent)], check=True, stdout=subprocess.DEVNULL)
    return agent


def install(packages: Path) -> None:
    """The packages of the server, with bytecode that stays valid when they are copied."""
    shutil.rmtree(packages, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-compile"]
    subprocess.run([*pip, "--only-binary", ":all:", "--target", str(packages), "-r", str(PACKAGES)], check=True)
    compiling = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(packages)]
    subprocess.run(["/usr/bin/python3", *compiling], check=True)


@contextmanager
def once(*files: Path) -> Iterator[bool]:
    """Whether what depends on these files is to be done; not again once it was."""
    stamp = WORK / f"{files[0].name}.stamp"
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    anew = not stamp.exists() or stamp.read_text() != digest
    yield anew
    if anew:
        stamp.write_text(digest)


@dataclass(frozen=True)
class Score:
    """How many required scenarios passed and how many did not, also not when they were tried once more."""

    passed: int
    failed: int


def scores(wanted: bool, required: Iterable[str], score: Callable[[str], Score]) -> dict[str, Score]:
    """The score of each revision; empty where it was not asked for."""
    return {revision: score(revision) for revision in required} if wanted else {}


def written(scores: Mapping[str, Score], required: Mapping[str, int]) -> str:
    passed = {revision: score.passed for revision, score in scores.items()}
    return " ".join(f"{passed.get(revision, '-')}/{of}" for revision, of in required.items())


def reaches(scores: Mapping[str, Score], required: Mapping[str, int]) -> bool:
    """Whether as many passed as are required: to pass what a suite lists is not enough where it lists too few."""
    return all(score.passed >= required[revision] for revision, score in scores.items())


@contextmanager
def clients(wanted: bool) -> Iterator[str]:
    """The command by which the suite has a client: one that is forked, its imports done."""
    if not wanted:
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="lockstep-conformance-") as directory:
        forked, at = str(SOURCE / "forked.py"), f"{directory}/clients"
        command = [sys.executable, forked, "serve", at]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise SystemExit("conformance: the clients did not start")
            yield f"{sys.executable} -I -S {forked} {at}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with clients that the suite gave up
            process.wait()


def played(revision: str, command: str, only: Collection[str]) -> Score:
    """A revision's required client scenarios, each in a run of the suite of its own."""
    listed = suite("list", "--client", "--requirements", revision).partition("Client scenarios")[2]
    listed = listed.partition("Run and reported")[0]
    names = [name for name in re.findall(r"^  - (\S+)", listed, re.MULTILINE) if not only or name in only]
    print(f"client, {revision}:")

    def verdict_of(name: str) -> str:
        return client_verdict(revision, command, name)

    with ThreadPoolExecutor(max_workers=2) as workers:
        verdicts = zip(names, list(workers.map(verdict_of, names)), strict=True)
    return total(verdicts, verdict_of)


def total(verdicts: Iterable[tuple[str, str]], again: Callable[[str], str]) -> Score:
    """The score of scenarios and what failed in each. One that failed is tried once more, alone, and named."""
    passed = failed = 0
    for name, first in verdicts:
        last = first and again(name)
        said = f" ({last})" if last else f" (when tried again; before: {first})" if first else ""
        print(f"  {'FAIL' if last else 'ok  '} {name}{said}")
        passed, failed = passed + (not last), failed + bool(last)
    return Score(passed, failed)


def client_verdict(revision: str, command: str, scenario: str) -> str:
    """What failed in a scenario; empty when it passed."""
    limits = ("--spec-version", revision, "--timeout", str(CLIENT_S * 1000))
    return verdict(suite("client", "--command", command, "--scenario", scenario, *limits))


def verdict(said: str) -> str:
    """What failed in the one scenario that the suite ran; empty when it passed."""
    if "OVERALL: PASSED" in said:
        return ""
    return "; ".join(re.findall(r"^  - ([\w-]+):", said, re.MULTILINE)) or "it did not run to its end"


def suite(*arguments: str) -> str:
    """What the suite prints."""
    node = WORK / "node_modules/node/bin"
    env = {**os.environ, "PATH": f"{node}{os.pathsep}{os.environ['PATH']}"}
    command = [str(node / "node"), SUITE, *arguments]
    done = subprocess.run(command, cwd=WORK, env=env, capture_output=True, text=True, timeout=900, check=False)
    return done.stdout + done.stderr


@contextmanager
def gateway(wanted: bool) -> Iterator[str]:
    """The URL of a gateway in front of the everything-agent."""
    if not wanted:
        yield ""
        return
    agent = everything()
    command = [sys.executable, "-m", "lockstep", "gateway", str(agent), "--http", "0", "--open"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        if " at http://" not in line:
            raise SystemExit(f"conformance: the gateway did not start: {line}{process.stderr.read()}")
        yield line.split(" at ")[1].strip().replace("127.0.0.1", "localhost")
    finally:
        process.terminate()
        process.communicate(timeout=60)


def scored(revision: str, url: str) -> Score:
    """A revision's required server scenarios, all in one run of the suite."""
    said = suite("server", "--url", url, "--requirements", revision)
    summary = said.partition("=== SUMMARY ===")[2]
    if not summary:
        raise SystemExit(f"conformance: the suite said nothing: {said[-2500:]}")
    unscored = set(_UNSCORED.findall(summary))
    print(f"{revision}:")

    def again(name: str) -> str:
        return verdict(suite("server", "--url", url, "--scenario", name, "--spec-version", revision))

    verdicts = [
        (name, "" if mark == "\u2713" else f"{failed} checks")
        for mark, name, _, failed in _LINE.findall(summary)
        if name not in unscored
    ]
    return total(verdicts, again)


if __name__ == "__main__":
    sys.exit(main())
