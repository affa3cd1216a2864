"""The account of a run: each action with its grounds, its rule, its person, its outcome and its cost."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from lockstep.agent.lock import Lock, Part
from lockstep.journal import events as ev
from lockstep.telemetry.why import Action, Argument, Why, explain
from lockstep.values import Digest, RunId, digest_json, sha256

DIGEST = Digest("1" * 64)
SETTINGS = {"name": "openai:gpt-x"}
LOCK = Lock(
    agent="travel",
    parts={
        "model": {"settings": Part(sha256=digest_json(SETTINGS), value=SETTINGS)},
        "prompt": {"prompt.md": Part(sha256=sha256(b"Be careful."), text="Be careful.")},
        "tools": {},
        "memory": {},
    },
)
STARTED = ev.RunStarted(
    agent="travel",
    lock=LOCK.digest,
    lock_text="",
    directory="/",
    principal="ada",
    session="s",
    input="Book it.",
    previous=(RunId("r0"),),
)


def account(*events: ev.Event) -> Why:
    recorded = [
        ev.Recorded(seq=n, at_ms=n * 100, event=event, hash=b"") for n, event in enumerate((STARTED, *events), 1)
    ]
    return explain("r1", recorded, LOCK)


def step(number: int, *arguments: str, cost_usd: str | None = "0.03") -> Sequence[ev.Event]:
    calls = tuple(
        ev.Asked(id=f"{number}.{place}", provider_id="p", name="book", arguments=text)
        for place, text in enumerate(arguments)
    )
    reply = ev.ModelReplied(step=number, text="I think.", calls=calls, model="m", provider="openai", cost_usd=cost_usd)
    return (ev.ContextBuilt(step=number, digest=Digest(str(number) * 64)), reply)


def judged(call: str = "1.0", verdict: str = "allow", **more: str) -> ev.CallJudged:
    return ev.CallJudged(call=call, verdict=verdict, digest=DIGEST, effect="once", policies=("rule",), **more)  # type: ignore[arg-type]


def settled(call: str = "1.0", **more: str) -> ev.EffectSettled:
    return ev.EffectSettled(call=call, outcome="ok", text="booked", tier="gvisor", start_ms=20, run_ms=30, **more)  # type: ignore[arg-type]


def only(why: Why) -> Action:
    (action,) = why.actions
    return action


def test_versions_are_those_of_the_lock_in_the_record() -> None:
    version = account().version
    assert (version.lock, version.model, version.prompt_file) == (LOCK.digest, "openai:gpt-x", "prompt.md")
    assert version.prompt_sha256 == sha256(b"Be careful.")
    assert version.dimensions == {name: LOCK.dimension_digest(name) for name in ("model", "prompt", "tools", "memory")}


def test_what_the_model_was_given_is_named_and_holds_no_result_that_came_later() -> None:
    why = account(*step(1, "{}", "{}"), judged("1.0"), settled("1.0"), judged("1.1"), settled("1.1"), *step(2, "{}"))
    first, _, later = (action.given for action in why.actions)
    assert (first.prompt_sha256, later.prompt_sha256) == ("1" * 64, "2" * 64)
    assert (first.results, later.results) == ((), ("1.0", "1.1"))
    assert (later.user_message, later.earlier_runs) == (1, ("r0",))
    assert later.system_sha256 == why.version.prompt_sha256


def test_an_action_from_its_rule_by_its_person_to_its_receipt() -> None:
    asked = ev.ApprovalAsked(call="1.0", approval="a1", digest=DIGEST, question="Book it?", expires_at_ms=9000)
    given = ev.ApprovalGiven(call="1.0", approval="a1", digest=DIGEST, by="bob")
    intended = ev.EffectIntended(call="1.0", permit="p1", digest=DIGEST, key="k1")
    action = only(
        account(
            *step(1, "{}"), judged(verdict="ask", question="Book it?"), asked, given, intended, settled(fee_usd="5")
        )
    )
    assert action.verdict is not None
    assert (action.verdict.verdict, action.verdict.policies, action.verdict.event) == ("ask", ("rule",), 4)
    assert action.approval is not None
    assert (action.approval.question, action.approval.shown_digest) == ("Book it?", DIGEST)
    assert (action.approval.answer, action.approval.by, action.approval.answered_at_ms) == ("given", "bob", 600)
    assert [(permit.id, permit.key, permit.event) for permit in action.permits] == [("p1", "k1", 7)]
    assert action.receipt is not None
    assert (action.receipt.outcome, action.receipt.text, action.receipt.event) == ("ok", "booked", 8)
    assert action.sandbox is not None
    assert (action.sandbox.tier, action.sandbox.start_ms) == ("gvisor", 20)
    assert (action.cost.model_usd, action.cost.fee_usd, action.effect) == ("0.03", "5", "once")


def test_a_refusal_says_who_and_why() -> None:
    asked = ev.ApprovalAsked(call="1.0", approval="a1", digest=DIGEST, question="Book it?", expires_at_ms=9000)
    refused = ev.ApprovalRefused(call="1.0", approval="a1", digest=DIGEST, by="bob", because="too early")
    approval = only(account(*step(1, "{}"), judged(verdict="ask"), asked, refused)).approval
    assert approval is not None
    assert (approval.answer, approval.by, approval.because) == ("refused", "bob", "too early")


@pytest.mark.parametrize("happened", [True, False])
def test_a_doubt_and_how_it_was_settled(happened: bool) -> None:
    doubted = ev.EffectDoubted(call="1.0", why="no answer", tier="gvisor")
    reconciled = ev.EffectReconciled(call="1.0", happened=happened, by="bob", text="asked the airline")
    open_doubt = only(account(*step(1, "{}"), judged(), doubted)).doubt
    closed = only(account(*step(1, "{}"), judged(), doubted, reconciled)).doubt
    assert open_doubt is not None
    assert closed is not None
    assert (open_doubt.why, open_doubt.happened) == ("no answer", None)
    assert (closed.happened, closed.by, closed.text, closed.at_ms) == (happened, "bob", "asked the airline", 500)


def test_attempts_probes_and_a_late_result_are_told() -> None:
    retried = ev.EffectRetried(call="1.0", attempt=1, outcome="timeout", why="no answer", delay_ms=500)
    doubted = ev.EffectDoubted(call="1.0", why="late")
    probed = ev.EffectProbed(call="1.0", tool="find", outcome="not_found")
    late = ev.EffectSettled(call="1.0", outcome="ok", text="booked", late=True)
    action = only(account(*step(1, "{}"), judged(), retried, doubted, probed, late))
    assert [(each.attempt, each.outcome, each.delay_ms, each.event) for each in action.retries] == [
        (1, "timeout", 500, 5)
    ]
    assert action.doubt is not None
    assert [(each.tool, each.outcome, each.event) for each in action.doubt.probes] == [("find", "not_found", 7)]
    assert action.receipt is not None
    assert action.receipt.late


def test_a_repeat_names_the_call_that_answered_it() -> None:
    action = only(account(*step(1, "{}"), judged(duplicate_of="r0/2.0")))
    assert (action.joined_to, action.permits, action.receipt) == ("r0/2.0", [], None)


def test_a_step_s_cost_is_shared_by_its_calls_and_an_unknown_one_is_not_zero() -> None:
    assert [action.cost.model_usd for action in account(*step(1, "{}", "{}", "{}")).actions] == ["0.01"] * 3
    assert only(account(*step(1, "{}", cost_usd=None))).cost.model_usd is None


def test_each_scalar_of_the_arguments_stands_with_its_source_where_that_was_recorded() -> None:
    text = json.dumps({"a": {"b/c": [1, {"d~": None}]}, "price": 432.0, "none": [], "no": {}, "": "e"})
    origin = ev.Origin(pointer="/price", how="exact", trust="trusted", refs=("2.0/result#/offers/0/price",))
    verdict = ev.CallJudged(call="1.0", verdict="allow", origins=(origin,), origins_left_out=2)
    action = only(account(*step(1, text), verdict))
    assert action.arguments == (
        Argument(pointer="/a/b~1c/0", value=1),
        Argument(pointer="/a/b~1c/1/d~0", value=None),
        Argument(pointer="/price", value=432.0, how="exact", trust="trusted", sources=origin.refs),
        Argument(pointer="/none", value=[]),
        Argument(pointer="/no", value={}),
        Argument(pointer="/", value="e"),
    )
    assert action.origins_left_out == 2


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"a": NaN}', '{"a": 1e999}', "[" * 100_000], ids=["array", "cut", "NaN", "infinite", "deep"]
)
def test_arguments_that_are_no_object_are_shown_as_the_model_wrote_them(text: str) -> None:
    action = only(account(*step(1, text)))
    assert (action.arguments, action.arguments_text) == ((), text)


def test_what_the_model_said_beside_its_calls_is_no_part_of_the_account() -> None:
    assert "I think" not in repr(account(*step(1, "{}"), judged(), settled()))


def test_waits_and_the_end_are_told() -> None:
    suspended = ev.RunSuspended(reason="agent_stopped", call="", message="stopped by bob")
    resumed = ev.RunResumed(by="ada", after_crash=True)
    finished = ev.RunFinished(stop_reason="completed", steps=1, calls=1, cost_usd="0.03")
    why = account(suspended, resumed, finished)
    assert [(each.what, each.reason, each.by) for each in why.interruptions] == [
        ("suspended", "agent_stopped", ""),
        ("resumed", "crash", "ada"),
    ]
    assert why.end is not None
    assert (why.end.stop_reason, why.end.cost_usd, why.end.event) == ("completed", "0.03", 4)
    assert account().end is None
