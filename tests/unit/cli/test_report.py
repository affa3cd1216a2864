"""A run as an exit code and as a JSON object."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from lockstep.cli.report import as_json, exit_code
from lockstep.kernel.apply import start
from lockstep.kernel.state import CallState, Phase, State, Status, Totals
from lockstep.kernel.transcript import Transcript
from lockstep.values import RunId

BLANK = start(RunId("r1"), Transcript((), b""))
CALL = CallState(id="1.0", provider_id="x", name="pay", arguments='{"to": "bob"}', asked_at_ms=0)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("completed", 0),
        ("budget_steps", 4),
        ("budget_calls", 4),
        ("budget_cost", 4),
        ("budget_wall", 4),
        ("cost_unknown", 4),
        ("malformed_limit", 4),
        ("cancelled", 4),
        ("truncated", 4),
        ("content_filter", 4),
        ("empty_reply", 2),
        ("model_refused", 2),
        ("model_bad_reply", 2),
        ("model_unavailable", 2),
        ("recording_ended", 2),
        ("recording_mismatch", 2),
        ("sandbox_unavailable", 2),
        ("crashed", 1),
    ],
)
def test_each_end_of_a_run_has_its_exit_code(reason: str, code: int) -> None:
    assert exit_code(replace(BLANK, status=Status.FINISHED, stop_reason=reason)) == code


def test_a_run_that_waits_exits_with_3() -> None:
    assert exit_code(replace(BLANK, status=Status.SUSPENDED)) == 3


def test_an_unknown_cost_is_null_and_not_zero() -> None:
    assert as_json(replace(BLANK, totals=Totals(cost_usd=None)))["cost_usd"] is None
    assert as_json(replace(BLANK, totals=Totals(cost_usd=Decimal("0.0250"))))["cost_usd"] == 0.025


@pytest.mark.parametrize(
    ("phase", "outcome", "reason"), [(Phase.WAITING, "waiting", "approval"), (Phase.DOUBTED, "doubted", "in_doubt")]
)
def test_a_call_without_an_outcome_says_where_it_stands(phase: Phase, outcome: str, reason: str) -> None:
    shown = as_json(_waiting(phase))
    assert (shown["calls"][0]["outcome"], shown["stop_reason"]) == (outcome, reason)


@pytest.mark.parametrize(
    ("text", "shown"), [('{"to": "bob"}', {"to": "bob"}), ("", {}), ("{not json", "{not json"), ("[1]", [1])]
)
def test_arguments_are_a_value_when_they_are_json_and_text_when_not(text: str, shown: object) -> None:
    state = replace(BLANK, calls=(replace(CALL, arguments=text),))
    assert as_json(state)["calls"][0]["arguments"] == shown


@pytest.mark.parametrize(
    "text",
    [
        '{"to": NaN}',
        '{"to": 1e999}',
        '{"to": -Infinity}',
        '{"to": "\\ud83d"}',
        '{"to": ' + "9" * 400 + "}",
        '{"to":' * 900 + "1" + "}" * 900,
        '{"to":' * 50_000 + "1" + "}" * 50_000,
    ],
)
def test_arguments_that_strict_json_cannot_say_are_shown_as_they_came(text: str) -> None:
    shown = as_json(replace(BLANK, calls=(replace(CALL, arguments=text),)))
    assert shown["calls"][0]["arguments"] == text
    assert json.loads(json.dumps(shown, allow_nan=False, indent=2)) == shown


def _waiting(phase: Phase) -> State:
    return replace(BLANK, status=Status.SUSPENDED, calls=(replace(CALL, phase=phase),))
