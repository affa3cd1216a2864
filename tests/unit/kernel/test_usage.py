"""Limits that one run has, and limits that several share: what counts, when it is over, and what is said."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from running import Run, denied, judged, refused, replied, settled

from lockstep.agent.budget import Budget, Limits
from lockstep.journal import events as ev
from lockstep.kernel import decide as do
from lockstep.kernel.usage import NOTHING, Usage, no_start, same_call, total

ROOM = Budget(steps=100, calls=100)


def asking(times: int, *, arguments: str = "{}", name: str = "look") -> Run:
    """A run whose model has asked for the same call so often, the last of them not judged yet."""
    run = Run()
    for step in range(1, times + 1):
        call = ev.Asked(id=f"{step}.0", provider_id="", name=name, arguments=arguments)
        run.says(ev.ModelReplied(step=step, calls=(call,), cost_usd="0"))
        if step < times:
            run.says(judged(f"{step}.0"), settled(f"{step}.0"))
    return run


def finish(run: Run, budget: Budget) -> do.Finish:
    command = run.next(budget)
    assert isinstance(command, do.Finish), command
    return command


# --- the same call again and again ---


def test_the_same_call_is_asked_for_five_times_and_the_sixth_ends_the_run() -> None:
    assert isinstance(asking(5).next(ROOM), do.Judge)
    end = finish(asking(6), ROOM)
    assert end.stop_reason == "loop"
    assert end.message == "The model asked for look with the same arguments more than 5 times (budget.repeats)."


def test_how_often_is_said_in_the_budget() -> None:
    assert finish(asking(3), replace(ROOM, repeats=2)).stop_reason == "loop"
    assert isinstance(asking(6), Run)
    assert isinstance(asking(6).next(replace(ROOM, repeats=6)), do.Judge)


def test_writing_the_arguments_differently_makes_no_other_call() -> None:
    assert same_call("book", '{"a": 1, "b": [2]}') == same_call("book", '{ "b":[2],"a":1 }')
    assert same_call("book", '{"a": 1}') != same_call("book", '{"a": 2}')
    assert same_call("book", "{}") != same_call("look", "{}")
    assert same_call("book", "not  json") == same_call("book", "not json")


def test_a_call_that_was_denied_each_time_is_a_loop_as_well() -> None:
    run = Run()
    for step in range(1, 7):
        run.says(replied("book", step=step))
        if step < 6:
            run.says(denied(f"{step}.0"))
    assert finish(run, ROOM).stop_reason == "loop"


def test_many_of_the_same_call_in_one_reply_count_each() -> None:
    run = Run()
    run.says(replied(*["look"] * 6))
    assert finish(run, ROOM).stop_reason == "loop"


def test_a_reply_that_is_being_worked_on_is_not_taken_back() -> None:
    run = Run()
    run.says(replied("look", "look"), judged("1.0"), settled("1.0"))
    run.state = replace(run.state, others={"day": Usage(calls=50)})
    budget = replace(ROOM, repeats=1, scopes={"day": Limits(calls=10)})
    assert isinstance(run.next(budget), do.Judge)


# --- one run ---


def test_tokens_of_input_and_output_count_together() -> None:
    run = Run()
    run.says(replied("look"), judged("1.0"), settled("1.0"))
    assert isinstance(run.next(replace(ROOM, tokens=16)), do.Infer)
    end = finish(run, replace(ROOM, tokens=15))
    assert (end.stop_reason, end.message) == ("budget_tokens", "The run has used 15 of 15 tokens (budget.tokens).")


def test_an_unknown_cost_ends_the_run_unless_that_is_allowed_and_then_what_is_known_counts() -> None:
    run = Run()
    run.says(replied("look", cost_usd="0.30"), judged("1.0"), settled("1.0"))
    run.says(replied("look", step=2, cost_usd=None), judged("2.0"), settled("2.0"))
    assert finish(run, replace(ROOM, cost_usd=Decimal(1))).stop_reason == "cost_unknown"
    allowed = replace(ROOM, cost_usd=Decimal(1), unknown_price="allow")
    assert isinstance(run.next(allowed), do.Infer)
    assert finish(run, replace(allowed, cost_usd=Decimal("0.30"))).stop_reason == "budget_cost"


def test_calls_of_a_tool_count_when_they_were_let_go_or_may_yet_be() -> None:
    run = Run()
    run.says(replied("a", "b", "c", "d", "e"))
    run.says(judged("1.0"), settled("1.0", "timeout"), denied("1.1"), judged("1.2", "ask"))
    run.says(ev.CallJudged(call="1.3", verdict="allow", digest=None, effect="once", duplicate_of="r0/1.0", note="x"))
    assert run.state.used(run.now).by_tool == {"a": 1, "c": 1}


def test_a_call_that_a_person_refused_does_not_count() -> None:
    from running import asked

    run = Run()
    run.says(replied("a"), judged("1.0", "ask"), asked("1.0"), refused("1.0"))
    assert run.state.used(run.now).by_tool == {}


# --- several runs ---


def others(run: Run, **scopes: Usage) -> Run:
    run.state = replace(run.state, others=scopes)
    return run


def stepped() -> Run:
    """A run that has used a step, a call, 15 tokens and a cent in two seconds."""
    run = Run()
    run.says(replied("look"), judged("1.0"), settled("1.0"))
    run.now += 2000
    return run


@pytest.mark.parametrize(
    "limits, used, message",
    [
        (Limits(steps=3), Usage(steps=2), "have used 3 of 3 steps (budget.day.steps)."),
        (Limits(calls=3), Usage(calls=2), "have used 3 of 3 calls (budget.day.calls)."),
        (Limits(tokens=100), Usage(tokens=85), "have used 100 of 100 tokens (budget.day.tokens)."),
        (Limits(wall_s=10), Usage(active_ms=8000), "have used their 10 s (budget.day.wall_s)."),
        (Limits(cost_usd=Decimal(1)), Usage(cost_usd=Decimal("0.99")), "have cost $1.00 of $1 (budget.day.cost_usd)."),
    ],
    ids=["steps", "calls", "tokens", "wall_s", "cost_usd"],
)
def test_what_the_other_runs_used_counts_towards_the_limit_they_share(
    limits: Limits, used: Usage, message: str
) -> None:
    budget = replace(ROOM, scopes={"day": limits})
    assert isinstance(stepped().next(budget), do.Infer)
    end = finish(others(stepped(), day=used), budget)
    assert (end.stop_reason, end.message) == ("budget_day", f"The runs of this day (UTC) {message}")
    assert isinstance(others(stepped(), session=used).next(budget), do.Infer)


def test_a_shared_limit_on_calls_ends_a_run_before_the_reply_that_breaks_it_is_acted_on() -> None:
    run = Run()
    run.says(replied("look", "look"))
    end = finish(others(run, session=Usage(calls=2)), replace(ROOM, scopes={"session": Limits(calls=3)}))
    assert end.stop_reason == "budget_session"


def test_an_unknown_cost_of_another_run_counts_as_unknown() -> None:
    unknown = Usage(cost_usd=Decimal("0.1"), cost_known=False)
    budget = replace(ROOM, scopes={"principal": Limits(cost_usd=Decimal(1))})
    end = finish(others(stepped(), principal=unknown), budget)
    assert end.stop_reason == "cost_unknown"
    assert end.message == (
        "The runs of this principal have a cost limit and a cost that is unknown (budget.principal.cost_usd)."
    )
    assert isinstance(others(stepped(), principal=unknown).next(replace(budget, unknown_price="allow")), do.Infer)


def test_no_run_begins_where_the_runs_of_its_scope_are_used_up() -> None:
    budget = replace(ROOM, scopes={"session": Limits(runs=2)})
    assert no_start({"session": Usage(runs=1)}, budget) is None
    over = no_start({"session": Usage(runs=2)}, budget)
    assert over is not None
    assert over.message == "This session has had 2 of 2 runs (budget.session.runs)."


def test_usages_add_up_and_an_unknown_part_makes_the_sum_unknown() -> None:
    one = Usage(runs=1, cost_usd=Decimal(1), by_tool={"a": 1})
    two = Usage(runs=1, cost_known=False, by_tool={"a": 2, "b": 1})
    assert total([one, two]) == Usage(runs=2, cost_usd=Decimal(1), cost_known=False, by_tool={"a": 3, "b": 1})
    assert total([]) == NOTHING
