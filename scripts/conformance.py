"""Run the Model Context Protocol's conformance suite against host and gateway, and say how much of it passes.

The suite needs Node 24, which its package brings; npm sets both up under `.conformance/` from the lock file in
`tests/conformance`. Where npm is missing the run is skipped and says so. The gateway stands before the server in
`tests/conformance/everything`, which runs in a sandbox, behind gate and journal. As a client the suite starts
`tests/conformance/client.py`, which locks and runs an agent.

Usage: conformance.py [client|gateway] [SCENARIO...]. One half alone, or of the client some scenarios.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
_LINE = re.compile(r"^([\u2713\u2717]) ([\w.-]+): (\d+) passed, (\d+) failed", re.MULTILINE)
_UNSCORED = re.compile(r"^  [\u2713\u2717] ([\w.-]+) \(", re.MULTILINE)


def main() -> int:
    """Run both revisions and return the exit code; a scenario that fails is a number, not an error."""
    npm = shutil.which("npm")
    if npm is None:
        print("conformance: skipped: npm is not installed")
        return 0
    set_up(npm)
    half, only = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    client = gained(half != "gateway", CLIENT, lambda revision: played(revision, only))
    with gateway(half != "client") as url:
        served = gained(half != "client", REVISIONS, lambda revision: scored(revision, url))
    print(f"conformance: client {client}, gateway {served}")
    return 0


def set_up(npm: str) -> None:
    """The suite."""
    WORK.mkdir(exist_ok=True)
    files = (SOURCE / "package.json", SOURCE / "package-lock.json")
    with once(*files) as anew:
        if anew:
            for file in files:
                shutil.copy(file, WORK)
            subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--silent"], cwd=WORK, check=True)


def everything() -> Path:
    """The locked agent that has the server of everything, with the packages that the server needs."""
    packages = WORK / "python"
    with once(PACKAGES) as anew:
        if anew:
            install(packages)
    agent = WORK / "everything"
    shutil.rmtree(agent, ignore_errors=True)
    shutil.copytree(SOURCE / "everything", agent)
    written = agent / "agent.toml"
    written.write_text(written.read_text().replace("/PYTHON", str(packages)))
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


def gained(wanted: bool, required: Mapping[str, int], count: Callable[[str], int]) -> str:
    """`passed/required` of each revision; `-` where it was not asked for."""
    return " ".join(f"{count(revision) if wanted else '-'}/{of}" for revision, of in required.items())


def played(revision: str, only: Collection[str]) -> int:
    """How many of a revision's required client scenarios pass, each in a run of the suite of its own."""
    listed = suite("list", "--client", "--requirements", revision).partition("Client scenarios")[2]
    listed = listed.partition("Run and reported")[0]
    names = [name for name in re.findall(r"^  - (\S+)", listed, re.MULTILINE) if not only or name in only]
    print(f"client, {revision}:")
    with ThreadPoolExecutor(max_workers=2) as workers:
        verdicts = list(workers.map(lambda name: client_verdict(revision, name), names))
    for name, failed in zip(names, verdicts, strict=True):
        print(f"  {'FAIL' if failed else 'ok  '} {name}{f' ({failed})' if failed else ''}")
    return sum(not failed for failed in verdicts)


def client_verdict(revision: str, scenario: str) -> str:
    """What failed in a scenario; empty when it passed."""
    command = f"{sys.executable} {SOURCE / 'client.py'}"
    limits = ("--spec-version", revision, "--timeout", str(CLIENT_S * 1000))
    said = suite("client", "--command", command, "--scenario", scenario, *limits)
    if "OVERALL: PASSED" in said:
        return ""
    return "; ".join(re.findall(r"^  - (\w+):", said, re.MULTILINE)) or "it did not run to its end"


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


def scored(revision: str, url: str) -> int:
    """How many of a revision's required scenarios pass; each is printed."""
    said = suite("server", "--url", url, "--requirements", revision)
    summary = said.partition("=== SUMMARY ===")[2]
    if not summary:
        raise SystemExit(f"conformance: the suite said nothing: {said[-2500:]}")
    unscored = set(_UNSCORED.findall(summary))
    passed = 0
    print(f"{revision}:")
    for mark, name, _, failed in _LINE.findall(summary):
        if name not in unscored:
            ok = mark == "\u2713"
            passed += ok
            print(f"  {'ok  ' if ok else 'FAIL'} {name}{'' if ok else f' ({failed} checks)'}")
    return passed


if __name__ == "__main__":
    sys.exit(main())
