"""Eight MCP servers that other people wrote, in sandboxes and behind the gate, each with real calls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mcp_install import node_servers, python_servers

pytestmark = pytest.mark.sandbox

NODE_LIMITS = 'limits = { memory_mb = 8192, processes = 64 }\nlifetime = "run"'
"""Node reserves several GiB of addresses when it starts, which counts as memory."""
PAGE = "the page that may be fetched"
PATH = "/usr/bin/python3"


@dataclass(frozen=True)
class Server:
    """An entry of agent.toml, and calls: tool, arguments, what the result holds, and how it ends."""

    entry: str
    calls: tuple[tuple[str, dict[str, Any], str, str], ...]
    era: str = "2025-11-25"


def node(name: str, *arguments: str, files: str = "", more: str = "") -> str:
    script = f"/runtime/npm/node_modules/@modelcontextprotocol/server-{name}/dist/index.js"
    command = json.dumps(["/usr/bin/node", script, *arguments])
    return f'{NODE_LIMITS}\n{more}[tools.mcp]\ncommand = {command}\nruntime = {{ npm = "NPM" }}\n{files}'


def python(which: str, command: str, more: str = "", files: str = "") -> str:
    return (
        f'env = {{ PYTHONPATH = "/runtime/packages" }}\nlifetime = "run"\nlimits = {{ memory_mb = 1024 }}\n{more}'
        f'[tools.mcp]\ncommand = {command}\nruntime = {{ packages = "{which.upper()}" }}\n{files}'
    )


def module(name: str, *arguments: str) -> str:
    return json.dumps([PATH, "-S", "-m", f"mcp_server_{name}", *arguments])


SQLITE = "import mcp_server_sqlite; mcp_server_sqlite.main()"
SERVERS = {
    "everything": Server(
        node("everything"),
        (
            ("echo", {"message": "hi"}, "Echo: hi", "ok"),
            ("get-structured-content", {"location": "New York"}, "temperature", "ok"),
            ("get-tiny-image", {}, "[image: image/png", "ok"),
        ),
    ),
    "filesystem": Server(
        node("filesystem", "/work/notes", files='files = { notes = { from = "notes", write = true } }\n'),
        (
            ("write_file", {"path": "/work/notes/new.txt", "content": "written"}, "Successfully", "ok"),
            ("read_text_file", {"path": "/work/notes/new.txt"}, "written", "ok"),
            ("read_text_file", {"path": "/etc/passwd"}, "Access denied", "tool_error"),
            ("read_text_file", {"path": "/work/notes/../../tool/notes/a.txt"}, "Access denied", "tool_error"),
        ),
    ),
    "memory": Server(
        node("memory", more='env = { MEMORY_FILE_PATH = "/work/memory.json" }\n'),
        (
            (
                "create_entities",
                {"entities": [{"name": "Ada", "entityType": "person", "observations": ["writes"]}]},
                "Ada",
                "ok",
            ),
            ("read_graph", {}, "Ada", "ok"),
        ),
    ),
    "sequential-thinking": Server(
        node("sequential-thinking"),
        (
            (
                "sequentialthinking",
                {"thought": "one", "nextThoughtNeeded": False, "thoughtNumber": 1, "totalThoughts": 1},
                "thoughtNumber",
                "ok",
            ),
        ),
    ),
    "git": Server(
        python(
            "modern",
            module("git", "--repository", "/work/repo"),
            files='files = { repo = { from = "REPO", write = true } }\n',
        ),
        (
            ("git_log", {"repo_path": "/work/repo"}, "the first commit", "ok"),
            ("git_create_branch", {"repo_path": "/work/repo", "branch_name": "other"}, "other", "ok"),
            ("git_status", {"repo_path": "OUTSIDE"}, "", "tool_error"),
        ),
        "2026-07-28",
    ),
    "time": Server(
        python("modern", module("time")),
        (("get_current_time", {"timezone": "UTC"}, "is_dst", "ok"),),
        "2026-07-28",
    ),
    "fetch": Server(
        python(
            "modern",
            module("fetch", "--ignore-robots-txt", "--allow-private-ips"),
            more='egress = ["127.0.0.1:PORT GET /open"]\n',
        ),
        (
            ("fetch", {"url": "http://127.0.0.1:PORT/open/page", "raw": True}, PAGE, "ok"),
            ("fetch", {"url": "http://127.0.0.1:PORT/closed", "raw": True}, "403", "tool_error"),
        ),
        "2026-07-28",
    ),
    "sqlite": Server(
        python("legacy", json.dumps([PATH, "-S", "-c", SQLITE, "--db-path", "/work/a.db"])),
        (
            ("create_table", {"query": "CREATE TABLE trips (town TEXT)"}, "created", "ok"),
            ("write_query", {"query": "INSERT INTO trips VALUES ('Bern')"}, "affected", "ok"),
            ("read_query", {"query": "SELECT town FROM trips"}, "Bern", "ok"),
        ),
    ),
}
NODE = ("everything", "filesystem", "memory", "sequential-thinking")
HEAD = """\
[agent]
name = "eight"
[model]
name = "scripted:script.jsonl"
[prompt]
file = "prompt.md"
[policy]
files = ["policy.cedar"]
isolation = "TIER"
"""
TIERS = os.environ.get("LOCKSTEP_SERVER_TIERS", "gvisor").split(",")
"""Where the eight run; `gvisor,process` runs each in both."""
NEEDS = {"gvisor": ("runsc", "runsc"), "process": ("bwrap", "bubblewrap")}
"""The program of a tier, and the Debian package that has it."""


@dataclass(frozen=True)
class World:
    port: int
    folder: Path
    """With one store for all, so that packages are copied into it once."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A page to fetch and two repositories, one of which is declared."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("repo", "outside"):
        git = ["git", "-C", str(folder / name)]
        subprocess.run(["git", "init", "-q", str(folder / name)], check=True)
        subprocess.run([*git, "config", "user.email", "a@example.org"], check=True)
        subprocess.run([*git, "config", "user.name", "A"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "the first commit"], check=True)
    (folder / "outside/secret.txt").write_text("nobody's business")
    folder.chmod(0o755)
    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield World(server.server_address[1], folder)
    server.shutdown()
    server.server_close()


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = PAGE.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_runs_sandboxed_behind_the_gate(name: str, tier: str, world: World, tmp_path: Path) -> None:
    _runs(SERVERS[name], name, tier, world, tmp_path / "agent")


