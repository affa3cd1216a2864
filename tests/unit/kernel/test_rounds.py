"""A call whose server asks for input: rounds of one effect, and what ends them. Events by hand, no driver."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from running import DIGEST, RESUMED, T0, Run, intended, judged, replied, settled

from lockstep.agent.locked import Budget
from lockstep.errors import JournalCorrupt
from lockstep.journal import events as ev
from lockstep.kernel import decide as do
from lockstep.kernel.apply import fold
from lockstep.kernel.state import Phase
from lockstep.values import Effect

ASKED = ev.InputAsked(call="1.0", input="q1", asked='{"requests":{}}', digest=DIGEST, expires_at_ms=T0 + 1000)
GIVEN = ev.InputGiven(
    call="1.0", input="q1", digest=DIGEST, by="ada", responses=json.dumps({"a": {"action": "accept"}})
)
WAITS = ev.RunSuspended(reason="input", call="1.0", message="waits")
EFFECTS = pytest.mark.parametrize("effect", [Effect.ONCE, Effect.KEYED, Effect.IDEMPOTENT])


def asking(effect: Effect = Effect.ONCE, *, approve: str = "ask", acted: bool = False) -> Run:
    """A run whose one call was let go and came back with a question."""
    run = Run(approve=approve)
    run.says(replied("book"), judged("1.0", effect=effect, key="k"))
    if effect is not Effect.READ:
        run.says(intended("1.0"))
    run.says(replace(ASKED, acted=acted))
    return run


def test_a_question_of_a_server_suspends_the_run_and_its_answer_goes_on_with_the_same_call() -> None:
    run = asking()
    suspend = run.next()
    assert isinstance(suspend, do.Suspend)
    assert (suspend.reason, suspend.call.id) == ("input", "1.0")
    assert "lockstep answer q1" in suspend.message
    run.says(WAITS)
    assert not do.resumable(run.state, run.now)
    run.says(GIVEN)
    assert do.resumable(run.state, run.now)
    run.says(RESUMED)
    goes_on = run.next()
    assert isinstance(goes_on, do.Execute)
    assert [(each.id, each.rounds, each.answers) for each in goes_on.calls] == [("1.0", 1, GIVEN.responses)]
    run.says(intended("1.0"), settled("1.0"))
    assert run.state.receipts["k"].text == "done"
    assert isinstance(run.next(), do.Infer)


def test_the_same_call_stands_against_others_while_it_waits() -> None:
    assert asking().state.receipts["k"].in_doubt


@EFFECTS
def test_after_a_crash_within_a_later_round_only_what_may_be_repeated_is(effect: Effect) -> None:
    run = asking(effect)
    run.says(GIVEN, intended("1.0"), ev.RunResumed(by="ada", after_crash=True))
    command = run.next()
    assert isinstance(command, do.Doubt if effect is Effect.ONCE else do.Execute)


@EFFECTS
def test_after_a_crash_between_rounds_the_call_goes_on(effect: Effect) -> None:
    run = asking(effect)
    run.says(GIVEN, ev.RunResumed(by="ada", after_crash=True))
    assert isinstance(run.next(), do.Execute)


def test_a_read_goes_on_without_an_intent() -> None:
    run = asking(Effect.READ)
    run.says(GIVEN)
    assert isinstance(run.next(), do.Execute)


def test_of_two_reads_one_that_asks_does_not_keep_the_other_from_running() -> None:
    run = Run()
    run.says(replied("look", "see"), judged("1.0"), judged("1.1"), ASKED)
    command = run.next()
    assert isinstance(command, do.Execute)
    assert [call.id for call in command.calls] == ["1.1"]
    run.says(settled("1.1"))
    assert isinstance(run.next(), do.Suspend)


@pytest.mark.parametrize("answered", [False, True])
def test_what_is_not_answered_in_time_ends_the_call(answered: bool) -> None:
    run = asking()
    if answered:
        run.says(GIVEN)
    run.now = T0 + 1000
    command = run.next()
    assert isinstance(command, do.Drop)
    assert command.outcome == "input_expired"


def test_an_answer_that_is_none_ends_the_call() -> None:
    run = asking()
    run.says(replace(GIVEN, responses="", because="it asked too often"))
    assert run.next() == do.Drop(run.call("1.0"), "input_refused", "it asked too often")


def test_where_nobody_answers_approvals_nobody_answers_servers() -> None:
    command = asking(approve="none").next()
    assert isinstance(command, do.Drop)
    assert command.outcome == "input_refused"


def test_one_word_beforehand_does_not_answer_a_server() -> None:
    assert isinstance(asking(approve="all").next(), do.Suspend)


@EFFECTS
def test_a_run_that_is_out_of_time_ends_the_call_before_it_ends_itself(effect: Effect) -> None:
    """Or its receipt would stand against the same call for ever, with nothing in doubt that a person could settle."""
    run = asking(effect)
    run.says(GIVEN)
    run.now += 500
    budget = Budget(steps=10, calls=20, wall_s=0.1)
    command = run.next(budget)
    assert isinstance(command, do.Drop)
    run.says(settled("1.0", command.outcome, "not done"))
    assert "k" not in run.state.receipts
    assert isinstance(run.next(budget), do.Finish)


def test_a_process_that_dies_again_and_again_gives_the_call_up() -> None:
    run = asking()
    run.says(GIVEN, *[ev.RunResumed(by="ada", after_crash=True)] * do.CRASH_LIMIT)
    assert isinstance(run.next(), do.Drop)


def test_a_round_that_acted_leaves_the_call_unsure() -> None:
    assert asking(acted=True).call("1.0").unsure
    assert not asking().call("1.0").unsure


def test_an_answer_to_another_question_is_none() -> None:
    for wrong in (replace(GIVEN, input="q2"), replace(GIVEN, digest="4" * 64)):
        run = asking()
        with pytest.raises(ValueError, match="not of what was asked"):
            run.says(wrong)
    run = asking()
    run.says(GIVEN)
    with pytest.raises(ValueError, match="answered already"):
        run.says(GIVEN)
    with pytest.raises(JournalCorrupt):
        fold(run.state, [ev.Recorded(seq=9, at_ms=run.now, event=GIVEN, hash=b"")])


def test_the_expiry_is_of_all_rounds_together() -> None:
    run = asking()
    run.says(GIVEN, intended("1.0"), replace(ASKED, input="q2"))
    call = run.call("1.0")
    assert (call.phase, call.rounds, call.input, call.answers) == (Phase.NEEDS_INPUT, 2, "q2", "")


def test_a_question_that_is_held_open_changes_nothing_but_the_clock() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE), intended("1.0"))
    run.says(replace(ASKED, live=True))
    assert run.call("1.0").phase is Phase.INTENDED
    run.now += 700
    run.says(GIVEN)
    assert (run.call("1.0").phase, run.call("1.0").live) == (Phase.INTENDED, "")
    assert run.state.active_ms(run.now) == 0


def test_a_run_that_is_ended_while_it_waits_says_so_to_the_model() -> None:
    run = asking()
    run.says(ev.RunFinished(stop_reason="cancelled"))
    assert "waited for input" in run.state.transcript.messages[-1].text


# --- what is asked of the agent's own model ---

ASKS_MODEL = replace(ASKED, asked='{"requests":{"a":{},"b":{},"no":{}},"refused":{"no":"x"},"model":["a","b"]}')
ASKS_BOTH = replace(ASKED, asked='{"requests":{"a":{},"who":{}},"refused":{},"model":["a"]}')
SAID = ev.ModelSampled(call="1.0", input="q1", key="a", digest=DIGEST, text="Hm.", cost_usd="0.01", input_tokens=3)
FAILED = replace(SAID, failure="timeout", message="Slow.", transient=True, cost_usd=None)
STOPPED = ev.RunSuspended(reason="agent_stopped", call="", message="stopped")


def sampling(event: ev.InputAsked = ASKS_MODEL, effect: Effect = Effect.ONCE, approve: str = "ask") -> Run:
    run = Run(approve=approve)
    run.says(replied("book"), judged("1.0", effect=effect, key="k"))
    run.says(*[intended("1.0")] * (effect is not Effect.READ), event)
    return run


@pytest.mark.parametrize("approve", ["ask", "none", "all"])
def test_the_model_is_asked_one_thing_after_another_and_then_the_call_goes_on(approve: str) -> None:
    run = sampling(approve=approve)
    for key in ("a", "b"):
        assert run.next() == do.Sample(run.call("1.0"), key, 0.0)
        run.says(replace(SAID, key=key))
    assert run.next() == do.Tell(run.call("1.0"))
    run.says(GIVEN)
    assert isinstance(run.next(), do.Execute)


def test_a_person_is_asked_when_the_model_has_said_its_part() -> None:
    run = sampling(ASKS_BOTH)
    assert isinstance(run.next(), do.Sample)
    run.says(SAID)
    assert isinstance(run.next(), do.Suspend)
    assert isinstance(sampling(ASKS_BOTH, approve="none").next(), do.Drop)


@pytest.mark.parametrize("said", [(), (SAID,), (SAID, replace(SAID, key="b"))])
def test_a_run_that_was_stopped_meanwhile_goes_on_without_a_person(said: tuple[ev.Event, ...]) -> None:
    run = sampling()
    run.says(*said, STOPPED)
    assert do.resumable(run.state, run.now)
    run = sampling(ASKS_BOTH)
    run.says(SAID, STOPPED)
    assert not do.resumable(run.state, run.now)


def test_an_answer_of_the_model_counts_as_a_step_and_a_failure_as_nothing() -> None:
    run = sampling()
    before = run.state.totals
    run.says(FAILED)
    assert run.state.totals == before
    run.says(SAID)
    used = run.state.used(run.now)
    assert (run.state.totals.steps, run.state.totals.sampled, used.steps) == (1, 1, 2)
    assert used.tokens == before.input_tokens + before.output_tokens + 3


def test_another_attempt_waits_and_a_success_begins_the_count_anew() -> None:
    run = sampling()
    budget = Budget(steps=10, calls=20, model_retries=1)
    run.says(FAILED)
    assert run.next(budget) == do.Sample(run.call("1.0"), "a", 1.0)
    run.says(replace(FAILED, retry_after_s=7.0))
    assert isinstance(run.next(budget), do.Drop)
    assert run.next() == do.Sample(run.call("1.0"), "a", 7.0)
    run.says(SAID, replace(FAILED, key="b"))
    assert run.next(budget) == do.Sample(run.call("1.0"), "b", 1.0)
    run.says(replace(FAILED, key="b", transient=False))
    assert run.next() == do.Drop(run.call("1.0"), "model_failed", "the agent's model gave no answer: Slow.")


def test_no_attempt_begins_that_the_runs_time_would_not_outlast() -> None:
    run = sampling()
    run.says(replace(FAILED, retry_after_s=60.0))
    command = run.next(Budget(steps=10, calls=20, wall_s=60.0))
    assert isinstance(command, do.Drop)
    assert command.outcome == "budget_wall"


def test_of_two_reads_the_one_that_can_run_does_before_the_model_is_asked() -> None:
    run = Run()
    run.says(replied("look", "see"), judged("1.0"), judged("1.1"), ASKS_MODEL)
    assert isinstance(run.next(), do.Execute)
    run.says(settled("1.1"))
    assert isinstance(run.next(), do.Sample)


def test_what_the_model_says_to_another_question_is_none() -> None:
    with pytest.raises(ValueError, match="not of what was asked"):
        sampling().says(replace(SAID, input="q2"))


def test_a_later_question_is_answered_anew() -> None:
    run = sampling(ASKS_BOTH)
    run.says(SAID, GIVEN, intended("1.0"), replace(ASKS_BOTH, input="q2"))
    assert isinstance(run.next(), do.Sample)
