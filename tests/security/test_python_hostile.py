"""Hostile code in the built-in `python` tool, in real gVisor: each call ends in a typed outcome, nothing is reached."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scenario"))

from commandline import FINISHED, Agent, call, make_agent

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
]

TOOLS = """\
[[tools]]
builtin = "python"
code = ["prices.csv"]
timeout_s = 4
late_s = 0
retries = 0
limits = { memory_mb = 256, processes = 8, file_mb = 4, disk_mb = 16, output_kb = 256 }
"""
CANARY = "canary-41c9-that-only-the-host-knows"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    directory = tmp_path_factory.mktemp("hostile") / "coder"
    made = make_agent(directory, code="", tools=TOOLS, files={"prices.csv": CANARY}, lock=False)
    made.change("agent.toml", "[policy]\n", '[policy]\nuntrusted = "gvisor"\n')
    assert made("lock", made.directory).code == FINISHED
    return made


def tried(agent: Agent, code: str, **more: Any) -> dict[str, Any]:
    """The one call of a run whose model asks for this code; the run itself always finishes."""
    done = agent.run("Try it.", script=[call("python", code=code, **more), {"say": "Tried."}])
    assert done.code == FINISHED, done.all
    assert done.json["output"] == "Tried."
    (only,) = done.json["calls"]
    assert only["tier"] == "gvisor"
    result: dict[str, Any] = only
    return result


def test_what_the_host_has_is_not_there(agent: Agent, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(CANARY)
    seen = tried(
        agent,
        f"""
import os, socket
def attempt(what):
    try: return what()
    except Exception as error: return type(error).__name__
print(attempt(lambda: open({str(secret)!r}).read()))
print(attempt(lambda: open("/tool/prices.csv", "w")))
print(attempt(lambda: socket.create_connection(("1.1.1.1", 443), 3)))
print(attempt(lambda: socket.getaddrinfo("example.com", 443)))
print(sorted(os.environ), os.getuid(), len(open("/etc/passwd").read().splitlines()))
""",
    )
    assert seen["outcome"] == "ok"
    file, tool, connection, name, rest = seen["result"].splitlines()
    assert (file, connection, name) == ("FileNotFoundError", "OSError", "gaierror")
    assert tool in ("OSError", "PermissionError")
    assert rest == "['HOME', 'LC_CTYPE', 'LOCKSTEP_OUTPUT_BYTES', 'MPLBACKEND'] 65534 2"


def test_links_to_what_is_mounted_are_not_followed(agent: Agent) -> None:
    code = "import os\nos.symlink('/etc/passwd', 'a')\nos.symlink('/tool/prices.csv', 'b')\nos.symlink('/tool', 'c')"
    seen = tried(agent, code, outputs=["a", "b", "c", "c/prices.csv", "../tool/prices.csv"])
    assert seen["outcome"] == "ok"
    assert seen["result"].count(" is a link") == 3
    assert seen["result"].count(" is not a plain name") == 2
    assert CANARY not in seen["result"]
    assert "attachments" not in seen


@pytest.mark.parametrize(
    ("code", "outcomes", "said"),
    [
        ("while True: print('x' * 1000)", {"timeout"}, "within 4 s"),
        ("while True: pass", {"timeout"}, "within 4 s"),
        ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"timeout", "tool_error"}, ""),
        ("import os\nos.kill(os.getppid(), 9)", {"process_ended"}, "without an answer"),
        ("x = bytearray(10**10)", {"tool_error"}, "MemoryError"),
        ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", {"tool_error", "process_ended", "timeout"}, ""),
        ("open('big', 'wb').write(bytes(5 << 20))", {"tool_error"}, "File too large"),
        ("import shutil\nshutil.rmtree('/tmp'); shutil.rmtree('/work')", {"tool_error"}, "Error"),
    ],
    ids=["flood", "hang", "forks", "kills the runner", "memory", "recursion", "large file", "removes everything"],
)
def test_every_end_is_a_typed_outcome_the_model_is_told(agent: Agent, code: str, outcomes: set[str], said: str) -> None:
    seen = tried(agent, code)
    assert seen["outcome"] in outcomes, seen
    assert said in seen["result"]


def test_output_beyond_the_limit_is_named_and_what_fits_is_kept(agent: Agent) -> None:
    code = "import os\nfor name in 'abc': open(name, 'wb').write(os.urandom(100_000))\nprint('y' * 10**6)"
    seen = tried(agent, code, outputs=["a", "b", "c"])
    assert seen["outcome"] == "ok"
    assert "bytes of output cut here" in seen["result"]
    assert "b is too large" in seen["result"]
    assert [each["name"] for each in seen["attachments"]] == ["a"]
