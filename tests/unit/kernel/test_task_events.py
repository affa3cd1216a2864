"""A call that goes on as a task of its server: asked after by whoever drives the run, and never made again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from running import DIGEST, RESUMED, T0, Run, intended, judged, replied, settled

from lockstep.agent.locked import Budget
from lockstep.errors import JournalCorrupt
from lockstep.gate.rounds import round_digest, round_of
from lockstep.journal import events as ev
from lockstep.kernel import decide as do
from lockstep.kernel.apply import fold
from lockstep.kernel.state import Phase
from lockstep.values import Effect

BEGUN = ev.TaskBegun(call="1.0", task="t-1", elsewhere=True)
HERE = replace(BEGUN, elsewhere=False)
CRASHED = ev.RunResumed(by="ada", after_crash=True)
DOUBTED = ev.EffectDoubted(call="1.0", why="no answer")
UNHEARD = ev.EffectRetried(call="1.0", attempt=1, outcome="process_ended", why="lost", delay_ms=1000, unknown=True)
ASKED = ev.InputAsked(call="1.0", input="q1", asked='{"requests":{}}', digest=DIGEST, expires_at_ms=T0 + 1000)
GIVEN = ev.InputGiven(call="1.0", input="q1", digest=DIGEST, by="ada", responses='{"a":{"action":"accept"}}')
EFFECTS = pytest.mark.parametrize("effect", [Effect.ONCE, Effect.KEYED, Effect.IDEMPOTENT])


def under_way(effect: Effect = Effect.ONCE) -> Run:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=effect, key="k"))
    if effect is not Effect.READ:
        run.says(intended("1.0"))
    return run


@pytest.mark.parametrize("effect", list(Effect))
def test_after_a_crash_a_task_elsewhere_is_asked_after_whatever_its_call_does(effect: Effect) -> None:
    run = under_way(effect)
    run.says(BEGUN, CRASHED)
    command = run.next()
    assert isinstance(command, do.Execute)
    assert [(call.task, call.unsure) for call in command.calls] == [("t-1", False)]
    goes_on = round_of(command.calls[0])
    assert goes_on is not None
    assert (goes_on.task, goes_on.responses, goes_on.state) == ("t-1", {}, None)


@EFFECTS
def test_a_task_in_a_sandbox_went_with_it(effect: Effect) -> None:
    run = under_way(effect)
    run.says(HERE, CRASHED)
    command = run.next()
    assert run.call("1.0").task == ""
    assert isinstance(command, do.Doubt if effect is Effect.ONCE else do.Execute)
    assert round_of(run.call("1.0")) is None


def test_a_sandbox_that_is_kept_for_an_answer_keeps_its_task() -> None:
    run = under_way()
    run.says(HERE, ASKED, ev.RunSuspended(reason="input", call="1.0", message="waits"), GIVEN, RESUMED)
    goes_on = round_of(run.call("1.0"))
    assert goes_on is not None
    assert (goes_on.task, goes_on.responses) == ("t-1", {"a": {"action": "accept"}})


def test_a_sandbox_that_a_stop_has_ended_does_not() -> None:
    run = under_way(Effect.READ)
    run.says(HERE, ev.RunSuspended(reason="agent_stopped", call="", message="stopped"), RESUMED)
    assert run.call("1.0").task == ""


def test_what_was_said_before_it_became_a_task_is_not_said_to_the_task() -> None:
    run = under_way()
    run.says(ASKED, GIVEN, intended("1.0"), BEGUN)
    goes_on = round_of(run.call("1.0"))
    assert goes_on is not None
    assert (goes_on.responses, goes_on.state) == ({}, None)


def test_a_read_that_was_answered_and_became_a_task_goes_on() -> None:
    run = under_way(Effect.READ)
    run.says(ASKED, GIVEN, BEGUN, CRASHED)
    assert isinstance(run.next(), do.Execute)


def test_one_in_doubt_is_asked_after_once_more_by_whoever_resumes() -> None:
    run = under_way()
    run.says(BEGUN, DOUBTED)
    suspend = run.next()
    assert isinstance(suspend, do.Suspend)
    assert "asks its server once more" in suspend.message
    run.says(ev.RunSuspended(reason="in_doubt", call="1.0", message="m"))
    assert do.resumable(run.state, run.now)
    run.says(RESUMED)
    assert isinstance(run.next(), do.Execute)
    run.says(DOUBTED)
    assert isinstance(run.next(), do.Suspend), "it would be asked after without end"


def test_a_doubt_without_a_task_waits_for_a_person() -> None:
    run = under_way()
    run.says(DOUBTED, ev.RunSuspended(reason="in_doubt", call="1.0", message="m"))
    assert not do.resumable(run.state, run.now)
    run.says(RESUMED)
    assert isinstance(run.next(), do.Suspend)


@pytest.mark.parametrize("doubted", [False, True])
def test_a_question_after_it_that_was_not_answered_is_asked_later_and_makes_nothing_unsure(doubted: bool) -> None:
    run = under_way()
    run.says(*([DOUBTED] if doubted else []), BEGUN, UNHEARD)
    command = run.next()
    assert isinstance(command, do.Execute)
    assert (command.delay_s, command.calls[0].unsure, command.calls[0].attempts) == (1.0, False, 1)


def test_a_result_settles_what_was_in_doubt_since_its_deadline() -> None:
    run = under_way()
    run.says(DOUBTED, BEGUN)
    assert run.call("1.0").phase is Phase.DOUBTED
    run.says(replace(settled("1.0"), late=True))
    assert not run.state.receipts["k"].in_doubt


def test_it_is_asked_after_although_the_run_has_used_up_its_time() -> None:
    run = under_way()
    run.now += 2_000
    run.says(BEGUN, CRASHED)
    assert isinstance(run.next(Budget(steps=10, calls=20, wall_s=1)), do.Execute)


def test_crashes_without_an_end_leave_it_in_doubt() -> None:
    run = under_way()
    run.says(BEGUN, *[CRASHED] * do.CRASH_LIMIT)
    assert isinstance(run.next(), do.Doubt)


def test_a_permit_is_for_one_task() -> None:
    run = under_way()
    plain = run.call("1.0")
    run.says(BEGUN)
    one = run.call("1.0")
    digests = {
        round_digest(each, DIGEST) for each in (plain, one, replace(one, task="t-2"), replace(one, answers="{}"))
    }
    assert len(digests) == 4
    assert round_digest(plain, DIGEST) == DIGEST


def test_nothing_becomes_a_task_that_was_not_let_go() -> None:
    run = Run()
    run.says(replied("book"))
    recorded = ev.Recorded(seq=3, at_ms=T0, event=BEGUN, hash=b"")
    with pytest.raises(JournalCorrupt):
        fold(run.state, [recorded])


@pytest.mark.parametrize("effect", list(Effect))
@pytest.mark.parametrize("lost", [CRASHED, replace(UNHEARD, outcome="task_lost")])
def test_a_task_that_began_after_an_answer_and_is_lost_leaves_a_call_that_begins_anew(
    effect: Effect, lost: ev.Event
) -> None:
    run = under_way(effect)
    answered = [ASKED, GIVEN] if effect is Effect.READ else [ASKED, GIVEN, intended("1.0")]
    run.says(*answered, HERE, lost)
    command = run.next()
    assert isinstance(command, do.Doubt if effect is Effect.ONCE else do.Execute)
    assert round_of(run.call("1.0")) is None
    assert round_digest(run.call("1.0"), DIGEST) == DIGEST


@pytest.mark.parametrize("effect", list(Effect))
@pytest.mark.parametrize("said", [[], [GIVEN]])
@pytest.mark.parametrize("ended", [CRASHED, RESUMED])
def test_a_question_of_a_task_goes_with_its_sandbox(effect: Effect, said: list[ev.Event], ended: ev.Event) -> None:
    run = under_way(effect)
    stopped = [] if ended is CRASHED else [ev.RunSuspended(reason="agent_stopped", call="", message="stopped")]
    run.says(HERE, ASKED, *said, *stopped, ended)
    command = run.next()
    assert isinstance(command, do.Doubt if effect is Effect.ONCE else do.Execute)
    assert round_of(run.call("1.0")) is None
    if effect is not Effect.READ:
        assert run.call("1.0").unsure


@pytest.mark.parametrize("begun", [BEGUN, HERE])
def test_a_call_that_brings_us_down_again_and_again_is_not_made_without_end(begun: ev.TaskBegun) -> None:
    run = under_way(Effect.KEYED)
    run.says(begun)
    for _ in range(do.CRASH_LIMIT):
        assert isinstance(run.next(), do.Execute)
        run.says(CRASHED, *([intended("1.0"), begun] if begun is HERE else []))
    assert isinstance(run.next(), do.Doubt)
