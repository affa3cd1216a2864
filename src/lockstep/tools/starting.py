"""How a tool source starts inside a sandbox: our runner for Python modules, its own command for an MCP server."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from pathlib import Path

from lockstep.agent.builtins import MODULES
from lockstep.agent.locked import LockedTool
from lockstep.agent.mcp_spec import WorkingFiles
from lockstep.agent.places import host_path, is_of_the_agent
from lockstep.sandbox.interpreter import interpreter
from lockstep.tools.guest import LOCKSTEP_MOUNT, TOOL_MOUNT, command, materialize

FILES_MOUNT = "/files"
RUNTIME_MOUNT = "/runtime"
WORK = "/work"


class Guest:
    """The runner's files, made below `directory` when first needed."""

    def __init__(self, directory: Path) -> None:
        self._below = directory

    @functools.cached_property
    def directory(self) -> Path:
        """What to mount at `/lockstep`."""
        return materialize(self._below, interpreter()[0])

    def start(self, tool: LockedTool, code: Path) -> tuple[tuple[str, ...], Mapping[str, Path]]:
        """The argv for the source of a tool, and mounts beyond code, packages and runner.

        With egress, an MCP server runs beside a process that leads `HTTP_PROXY` to the egress socket; our runner does
        that itself. `code` is the directory that will be mounted at `/tool`.

        Raises:
            SandboxUnavailable: no Python here can run inside a sandbox.
        """
        kind, _, what = tool.source.partition(":")
        prefix, mounts = interpreter()
        if kind in ("python", "builtin"):
            file = what if kind == "python" else MODULES[what]
            return command(file, interpreter=prefix), mounts
        beside = (*prefix, "-c", _WITH_EGRESS) if tool.egress else ()
        started = ("/bin/sh", "-c", _prepared(tool.files), "sh", *beside, *shlex.split(what))
        return started, {**mounts, **_working(tool.files, code)}


def _working(files: Mapping[str, WorkingFiles], code: Path) -> dict[str, Path]:
    """Mounts of what a server works on: of the agent as it was locked, of the host as it is now."""
    return {
        f"{FILES_MOUNT}/{name}": code / each.source if is_of_the_agent(each.source) else host_path(each.source)
        for name, each in files.items()
    }


def _prepared(files: Mapping[str, WorkingFiles]) -> str:
    """Shell: copy what may be written into the working directory, then become the server."""
    copies = "".join(
        f"cp -R {FILES_MOUNT}/{name} {WORK}/{name} && chmod -R u+rwX {WORK}/{name} || exit 120\n"
        for name, each in sorted(files.items())
        if each.write
    )
    return f'{copies}cd {TOOL_MOUNT} && exec "$@"'


_WITH_EGRESS = f"""
import subprocess, sys
sys.path.insert(0, {LOCKSTEP_MOUNT!r})
from lockstep.tools.egress_shim import start
start()
ended = subprocess.run(sys.argv[1:], cwd={TOOL_MOUNT!r}).returncode
sys.exit(ended if ended >= 0 else 128 - ended)
"""
