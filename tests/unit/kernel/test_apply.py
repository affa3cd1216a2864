"""What each event means for the state, and above all for what the model is told."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from running import (
    CONTEXT,
    RESUMED,
    SUSPENDED,
    T0,
    Run,
    asked,
    failed,
    given,
    intended,
    judged,
    malformed,
    refused,
    replied,
    settled,
)

from lockstep.journal import events as ev
from lockstep.kernel.apply import _APPLY
from lockstep.kernel.state import Phase, Receipt, Status
from lockstep.model.port import AssistantMessage, Message, ToolMessage, UserMessage
from lockstep.values import Effect

CANCELLED = ev.RunFinished(stop_reason="cancelled", message="Cancelled by ada.")


def answered_exactly_once(messages: tuple[Message, ...]) -> bool:
    """What every provider demands: after a message with calls, one result for each, in order, before anything else."""
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if isinstance(message, ToolMessage):
            return False
        for call in message.calls if isinstance(message, AssistantMessage) else ():
            result = rest.pop(0) if rest else None
            if not isinstance(result, ToolMessage) or result.provider_id != call.provider_id:
                return False
    return True


def results(run: Run) -> list[ToolMessage]:
    return [message for message in run.state.transcript.messages if isinstance(message, ToolMessage)]


def test_every_type_of_event_has_a_meaning() -> None:
    assert set(_APPLY) == set(ev.EVENT_TYPES)


def test_a_started_run_knows_for_whom_it_runs_and_what_was_asked() -> None:
    state = Run(approve="none").state
    assert (state.status, state.agent, state.principal, state.session) == (Status.RUNNING, "travel", "ada", "s1")
    assert (state.input, state.approve, state.started_at_ms, state.next_seq) == ("Book it.", "none", T0, 2)
    assert state.transcript.messages == (UserMessage(text="Book it."),)


def test_every_event_moves_the_number_and_the_clock() -> None:
    run = Run()
    run.now += 5
    run.says(CONTEXT, failed(), replied())
    assert (run.state.next_seq, run.state.last_at_ms) == (5, T0 + 5)


def test_totals_add_up_and_one_unknown_cost_makes_the_sum_unknown() -> None:
    run = Run()
    run.says(replied("look", cost_usd="0.10"), judged("1.0"))
    run.says(ev.EffectSettled(call="1.0", outcome="ok", text="", fee_usd="0.05"), replied("look", step=2))
    totals = run.state.totals
    assert (totals.steps, totals.calls, totals.input_tokens, totals.output_tokens) == (2, 2, 20, 10)
    assert totals.cost_usd == Decimal("0.16")
    run.says(judged("2.0"), settled("2.0"), replied(step=3, cost_usd=None), replied(step=4, cost_usd="1"))
    assert run.state.totals.cost_usd is None


def test_the_model_hears_of_its_calls_when_all_are_done_in_the_order_it_asked() -> None:
    run = Run()
    run.says(replied("look", "x", "look"), judged("1.0"), malformed("1.1"), judged("1.2"))
    run.says(settled("1.2", text="second"))
    assert results(run) == []
    run.says(settled("1.0", "tool_error", "first failed"))
    assert [(m.provider_id, m.text, m.is_error) for m in results(run)] == [
        ("c10", "first failed", True),
        ("c11", "Correct it.", True),
        ("c12", "second", False),
    ]
    assert answered_exactly_once(run.state.transcript.messages)


def test_calls_of_earlier_steps_stay_in_order() -> None:
    run = Run()
    run.says(replied("look"), judged("1.0"), settled("1.0"), replied("book", "look", step=2))
    assert [call.id for call in run.state.all_calls] == ["1.0", "2.0", "2.1"]
    with pytest.raises(KeyError):
        run.state.call("1.0")


def test_only_a_final_reply_is_the_output() -> None:
    run = Run()
    run.says(replied("look", text="Looking."))
    assert run.state.output == ""
    run.says(judged("1.0"), settled("1.0"), replied(step=2, text="Here."))
    assert run.state.output == "Here."


def test_the_model_is_told_who_refused_and_why() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", "ask"), asked("1.0"), refused("1.0", "too expensive."))
    (result,) = results(run)
    assert result.is_error
    assert result.text.startswith("Not run: ada refused this call because: too expensive. Do not ask")


def test_the_model_is_told_that_nobody_approved_in_time() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", "ask"), asked("1.0"), refused("1.0", "late", by="nobody"))
    assert results(run)[0].text.startswith("Not run: nobody approved this call in time.")


def test_an_approval_keeps_who_gave_it() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", "ask"), asked("1.0"))
    assert (run.call("1.0").phase, run.call("1.0").approval) == (Phase.WAITING, "a1.0")
    run.says(given("1.0"))
    assert (run.call("1.0").phase, run.call("1.0").approved_by) == (Phase.APPROVED, "ada")


def test_suspending_and_resuming_move_the_status_and_the_message() -> None:
    run = Run()
    assert run.says(CONTEXT, SUSPENDED).status is Status.SUSPENDED
    assert run.state.message == "waits"
    state = run.says(RESUMED)
    assert (state.status, state.message, state.context_built) == (Status.RUNNING, "", False)


# --- a run that is cut short ---

CUT = {
    "asked": (),
    "allowed": (judged("1.1", effect=Effect.ONCE),),
    "waiting": (judged("1.1", "ask", Effect.ONCE), asked("1.1"), SUSPENDED),
    "approved": (judged("1.1", "ask", Effect.ONCE), asked("1.1"), given("1.1")),
    "intended": (judged("1.1", effect=Effect.ONCE), intended("1.1")),
    "doubted": (
        judged("1.1", effect=Effect.ONCE),
        intended("1.1"),
        ev.EffectDoubted(call="1.1", why="lost"),
        SUSPENDED,
    ),
}


@pytest.mark.parametrize("place, events", CUT.items(), ids=CUT.keys())
def test_a_run_cancelled_in_the_middle_leaves_a_history_a_provider_accepts(
    place: str, events: tuple[ev.Event, ...]
) -> None:
    run = Run()
    run.says(replied("look", "book", "look"), judged("1.0"), settled("1.0", text="seen"), *events, CANCELLED)
    assert run.state.status is Status.FINISHED
    first, second, third = results(run)
    assert (first.text, first.is_error) == ("seen", False)
    assert second.is_error
    assert third.text == "Not run: the run was stopped before this call."
    unknown = place in ("intended", "doubted")
    assert second.text.startswith("The run was stopped before it was known" if unknown else "Not run:")
    assert answered_exactly_once((*run.state.transcript.messages, UserMessage(text="And now?")))


def test_a_run_cancelled_between_steps_answers_nothing_twice() -> None:
    run = Run()
    run.says(replied("look"), judged("1.0"), settled("1.0"), CANCELLED)
    assert len(results(run)) == 1
    assert answered_exactly_once(run.state.transcript.messages)


# --- receipts ---


def test_the_receipt_of_a_call_is_kept_under_its_key() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE, key="k"), intended("1.0"), settled("1.0", text="BA1"))
    assert run.state.receipts == {"k": Receipt(where="r1/1.0", at_ms=T0, text="BA1")}


def test_a_call_that_ran_to_its_end_without_a_usable_result_keeps_its_receipt() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE, key="k"), intended("1.0"))
    run.says(settled("1.0", "result_unusable", "lost"))
    assert run.state.receipts == {"k": Receipt(where="r1/1.0", at_ms=T0, text="lost")}


def test_a_failed_call_keeps_no_receipt_so_that_it_may_be_tried_again() -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE, key="k"), intended("1.0"), settled("1.0", "tool_error"))
    assert run.state.receipts == {}


def test_a_call_without_a_key_keeps_no_receipt() -> None:
    run = Run()
    run.says(replied("send"), judged("1.0", effect=Effect.ONCE), intended("1.0"), settled("1.0"))
    assert run.state.receipts == {}


@pytest.mark.parametrize("doubted", [True, False], ids=["doubted", "only intended"])
def test_an_effect_that_may_have_happened_is_in_doubt_for_the_session_when_its_run_ends(doubted: bool) -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE, key="k"), intended("1.0"))
    if doubted:
        run.says(ev.EffectDoubted(call="1.0", why="lost"))
    run.says(CANCELLED)
    assert run.state.receipts == {"k": Receipt(where="r1/1.0", at_ms=T0, text="", in_doubt=True)}


def test_a_call_after_an_ended_receipt_that_fails_leaves_no_doubt_to_a_reader_of_its_run_alone() -> None:
    run = Run()  # without the receipts of the runs before it
    again = replace(judged("1.0", effect=Effect.ONCE, key="k"), own_key=True)
    run.says(replied("book"), again, intended("1.0"), settled("1.0", "tool_error", "sold out"))
    assert run.state.receipts == {}


def test_an_intent_that_may_be_repeated_does_not_block_its_key() -> None:
    run = Run()
    run.says(replied("pay"), judged("1.0", effect=Effect.KEYED, key="k"), intended("1.0"), CANCELLED)
    assert run.state.receipts == {}


@pytest.mark.parametrize(
    "happened, receipts",
    [(True, {"k": Receipt(where="r1/1.0", at_ms=T0, text="it did")}), (False, {})],
    ids=["did", "did not"],
)
def test_reconciling_settles_the_receipt(happened: bool, receipts: dict[str, Receipt]) -> None:
    run = Run()
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE, key="k"), intended("1.0"))
    run.says(ev.EffectDoubted(call="1.0", why="lost"))
    run.says(ev.EffectReconciled(call="1.0", happened=happened, by="ada", text="it did"))
    assert run.state.receipts == receipts
    (result,) = results(run)
    assert (result.text, result.is_error) == ("it did", not happened)


def test_receipts_of_earlier_runs_stay_and_are_never_changed_in_place() -> None:
    before = {"old": Receipt(where="r0/1.0", at_ms=T0, text="LH2")}
    run = Run(receipts=before)
    run.says(replied("book"), judged("1.0", effect=Effect.ONCE, key="k"), intended("1.0"), settled("1.0"))
    assert set(run.state.receipts) == {"old", "k"}
    assert set(before) == {"old"}


def test_a_call_that_was_already_made_is_answered_by_its_first_receipt() -> None:
    run = Run()
    run.says(replied("book"))
    run.says(ev.CallJudged(call="1.0", verdict="allow", note="BA1 [already]", duplicate_of="r0/1.0", effect="once"))
    assert (run.call("1.0").phase, run.call("1.0").outcome) == (Phase.DONE, "ok")
    assert results(run) == [ToolMessage(provider_id="c10", name="book", text="BA1 [already]")]
