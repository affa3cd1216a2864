"""What `agent.toml` says about budgets: what one run may use, and what all runs of a scope may use together."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from lockstep.agent.budget import SCOPES, Budget, Limits


def _exact(number: int) -> int:
    if abs(number) >= 2**53:
        raise ValueError(f"is {number}: larger than a JSON number can be exact")
    return number


# Strict, because pydantic would read `true` and "10" as numbers; exact, because a digest is over RFC 8785 JSON.
Whole = Annotated[int, Strict(), AfterValidator(_exact)]
Number = Annotated[float, Strict()]
PerTool = dict[str, Annotated[Whole, Field(ge=0)]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class ScopeSection(_Section):
    """What all runs of one scope may use together. What is not said has no limit."""

    runs: Whole | None = Field(default=None, ge=0)
    steps: Whole | None = Field(default=None, ge=0)
    calls: Whole | None = Field(default=None, ge=0)
    calls_per_tool: PerTool | None = None
    tokens: Whole | None = Field(default=None, ge=0)
    cost_usd: Decimal | None = Field(default=None, ge=0)
    wall_s: Number | None = Field(default=None, gt=0)


class BudgetSection(_Section):
    steps: Whole = Field(default=25, ge=1)
    calls: Whole = Field(default=100, ge=0)
    calls_per_tool: PerTool | None = None
    """Of a tool, by name: calls that may be let go in one run."""
    tokens: Whole | None = Field(default=None, ge=0)
    """Input and output together."""
    cost_usd: Decimal | None = Field(default=None, ge=0)
    unknown_price: Literal["refuse", "allow"] | None = None
    """Whether a run may go on under a cost limit while a price is not known; absent is `refuse`."""
    wall_s: Number = Field(default=900, gt=0)
    """Without the time spent waiting for people."""
    malformed: Whole = Field(default=3, ge=0)
    """Malformed replies in a row (unknown tool, invalid arguments) before the run stops."""
    model_retries: Whole = Field(default=4, ge=0)
    """Repeats of one request after a transient provider error."""
    repeats: Whole | None = Field(default=None, ge=1)
    """How often the very same call may be asked for in one run; absent is 5."""
    session: ScopeSection | None = None
    principal: ScopeSection | None = None
    day: ScopeSection | None = None
    principal_day: ScopeSection | None = None


def budget_of(locked: Mapping[str, Any]) -> Budget:
    """The budget that a lock holds.

    Raises:
        ValueError: it holds what this version does not know.
    """
    section = BudgetSection.model_validate(locked)
    said = section.model_dump(exclude_none=True, exclude=set(SCOPES))
    scopes = {name: getattr(section, name) for name in SCOPES}
    return Budget(
        **said,
        scopes={
            name: Limits(**each.model_dump(exclude_none=True)) for name, each in scopes.items() if each is not None
        },
    )
