"""What a tool call gives back: MCP tool results from values and from exceptions. Standard library alone.

A value either is JSON or the result says where it is not; nothing is rounded, dropped or rendered with `repr`.
"""

from __future__ import annotations

import errno
import json

from lockstep.tools.decorator import NotDone, OutcomeUnknown, Unavailable

TYPE_CHECKING = False  # spelled out: importing `typing` would cost every sandbox start several milliseconds
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

ERROR_META = "lockstep/error"
IMPORT_FAILED = -32001
"""The JSON-RPC error of a server whose tool cannot be imported."""
_MESSAGE_LIMIT_CHARS = 4000
_TRACEBACK_LIMIT_LINES = 20
_UNKNOWN = frozenset(
    {
        "builtins.TimeoutError",
        "builtins.ConnectionError",
        "urllib.error.URLError",
        "http.client.HTTPException",
        "socket.gaierror",
        "socket.herror",
        "ssl.SSLError",
    }
)
"""Exceptions after which nobody can say whether a request arrived: by name, so that `urllib` need not be imported."""
_UNKNOWN_ERRNO = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH})


class NotJson(Exception):
    """A value has no JSON form; the text names the place (`$.a[3]`) and what stands there."""


class Content:
    """A value that is MCP content blocks already: text, images, embedded resources.

    `error` names what went wrong in a call that is to be told as failed, with no effect left open.
    """

    __slots__ = ("blocks", "error")

    def __init__(self, blocks: list[dict[str, Any]], *, error: str = "") -> None:
        self.blocks = blocks
        self.error = error


def success(value: Any, *, structured: bool) -> dict[str, Any]:
    """The result of a call that returned.

    A string is sent as it is, None as the empty string, everything else as compact JSON. Dataclasses become objects,
    enums their value, dates ISO 8601, Decimal a string. With `structured`, the value also travels as
    `structuredContent` and must be an object. `Content` is sent block by block.

    Raises:
        NotJson: the value, or a part of it, cannot be said in JSON.
    """
    if type(value) is Content:
        return _of_blocks(value)
    text = "" if value is None else value if type(value) is str else encode(value)
    if type(value) is str and (found := _locate_text(value, "$")):
        raise NotJson(found)
    if structured and not (text.startswith("{") and type(value) is not str):
        raise NotJson(f"`$` is {_describe(value)}, but the tool's annotation promises an object")
    if text.startswith('"') and type(value) is not str:
        text = json.loads(text)  # a date, a Decimal, an Enum of strings: text, not JSON text
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": False}
    return {**result, "structuredContent": Raw(text)} if structured else result


def _of_blocks(content: Content) -> dict[str, Any]:
    if not content.error:
        return {"content": content.blocks, "isError": False}
    error = {"type": content.error, "stage": "call", "unknown": False, "not_done": False, "traceback": ""}
    return {"content": content.blocks, "isError": True, "_meta": {ERROR_META: error}}


def failure(
    kind: str,
    text: str,
    *,
    stage: str,
    unknown: bool = False,
    not_done: bool = False,
    transient: bool = False,
    traceback: str = "",
) -> dict[str, Any]:
    """The result of a call that did not work out.

    Args:
        kind: the exception's type, or our own word for what happened.
        text: what the model is shown; shortened when very long.
        stage: `arguments` (the function was not called), `call` (it raised) or `result` (it returned, so its effect has
            happened, but what it returned cannot be sent).
        unknown: nobody can say whether the effect happened.
        not_done: the tool says that it did not.
        transient: the tool says that the failure may pass.
        traceback: for the operator; frames of the tool's own code.
    """
    error = {"type": kind, "stage": stage, "unknown": unknown, "not_done": not_done, "traceback": traceback}
    if transient:
        error["transient"] = True
    return {"content": [{"type": "text", "text": _shorten(text)}], "isError": True, "_meta": {ERROR_META: error}}


def exception_result(error: BaseException, root: str) -> dict[str, Any]:
    """The result of a call that raised. The traceback shows frames below `root` only, the tool's own code."""
    return failure(
        type(error).__name__,
        headline(error),
        stage="call",
        unknown=is_outcome_unknown(error),
        not_done=isinstance(error, NotDone),
        transient=isinstance(error, Unavailable),
        traceback=own_traceback(error, root),
    )


