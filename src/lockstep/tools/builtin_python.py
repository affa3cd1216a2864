"""The built-in `python` tool: runs code that a model wrote. Runs inside a sandbox; standard library alone.

This file is the tool's code: it is copied, mounted and digested into the lock like a tool of the agent's own, and the
host never imports it. The model's code runs in a forked child without the channel to the host, so that code which
exits, crashes or closes descriptors costs the model an error it can learn from, and what was printed until then stays.
Refuses to protect anything else: that is the sandbox's business.
"""

from __future__ import annotations

import ast
import base64
import binascii
import contextlib
import errno
import json
import linecache
import os
import re
import select
import signal
import stat
import sys
import traceback
import types
from collections import deque
from typing import Annotated

from lockstep import tool
from lockstep.tools.results import Content

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, TextIO

MAX_FILES = 16
MAX_CODE_CHARACTERS = 200_000
MAX_FILES_CHARACTERS = 4_000_000
MAX_PRINTED_BYTES = 32 * 1024
"""Of what is printed, and of each text file that the model is shown."""
NAME = "code.py"
"""What tracebacks call the model's code."""

_FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}"
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,")
_FIGURES = ".figures"
_RAISED = 101
"""Exit code of a child that has printed a traceback."""
_LOOK_S = 0.05
_FRAMES = 10
_KEPT_BYTES = 2048
"""Of the output allowance, for the frame around a result and notes in it."""
_BLOCK_BYTES = 300
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_SVG = re.compile(r"\ufeff?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", re.DOTALL)


class Refused(Exception):
    """The arguments ask for what is not done; the text says what would be."""


