"""What `agent.toml` says about budgets: what one run may use, and what all runs of a scope may use together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

SCOPES = ("session", "principal", "day", "principal_day")
"""Whose runs of the agent count together: the session's; the principal's, ever; all of one UTC day; the principal's."""


def _exact(number: int) -> int:
    if abs(number) >= 2**53:
        raise ValueError(f"is {number}: larger than a JSON number can be exact")
    return number


# Strict, because pydantic would read `true` and "10" as numbers; exact, because a digest is over RFC 8785 JSON.
Whole = Annotated[int, Strict(), AfterValidator(_exact)]
Number = Annotated[float, Strict()]
PerTool = dict[str, Annotated[Whole, Field(ge=0)]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the runs of one scope may use together; None is no limit."""

    runs: int | None = None
    steps: int | None = None
    calls: int | None = None
    calls_per_tool: Mapping[str, int] = field(default_factory=dict)
    tokens: int | None = None
    cost_usd: Decimal | None = None
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a run may use. `cost_usd` None is no limit; `wall_s` counts without waits for people."""

    steps: int = 25
    calls: int = 100
    calls_per_tool: Mapping[str, int] = field(default_factory=dict)
    tokens: int | None = None
    cost_usd: Decimal | None = None
    unknown_price: str = "refuse"
    wall_s: float = 900.0
    malformed: int = 3
    model_retries: int = 4
    repeats: int = 5
    scopes: Mapping[str, Limits] = field(default_factory=dict)
    """By name, those of `SCOPES` that have limits."""

    @property
    def limits_cost(self) -> bool:
        """Whether anything here needs to know what a reply costs."""
        return self.cost_usd is not None or any(each.cost_usd is not None for each in self.scopes.values())

    def unknown_tools(self, known: Iterable[str]) -> list[str]:
        """Names under `calls_per_tool` that are no tools, with where they stand."""
        places = {"budget": self.calls_per_tool} | {
            f"budget.{name}": limits.calls_per_tool for name, limits in self.scopes.items()
        }
        there = set(known)
        return [
            f"`{place}.calls_per_tool` names {tool!r}"
            for place, named in places.items()
            for tool in named
            if tool not in there
        ]


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