def _runs(server: Server, name: str, tier: str, world: World, directory: Path) -> None:
    _write(directory, server, _placed(name, server.entry, world), world, tier)
    locked = _lockstep(world, directory, "lock")
    assert locked.returncode == 0, locked.stderr
    tools = json.loads((directory / "agent.lock").read_text())["dimensions"]["tools"]["parts"]
    eras = {part["value"]["protocol"] for each, part in tools.items() if each.startswith("tool s__")}
    assert eras == {server.era}
    ran = _lockstep(world, directory, "run", "go", "--json")
    assert ran.returncode == 0, ran.stderr
    calls = json.loads(ran.stdout)["calls"]
    seen = [(call["outcome"], call["tier"]) for call in calls]
    assert seen == [(kind, tier) for *_, kind in server.calls], calls
    for call, (tool, _, said, _) in zip(calls, server.calls, strict=True):
        assert said in json.dumps(call), f"{tool}: {call}"


ANYWHERE = {
    "filesystem": Server(
        node("filesystem", "/", files='files = { notes = { from = "notes", write = true } }\n'),
        (
            ("write_file", {"path": "/work/notes/new.txt", "content": "written"}, "Successfully", "ok"),
            ("read_text_file", {"path": "OUTSIDE/secret.txt"}, "ENOENT", "tool_error"),
            ("read_text_file", {"path": "HERE/policy.cedar"}, "ENOENT", "tool_error"),
            ("write_file", {"path": "/usr/new.txt", "content": "x"}, ", open '/usr/new.txt'", "tool_error"),
            (
                "write_file",
                {"path": "/runtime/npm/new.txt", "content": "x"},
                ", open '/runtime/npm/new.txt'",
                "tool_error",
            ),
        ),
    ),
    "git": Server(
        python("modern", module("git"), files='files = { repo = { from = "REPO", write = true } }\n'),
        (
            ("git_log", {"repo_path": "/work/repo"}, "the first commit", "ok"),
            ("git_log", {"repo_path": "OUTSIDE"}, "", "tool_error"),
            ("git_create_branch", {"repo_path": "OUTSIDE", "branch_name": "other"}, "", "tool_error"),
        ),
        "2026-07-28",
    ),
}
"""Servers whose own arguments let them go wherever they can; what may be touched is up to the sandbox alone."""