@tool(read_only=True, open_world=False)
def python(
    code: Annotated[str, "Python 3 code.", {"maxLength": MAX_CODE_CHARACTERS}],
    files: Annotated[
        dict[str, str] | None,
        "Files to write into the working directory first: name -> text, or data:TYPE;base64,... for bytes. "
        f"At most {MAX_FILES}, {MAX_FILES_CHARACTERS // 1_000_000} million characters together; "
        "plain names without directories.",
        {"maxProperties": MAX_FILES, "propertyNames": {"pattern": f"^{_FILE_NAME}$"}},
    ] = None,
    outputs: Annotated[
        list[str] | None,
        f"Names of files that the code leaves in the working directory and that are to be returned, at most {MAX_FILES}"
        ". Text is returned as text; PNG, JPEG, GIF and SVG as images; anything else is kept for the user.",
        {"maxItems": MAX_FILES},
    ] = None,
) -> Content:
    """Run Python code in an isolated sandbox and return what it prints, and the value of its last expression.

    There is the standard library, no network, and an empty working directory; files that belong to this agent, if any,
    are in /tool, read-only. Every call starts afresh: no variables or files survive it. An exception comes back as a
    traceback; correct the code and call again.
    """
    work = os.getcwd()
    room = int(os.environ.get("LOCKSTEP_OUTPUT_BYTES") or 2**20) - _KEPT_BYTES
    printed = Printed(min(MAX_PRINTED_BYTES, max(room, 0) // 8))
    try:
        _write_files(work, code, files or {}, outputs or [])
        status = _run(work, code, printed)
    except Refused as reason:
        return Content([_text(f"Not run: {reason}.")], error="InvalidArguments")
    except OSError as error:
        return Content([_text(f"Not run: {error.strerror} (disk and processes are limited).")], error="OSError")
    said = "\n".join(filter(None, (printed.text().removesuffix("\n"), _ending(status))))
    if status:
        return Content([_text(said or "(no output)")], error="CodeFailed")
    returned = Returned(work, room - _size(said))
    for name in [*_figures(work), *(outputs or [])]:
        returned.add(name)
    if not said and not returned.blocks and not returned.missing:
        said = "(no output)"
    return Content([*([_text(said)] if said else []), *returned.blocks, *returned.notes()])


# --- before ------------------------------------------------------------------


def _write_files(work: str, code: str, files: dict[str, str], outputs: list[str]) -> None:
    """Write what the model sent, once all of it is found to be within the caps.

    Raises:
        Refused: it is not; nothing was written.
    """
    if len(code) > MAX_CODE_CHARACTERS:
        raise Refused(f"the code has {len(code)} characters; at most {MAX_CODE_CHARACTERS} are run")
    if len(files) > MAX_FILES or len(outputs) > MAX_FILES:
        raise Refused(f"there are {max(len(files), len(outputs))} files; at most {MAX_FILES} go in, and out")
    if (total := sum(map(len, files.values()))) > MAX_FILES_CHARACTERS:
        raise Refused(f"the files have {total} characters; at most {MAX_FILES_CHARACTERS} go in together")
    for name in files:
        if not re.fullmatch(_FILE_NAME, name):
            raise Refused(
                f"files: {name[:120]!r} is not a plain name (letters, digits, _ . - and spaces, no directory)"
            )
    for name, data in [(name, _content(name, text)) for name, text in files.items()]:
        with open(os.path.join(work, name), "wb") as file:
            file.write(data)


def _content(name: str, text: str) -> bytes:
    head = _DATA_URL.match(text)
    if head is None:
        return text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"files: {name!r} begins as a data: URL but is not valid base64") from None


# --- running -----------------------------------------------------------------


class Printed:
    """What was printed: all of it up to a limit, else its beginning and its end."""

    def __init__(self, limit_bytes: int) -> None:
        self._half = max(limit_bytes // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()
        self._cut_bytes = 0

    def add(self, piece: bytes) -> None:
        room = max(self._half - len(self._head), 0)
        self._head += piece[:room]
        self._tail += piece[room:]
        over = len(self._tail) - self._half
        if over > 0:
            del self._tail[:over]
            self._cut_bytes += over

    def text(self) -> str:
        if not self._cut_bytes:
            return (self._head + self._tail).decode("utf-8", "backslashreplace")
        head, tail = (part.decode("utf-8", "backslashreplace") for part in (self._head, self._tail))
        return f"{head}\n[... {self._cut_bytes} bytes of output cut here ...]\n{tail}"


def _run(work: str, code: str, printed: Printed) -> int:
    """Run the code in a child and follow what it prints; its wait status. What it started ends with it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _become(work, code, writing)
    os.close(writing)
    try:
        return _follow(child, reading, printed)
    finally:
        os.close(reading)
        with contextlib.suppress(OSError):  # there may be nothing left of it
            os.killpg(child, signal.SIGKILL)


def _follow(child: int, reading: int, printed: Printed) -> int:
    """Until the child has ended: processes it leaves behind may hold the pipe open, or write to it, for ever."""
    while True:
        if select.select([reading], [], [], _LOOK_S)[0]:
            piece = os.read(reading, 65536)
            if not piece:
                return os.waitpid(child, 0)[1]
            printed.add(piece)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            for _ in range(32):  # more than a pipe holds
                if not select.select([reading], [], [], 0)[0] or not (piece := os.read(reading, 65536)):
                    break
                printed.add(piece)
            return status


def _become(work: str, code: str, writing: int) -> NoReturn:
    """In the child: everything but the pipe is given up, then the code runs."""
    exit_code = _RAISED
    try:
        os.setsid()
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.closerange(3, 65536)
        sys.stdout, sys.stderr = _unbuffered(1), _unbuffered(2)
        os.environ.setdefault("MPLBACKEND", "Agg")
        exit_code = _execute(work, code)
    finally:
        os._exit(exit_code)


def _unbuffered(descriptor: int) -> TextIO:
    """Nothing is kept back, so that output and errors stay in order, and a crash loses none."""
    raw: Any = open(descriptor, "wb", buffering=0, closefd=False)  # noqa: SIM115 - lives as long as the process
    from io import TextIOWrapper

    return TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def _execute(work: str, code: str) -> int:
    """Run the code as `__main__` and show the value of a last expression; the exit code."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.path.insert(0, work)
    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)
    try:
        tree = ast.parse(code, NAME)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NAME, "exec", dont_inherit=True), main.__dict__)  # noqa: S102 - what this is for
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), NAME, "eval", dont_inherit=True), main.__dict__)
            if value is not None:
                print(repr(value))
        _save_figures(work)
    except SystemExit as request:
        if request.code is None or isinstance(request.code, int):
            return (request.code or 0) & 0xFF
        print(request.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - the boundary to code we do not know; the model is told
        _print_traceback(error, work)
        return _RAISED
    return 0


def _print_traceback(error: BaseException, work: str) -> None:
    """The exception as Python shows it, with the last frames of the model's and the agent's own code."""
    own = (work + "/", os.path.dirname(__file__) + "/")
    frames: deque[tuple[types.FrameType, int]] = deque(maxlen=_FRAMES)
    step = error.__traceback__
    while step is not None:  # one by one: there may be millions
        file = step.tb_frame.f_code.co_filename
        if file == NAME or (file.startswith(own) and file != __file__):
            frames.append((step.tb_frame, step.tb_lineno))
        step = step.tb_next
    error.__traceback__ = error.__cause__ = error.__context__ = None
    told = traceback.TracebackException.from_exception(error)
    told.stack = traceback.StackSummary.extract(iter(frames))
    print("".join(told.format()), end="", file=_unbuffered(2))


def _save_figures(work: str) -> None:
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if pyplot is not None else ():
        os.makedirs(os.path.join(work, _FIGURES), exist_ok=True)
        pyplot.figure(number).savefig(os.path.join(work, _FIGURES, f"figure-{number}.png"), format="png")


def _ending(status: int) -> str:
    """What the model is told of an end that no traceback explains."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = {each.value: each.name for each in signal.Signals}
        return f"[The code's process was ended by {known.get(number, f'signal {number}')}.]"
    exit_code = os.WEXITSTATUS(status)
    return f"[The code ended with exit code {exit_code}.]" if exit_code not in (0, _RAISED) else ""


# --- after -------------------------------------------------------------------


class Returned:
    """The files that go back, as MCP content blocks, within what the output allowance leaves."""

    def __init__(self, work: str, room_bytes: int) -> None:
        self.blocks: list[dict[str, Any]] = []
        self.missing: list[str] = []
        self._work = work
        self._room_bytes = room_bytes

    def add(self, name: str) -> None:
        try:
            blocks = _blocks(name, _read(self._work, name, self._room_bytes))
        except Refused as reason:
            self.missing.append(str(reason))
            return
        size_bytes = sum(_BLOCK_BYTES + _size(block) for block in blocks)
        if size_bytes > self._room_bytes:
            self.missing.append(f"{name} is too large: {size_bytes} bytes as sent, {max(self._room_bytes, 0)} are left")
            return
        self._room_bytes -= size_bytes
        self.blocks += blocks

    def notes(self) -> list[dict[str, Any]]:
        return [_text(f"[Not returned: {'; '.join(self.missing)}.]")] if self.missing else []


def _read(work: str, name: str, room_bytes: int) -> bytes:
    """The bytes of a file that the code left; a link is not followed, and nothing that never ends is read.

    Raises:
        Refused: it is not there, not a plain file of the working directory, or too large.
    """
    if not re.fullmatch(f"({re.escape(_FIGURES)}/)?{_FILE_NAME}", name):
        raise Refused(f"{name[:120]!r} is not a plain name")
    try:
        descriptor = os.open(os.path.join(work, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = {errno.ENOENT: "does not exist", errno.ELOOP: "is a link"}.get(error.errno or 0, str(error.strerror))
        raise Refused(f"{name} {why}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{name} is not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(max(room_bytes, 0) + 1)
    finally:
        os.close(descriptor)
    if len(data) > room_bytes:
        raise Refused(f"{name} is too large: {found.st_size} bytes, {max(room_bytes, 0)} are left to send")
    return data


def _blocks(name: str, data: bytes) -> list[dict[str, Any]]:
    shown = name.removeprefix(f"{_FIGURES}/")
    kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), "")
    text = _as_text(data)
    if not kind and text is not None and _SVG.match(text[:4096]):
        kind = "image/svg+xml"
    if kind:
        image: dict[str, Any] = {"type": "image", "mimeType": kind, "data": _base64(data)}
        if kind == "image/svg+xml":  # no model takes it; what is addressed to the user is kept for the user
            image["annotations"] = {"audience": ["user"]}
        return [_text(f"{shown}:"), {**image, "_meta": {"lockstep/name": shown}}]
    resource = {"uri": f"file:///work/{shown.replace(' ', '%20')}"}
    if text is None or len(data) > MAX_PRINTED_BYTES:
        mime_type = "application/octet-stream" if text is None else "text/plain"
        block = {"type": "resource", "resource": {**resource, "mimeType": mime_type, "blob": _base64(data)}}
        head = [] if text is None else [_text(f"{shown}, the first of {len(data)} bytes:\n{text[:MAX_PRINTED_BYTES]}")]
        return [*head, {**block, "annotations": {"audience": ["user"]}}]
    block = {"type": "resource", "resource": {**resource, "mimeType": "text/plain", "text": text}}
    return [_text(f"{shown}:"), {**block, "annotations": {"audience": ["user", "assistant"]}}]


def _as_text(data: bytes) -> str | None:
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def _figures(work: str) -> list[str]:
    try:
        found = sorted(os.listdir(os.path.join(work, _FIGURES)))
    except OSError:
        return []
    return [f"{_FIGURES}/{name}" for name in found if name.endswith(".png")][:MAX_FILES]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text.encode("utf-8", "backslashreplace").decode()}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _size(value: Any) -> int:
    """Bytes of a value as it is sent."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace"))