def headline(error: BaseException) -> str:
    """`TypeName: message`, or the name alone when there is no message."""
    try:
        message = str(error)
    except Exception as trouble:  # noqa: BLE001 - a tool's exception may fail to print itself
        message = f"(its message cannot be shown: {type(trouble).__name__})"
    return _shorten(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def is_outcome_unknown(error: BaseException) -> bool:
    """True when the effect may have happened: the tool said so, or a request got no definite answer.

    An exception that says nothing either way is judged by the one it was raised from, or while handling;
    `raise ... from None` is how a tool says that it knows.
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        if isinstance(current, BaseExceptionGroup):
            if any(is_outcome_unknown(each) for each in current.exceptions):
                return True
        elif (known := _speaks(current)) is not None:
            return known
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return False


def _speaks(error: BaseException) -> bool | None:
    """True: outcome unknown. False: a definite answer came. None: this exception says nothing either way."""
    if isinstance(error, OutcomeUnknown):
        return True
    if isinstance(error, NotDone):
        return False
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
    if "urllib.error.HTTPError" in names:
        status = getattr(error, "code", None)
        return not isinstance(status, int) or status >= 500
    if not _UNKNOWN.isdisjoint(names):
        return True
    if type(error) is OSError and error.errno in _UNKNOWN_ERRNO:
        return True
    return None


def own_traceback(error: BaseException, root: str) -> str:
    """The last lines of the traceback, of frames in files below `root`, with paths relative to it."""
    import linecache  # 5 ms, needed only when something went wrong

    lines: list[str] = []
    for path, line, function in _own_frames(error.__traceback__, root):
        lines.append(f'  File "{_below(path, root)}", line {line}, in {function}')
        if source := linecache.getline(path, line).strip():
            lines.append(f"    {source[:200]}")
    return "\n".join(lines[-_TRACEBACK_LIMIT_LINES:])


def own_place(error: BaseException, root: str) -> str:
    """`file:line` of the innermost frame in files below `root`; of the offending line for a SyntaxError; else empty."""
    if isinstance(error, SyntaxError) and error.filename and _is_below(error.filename, root):
        return f"{_below(error.filename, root)}:{error.lineno}"
    frames = _own_frames(error.__traceback__, root)
    return f"{_below(frames[-1][0], root)}:{frames[-1][1]}" if frames else ""


def _own_frames(traceback: TracebackType | None, root: str) -> list[tuple[str, int, str]]:
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if _is_below(code.co_filename, root):
            frames.append((code.co_filename, traceback.tb_lineno, code.co_qualname))
        traceback = traceback.tb_next
    return frames


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _below(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/") + "/")


def _shorten(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate cannot be sent
    if len(text) <= _MESSAGE_LIMIT_CHARS:
        return text
    return f"{text[:_MESSAGE_LIMIT_CHARS]}... [{len(text) - _MESSAGE_LIMIT_CHARS} more characters]"


class Raw:
    """JSON text that has been made already and is written into a frame as it stands."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def encode(value: Any) -> str:
    """Compact JSON text of a value.

    Raises:
        NotJson: names the first place that has no JSON form.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain)
        text.encode()
    except Exception as trouble:  # noqa: BLE001 - encoding runs code of whatever the tool returned
        raise NotJson(_explain(value, trouble)) from None
    return text


def _explain(value: Any, trouble: Exception) -> str:
    try:
        found = _locate(value, "$", [])
    except Exception:  # noqa: BLE001 - so does looking for the place
        found = ""
    return found or f"`$` is {_describe(value)} that cannot be written as JSON ({headline(trouble)})"


def _plain(value: Any) -> Any:
    """A value of JSON's own types for what has an obvious one.

    Raises:
        TypeError: it has none.
    """
    if hasattr(type(value), "__dataclass_fields__"):
        return {name: getattr(value, name) for name, each in value.__dataclass_fields__.items() if _is_field(each)}
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__]
    if "enum.Enum" in names:
        return value.value
    if any(name in ("datetime.date", "datetime.datetime", "datetime.time") for name in names):
        return value.isoformat()
    if names[0] in ("decimal.Decimal", "uuid.UUID"):
        return str(value)
    raise TypeError


def _is_field(each: Any) -> bool:
    return bool(each._field_type.name == "_FIELD")  # not ClassVar, not InitVar


def _locate(value: Any, where: str, above: list[Any]) -> str:
    """Where a value stops being JSON and why, as a sentence; empty when nothing is found."""
    if len(above) > 200:
        return f"`{where[:80]}...` is nested too deeply"
    if any(value is each for each in above):
        return f"`{where}` contains itself"
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str | int | float) and key is not None:
                return f"`{where}` has the key {_brief(key)} ({type(key).__name__}); keys of a JSON object are strings"
            step = f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{_brief(key)}]"
            if found := _locate_text(key, f"a key of {where}") or _locate(each, where + step, [*above, value]):
                return found
        return ""
    if isinstance(value, list | tuple):
        steps = (_locate(each, f"{where}[{index}]", [*above, value]) for index, each in enumerate(value))
        return next((found for found in steps if found), "")
    return _locate_scalar(value, where, above)


def _locate_scalar(value: Any, where: str, above: list[Any]) -> str:
    if isinstance(value, float) and value - value != 0:
        return f"`{where}` is {value}, which JSON cannot hold"
    if value is None or isinstance(value, bool | float):
        return ""
    if isinstance(value, int):
        return f"`{where}` is an integer of {value.bit_length()} bits" if value.bit_length() > 10_000 else ""
    if isinstance(value, str):
        return _locate_text(value, where)
    try:
        plain = _plain(value)
    except TypeError:
        return f"`{where}` is {_describe(value)}, which has no JSON form"
    return _locate(plain, where, [*above, value])


def _locate_text(value: Any, where: str) -> str:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as trouble:
            return f"`{where}` holds a lone surrogate at character {trouble.start}, which UTF-8 cannot hold"
    return ""


def _describe(value: Any) -> str:
    kind = "None" if value is None else type(value).__name__
    return kind if value is None else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
