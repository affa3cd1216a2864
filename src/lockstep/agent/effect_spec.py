"""What `agent.toml` says about effects: when two calls are the same one, what frees it, what clears up a lost reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from lockstep.agent.pointers import Missing, check, select
from lockstep.values import Json

Pointer = Annotated[str, AfterValidator(check)]

ORIGINS = ("arguments", "result")

Scope = Literal["none", "run", "session", "principal"]


def _reference(text: str) -> str:
    kind, colon, pointer = text.partition(":")
    if kind not in ORIGINS or not colon:
        raise ValueError(f"is {text!r}: it must be arguments:/POINTER or result:/POINTER")
    return f"{kind}:{check(pointer)}"


Reference = Annotated[str, AfterValidator(_reference)]
"""`arguments:/offer_id` or `result:/booking_id`: a place in a call's arguments, or in what it returned."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class ReleaseRule(_Section):
    """A later call that undoes this one, so that it may be made again: a cancellation frees a booking."""

    tool: str
    where: dict[Pointer, Reference] = Field(min_length=1)
    """Places in the later call's arguments -> what stands there, from this call's arguments or result."""


class ProbeSection(_Section):
    """A `read` tool of the same agent that says whether a call whose reply was lost happened."""

    tool: str
    arguments: dict[str, Annotated[str, AfterValidator(_reference)] | Literal["key"]] = Field(default_factory=dict)
    """The probe's arguments: places in the call's arguments, or `key`, the call's idempotency key."""
    found: Pointer
    """Where its result says so: anything but nothing, null, false, "" or an empty list or object means it happened."""
    settles_after_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How long a request may still be carried out after the tool has ended. Only then does "not found" mean that it
    did not happen; undeclared, it never does, and a person decides."""


class Repeats(_Section):
    """How a tool's calls repeat: by the model, by infrastructure, and after a lost reply."""

    scope: Scope = "session"
    """Within what the same call is made once; `none`: it may be made any number of times."""
    window_s: Annotated[float, Strict()] | None = Field(default=None, gt=0)
    """For how long; undeclared, as long as the scope lasts."""
    released_by: tuple[ReleaseRule, ...] = ()
    again: bool = False
    """Whether the model may ask for a deliberate repeat (`again: true`), about which a person is always asked."""
    probe: ProbeSection | None = None
    retries: int = 2
    """Of `read`, `idempotent` and `keyed`: attempts after the first at a call that failed in a way that may pass."""
    late_s: float = 0.0
    """Of `once`: how long past its deadline a late result is still waited for, while the call is in doubt."""


def look_up(reference: str, arguments: Mapping[str, Json], result: Json) -> Json:
    """What a reference leads to.

    Raises:
        Missing: nothing.
    """
    kind, _, pointer = reference.partition(":")
    if kind == "result" and not isinstance(result, Mapping | list):
        raise Missing(reference)
    return select(arguments if kind == "arguments" else result, pointer)
