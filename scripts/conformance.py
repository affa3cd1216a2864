"""Run the Model Context Protocol's conformance suite against the gateway, and say how much of it passes.

The suite needs Node 24, which its package brings; npm sets both up under `.conformance/` from the lock file in
`tests/conformance`. Where npm is missing the run is skipped and says so. The gateway stands before the server in
`tests/conformance/everything`, which runs in a sandbox, behind gate and journal. Our client side is not driven yet.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
_LINE = re.compile(r"^([\u2713\u2717]) ([\w.-]+): (\d+) passed, (\d+) failed", re.MULTILINE)
_UNSCORED = re.compile(r"^  [\u2713\u2717] ([\w.-]+) \(", re.MULTILINE)


def main() -> int:
    """Run both revisions and return the exit code; a scenario that fails is a number, not an error."""
    npm = shutil.which("npm")
    if npm is None:
        print("conformance: skipped: npm is not installed")
        return 0
    with gateway(set_up(npm)) as url:
        counts = [scored(revision, url) for revision in REVISIONS]
    gained = " ".join(f"{passed}/{of}" for passed, of in zip(counts, REVISIONS.values(), strict=True))
    print("client: not built: the host is not driven by this script yet")
    print(f"conformance: client 0/32 0/18, gateway {gained}")
    return 0


def set_up(npm: str) -> Path:
    """The suite, the packages of the server, and the locked agent that has it; the agent."""
    WORK.mkdir(exist_ok=True)
    suite = (SOURCE / "package.json", SOURCE / "package-lock.json")
    with once(*suite) as anew:
        if anew:
            for file in suite:
                shutil.copy(file, WORK)
            subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--silent"], cwd=WORK, check=True)
    packages = WORK / "python"
    with once(PACKAGES) as anew:
        if anew:
            install(packages)
    agent = WORK / "everything"
    shutil.rmtree(agent, ignore_errors=True)
    shutil.copytree(SOURCE / "everything", agent)
    written = agent / "agent.toml"
    written.write_text(written.read_text().replace("/PYTHON", str(packages)))
    subprocess.run([sys.executable, "-m", "lockstep", "lock", str(agent)], check=True)
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


@contextmanager
def gateway(agent: Path) -> Iterator[str]:
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
    node = WORK / "node_modules/node/bin"
    env = {**os.environ, "PATH": f"{node}{os.pathsep}{os.environ['PATH']}"}
    command = [str(node / "node"), SUITE, "server", "--url", url, "--requirements", revision]
    done = subprocess.run(command, cwd=WORK, env=env, capture_output=True, text=True, timeout=900, check=False)
    summary = done.stdout.partition("=== SUMMARY ===")[2]
    if not summary:
        raise SystemExit(f"conformance: the suite said nothing: {done.stdout[-500:]}{done.stderr[-2000:]}")
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
