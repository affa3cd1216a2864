"""The tools of one module: imports it, reads its `@tool` functions and calls them. Runs inside the sandbox.

Standard library alone. Knows results, not frames: what cannot be had is an exception that the runner turns into one.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys

from lockstep.tools.decorator import marking_of
from lockstep.tools.hints import Signature, signature
from lockstep.tools.results import NotJson, exception_result, failure, headline, own_place, success
from lockstep.tools.schema import describe, tool_name
from lockstep.tools.shapes import Mismatch

TYPE_CHECKING = False  # spelled out: importing `typing` would cost every sandbox start several milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

TOOL_ROOT = "/tool"
EGRESS_ENV = "LOCKSTEP_EGRESS"

_COROUTINE = 0x80  # co_flags, as in `inspect`


class ImportTrouble(Exception):
    """The module gave no tools. `kind` is the type of what was raised, `place` its `file:line` in the tool's code."""

    def __init__(self, message: str, *, kind: str, place: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.place = place


class UnknownTool(Exception):
    """The module has no tool of this name, or it was not asked to offer it."""


class Tool:
    """One function on offer."""

    __slots__ = ("function", "name", "signature")

    def __init__(self, name: str, function: Callable[..., Any], reading: Signature) -> None:
        self.name = name
        self.function = function
        self.signature = reading

    def call(self, arguments: Any, root: str) -> dict[str, Any]:
        """Call the function; whatever it raises is a result, except what is meant to end the process."""
        try:
            accepted = self.signature.parameters.accept_fields(arguments, "")
        except Mismatch as reason:
            return failure("InvalidArguments", str(reason), stage="arguments")
        try:
            value = self.function(**accepted)
            if hasattr(value, "__await__"):
                import asyncio  # 40 ms; `load` has paid already when the function is `async def`

                value = asyncio.run(_finish(value))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - the boundary to code we do not know; recorded in the result
            return exception_result(error, root)
        try:
            return success(value, structured=self.signature.result is not None)
        except NotJson as reason:
            return failure("NotJson", f"The tool returned a value that is not JSON: {reason}.", stage="result")


class Toolbox:
    """The tools of one module, or why there are none."""

    def __init__(self, root: str, tools: Iterable[Tool] = (), trouble: ImportTrouble | None = None) -> None:
        self.root = root
        self.trouble = trouble
        self._tools = {tool.name: tool for tool in tools}

    def definitions(self) -> list[dict[str, Any]]:
        """The MCP definition of every tool, in the module's order.

        Raises:
            ImportTrouble: there are no tools, and why.
        """
        return [describe(tool.function, tool.signature) for tool in self._ready().values()]

    def call(self, name: Any, arguments: Any) -> dict[str, Any]:
        """The MCP result of calling a tool; a failing tool is a result.

        Raises:
            UnknownTool: nothing was called.
            ImportTrouble: there are no tools, and why; nothing was called.
        """
        tool = self._ready().get(name) if isinstance(name, str) else None
        if tool is None:
            raise UnknownTool(f"Unknown tool: {name}")
        return tool.call(arguments, self.root)

    def _ready(self) -> dict[str, Tool]:
        if self.trouble is not None:
            raise self.trouble
        return self._tools


def load(file: str, only: frozenset[str] | None) -> Toolbox:
    """Import the module and read its tools; whatever goes wrong is kept, to be said to whoever asks."""
    path = os.path.join(TOOL_ROOT, file)
    root = TOOL_ROOT if path.startswith(TOOL_ROOT + "/") else os.path.dirname(path)
    try:
        if os.environ.get(EGRESS_ENV) == "1":
            from lockstep.tools import egress_shim  # only a sandbox with egress pays for it

            egress_shim.start()
        return Toolbox(root, _read_tools(_import(path), only))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the boundary to code we do not know; said on every request
        place = own_place(error, root)
        message = f"{headline(error)} ({place})" if place else headline(error)
        trouble = ImportTrouble(f"{file} cannot be imported: {message}", kind=type(error).__name__, place=place)
        return Toolbox(root, trouble=trouble)


class _FromSource(importlib.machinery.SourceFileLoader):
    """Ignores byte code files beside the source: what runs is the text that the lock has digested."""

    def path_stats(self, path: str) -> Any:
        raise OSError


def _import(path: str) -> Any:
    """Import a file as a module of its own name; its directory is searched last, so it shadows nothing of Python's."""
    directory, file = os.path.split(path)
    kinds = (
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
        (_FromSource, importlib.machinery.SOURCE_SUFFIXES),
    )

    def finder(entry: str) -> importlib.machinery.FileFinder:
        if entry != directory and not entry.startswith(directory + "/"):
            raise ImportError
        return importlib.machinery.FileFinder(entry, *kinds)

    sys.path_hooks.insert(0, finder)
    sys.path.append(directory)
    name = file.removesuffix(".py")
    if name in sys.stdlib_module_names or name in sys.modules:
        name = f"tool_{name}"
    loader = _FromSource(name, path)
    module = type(sys)(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader, origin=path)
    module.__file__ = path
    module.__loader__ = loader
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def _read_tools(module: Any, only: frozenset[str] | None) -> list[Tool]:
    """The marked functions among the module's names, in the order they stand there.

    Raises:
        ValueError: one cannot be offered, two have one name, or one asked for is missing.
    """
    found: dict[str, Callable[..., Any]] = {}
    for function in vars(module).values():
        if marking_of(function) is None:
            continue
        name = tool_name(function)
        if found.setdefault(name, function) is not function:
            raise ValueError(f'two tools are called "{name}"; give one another with @tool(name=...).')
    if only is not None and (missing := sorted(only - found.keys())):
        known = ", ".join(found) or "none"
        raise ValueError(f'there is no tool "{missing[0]}"; the module has {known}.')
    tools = [Tool(name, function, signature(function)) for name, function in found.items() if not only or name in only]
    if any(_is_async(tool.function) for tool in tools):
        import asyncio  # noqa: F401 - 40 ms, better spent before a request is waiting
    return tools


def _is_async(function: Any) -> bool:
    code = getattr(function, "__code__", None)  # what functools.cache returns has none
    return code is not None and bool(code.co_flags & _COROUTINE)


async def _finish(value: Any) -> Any:
    return await value
