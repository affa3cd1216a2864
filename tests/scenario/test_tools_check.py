"""`lockstep tools check`: the travel example is what it says, and an agent whose tools lie is found out by calls."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from commandline import BAD_INPUT, FINISHED, SANDBOX, Agent, copy_of, lockstep, make_agent

pytestmark = SANDBOX
TRAVEL = Path(__file__).resolve().parents[2] / "examples/travel"

SERVICE = '''\
"""Keeps a list of everything it was told; nothing is forgotten, and only /kept knows its keys."""
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

told, keys = [], set()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"told": told})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        key = self.headers["Idempotency-Key"]
        if self.path != "/kept" or key not in keys:
            keys.add(key)
            told.append(f"{self.path} {body}")
        self.answer({"ok": True})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''
CODE = '''\
import json, os
from typing import Annotated
from urllib.request import Request, urlopen

from lockstep import tool

Who = Annotated[str, "Whom it is about."]


def _tell(path: str, who: str) -> str:
    with urlopen(Request(os.environ["SERVICE"] + path, data=who.encode(), method="POST"), timeout=5) as reply:
        return reply.read().decode()


def _told() -> list[str]:
    with urlopen(os.environ["SERVICE"] + "/", timeout=5) as reply:
        return json.load(reply)["told"]


@tool
def peek(who: Who) -> str:
    """Declared read, and writes."""
    return _tell("/peek", who)


@tool
def put(who: Who) -> str:
    """Declared idempotent, and adds another each time."""
    return _tell("/put", who)


@tool
def pay(who: Who) -> str:
    """Declared keyed, and its service does not look at the key."""
    return _tell("/pay", who)


@tool
def keep(who: Who) -> str:
    """Declared keyed, and is."""
    return _tell("/kept", who)


@tool
def book(who: Who) -> str:
    """Its probe says yes to everything."""
    return _tell("/book", who)


@tool
def lose(who: Who) -> str:
    """Its probe looks in the wrong place."""
    return _tell("/lose", who)


@tool
def sell(who: Who) -> str:
    """Its probe finds what was sold to anybody."""
    return _tell("/sell", who)


@tool
def stray(who: Who) -> str:
    """Reaches something else as well."""
    return _tell("/stray", who)


@tool
def fail(who: Who) -> str:
    """Never works."""
    raise ValueError("no luck")


@tool
def yes(who: Who) -> dict[str, bool]:
    """Finds whatever it is asked for."""
    return {"found": True}


@tool
def elsewhere(who: Who) -> dict[str, bool]:
    """Looks where nothing is."""
    return {"found": f"/lost {who}" in _told()}


@tool
def anybody(who: Who) -> dict[str, bool]:
    """Looks whether anything was sold."""
    return {"found": any(each.startswith("/sell") for each in _told())}
'''
ENTRY = """\
[[tools]]
python = "tools.py"
include = [{names}]
effect = "{effect}"
egress = ["service.example:443 {methods}"]
env = {{ SERVICE = "https://service.example" }}
output_trust = "trusted"
timeout_s = 20
{more}
"""
PROBE = 'probe = {{ tool = "{tool}", arguments = {{ who = "arguments:/who" }}, found = "/found", settles_after_s = 1 }}'
CHECK = """\
[check]
start = ["python3", "service.py", "{port}"]
instead_of = ["service.example:443"]
state = ["/"]

