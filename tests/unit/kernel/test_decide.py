"""What happens next, for every command and every reason to stop."""

from __future__ import annotations

from decimal import Decimal

import pytest
from running import (
    CONTEXT,
    CRASHED,
    RESUMED,
    SUSPENDED,
    T0,
    Run,
    asked,
    denied,
    failed,
    given,
    intended,
    judged,
    malformed,
    refused,
    replied,
    settled,
)

from lockstep.agent.locked import Budget
from lockstep.journal import events as ev
from lockstep.kernel import decide as do
from lockstep.kernel.apply import start
from lockstep.kernel.state import Phase
from lockstep.kernel.transcript import Transcript
from lockstep.values import Effect, RunId

BIG = Budget(steps=1000, calls=1000, wall_s=1e6)


def executed(command: do.Command | None) -> list[str]:
    assert isinstance(command, do.Execute)
    return [call.id for call in command.calls]


def finished(command: do.Command | None) -> str:
    assert isinstance(command, do.Finish)
    assert command.stop_reason == "completed" or command.message
    return command.stop_reason


# --- the plain run ---


def test_nothing_is_decided_before_the_start_nor_after_the_end_nor_while_waiting() -> None:
    assert do.decide(start(RunId("r1"), Transcript((), b"")), BIG, 0) is None
    run = Run()
    run.says(ev.RunFinished(stop_reason="completed"))
    assert run.next() is None
    run = Run()
    run.says(replied("book"), judged("1.0", "ask"), asked("1.0"), SUSPENDED)
    assert run.next() is None
    run.now = T0 + 10**9
    assert run.next() is None


def test_a_started_run_asks_the_model_judges_executes_and_asks_again() -> None:
    run = Run()
    assert run.next() == do.Infer(step=1, attempt=1, delay_s=0.0)
    run.says(CONTEXT)
    assert run.next() == do.Infer(step=1, attempt=1, delay_s=0.0)
    run.says(replied("look"))
    assert run.next() == do.Judge(run.call("1.0"))
    run.says(judged("1.0"))
    assert executed(run.next()) == ["1.0"]
    run.says(settled("1.0"))
    assert run.next() == do.Infer(step=2, attempt=1, delay_s=0.0)
    run.says(replied(step=2, text="Here."))
    assert run.next() == do.Finish("completed")


def test_deciding_twice_gives_the_same_command() -> None:
    run = Run()
    run.says(replied("look", "book"), judged("1.0"))
    assert run.next() == run.next()


# --- several calls in one reply ---


def test_neighbouring_reads_run_together() -> None:
    run = Run()
    run.says(replied("look", "look", "look"))
    for number in range(3):
        assert run.next() == do.Judge(run.call(f"1.{number}"))
        run.says(judged(f"1.{number}"))
    assert executed(run.next()) == ["1.0", "1.1", "1.2"]
    run.says(settled("1.1"))
    assert executed(run.next()) == ["1.0", "1.2"]


@pytest.mark.parametrize("effect", [Effect.IDEMPOTENT, Effect.KEYED, Effect.ONCE])
def test_calls_with_effects_run_one_at_a_time_in_the_order_asked(effect: Effect) -> None:
    run = Run()
    run.says(replied("book", "book", "book"))
    for number in range(3):
        assert run.next() == do.Judge(run.call(f"1.{number}"))
        run.says(judged(f"1.{number}", effect=effect))
        assert executed(run.next()) == [f"1.{number}"]
        run.says(intended(f"1.{number}"), settled(f"1.{number}"))
    assert isinstance(run.next(), do.Infer)


def test_reads_on_both_sides_of_an_effect_do_not_cross_it() -> None:
    run = Run()
    run.says(replied("look", "look", "book", "look", "look"))
    run.says(judged("1.0"), judged("1.1"))
    assert run.next() == do.Judge(run.call("1.2"))
    run.says(judged("1.2", effect=Effect.ONCE))
    assert executed(run.next()) == ["1.0", "1.1"]
    run.says(settled("1.1"), settled("1.0"))
    assert executed(run.next()) == ["1.2"]
    run.says(intended("1.2"), settled("1.2"))
    run.says(judged("1.3"), judged("1.4"))
    assert executed(run.next()) == ["1.3", "1.4"]


def test_calls_that_do_not_run_are_passed_over() -> None:
    run = Run()
    run.says(replied("look", "nonsense", "book", "look"))
    run.says(judged("1.0"), malformed("1.1", "tool_hallucinated"))
    assert run.next() == do.Judge(run.call("1.2"))
    run.says(denied("1.2"), judged("1.3"))
    assert executed(run.next()) == ["1.0", "1.3"]


