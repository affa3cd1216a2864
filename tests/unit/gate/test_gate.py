"""The gate: in which order it looks, what it says, and what its permits are good for."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from inprocess import ALLOW_ALL, ASK_BOOK, BOOK, LOOK, SEND, gate_of, locked_agent, locked_tool, started

from lockstep.agent.effect_spec import Repeats
from lockstep.agent.locked import Budget, LockedAgent
from lockstep.errors import AgentStopped, PermitError
from lockstep.gate.gate import PERMIT_TTL_MS, Describing, Gate
from lockstep.gate.permit import Permit, PermitMint
from lockstep.journal.events import CallJudged
from lockstep.journal.port import Stop
from lockstep.kernel.apply import apply, start
from lockstep.kernel.state import CallState, Phase, Receipt, State, Totals
from lockstep.kernel.transcript import opening
from lockstep.values import Effect, JsonObject, RunId, digest_json

FLIGHT: JsonObject = {
    "type": "object",
    "properties": {"flight": {"type": "string"}, "seats": {"type": "integer"}},
    "required": ["flight"],
}
NOW = 1_000_000
PAID = locked_tool("book", Effect.ONCE, schema=FLIGHT, dedupe_on=("/flight",), fee_usd="2.50")


def state_of(
    agent: LockedAgent, receipts: Mapping[str, Receipt] | None = None, run: str = "r1", session: str = "s1"
) -> State:
    return apply(start(RunId(run), opening(agent), receipts), started(session=session), NOW)


def called(name: str, arguments: object = None, call_id: str = "1.0") -> CallState:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return CallState(id=call_id, provider_id="p", name=name, arguments=text, asked_at_ms=NOW)


def judge(
    agent: LockedAgent, name: str, arguments: object = None, receipts: Mapping[str, Receipt] | None = None
) -> CallJudged:
    return gate_of(agent).judge(state_of(agent, receipts), called(name, arguments))


# --- verdicts, in order ---


def test_a_permitted_call_is_allowed_with_the_policy_that_said_so() -> None:
    verdict = judge(locked_agent(policy='@id("everyone") ' + ALLOW_ALL), "look", {"to": "SFO"})
    assert (verdict.verdict, verdict.effect, verdict.policies, verdict.note) == ("allow", "read", ("everyone",), "")
    assert verdict.digest


def test_a_tool_that_is_not_in_the_lock_is_hallucinated_and_the_model_learns_which_there_are() -> None:
    verdict = judge(locked_agent(LOOK, SEND), "teleport")
    assert (verdict.verdict, verdict.error_type, verdict.digest) == ("invalid", "tool_hallucinated", None)
    assert verdict.note == "There is no tool 'teleport'. Tools: look, send."


@pytest.mark.parametrize("name", ["", "look ", "LOOK", "__class__", "\ud83d", "x" * 10_000, "a\x1b[2Jb"])
def test_a_name_that_is_no_tool_is_shown_safely_and_briefly(name: str) -> None:
    verdict = judge(locked_agent(LOOK), name)
    assert verdict.error_type == "tool_hallucinated"
    assert verdict.note.isprintable()
    assert len(verdict.note) < 200


def test_an_unknown_tool_comes_before_its_arguments() -> None:
    assert judge(locked_agent(), "teleport", "not json").error_type == "tool_hallucinated"


def test_malformed_arguments_come_before_receipts_budget_and_policy() -> None:
    agent = locked_agent(PAID, policy="", budget=Budget(cost_usd=Decimal(0)))
    verdict = judge(agent, "book", '{"flight": 1}')
    assert (verdict.verdict, verdict.error_type, verdict.digest) == ("invalid", "tool_args_malformed", None)
    assert verdict.note.startswith("Invalid arguments for book: flight: 1 is not of type")
    assert verdict.note.endswith("Correct them and call again.")


@pytest.mark.parametrize("arguments", ['{"flight": "\\ud83d"}', '{"\\ud83d": 1, "flight": "x"}', '{"seats": 1e999}'])
def test_arguments_without_a_canonical_form_are_malformed_not_a_crash(arguments: str) -> None:
    assert judge(locked_agent(PAID), "book", arguments).error_type == "tool_args_malformed"


def test_a_call_that_would_exceed_the_cost_limit_is_denied_before_policy_is_asked() -> None:
    agent = locked_agent(PAID, policy="", budget=Budget(cost_usd=Decimal("2.00")))
    verdict = judge(agent, "book", {"flight": "BA1"})
    assert (verdict.verdict, verdict.error_type, verdict.policies) == ("deny", "budget", ())
    assert verdict.reasons == ("the fee of book ($2.50) would exceed budget.cost_usd ($2.00)",)
    assert verdict.note == "Not run: book with these arguments was denied by budget."


@pytest.mark.parametrize("spent, fits", [("0", True), ("0.50", True), ("0.51", False), (None, False)])
def test_a_fee_fits_when_spent_and_fee_are_within_the_limit(spent: str | None, fits: bool) -> None:
    agent = locked_agent(PAID, budget=Budget(cost_usd=Decimal("3.00")))
    state = replace(state_of(agent), totals=Totals(cost_usd=None if spent is None else Decimal(spent)))
    verdict = gate_of(agent).judge(state, called("book", {"flight": "BA1"}))
    assert verdict.verdict == ("allow" if fits else "deny")


def test_a_free_tool_needs_no_room_in_the_cost_limit() -> None:
    agent = locked_agent(LOOK, budget=Budget(cost_usd=Decimal(0)))
    assert judge(agent, "look").verdict == "allow"


def test_what_no_policy_permits_is_denied_and_the_model_is_not_told_the_operators_reasons() -> None:
    verdict = judge(locked_agent(policy=""), "look")
    assert (verdict.verdict, verdict.error_type) == ("deny", "policy_denied")
    assert verdict.reasons
    assert verdict.note == "Not run: look with these arguments was denied by policy."


def test_a_policy_that_cannot_be_evaluated_denies() -> None:
    policy = ALLOW_ALL + "forbid (principal, action, resource) when { context.arguments.moon == 1 };"
    assert judge(locked_agent(policy=policy), "look").verdict == "deny"


def test_a_call_to_be_asked_about_carries_the_question() -> None:
    verdict = judge(locked_agent(policy=ASK_BOOK), "book", {"flight": "BA1"})
    assert (verdict.verdict, verdict.question, verdict.note) == ("ask", "Book it?", "")
    assert verdict.dedupe_key


# --- what was already done ---


def receipts_for(agent: LockedAgent, arguments: object, receipt: Receipt) -> dict[str, Receipt]:
    return {judge(agent, "book", arguments).dedupe_key: receipt}


def test_the_same_call_again_is_answered_by_the_first_receipt_with_a_note() -> None:
    agent = locked_agent(PAID)
    receipts = receipts_for(agent, {"flight": "BA1"}, Receipt(where="r0/1.0", at_ms=1, text="Booked BA1."))
    again = judge(agent, "book", {"flight": "BA1", "seats": 2}, receipts)
    assert (again.verdict, again.duplicate_of) == ("allow", "r0/1.0")
    assert again.note.startswith("Booked BA1.\n\n[This call was already made (r0/1.0); it was not run again.")
    other = judge(agent, "book", {"flight": "BA2"}, receipts)
    assert (other.verdict, other.duplicate_of) == ("allow", "")


def test_the_same_call_in_doubt_is_denied_until_that_is_settled() -> None:
    agent = locked_agent(PAID)
    receipts = receipts_for(agent, {"flight": "BA1"}, Receipt(where="r0/1.0", at_ms=1, text="", in_doubt=True))
    again = judge(agent, "book", {"flight": "BA1"}, receipts)
    assert (again.verdict, again.error_type) == ("deny", "in_doubt")
    assert "nobody knows yet" in again.note
    assert again.reasons == ("the same call is in doubt at r0/1.0: settle that first",)


def test_the_key_is_of_the_session_the_tool_and_the_named_fields() -> None:
    agent = locked_agent(PAID, locked_tool("hold", Effect.ONCE, schema=FLIGHT, dedupe_on=("/flight",)))
    gate = gate_of(agent)

    def key(name: str, arguments: JsonObject, session: str = "s1", run: str = "r1", call_id: str = "1.0") -> str:
        return gate.judge(state_of(agent, run=run, session=session), called(name, arguments, call_id)).dedupe_key

    base = key("book", {"flight": "BA1"})
    assert base == key("book", {"flight": "BA1", "seats": 3}) == key("book", {"flight": "BA1"}, "s1", "r2", "4.2")
    others = {key("book", {"flight": "BA2"}), key("hold", {"flight": "BA1"}), key("book", {"flight": "BA1"}, "s2")}
    assert len(others | {base}) == 4


def test_an_absent_field_is_the_same_as_null_in_the_key() -> None:
    agent = locked_agent(BOOK)
    assert judge(agent, "book").dedupe_key == judge(agent, "book", {"flight": None}).dedupe_key != ""


def test_without_dedupe_on_all_arguments_of_a_call_with_an_effect_count() -> None:
    agent = locked_agent(SEND)
    base = judge(agent, "send", {"to": "ada"}).dedupe_key
    assert base == judge(agent, "send", '{ "to" : "ada" }').dedupe_key
    assert len({base, judge(agent, "send", {"to": "bob"}).dedupe_key, ""}) == 3


@pytest.mark.parametrize("effect", [Effect.READ, Effect.IDEMPOTENT])
def test_what_may_be_repeated_is_never_a_repetition(effect: Effect) -> None:
    assert judge(locked_agent(locked_tool("look", effect)), "look", {"to": "ada"}).dedupe_key == ""


# --- digests ---


def test_the_digest_is_over_run_call_tool_pin_and_arguments_as_rfc_8785_json() -> None:
    agent = locked_agent(PAID)
    verdict = judge(agent, "book", '{"seats": 1.0, "flight": "B\\u00e9\\ud83d\\udeeb\\u007f\\n/"}')
    whole: JsonObject = {
        "run": "r1",
        "call": "1.0",
        "tool": "book",
        "pin": PAID.pin,
        "arguments": {"flight": "Bé🛫\x7f\n/", "seats": 1},
    }
    assert verdict.digest == digest_json(whole)


def test_anything_that_makes_it_another_call_makes_another_digest() -> None:
    agent = locked_agent(LOOK, SEND)
    repinned = locked_agent(locked_tool("look", schema={"type": "object", "title": "changed"}), SEND)
    gate = gate_of(agent)
    state = state_of(agent)
    digests = [
        gate.judge(state, called("look", {"a": 1})).digest,
        gate.judge(state, called("look", {"a": 2})).digest,
        gate.judge(state, called("look", {"a": "1"})).digest,
        gate.judge(state, called("look", {"a": None})).digest,
        gate.judge(state, called("look", {})).digest,
        gate.judge(state, called("send", {"a": 1})).digest,
        gate.judge(state, called("look", {"a": 1}, "1.1")).digest,
        gate.judge(state_of(agent, run="r2"), called("look", {"a": 1})).digest,
        gate_of(repinned).judge(state_of(repinned), called("look", {"a": 1})).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert gate.judge(state, called("look", '{"a":1.0}')).digest == digests[0]


# --- letting go ---


def allowed(gate: Gate, state: State, call: CallState) -> CallState:
    verdict = gate.judge(state, call)
    return replace(
        call,
        phase=Phase.ALLOWED,
        digest=verdict.digest,
        dedupe_key=verdict.dedupe_key,
        own_key=verdict.own_key,
    )


def test_a_released_call_has_a_permit_for_exactly_what_was_judged() -> None:
    agent = locked_agent(PAID)
    gate, state = gate_of(agent), state_of(agent)
    call = allowed(gate, state, called("book", {"flight": "BA1"}))
    release = gate.release(state, call, NOW)
    assert release.arguments == {"flight": "BA1"}
    assert release.digest == call.digest == release.permit.call_digest
    assert release.permit.expires_at_ms == NOW + PERMIT_TTL_MS
    release.permit.redeem(release.digest, NOW)


@pytest.mark.parametrize("phase", [Phase.ASKED, Phase.WAITING, Phase.DOUBTED, Phase.DONE])
def test_a_call_that_was_not_let_through_gets_no_permit(phase: Phase) -> None:
    agent = locked_agent()
    gate, state = gate_of(agent), state_of(agent)
    call = replace(allowed(gate, state, called("look")), phase=phase)
    with pytest.raises(PermitError, match="was not allowed"):
        gate.release(state, call, NOW)


@pytest.mark.parametrize("changes", [{"arguments": '{"a": 2}'}, {"name": "send"}, {"id": "1.1"}, {"digest": None}])
def test_a_call_that_is_not_the_one_that_was_judged_gets_no_permit(changes: dict[str, str | None]) -> None:
    agent = locked_agent()
    gate, state = gate_of(agent), state_of(agent)
    call = replace(allowed(gate, state, called("look", {"a": 1})), **changes)  # type: ignore[arg-type]
    with pytest.raises(PermitError, match="not the one that was judged"):
        gate.release(state, call, NOW)


def test_an_approval_is_worth_nothing_under_a_lock_with_another_pin() -> None:
    agent = locked_agent(LOOK)
    repinned = locked_agent(locked_tool("look", schema={"type": "object", "title": "changed"}))
    call = replace(allowed(gate_of(agent), state_of(agent), called("look")), phase=Phase.APPROVED)
    with pytest.raises(PermitError):
        gate_of(repinned).release(state_of(repinned), call, NOW)


@pytest.mark.parametrize("tool", [PAID, locked_tool("book", Effect.KEYED, schema=FLIGHT)])
def test_every_attempt_at_the_same_effect_has_the_same_key(tool: object) -> None:
    agent = locked_agent(tool)  # type: ignore[arg-type]
    gate, state = gate_of(agent), state_of(agent)
    one = gate.release(state, allowed(gate, state, called("book", {"flight": "BA1"})), NOW)
    two = gate.release(state, allowed(gate, state, called("book", '{ "flight" : "BA1" }', "3.1")), NOW + 5)
    assert one.key == two.key
    assert one.permit.id != two.permit.id
    assert one.digest != two.digest


@pytest.mark.parametrize("ended", [{"freed": True}, {"until_ms": 1}], ids=["freed", "expired"])
def test_a_call_whose_first_receipt_has_ended_has_another_key_than_the_first(ended: dict[str, Any]) -> None:
    """A service that knows the first key would answer with the first result and do nothing."""
    agent = locked_agent(locked_tool("book", Effect.KEYED, schema=FLIGHT))
    gate, state = gate_of(agent), state_of(agent)
    first = allowed(gate, state, called("book", {"flight": "BA1"}))
    over = Receipt(where="r1/1.0", at_ms=0, text="booked", **ended)
    later = replace(state, last_at_ms=NOW, receipts={first.dedupe_key: over})
    again = allowed(gate, later, called("book", {"flight": "BA1"}, "3.1"))
    assert again.dedupe_key == first.dedupe_key
    assert gate.release(later, again, NOW).key not in (first.dedupe_key, gate.release(state, first, NOW).key)


def test_calls_of_a_tool_without_deduplication_have_a_key_each() -> None:
    tool = replace(locked_tool("give", Effect.KEYED), repeats=Repeats(scope="none"))
    agent = locked_agent(tool)
    gate, state = gate_of(agent), state_of(agent)
    keys = {gate.release(state, allowed(gate, state, called("give", {}, each)), NOW).key for each in ("2.0", "3.0")}
    assert len(keys) == 2


# --- permits ---


def test_a_permit_is_spent_once() -> None:
    permit = PermitMint().issue(digest_json(1), expires_at_ms=NOW)
    permit.redeem(digest_json(1), NOW - 1)
    with pytest.raises(PermitError, match="is spent"):
        permit.redeem(digest_json(1), NOW - 1)


def test_a_permit_for_another_call_is_refused_and_gone() -> None:
    permit = PermitMint().issue(digest_json(1), expires_at_ms=NOW)
    with pytest.raises(PermitError, match="for another call"):
        permit.redeem(digest_json(2), NOW - 1)
    with pytest.raises(PermitError, match="is spent"):
        permit.redeem(digest_json(1), NOW - 1)


def test_a_permit_expires() -> None:
    permit = PermitMint().issue(digest_json(1), expires_at_ms=NOW)
    with pytest.raises(PermitError, match="expired"):
        permit.redeem(digest_json(1), NOW)


def test_a_permit_that_was_made_up_or_of_another_gate_is_worthless() -> None:
    mint, other = PermitMint(), PermitMint()
    forged = Permit(id="p-forged", call_digest=digest_json(1), expires_at_ms=NOW, mint=mint)
    foreign = other.issue(digest_json(1), expires_at_ms=NOW)
    for permit in (forged, replace(foreign, mint=mint)):
        with pytest.raises(PermitError, match="not made by this gate"):
            permit.redeem(digest_json(1), 0)


def test_a_copy_with_a_longer_life_is_worthless() -> None:
    permit = PermitMint().issue(digest_json(1), expires_at_ms=NOW)
    with pytest.raises(PermitError):
        replace(permit, expires_at_ms=NOW * 2).redeem(digest_json(1), NOW + 1)


def test_permits_that_nobody_holds_take_no_memory() -> None:
    mint = PermitMint()
    kept = mint.issue(digest_json(1), expires_at_ms=NOW)
    for _ in range(100):
        mint.issue(digest_json(1), expires_at_ms=NOW)
    gc.collect()
    assert list(mint._unspent.values()) == [kept]


def test_asking_a_source_what_it_offers_takes_a_permit_of_its_own() -> None:
    permit, digest = Describing().permit(LOOK)
    other, other_digest = Describing().permit(replace(LOOK, source="python:other.py"))
    assert digest != other_digest
    with pytest.raises(PermitError):
        permit.redeem(other_digest, 0)
    other.redeem(other_digest, 0)


class _StoppedByAda:
    def stop_of(self, agent: str) -> Stop:
        return Stop(agent=agent, by="ada", because="it books twice", at_ms=0)


def test_a_stopped_agent_gets_no_permit_for_what_was_allowed() -> None:
    agent = locked_agent()
    call = allowed(gate_of(agent), state_of(agent), called("look"))
    with pytest.raises(AgentStopped, match="ada"):
        gate_of(agent, _StoppedByAda()).release(state_of(agent), call, NOW)
