"""Why a server of somebody's own may not start in a sandbox though it starts by hand, as the sentence to act on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lockstep.agent.spec import ToolSource
from lockstep.sandbox.contract import ProcessEnded

_FETCHERS = ("npx", "uvx", "pipx", "bunx", "pnpm", "docker", "podman", "uv")
_NO_PACKAGE = re.compile(r"No module named|ModuleNotFoundError|ImportError|Cannot find (module|package)")
_NO_FILE = re.compile(r"No such file|not found|can't open file|Cannot find module|ENOENT|FileNotFoundError")
_SEEN = tuple(
    f"{place}/" for place in ("/usr/bin", "/usr/lib", "/usr/lib64", "/bin", "/lib", "/lib64", "/dev", "/proc")
)
_OWN = ("/tool/", "/runtime/", "/files/", "/work/", "/tmp/")
"""Places of the host that a sandbox sees, and places that it has of its own."""


def remedy_for(directory: Path, source: ToolSource, ended: ProcessEnded) -> str:
    """What to do about a source that ended before it said what it offers."""
    said = ended.stderr
    if source.mcp is None or not source.mcp.command:
        return "Start it by hand to see why."
    program, *arguments = source.mcp.command
    if PurePosixPath(program).name in _FETCHERS:
        return (
            f"{PurePosixPath(program).name} fetches or starts a server from elsewhere, which a sandbox does not let it:"
            " install the server in a directory, name that in `runtime` and start what lies there."
        )
    if ended.limit == "wall_s":
        return (
            "Starting counts against `timeout_s`: raise it for a server that is slow, or start it by hand to see why."
        )
    if ended.limit:
        return "Raise that one under `limits`, or start it by hand to see why."
    for name in _own_files(directory, arguments):
        if not _brought(source, name):
            return f"{name} lies in the agent's directory and not in the sandbox: name it in the entry's `code`."
    absent = (place for place in (program, *arguments) if _is_absent(place, said))
    if place := next(absent, ""):
        return (
            f"{place} is not in the sandbox, which sees of the host only /usr/bin and /usr/lib: name the directory"
            " in which it lies in `runtime` (packages) or `files` (data), or start another program."
        )
    if _NO_PACKAGE.search(said):
        return (
            "Nothing of your site-packages is in the sandbox: install what it imports in a directory, name that in"
            ' `runtime`, and in `env` where it is to be found (PYTHONPATH = "/runtime/NAME").'
        )
    return (
        "In the sandbox it has the files of `code`, `runtime` and `files`, the variables of `env`, and nothing else"
        " of yours."
    )


def _is_absent(place: str, said: str) -> bool:
    if f"{place}: not found" in said:
        return True
    return place.startswith("/") and not place.startswith((*_SEEN, *_OWN)) and _NO_FILE.search(said) is not None


def _own_files(directory: Path, arguments: Sequence[str]) -> list[str]:
    relative = (each for each in arguments if each and not each.startswith(("/", "-")))
    return [each for each in relative if (directory / each).is_file()]


def _brought(source: ToolSource, name: str) -> bool:
    path = PurePosixPath(name)
    return any(path == PurePosixPath(each) or PurePosixPath(each) in path.parents for each in source.code)
