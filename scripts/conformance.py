"""Run the Model Context Protocol's conformance suite against the gateway, and say how much of it passes.

The suite needs Node 24, which its package brings; npm sets both up under `.conformance/` from the lock file in
`tests/conformance`. Where npm is missing the run is skipped and says so. The gateway serves the Python tools of
`tests/conformance/everything`, in sandboxes and behind gate and journal. Our client side is not driven yet.
"""

from __future__ import annotations

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
    WORK.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SOURCE / name, WORK)
    subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--silent"], cwd=WORK, check=True)
    agent = WORK / "everything"
    shutil.rmtree(agent, ignore_errors=True)
    shutil.copytree(SOURCE / "everything", agent)
    subprocess.run([sys.executable, "-m", "lockstep", "lock", str(agent)], check=True)
    with gateway(agent) as url:
        counts = [scored(revision, url) for revision in REVISIONS]
    gained = " ".join(f"{passed}/{of}" for passed, of in zip(counts, REVISIONS.values(), strict=True))
    print("client: not built: the host is not driven by this script yet")
    print(f"conformance: client 0/32 0/18, gateway {gained}")
    return 0


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
