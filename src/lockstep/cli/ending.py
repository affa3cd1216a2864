"""How a command ends: its exit code, or an error as a sentence on stderr and, with `--json`, as one object on stdout.

Lazy imports throughout, as in `main`: this is loaded before it is known what a command needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import click


def finish(task: Coroutine[Any, Any, int], *, json: bool = False) -> None:
    """Await a command's body and leave with its exit code. With `json`, an error is the one object on stdout."""
    import asyncio

    try:
        code = asyncio.run(task)
    except KeyboardInterrupt as error:  # here, because click has an end of its own for it
        _print_error(error, json)
        code = say(error)
    except Exception as error:
        _print_error(error, json)
        raise
    sys.stdout.flush()  # here and not at exit, so that a closed pipe ends quietly
    raise click.exceptions.Exit(code)


class _Said(NamedTuple):
    """An error as a user is told of it."""

    code: str
    message: str
    remedy: str
    exit_code: int


def _said(error: BaseException) -> _Said:
    from lockstep.errors import LockstepError

    if isinstance(error, LockstepError):
        return _Said(error.code, error.message, error.remedy, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        remedy = "A run that had begun goes on with `lockstep resume`; nothing recorded is lost."
        return _Said("interrupted", "interrupted.", remedy, 130)
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename else ""
        remedy = "Check path, space and permissions; nothing recorded is lost."
        return _Said("os", f"{named}{error.strerror or error}.", remedy, 2)
    message = f"internal error{_place(error)}: {type(error).__name__}: {error}"
    return _Said("internal", message, "Nothing recorded is lost; LOCKSTEP_DEBUG=1 shows the whole traceback.", 1)


def _print_error(error: BaseException, json: bool) -> None:
    if json:
        from lockstep.cli.terminal import print_json

        said = _said(error)
        print_json({"error": {"code": said.code, "message": said.message, "remedy": said.remedy}})


def say(error: BaseException) -> int:
    from lockstep.cli.terminal import printable  # what a tool said may be in it

    said = _said(error)
    if said.code == "internal" and os.environ.get("LOCKSTEP_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"lockstep: {printable(said.message)}", file=sys.stderr)
    if said.remedy:
        print(f"  {printable(said.remedy)}", file=sys.stderr)
    return said.exit_code


def _place(error: BaseException) -> str:
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
