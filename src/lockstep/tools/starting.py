"""How a tool source starts inside a sandbox: our runner for Python modules, its own command for an MCP server."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from pathlib import Path

from lockstep.agent.builtins import MODULES
from lockstep.sandbox.interpreter import interpreter
from lockstep.tools.guest import LOCKSTEP_MOUNT, TOOL_MOUNT, command, materialize


class Guest:
    """The runner's files, made below `directory` when first needed."""

    def __init__(self, directory: Path) -> None:
        self._below = directory

    @functools.cached_property
    def directory(self) -> Path:
        """What to mount at `/lockstep`."""
        return materialize(self._below, interpreter()[0])

    def start(self, source: str, *, egress: bool) -> tuple[tuple[str, ...], Mapping[str, Path]]:
        """The argv for a source key (`python:FILE`, `builtin:NAME`, `mcp:COMMAND`), and mounts beyond code and runner.

        With `egress`, an MCP server runs beside a process that leads `HTTP_PROXY` to the egress socket; our runner does
        that itself.

        Raises:
            SandboxUnavailable: no Python here can run inside a sandbox.
        """
        kind, _, what = source.partition(":")
        prefix, mounts = interpreter()
        if kind in ("python", "builtin"):
            file = what if kind == "python" else MODULES[what]
            return command(file, interpreter=prefix), mounts
        if egress:
            return (*prefix, "-c", _WITH_EGRESS, *shlex.split(what)), mounts
        return ("/bin/sh", "-c", f'cd {TOOL_MOUNT} && exec "$@"', "sh", *shlex.split(what)), mounts


_WITH_EGRESS = f"""
import subprocess, sys
sys.path.insert(0, {LOCKSTEP_MOUNT!r})
from lockstep.tools.egress_shim import start
start()
ended = subprocess.run(sys.argv[1:], cwd={TOOL_MOUNT!r}).returncode
sys.exit(ended if ended >= 0 else 128 - ended)
"""