[check.arguments]
peek = { who = "ann" }
put = { who = "ann" }
pay = { who = "ann" }
keep = { who = "ann" }
book = { who = "ann" }
lose = { who = "ann" }
sell = [{ who = "ann" }, { who = "bob" }]
fail = { who = "ann" }
stray = { who = "ann" }
"""


def _entry(effect: str, *names: str, methods: str = "POST", more: str = "") -> str:
    return ENTRY.format(effect=effect, names=", ".join(f'"{name}"' for name in names), methods=methods, more=more)


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    entries = [
        _entry("read", "peek"),
        _entry("idempotent", "put"),
        _entry("keyed", "pay", "keep"),
        _entry("once", "book", more=PROBE.format(tool="yes")),
        _entry("once", "lose", more=PROBE.format(tool="elsewhere")),
        _entry("once", "sell", more=PROBE.format(tool="anybody")),
        _entry("idempotent", "fail"),
        _entry("idempotent", "stray").replace('POST"', 'POST", "other.example:443 POST"'),
        _entry("read", "yes", "elsewhere", "anybody", methods="GET"),
    ]
    directory = tmp_path_factory.mktemp("agents") / "liar"
    tools = "\n".join([*entries, CHECK])
    return make_agent(directory, code=CODE, tools=tools, files={"service.py": SERVICE}, lock=True)


def test_an_agent_that_lies_is_found_out(liar: Agent) -> None:
    done = liar("tools", "check", liar.directory, "--scratch", "--json")
    assert done.code == BAD_INPUT, done.err
    found = {(each["tool"], each["rule"]): each["severity"] for each in done.json["findings"]}
    assert {place for place, severity in found.items() if severity == "error"} == {
        ("peek", "read-writes"),
        ("put", "idempotent-repeats"),
        ("pay", "key-ignored"),
        ("book", "probe-wrong-before"),
        ("lose", "probe-wrong-after"),
        ("sell", "probe-wrong-other"),
        ("fail", "not-tried"),
    }
    assert found["stray", "not-tried"] == "warning"
    assert found["yes", "not-tried"] == "warning", "nobody said with what to call it"
    assert "keep" not in {tool for tool, _ in found}, "what is as declared is not accused"
    assert all(each["what"] and each["then"] for each in done.json["findings"])
    assert done.json["errors"] == 7


def test_without_scratch_nothing_is_called_and_only_what_is_written_counts(liar: Agent) -> None:
    done = liar("tools", "check", liar.directory)
    assert done.code == FINISHED, done.out
    assert "peek" in done.out
    assert "(read-may-write)" in done.out
    assert "read-writes" not in done.out


def test_an_agent_that_was_never_locked_is_checked_as_it_lies_there(tmp_path: Path, liar: Agent) -> None:
    copy = copy_of(liar, tmp_path / "liar")
    (copy.directory / "agent.lock").unlink()
    copy.change("agent.toml", 'effect = "idempotent"', 'effect = "keyed"')
    done = copy("tools", "check", copy.directory, "--json")
    assert done.code == FINISHED, done.err
    assert {each["rule"] for each in done.json["findings"]} == {"read-may-write"}
    assert not (copy.directory / "agent.lock").exists(), "looking locks nothing"


def test_the_travel_example_is_what_it_says(tmp_path: Path) -> None:
    done = lockstep("tools", "check", TRAVEL, "--scratch", "--store", tmp_path / "store")
    assert (done.code, done.out.strip()) == (FINISHED, "0 errors, 0 warnings, 0 notes")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["python3", "service.py", "{port}"]', '["python3", "nowhere.py"]', "ended before it could be reached"),
        ('["python3", "service.py", "{port}"]', '["no-such-program"]', "cannot be started"),
        ('["python3", "service.py", "{port}"]', '["sleep", "60"]\nstart_s = 0.5', "cannot be reached"),
        ('instead_of = ["service.example:443"]', "", "check.instead_of is missing"),
        ('state = ["/"]', 'state_command = ["false"]', "check.state_command ended with exit code 1"),
        ('state = ["/"]', "", "needs `state` or `state_command`"),
        ("stray = {", "strey = {", "names 'strey'"),
    ],
    ids=["ends", "missing", "silent", "ambiguous", "failing", "unseen", "unknown"],
)
def test_a_scratch_world_that_cannot_be_had_is_a_sentence(
    tmp_path: Path, liar: Agent, old: str, new: str, said: str
) -> None:
    copy = Agent(directory=tmp_path / "liar", store=liar.store)
    shutil.copytree(liar.directory, copy.directory, ignore=shutil.ignore_patterns(".lockstep"))
    copy.change("agent.toml", old, new)
    done = copy("tools", "check", copy.directory, "--scratch")
    assert done.code == BAD_INPUT
    assert said in done.err


def test_nothing_of_a_scratch_world_is_left(tmp_path: Path, liar: Agent) -> None:
    done = liar("tools", "check", liar.directory, "--scratch", "--json", env={"TMPDIR": str(tmp_path)})
    assert done.code == BAD_INPUT
    assert list(tmp_path.glob("lockstep-scratch-*")) == []
    assert str(liar.directory) not in {_directory_of(process) for process in Path("/proc").glob("[0-9]*")}


def _directory_of(process: Path) -> str:
    try:
        return os.readlink(process / "cwd")
    except OSError:  # it has ended meanwhile
        return ""