def test_a_read_that_waits_for_approval_does_not_hold_up_the_reads_beside_it() -> None:
    run = Run()
    run.says(replied("look", "look", "book"), judged("1.0", "ask"))
    assert run.next() == do.Ask(run.call("1.0"))
    run.says(asked("1.0"), judged("1.1"))
    run.says(judged("1.2", effect=Effect.ONCE))
    assert executed(run.next()) == ["1.1"]
    run.says(settled("1.1"))
    suspend = run.next()
    assert isinstance(suspend, do.Suspend)
    assert suspend.call.id == "1.0"


# --- budgets ---


def test_the_step_budget_ends_the_run_before_the_next_inference() -> None:
    run = Run()
    run.says(replied("look"), judged("1.0"))
    assert executed(run.next(Budget(steps=1))) == ["1.0"]
    run.says(settled("1.0"))
    assert finished(run.next(Budget(steps=1))) == "budget_steps"
    assert isinstance(run.next(Budget(steps=2)), do.Infer)


def test_a_reply_without_calls_completes_the_run_even_when_the_budget_is_used_up() -> None:
    run = Run()
    run.says(replied(text="Here.", cost_usd="9"))
    assert finished(run.next(Budget(steps=1, cost_usd=Decimal(1)))) == "completed"


def test_a_reply_over_the_call_budget_runs_none_of_its_calls() -> None:
    run = Run()
    run.says(replied("look", "look", "look"))
    assert finished(run.next(Budget(calls=2))) == "budget_calls"
    assert isinstance(run.next(Budget(calls=3)), do.Judge)


@pytest.mark.parametrize("spent, stops", [("0.99", False), ("1", True), ("1.01", True)])
def test_the_cost_budget_ends_the_run_when_it_is_reached(spent: str, stops: bool) -> None:
    run = Run()
    run.says(replied("look", cost_usd=spent), judged("1.0"), settled("1.0"))
    command = run.next(Budget(cost_usd=Decimal(1)))
    assert isinstance(command, do.Finish) == stops
    if stops:
        assert finished(command) == "budget_cost"


def test_fees_of_calls_count_as_cost() -> None:
    run = Run()
    run.says(replied("look", cost_usd="0.5"), judged("1.0"))
    run.says(ev.EffectSettled(call="1.0", outcome="ok", text="", fee_usd="0.5"))
    assert finished(run.next(Budget(cost_usd=Decimal(1)))) == "budget_cost"


def test_an_unknown_cost_ends_a_run_that_has_a_limit_and_no_other() -> None:
    run = Run()
    run.says(replied("look", cost_usd=None), judged("1.0"), settled("1.0"))
    assert finished(run.next(Budget(cost_usd=Decimal(1)))) == "cost_unknown"
    assert isinstance(run.next(Budget()), do.Infer)


def test_the_wall_budget_is_kept_before_an_inference_and_before_a_call() -> None:
    run = Run()
    run.now += 1000
    assert finished(run.next(Budget(wall_s=1.0))) == "budget_wall"
    assert isinstance(run.next(Budget(wall_s=1.001)), do.Infer)
    run.says(replied("look"), judged("1.0"))
    assert finished(run.next(Budget(wall_s=1.0))) == "budget_wall"


def test_time_spent_waiting_for_a_person_is_in_no_budget() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", "ask", Effect.ONCE), asked("1.0", T0 + 10**9), SUSPENDED)
    run.now += 5_000_000
    run.says(given("1.0"))
    run.now += 3_000_000
    run.says(RESUMED)
    assert run.state.active_ms(run.now) == 0
    assert executed(run.next(Budget(wall_s=1.0))) == ["1.0"]


def test_time_in_which_the_process_was_dead_is_in_no_budget() -> None:
    run = Run()
    run.now += 200
    run.says(replied("look"))
    run.now += 10**7
    run.says(CRASHED)
    run.now += 300
    assert run.state.active_ms(run.now) == 500


def test_replies_of_malformed_calls_only_end_the_run_when_there_are_too_many_in_a_row() -> None:
    run = Run()
    for step in range(1, 4):
        run.says(replied("x", "y", step=step), malformed(f"{step}.0"), malformed(f"{step}.1", "tool_hallucinated"))
        assert run.state.malformed_in_a_row == step
    assert isinstance(run.next(Budget(malformed=3)), do.Infer)
    assert finished(run.next(Budget(malformed=2))) == "malformed_limit"


