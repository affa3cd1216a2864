"""Where the time of a run went: a reading of its events, right also when it waited, died or was cut short."""

from __future__ import annotations

from lockstep.journal import events as ev
from lockstep.telemetry.tree import Node, Spent, build_tree
from lockstep.values import Digest

DIGEST = Digest("1" * 64)
STARTED = ev.RunStarted(
    agent="travel", lock=DIGEST, lock_text="", directory="/", principal="ada", session="s", input="Book it."
)
ASKED = ev.ApprovalAsked(call="1.0", approval="a1", digest=DIGEST, question="Book it?", expires_at_ms=10**9)
SUSPENDED = ev.RunSuspended(reason="approval", call="1.0", message="")


def tree(*timed: tuple[int, ev.Event]) -> tuple[Node, Spent]:
    return build_tree(
        [ev.Recorded(seq=seq, at_ms=at_ms, event=event, hash=b"") for seq, (at_ms, event) in enumerate(timed, 1)]
    )


def step(number: int, at_ms: int, *names: str, latency_ms: float = 0) -> list[tuple[int, ev.Event]]:
    calls = tuple(
        ev.Asked(id=f"{number}.{place}", provider_id="p", name=name, arguments="{}") for place, name in enumerate(names)
    )
    reply = ev.ModelReplied(step=number, calls=calls, model="m", latency_ms=latency_ms, cost_usd="0.01")
    return [(at_ms, ev.ContextBuilt(step=number, digest=DIGEST)), (at_ms + int(latency_ms), reply)]


def judged(call: str = "1.0", verdict: str = "allow") -> ev.CallJudged:
    return ev.CallJudged(call=call, verdict=verdict, digest=DIGEST, effect="once", policies=("rule",))


def settled(call: str = "1.0") -> ev.EffectSettled:
    seen = {"method": "GET", "url": "http://x/", "allowed": True, "status": 200}
    return ev.EffectSettled(
        call=call, outcome="ok", text="", tier="gvisor", queue_ms=1, start_ms=20, run_ms=30, cpu_s=0.5, egress=(seen,)
    )


FINISHED = ev.RunFinished(stop_reason="completed")


def test_model_sandbox_and_tool_time_are_told_apart_and_the_rest_is_ours() -> None:
    root, spent = tree(
        (0, STARTED), *step(1, 0, "book", latency_ms=100), (110, judged()), (165, settled()), (170, FINISHED)
    )
    assert (spent.total, spent.model, spent.sandbox_start, spent.tools) == (170, 100, 21, 30)
    assert (spent.people, spent.down, spent.other) == (0, 0, 19)
    (first,) = root.children
    model, call = first.children
    assert (root.name, root.outcome, first.name, first.duration_ms) == ("travel", "completed", "1", 165)
    assert (model.name, model.duration_ms, model.notes) == ("m", 100, ["0 in, 0 out", "$0.01"])
    assert (call.name, call.outcome, call.duration_ms) == ("book", "ok", 65)
    assert call.notes == ["{}", "gate: allow by rule"]
    sandbox, run = call.children
    assert (sandbox.name, sandbox.start_ms, sandbox.duration_ms) == ("start gvisor", 115, 20)
    assert (run.start_ms, run.notes) == (135, ["GET http://x/ -> 200", "0.50 s CPU"])


def test_waiting_for_a_person_is_theirs_from_the_question_on() -> None:
    given = ev.ApprovalGiven(call="1.0", approval="a1", digest=DIGEST, by="ada")
    root, spent = tree(
        (0, STARTED),
        *step(1, 0, "book"),
        (1, judged(verdict="ask")),
        (2, ASKED),
        (2, SUSPENDED),
        (1002, given),
        (1502, ev.RunResumed(by="ada")),
        (1560, settled()),
        (1560, FINISHED),
    )
    assert (spent.people, spent.down) == (1500, 0)
    approval = root.children[0].children[1].children[0]
    assert (approval.kind, approval.outcome, approval.duration_ms) == ("approval", "approved by ada", 1000)


def test_a_run_cancelled_while_it_waited_waited_until_then() -> None:
    cancelled = ev.RunFinished(stop_reason="cancelled")
    root, spent = tree((0, STARTED), *step(1, 0, "book"), (0, ASKED), (0, SUSPENDED), (900, cancelled))
    assert (spent.people, spent.other) == (900, 0)
    assert root.children[0].children[1].children[0].outcome == "still open"


def test_time_between_death_and_resumption_is_down_time_and_the_step_is_not_shown_twice() -> None:
    context = ev.ContextBuilt(step=1, digest=DIGEST)
    resumed = ev.RunResumed(by="ada", after_crash=True)
    root, spent = tree((0, STARTED), (5, context), (705, resumed), *step(1, 710), (710, FINISHED))
    assert (spent.down, spent.people) == (700, 0)
    assert [node.name for node in root.children] == ["1"]


def test_failed_attempts_are_shown_with_the_step_they_delayed() -> None:
    failed = ev.ModelFailed(step=1, attempt=1, kind="overloaded", message="Busy.", transient=True, latency_ms=40)
    root, spent = tree((0, STARTED), (0, ev.ContextBuilt(step=1, digest=DIGEST)), (40, failed), *step(1, 50)[1:])
    attempt, reply = root.children[0].children
    assert (attempt.name, attempt.outcome, attempt.notes) == ("attempt 1", "overloaded", ["Busy."])
    assert (reply.outcome, spent.model) == ("ok", 40)


def test_a_doubt_and_what_became_of_it_are_shown_at_the_call() -> None:
    root, _ = tree(
        (0, STARTED),
        *step(1, 0, "book"),
        (0, judged()),
        (10, ev.EffectDoubted(call="1.0", why="no answer")),
        (60, ev.EffectReconciled(call="1.0", happened=False, by="ada", text="")),
    )
    call = root.children[0].children[1]
    (doubt,) = call.children
    assert (doubt.kind, doubt.name, doubt.outcome, doubt.duration_ms) == (
        "doubt",
        "no answer",
        "did not happen, says ada",
        50,
    )
    assert call.outcome == "did not happen, says ada"


def test_a_call_that_was_already_done_says_so() -> None:
    again = ev.CallJudged(call="1.0", verdict="allow", duplicate_of="r0/1.0", digest=DIGEST, effect="once")
    root, _ = tree((0, STARTED), *step(1, 0, "book"), (0, again))
    assert root.children[0].children[1].outcome == "already done"
