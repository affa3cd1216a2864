"""The real command line, in this process or in one of its own, and agent directories to point it at."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lockstep.cli.main import main

FINISHED, INTERNAL, BAD_INPUT, SUSPENDED, STOPPED = 0, 1, 2, 3, 4
SANDBOX = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
]
ALLOW_ALL = '@id("all")\npermit (principal, action, resource);\n'
TOML = """\
[agent]
name = "{name}"

[model]
name = "scripted:script.jsonl"

[prompt]
file = "prompt.md"

{tools}

[policy]
files = ["policy.cedar"]

[budget]
steps = 8
"""
ONE_SOURCE = '[[tools]]\npython = "tools.py"\neffect = "read"\n'


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command came to. No command may ever show a traceback."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def all(self) -> str:
        return self.out + self.err


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "lockstep", *map(str, arguments)]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without what would change what is printed or where a store is; `extra` on top."""
    dropped = ("LOCKSTEP_", "OPENAI_", "ANTHROPIC_", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "PYTHONUTF8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, **(extra or {})}


def lockstep(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    process: bool = False,
) -> Done:
    """Run one command to its end.

    It runs in this process, which spares it the time to start; every command opens its store anew. With `process`, or
    an environment that Python reads as it starts, or called while a loop runs here, it has one of its own.
    """
    if process or asyncio._get_running_loop() or any(name.startswith(_READ_AT_START) for name in env or ()):
        ended = bounded(command(*arguments), cwd=cwd, env=environment(env), stdin=stdin)
        done = Done(code=ended.returncode, out=ended.stdout, err=ended.stderr)
    else:
        done = _here([str(each) for each in arguments], cwd or Path.cwd(), environment(env), stdin)
    assert "Traceback" not in done.err, done.err
    assert "internal error" not in done.err, done.err
    return done


_READ_AT_START = ("PYTHON", "LC_", "LANG")


def _here(arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: str) -> Done:
    """As a process would: with streams, environment and directory of its own, and what is logged on its stderr."""
    out, err, read = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(3))
    read.write(stdin)
    read.seek(0)
    log = logging.StreamHandler(err)
    log.setLevel(logging.WARNING)
    logging.getLogger().addHandler(log)
    try:
        with (
            mock.patch.dict(os.environ, env, clear=True),
            mock.patch.object(sys, "argv", ["lockstep", *arguments]),
            mock.patch.object(sys, "stdin", read),
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    finally:
        logging.getLogger().removeHandler(log)
    code = ended.value.code
    said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return Done(code=code if isinstance(code, int) else int(code is not None), out=next(said), err=next(said))


def bounded(
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a program of Python to its end. One that hangs fails the test with the stacks of its threads.

    It is killed with its children: one that lived on would hold the pipes, and waiting for their end would be forever.
    """
    pipe = subprocess.PIPE
    env = {**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        arguments, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except BaseException as stopped:
        process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        if not isinstance(stopped, subprocess.TimeoutExpired):
            raise
        pytest.fail(f"{' '.join(arguments)} did not end in {timeout_s:g} s:\n{out}\n{err}")
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@dataclass(frozen=True, kw_only=True)
class Agent:
    """An agent directory, and the store its runs go to."""

    directory: Path
    store: Path

    def with_store(self, store: Path) -> Agent:
        return Agent(directory=self.directory, store=store)

    def __call__(self, name: str, *arguments: str | Path, **how: Any) -> Done:
        """`lockstep NAME ... --store STORE`."""
        if name in ("lock", "run"):
            _furnish(self.store)
        done = lockstep(name, *arguments, "--store", self.store, **how)
        if name == "lock" and done.code == FINISHED:
            _keep(self.store)
        return done

    def run(
        self, message: str, *options: str | Path, script: Sequence[Mapping[str, Any]] | None = None, **how: Any
    ) -> Done:
        """`lockstep run AGENT MESSAGE --json`, with a script in place of the locked model when one is given."""
        if script is not None:
            options = (*options, "--model", f"scripted:{self.script(script)}")
        return self("run", self.directory, message, "--json", *options, **how)

    def script(self, replies: Sequence[Mapping[str, Any]]) -> Path:
        self.store.mkdir(parents=True, exist_ok=True)
        path = self.store / f"script-{len(list(self.store.glob('script-*')))}.jsonl"
        path.write_text("".join(json.dumps(reply) + "\n" for reply in replies))
        return path

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.directory / name).read_text()
        assert old in text, f"{old!r} is not in {name}"
        self.write(name, text.replace(old, new))


def make_agent(
    directory: Path,
    *,
    code: str,
    tools: str = ONE_SOURCE,
    policy: str = ALLOW_ALL,
    script: Sequence[Mapping[str, Any]] = ({"say": "Done."},),
    files: Mapping[str, str] | None = None,
    lock: bool = True,
) -> Agent:
    """Write an agent, and lock it."""
    directory.mkdir(parents=True)
    agent = Agent(directory=directory, store=directory / ".lockstep")
    agent.write("agent.toml", TOML.format(name=directory.name, tools=tools))
    agent.write("prompt.md", "You do as you are told.\n")
    agent.write("tools.py", code)
    agent.write("policy.cedar", policy)
    agent.write("script.jsonl", "".join(json.dumps(reply) + "\n" for reply in script))
    for name, text in (files or {}).items():
        agent.write(name, text)
    if lock:
        done = agent("lock", directory)
        assert done.code == FINISHED, done.err
    return agent


_FURNITURE: list[tempfile.TemporaryDirectory[str]] = []
"""What a store has once something ran from it: the runner's bundle, and that the tier passed its canary."""


def _keep(store: Path) -> None:
    if not _FURNITURE and (store / "sandboxes/gvisor.json").exists():
        _FURNITURE.append(tempfile.TemporaryDirectory(prefix="lockstep-test-"))
        kept = Path(_FURNITURE[0].name)
        shutil.copytree(store / "guest", kept / "guest", symlinks=True)
        (kept / "sandboxes").mkdir()
        shutil.copy2(store / "sandboxes/gvisor.json", kept / "sandboxes")


def _furnish(store: Path) -> None:
    """Spare a new store what an earlier one took a second for; the canaries themselves are tested where tiers are."""
    if _FURNITURE and not store.exists():
        shutil.copytree(_FURNITURE[0].name, store, symlinks=True)


def call(name: str, /, **arguments: Any) -> dict[str, Any]:
    """A reply of a script that asks for one call."""
    return {"call": {"name": name, "arguments": arguments}}


def copy_of(agent: Agent, directory: Path) -> Agent:
    """The same agent elsewhere, without its store: for a test that changes it."""
    shutil.copytree(agent.directory, directory, ignore=shutil.ignore_patterns(".lockstep"))
    return Agent(directory=directory, store=directory / ".lockstep")


# The clerk: looks people up, and pays them when a person says yes.

CODE = '''\
from lockstep import OutcomeUnknown, tool


@tool
def look(to: str) -> dict[str, str]:
    """Look someone up."""
    return {"to": to, "iban": f"DE-{to}"}


@tool
def pay(to: str, cents: int) -> str:
    """Pay someone."""
    return f"{cents} cents to {to}"


@tool
def lose(to: str) -> str:
    """Send something and never hear of it again."""
    raise OutcomeUnknown("no reply came")
'''
TOOLS = """\
[[tools]]
python = "tools.py"
include = ["look"]
effect = "read"

[[tools]]
python = "tools.py"
include = ["pay", "lose"]
dedupe_on = ["to"]
"""
POLICY = """\
@id("anything")
permit (principal, action, resource);

@id("payments-need-a-person")
@ask("Pay this?")
forbid (principal, action == Action::"pay", resource);

@id("never-mallory")
forbid (principal, action == Action::"pay", resource) when { context.arguments.to == "mallory" };
"""
SCRIPT = (
    call("look", to="bob"),
    {"say": "Found ${look.iban}.", "call": {"name": "pay", "arguments": {"to": "${look.to}", "cents": 500}}},
    {"say": "Said: ${pay}."},
)
PAID = "Said: 500 cents to bob."


def make_clerk(directory: Path) -> Agent:
    return make_agent(directory, code=CODE, tools=TOOLS, policy=POLICY, script=SCRIPT)


class Terminal:
    """A process in a real terminal of its own, and what a person would see there."""

    def __init__(self, *arguments: str, columns: int = 60) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        env = environment({"TERM": "xterm-256color"})
        self._process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self._master = master
        self.seen = ""
        self._waited = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        os.close(self._master)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, text: str) -> None:
        """Read until `text` is seen after what was waited for before."""
        while (at := self.seen.find(text, self._waited)) < 0:
            piece = self._read()
            assert piece, f"{text!r} was not seen in: {self.seen}"
            self.seen += piece
        self._waited = at + len(text)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def ended(self) -> int:
        """Read to the end; the exit code."""
        while piece := self._read():
            self.seen += piece
        return self._process.wait(timeout=30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=30)

    def _read(self) -> str:
        ready, _, _ = select.select([self._master], [], [], 60)
        assert ready, f"nothing more within a minute after: {self.seen}"
        try:
            return os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # how Linux says that the other end is closed
            return ""


def hear_interrupts() -> None:
    """In a child before it starts: whoever runs the tests as a background job has made SIGINT ignored for us all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _take_terminal() -> None:
    hear_interrupts()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
