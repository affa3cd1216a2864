"""What agent.toml may say of budgets and of people, and what of it stands in the lock."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lockstep.agent.budget import Budget, Limits
from lockstep.agent.budget_spec import budget_of
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.load import load_spec
from lockstep.agent.resolve import resolve
from lockstep.errors import ConfigError

TOML = """
[agent]
name = "a"
[model]
name = "openai:gpt-4o"
[prompt]
file = "p.md"
"""


def locked(tmp_path: Path, more: str) -> Any:
    (tmp_path / "agent.toml").write_text(TOML + more)
    (tmp_path / "p.md").write_text("Hi.")
    return resolve(tmp_path, load_spec(tmp_path), {})


def test_what_is_not_said_is_not_in_the_lock(tmp_path: Path) -> None:
    value = locked(tmp_path, "[budget]\nsteps = 3\n").parts["tools"]["budget"].value
    assert value == {
        "steps": 3,
        "calls": 100,
        "wall_s": 900,
        "malformed": 3,
        "model_retries": 4,
        "approval_expires_s": 86400,
    }


def test_a_lock_that_says_nothing_means_the_defaults(tmp_path: Path) -> None:
    agent = locked_agent(locked(tmp_path, ""))
    assert agent.budget == Budget()
    assert (agent.budget.repeats, agent.four_eyes, agent.principal_may_approve) == (5, False, True)


def test_everything_that_is_said_comes_back_from_the_lock(tmp_path: Path) -> None:
    lock = locked(
        tmp_path,
        """
[policy]
four_eyes = true
principal_may_approve = false
[budget]
tokens = 1000
calls_per_tool = { book_flight = 2 }
unknown_price = "allow"
repeats = 9
[budget.session]
runs = 3
[budget.principal_day]
cost_usd = 2.5
calls_per_tool = { book_flight = 4 }
wall_s = 60
""",
    )
    agent = locked_agent(lock)
    assert agent.budget == Budget(
        tokens=1000,
        calls_per_tool={"book_flight": 2},
        unknown_price="allow",
        repeats=9,
        scopes={
            "session": Limits(runs=3),
            "principal_day": Limits(cost_usd=Decimal("2.5"), calls_per_tool={"book_flight": 4}, wall_s=60),
        },
    )
    assert (agent.four_eyes, agent.principal_may_approve) == (True, False)
    assert agent.budget.limits_cost


@pytest.mark.parametrize(
    "more, says",
    [
        ("[budget]\nrepeats = 0\n", "`budget.repeats` is 0"),
        ('[budget]\nunknown_price = "maybe"\n', "`budget.unknown_price` is"),
        ("[budget.week]\nruns = 1\n", "`budget.week` is not a known key"),
        ("[budget.day]\nmalformed = 1\n", "`budget.day.malformed` is not a known key"),
        ("[budget.day]\nruns = -1\n", "`budget.day.runs` is -1"),
        ("[budget.day]\ncost_usd = true\n", "`budget.day.cost_usd` is true"),
        ("[budget]\ncalls_per_tool = { book = 1.5 }\n", "`budget.calls_per_tool.book` is 1.5"),
        ("[policy]\nfour_eyes = 1\n", "`policy.four_eyes` is 1"),
    ],
    ids=lambda value: value if value.startswith("`") else "",
)
def test_a_mistake_is_a_sentence(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locked(tmp_path, more)
    assert says in caught.value.message


def test_names_under_calls_per_tool_are_checked_against_the_tools() -> None:
    budget = Budget(calls_per_tool={"book": 1}, scopes={"day": Limits(calls_per_tool={"bok": 1})})
    assert budget.unknown_tools(["book"]) == ["`budget.day.calls_per_tool` names 'bok'"]


def test_what_a_newer_version_wrote_is_refused() -> None:
    with pytest.raises(ValueError, match="week"):
        budget_of({"week": {"runs": 1}})
