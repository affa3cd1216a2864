"""`@tool`: marks a typed function as something a model may ask for. Standard library alone; refuses to run anything."""

from __future__ import annotations

TYPE_CHECKING = False  # spelled out: importing `typing` would cost every sandbox start several milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, overload

    Function = TypeVar("Function", bound=Callable[..., Any])

MARK = "__lockstep_tool__"


class OutcomeUnknown(Exception):
    """Raised by a tool that cannot say whether its effect happened; the call is then in doubt, not repeated."""


class NotDone(Exception):
    """Raised by a tool that knows its effect did not happen: refused, never sent, undone. It may be asked for again.

    Any other exception after a request that may have changed something left the sandbox puts the call in doubt.
    """


class Unavailable(NotDone):
    """Raised by a tool whose effect did not happen for a reason that may pass: overloaded, out of reach.

    Where repeating the call does no harm, it is made again for the model.
    """


class Marking:
    """What `@tool` was told about a function; `hints` are MCP tool annotations, only those that were given."""

    __slots__ = ("hints", "name", "title")

    def __init__(self, *, name: str | None, title: str | None, hints: dict[str, bool]) -> None:
        self.name = name
        self.title = title
        self.hints = hints


if TYPE_CHECKING:

    @overload
    def tool(function: Function, /) -> Function: ...

    @overload
    def tool(
        *,
        name: str | None = None,
        title: str | None = None,
        read_only: bool | None = None,
        destructive: bool | None = None,
        idempotent: bool | None = None,
        open_world: bool | None = None,
    ) -> Callable[[Function], Function]: ...


def tool(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    title: str | None = None,
    read_only: bool | None = None,
    destructive: bool | None = None,
    idempotent: bool | None = None,
    open_world: bool | None = None,
) -> Function | Callable[[Function], Function]:
    """Mark a function as a tool and return it unchanged; bare (`@tool`) or with what MCP lets a tool say of itself.

    Args:
        name: what the model calls it; the function's own name by default.
        title: what a person is shown.
        read_only: it changes nothing outside (`readOnlyHint`). The four hints may tighten how the gate treats a tool,
            never loosen it.
        destructive: what it changes may be lost (`destructiveHint`).
        idempotent: doing it again does no more (`idempotentHint`).
        open_world: it deals with things nobody here controls (`openWorldHint`).
    Raises:
        TypeError: what is marked is not a function.
    """
    given = {
        "readOnlyHint": read_only,
        "destructiveHint": destructive,
        "idempotentHint": idempotent,
        "openWorldHint": open_world,
    }
    marking = Marking(name=name, title=title, hints={key: value for key, value in given.items() if value is not None})

    def mark(function: Function) -> Function:
        if not hasattr(function, "__code__"):
            raise TypeError(
                f"@tool marks functions; {function!r} is not one. Put @tool on a function defined with def."
            )
        holder = function.__qualname__.rpartition(".")[0]
        if holder and not holder.endswith("<locals>"):
            raise TypeError(
                f"@tool marks functions; {function.__qualname__} is a method. Move it to the module's level."
            )
        setattr(function, MARK, marking)
        return function

    return mark if function is None else mark(function)


def marking_of(function: object) -> Marking | None:
    """What `@tool` said about this function; None when it is not a tool."""
    found = getattr(function, MARK, None)
    return found if isinstance(found, Marking) else None