def test_many_malformed_calls_in_one_reply_count_once_so_that_the_model_may_correct_them() -> None:
    run = Run()
    run.says(replied(*["x"] * 9), *(malformed(f"1.{number}") for number in range(9)))
    assert isinstance(run.next(Budget(malformed=1)), do.Infer)


@pytest.mark.parametrize("event", [judged("2.1"), denied("2.1")])
def test_a_well_formed_call_ends_the_row_of_malformed_ones(event: ev.CallJudged) -> None:
    run = Run()
    run.says(replied("x"), malformed("1.0"), replied("x", "look", step=2), malformed("2.0"), event)
    if event.verdict == "allow":
        run.says(settled("2.1"))
    assert run.state.malformed_in_a_row == 0


# --- the model fails ---


def test_transient_failures_are_tried_again_with_growing_pauses() -> None:
    run = Run()
    delays = []
    for attempt in range(1, 9):
        run.says(failed(attempt=attempt))
        command = run.next(Budget(model_retries=8))
        assert isinstance(command, do.Infer)
        assert (command.step, command.attempt) == (1, attempt + 1)
        delays.append(command.delay_s)
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]


def test_the_provider_may_ask_for_a_longer_pause() -> None:
    run = Run()
    run.says(failed("rate_limited", retry_after_s=17.5))
    assert run.next() == do.Infer(step=1, attempt=2, delay_s=17.5)


def test_a_pause_that_the_wall_budget_has_no_room_for_ends_the_run_now() -> None:
    run = Run()
    run.says(failed("rate_limited", retry_after_s=3600))
    command = run.next(Budget(wall_s=900))
    assert finished(command) == "model_unavailable"
    assert "3600 s" in command.message  # type: ignore[union-attr]


def test_retries_end_with_their_budget_and_a_reply_forgets_the_failures() -> None:
    run = Run()
    run.says(failed(), failed())
    assert isinstance(run.next(Budget(model_retries=2)), do.Infer)
    run.says(failed())
    assert finished(run.next(Budget(model_retries=2))) == "model_unavailable"
    run.says(replied("look"), judged("1.0"), settled("1.0"))
    assert run.next(Budget(model_retries=0)) == do.Infer(step=2, attempt=1, delay_s=0.0)


@pytest.mark.parametrize(
    "kind, stop_reason",
    [
        ("refused", "model_refused"),
        ("bad_reply", "model_bad_reply"),
        ("recording_ended", "recording_ended"),
        ("recording_mismatch", "recording_mismatch"),
    ],
)
def test_a_failure_that_would_come_again_ends_the_run_at_once(kind: str, stop_reason: str) -> None:
    run = Run()
    run.says(failed(kind, transient=False))
    assert finished(run.next()) == stop_reason


# --- approvals ---


def waiting(approve: str = "ask", expires_at_ms: int = T0 + 1000) -> Run:
    run = Run(approve=approve)
    run.says(replied("book"), judged("1.0", "ask", Effect.ONCE))
    assert run.next() == do.Ask(run.call("1.0"))
    run.says(asked("1.0", expires_at_ms))
    return run


def test_an_approval_suspends_the_run_and_says_how_to_answer() -> None:
    run = waiting()
    command = run.next()
    assert isinstance(command, do.Suspend)
    assert command.reason == "approval"
    for part in ("lockstep approve a1.0", "lockstep refuse a1.0 --because", "lockstep resume r1"):
        assert part in command.message


def test_an_approved_call_runs_once_resumed() -> None:
    run = waiting()
    run.says(SUSPENDED, given("1.0"))
    assert run.next() is None
    run.says(RESUMED)
    assert executed(run.next()) == ["1.0"]


def test_a_refused_call_does_not_run() -> None:
    run = waiting()
    run.says(SUSPENDED, refused("1.0"), RESUMED)
    assert isinstance(run.next(), do.Infer)


def test_an_approval_that_expired_is_refused_by_nobody() -> None:
    run = waiting("all", expires_at_ms=T0)
    command = run.next()
    assert isinstance(command, do.Answer)
    assert (command.given, command.by) == (False, "nobody")


@pytest.mark.parametrize("approve, is_given", [("all", True), ("none", False)])
def test_a_standing_answer_is_given_without_a_person(approve: str, is_given: bool) -> None:
    command = waiting(approve).next()
    assert isinstance(command, do.Answer)
    assert (command.given, command.by) == (is_given, f"--approve {approve}")


def test_an_unknown_standing_answer_asks_a_person() -> None:
    assert isinstance(waiting("sometimes").next(), do.Suspend)


