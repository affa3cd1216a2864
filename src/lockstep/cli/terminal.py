"""The terminal: what is printed to a person, and what a person types."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import pwd
import re
import signal
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, separators and direction overrides, with which a text could rewrite what stands around it."""

_ANY_WIDTH = 100_000
_LONGEST_LINE_BYTES = 4096  # what Linux keeps of a typed line


def console(*, stderr: bool = False) -> Console:
    """Long lines are never broken by us: the terminal wraps them, and through a pipe they can be searched."""
    out = Console(stderr=stderr, soft_wrap=True, highlight=False, emoji=False)
    if not out.is_terminal:
        out.width = _ANY_WIDTH
    return out


def plain(text: str) -> str:
    """The text of a model, tool or user for printing: without markup, and unable to steer the terminal."""
    return escape(printable(text))


def printable(text: str) -> str:
    """The text with what steers a terminal shown as escapes."""
    return _UNSAFE.sub(_shown, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int | None = None) -> str:
    """As `plain`, JSON or not, on one line of at most `limit` characters."""
    try:  # JSON is one line as it is; what is spaces inside its strings is part of what a person is asked about
        line = json.dumps(json.loads(text), ensure_ascii=False) if text[:1] in ("{", "[") else " ".join(text.split())
    except (ValueError, RecursionError):
        line = " ".join(text.split())
    return plain(line if limit is None or len(line) <= limit else line[: limit - 1] + "…")


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def print_json(value: Any) -> None:
    """One JSON object on stdout, in ASCII where stdout takes nothing else."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    print(text)


def is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


async def read_line(console: Console, prompt: str) -> str | None:
    """What a person typed after `prompt`; None when the terminal was closed.

    Raises:
        KeyboardInterrupt: Ctrl-C. `input` can sleep through one that comes just before it blocks; the loop cannot.
    """
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[bytes] = loop.create_future()
    stdin = sys.stdin.fileno()
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, _settle, typed, KeyboardInterrupt())
    loop.add_reader(stdin, lambda: _settle(typed, _read(stdin)))
    try:
        console.print(prompt, end="")
        line = await typed
    finally:
        loop.remove_reader(stdin)
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
    if not line:
        console.print()
        return None
    return line.decode(sys.stdin.encoding or "utf-8", errors="replace").strip()


def user() -> str:
    """Whose terminal this is."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def account() -> str:
    """The account this process runs under, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, _LONGEST_LINE_BYTES)
    except OSError:  # how Linux says that the other end is closed
        return b""


def _settle(typed: asyncio.Future[bytes], value: bytes | KeyboardInterrupt) -> None:
    if typed.done():
        return
    if isinstance(value, bytes):
        typed.set_result(value)
    else:
        typed.set_exception(value)


def _shown(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