@pytest.mark.parametrize("tier", NEEDS)
@pytest.mark.parametrize("name", ANYWHERE)
def test_a_server_that_keeps_to_nothing_touches_what_was_declared_and_no_more(
    name: str, tier: str, world: World, tmp_path: Path
) -> None:
    _runs(ANYWHERE[name], name, tier, world, tmp_path / "agent")
    assert [path.name for path in (tmp_path / "agent/notes").iterdir()] == ["a.txt"]
    for repository in ("repo", "outside"):
        git = ["git", "-C", str(world.folder / repository), "branch", "--list", "other"]
        assert subprocess.run(git, capture_output=True, text=True, check=True).stdout == ""


def test_packages_that_changed_since_the_lock_do_not_run(world: World, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "server.py").write_text(SMALL)
    directory = tmp_path / "agent"
    server = Server(python("here", json.dumps([PATH, "/runtime/packages/server.py"])), (("one", {}, "1", "ok"),))
    _write(directory, server, server.entry.replace("HERE", str(packages)), world)
    assert _lockstep(world, directory, "lock").returncode == 0
    assert _lockstep(world, directory, "run", "go").returncode == 0
    (packages / "more.py").write_text("")
    ran = _lockstep(world, directory, "run", "go")
    assert ran.returncode == 2
    assert "differs from agent.lock in tools: tool s__one" in ran.stderr
    again = _lockstep(world, directory, "lock")
    assert again.returncode == 2
    assert "runtime packages: " in again.stderr
    assert _lockstep(world, directory, "tools", "approve", "s__one").returncode == 0
    assert _lockstep(world, directory, "run", "go").returncode == 0


SMALL = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked: continue
    said = {"resultType": "complete"}
    if asked["method"] == "server/discover": said |= {"supportedVersions": ["2026-07-28"], "capabilities": {}}
    elif asked["method"] == "tools/list": said["tools"] = [{"name": "one", "inputSchema": {"type": "object"}}]
    else: said["content"] = [{"type": "text", "text": "1"}]
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": said}), flush=True)
"""


def _placed(name: str, entry: str, world: World) -> str:
    if name in NODE:
        return entry.replace("NPM", str(node_servers()))
    which = "legacy" if name == "sqlite" else "modern"
    placed = entry.replace(which.upper(), str(python_servers(which)))
    return placed.replace("REPO", str(world.folder / "repo")).replace("PORT", str(world.port))


def _write(directory: Path, server: Server, entry: str, world: World, tier: str = "process") -> None:
    program, package = NEEDS[tier]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian package {package})")
    (directory / "notes").mkdir(parents=True)
    (directory / "notes" / "a.txt").write_text("a note")
    calls = []
    for tool, arguments, _, _ in server.calls:
        text = json.dumps(arguments).replace("PORT", str(world.port)).replace("OUTSIDE", str(world.folder / "outside"))
        text = text.replace("HERE", str(directory))
        calls.append({"calls": [{"name": f"s__{tool}", "arguments": json.loads(text)}]})
    script = "".join(json.dumps(line) + "\n" for line in [*calls, {"say": "done"}])
    head = HEAD.replace("TIER", tier)
    entry = f'[[tools]]\neffect = "idempotent"\nisolation = "{tier}"\ntimeout_s = 60\n{entry}prefix = "s"\n'
    (directory / "agent.toml").write_text(head + entry)
    (directory / "prompt.md").write_text("You.\n")
    (directory / "policy.cedar").write_text('@id("all")\npermit (principal, action, resource);\n')
    (directory / "script.jsonl").write_text(script)


def _lockstep(world: World, directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    head, *rest = command
    place = [head, rest.pop(0), "."] if head == "tools" else [head, "."]
    return subprocess.run(
        [sys.executable, "-m", "lockstep", *place, *rest],
        cwd=directory,
        env={**os.environ, "LOCKSTEP_STORE": str(world.folder / "store")},
        capture_output=True,
        text=True,
        timeout=240,
    )