def test_a_run_can_be_resumed_when_nothing_waits_or_when_time_has_decided() -> None:
    run = waiting()
    run.says(SUSPENDED)
    assert not do.resumable(run.state, T0)
    assert do.resumable(run.state, T0 + 1000)
    run.says(given("1.0"))
    assert do.resumable(run.state, T0)


def test_a_run_in_doubt_cannot_be_resumed_by_time() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE), intended("1.0"))
    run.says(ev.EffectDoubted(call="1.0", why="lost"), SUSPENDED)
    assert not do.resumable(run.state, T0 + 10**12)


# --- crashes and doubt ---


def test_an_effect_that_was_let_go_and_never_settled_is_in_doubt_not_repeated() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE), intended("1.0"), CRASHED)
    command = run.next()
    assert isinstance(command, do.Doubt)
    run.says(ev.EffectDoubted(call="1.0", why=command.why))
    suspend = run.next()
    assert isinstance(suspend, do.Suspend)
    assert suspend.reason == "in_doubt"
    assert "--happened" in suspend.message
    assert "--did-not-happen" in suspend.message


@pytest.mark.parametrize("effect", [Effect.IDEMPOTENT, Effect.KEYED])
def test_an_effect_that_may_be_repeated_runs_again_after_a_crash(effect: Effect) -> None:
    run = Run()
    run.says(replied("note"), judged("1.0", effect=effect), intended("1.0"), CRASHED)
    assert executed(run.next()) == ["1.0"]


@pytest.mark.parametrize("happened", [True, False])
def test_a_reconciled_effect_lets_the_run_go_on_without_running_it(happened: bool) -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE), intended("1.0"))
    run.says(ev.EffectDoubted(call="1.0", why="lost"), SUSPENDED)
    run.says(ev.EffectReconciled(call="1.0", happened=happened, by="ada", text="x"), RESUMED)
    assert isinstance(run.next(), do.Infer)


def test_a_run_that_crashes_again_and_again_without_progress_is_stopped() -> None:
    run = Run()
    run.says(replied("look"), judged("1.0"))
    for _ in range(do.CRASH_LIMIT - 1):
        run.says(CRASHED)
    assert executed(run.next(BIG)) == ["1.0"]
    run.says(CRASHED)
    assert finished(run.next(BIG)) == "crashed"


@pytest.mark.parametrize("progress", [settled("1.0"), replied("look", step=2)])
def test_progress_forgets_earlier_crashes_and_waiting_is_no_crash(progress: ev.Event) -> None:
    run = Run()
    run.says(replied("look"), judged("1.0"), *[CRASHED] * 4, RESUMED)
    assert run.state.crashes == 4
    run.says(progress)
    assert run.state.crashes == 0


def test_no_sandbox_ends_the_run_with_the_reason_and_runs_nothing_more() -> None:
    run = Run()
    run.says(replied("look", "look"), judged("1.0"), judged("1.1"), settled("1.0", "sandbox_unavailable", "No runsc."))
    command = run.next()
    assert finished(command) == "sandbox_unavailable"
    assert run.call("1.1").phase is Phase.ALLOWED


@pytest.mark.parametrize(
    ("text", "finish_reason", "stop_reason"),
    [
        ("Done.", "stop", "completed"),
        ("Done.", "", "completed"),
        ("", "stop", "empty_reply"),
        (" \n", "stop", "empty_reply"),
        ("Half of an ans", "length", "truncated"),
        ("", "content_filter", "content_filter"),
    ],
)
def test_a_run_is_completed_only_by_a_whole_answer(text: str, finish_reason: str, stop_reason: str) -> None:
    run = Run()
    run.says(CONTEXT, ev.ModelReplied(step=1, text=text, finish_reason=finish_reason))
    assert finished(run.next()) == stop_reason


def test_an_approval_that_expired_before_the_call_could_run_is_refused() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", "ask"), asked("1.0"), given("1.0"))
    assert executed(run.next()) == ["1.0"]
    run.now = run.call("1.0").approval_expires_ms
    command = run.next()
    assert isinstance(command, do.Answer)
    assert (command.given, command.by) == (False, "nobody")


def test_a_provider_that_says_when_to_come_back_is_believed_also_when_it_says_at_once() -> None:
    run = Run()
    run.says(
        CONTEXT, ev.ModelFailed(step=1, attempt=1, kind="overloaded", message="Busy.", transient=True, retry_after_s=0)
    )
    assert run.next() == do.Infer(step=1, attempt=2, delay_s=0.0)
