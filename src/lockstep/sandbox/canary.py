"""The canary: a tier is available only after a real sandbox has talked to us and refused what it must refuse."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from lockstep.errors import LockstepError
from lockstep.sandbox.contract import Limits, Process, ProcessEnded, SandboxSpec
from lockstep.sandbox.interpreter import interpreter
from lockstep.sandbox.leftovers import unwritable

_ANSWER_S = 10.0
_LIMITS = Limits(wall_s=_ANSWER_S, output_bytes=64 * 2**10)
_GUEST = """
import json, os, socket, sys
asked = json.loads(sys.stdin.readline())
def attempt(action):
    try:
        action()
    except OSError as error:
        return "refused: " + type(error).__name__
    return "possible"
print(json.dumps({
    "system": " ".join(os.uname()[i] for i in (0, 2)),
    "environment": sorted(os.environ),
    "read a file of the host": attempt(lambda: open(asked["file"]).read()),
    "write to the root file system": attempt(lambda: os.mkdir("/usr/lib/lockstep-canary")),
    "connect to the host": attempt(lambda: socket.create_connection(("127.0.0.1", asked["port"]), 2)),
}), flush=True)
"""
_MUST_BE_REFUSED = ("read a file of the host", "write to the root file system", "connect to the host")

Start = Callable[[SandboxSpec], Awaitable[Process]]
Python = tuple[tuple[str, ...], Mapping[str, Path]]
"""The argument prefix that starts Python, and the mounts it needs."""


async def passes(name: str, start: Start, python: Python | None = None) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Whether this way of running is fit for use, and what was tried and seen.

    Args:
        name: of the way, for the findings.
        start: starts a sandbox in this way.
        python: how Python is started in it; the one sandboxes share with this machine when None.
    """
    try:
        seen, start_ms = await _ask(start, python or interpreter())
    except LockstepError as error:
        return False, ((name, error.message),)
    except ProcessEnded as ended:
        return False, ((name, f"{ended}: {ended.stderr[-300:]}".strip(": ")),)
    except (TimeoutError, ValueError, KeyError, TypeError) as error:
        return False, ((name, f"no sensible answer from the sandbox ({type(error).__name__})"),)
    except OSError as error:
        return False, ((name, unwritable(error).message),)
    tried = tuple((action, str(seen[action])) for action in _MUST_BE_REFUSED)
    refused = all(outcome.startswith("refused") for _, outcome in tried)
    return refused, ((name, f"started in {start_ms:.0f} ms, sees {seen['system']}"), *tried)


async def _ask(start: Start, python: Python) -> tuple[dict[str, str], float]:
    command, mounts = python
    spec = SandboxSpec(argv=(*command, "-c", _GUEST), mounts=mounts, limits=_LIMITS)
    with tempfile.NamedTemporaryFile() as secret, socket.create_server(("127.0.0.1", 0)) as server:
        question = json.dumps({"file": secret.name, "port": server.getsockname()[1]})
        process = await start(spec)
        try:
            await process.send(question.encode())
            answer = json.loads(await asyncio.wait_for(process.receive(), _ANSWER_S + 1))
            return {key: answer[key] for key in ("system", *_MUST_BE_REFUSED)}, process.use().start_ms
        finally:
            await process.close()
