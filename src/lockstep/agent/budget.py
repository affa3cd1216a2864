"""What a run may use, and what all runs of a scope may use together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

SCOPES = ("session", "principal", "day", "principal_day")
"""Whose runs of the agent count together: the session's; the principal's, ever; all of one UTC day; the principal's."""


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
