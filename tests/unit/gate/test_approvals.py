"""What an approval is good for, each refusal with its own reason; and what a tool's budget says at the gate."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from inprocess import ALLOW_ALL, ASK_BOOK, BOOK, gate_of, locked_agent, locked_tool, started

from lockstep.agent.budget import Budget, Limits
from lockstep.agent.locked import LockedAgent
from lockstep.errors import ConfigError, PermitError
from lockstep.gate.gate import Gate
from lockstep.gate.policy import Policies
from lockstep.gate.standing import covers
from lockstep.journal import events as ev
from lockstep.journal.standing import Standing
from lockstep.kernel.apply import apply, start
from lockstep.kernel.state import CallState, Phase, State
from lockstep.kernel.transcript import opening
from lockstep.kernel.usage import Usage
from lockstep.runtime.outcomes import answered
from lockstep.values import Digest, Effect, RunId

NOW = 1_000_000
ASKING = locked_agent(policy=ASK_BOOK)


class Asking:
    """A run whose one call waits for approval: the real gate, the real fold, no driver."""

    def __init__(self, agent: LockedAgent = ASKING, arguments: str = '{"flight": "BA1"}') -> None:
        self.gate: Gate = gate_of(agent)
        self.state: State = start(RunId("r1"), opening(agent))
        call = ev.Asked(id="1.0", provider_id="", name="book", arguments=arguments)
        self.says(started(), ev.ModelReplied(step=1, calls=(call,), cost_usd="0"))
        self.says(self.gate.judge(self.state, self.call))
        self.says(self.gate.ask(self.state, self.call, NOW))

    def says(self, *events: ev.Event) -> None:
        for event in events:
            self.state = apply(self.state, event, NOW)

    @property
    def call(self) -> CallState:
        return self.state.call("1.0")

    def approved(self, *people: str) -> Asking:
        for by in people or ("eve",):
            self.says(answered(self.call, given=True, by=by))
        return self


def test_an_approved_call_gets_its_permit() -> None:
    run = Asking().approved()
    assert run.gate.release(run.state, run.call, NOW).digest == run.call.digest


@pytest.mark.parametrize(
    "agent",
    [replace(ASKING, digest=Digest("2" * 64)), locked_agent(policy=ASK_BOOK + "\n// changed")],
    ids=["another lock", "another policy"],
)
def test_an_approval_is_worth_nothing_under_another_lock_or_policy(agent: LockedAgent) -> None:
    run = Asking().approved()
    with pytest.raises(PermitError, match="was given for another call, lock, policy or principal"):
        gate_of(agent).release(run.state, run.call, NOW)


def test_an_approval_is_worth_nothing_for_another_principal() -> None:
    run = Asking().approved()
    with pytest.raises(PermitError, match="another call, lock, policy or principal"):
        run.gate.release(replace(run.state, principal="mallory"), run.call, NOW)


@pytest.mark.parametrize(
    "changes",
    [{"approval": "a-other"}, {"digest": Digest("5" * 64)}, {"approval_expires_ms": NOW * 9}, {"approvers": 0}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_approval_is_worth_nothing_for_what_was_not_asked(changes: dict[str, object]) -> None:
    run = Asking().approved()
    with pytest.raises(PermitError, match="another call, lock, policy or principal"):
        run.gate.release(run.state, replace(run.call, **changes), NOW)  # type: ignore[arg-type]


def test_an_approval_of_a_record_that_does_not_bind_it_gets_no_permit() -> None:
    run = Asking().approved()
    with pytest.raises(PermitError, match="did not bind it"):
        run.gate.release(run.state, replace(run.call, bound=None), NOW)


@pytest.mark.parametrize(
    "changes",
    [{"digest": Digest("5" * 64)}, {"approval": "a-other"}, {"bound": None}, {"bound": Digest("6" * 64)}],
    ids=["another call", "another approval", "unbound", "bound otherwise"],
)
def test_an_answer_to_something_else_is_none(changes: dict[str, object]) -> None:
    run = Asking()
    event = replace(answered(run.call, given=True, by="eve"), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not of the call that was asked about"):
        run.says(event)


# --- several people ---

TWO = ALLOW_ALL + '@ask("Book it?") @approvers("2") forbid (principal, action == Action::"book", resource);'


@pytest.mark.parametrize(
    "agent", [locked_agent(policy=TWO), replace(ASKING, four_eyes=True)], ids=["the policy", "the agent"]
)
def test_where_two_must_look_one_is_not_enough_and_each_is_an_event(agent: LockedAgent) -> None:
    run = Asking(agent).approved("eve")
    assert (run.call.phase, run.call.approvals) == (Phase.WAITING, ("eve",))
    with pytest.raises(PermitError, match="was not allowed: it is waiting"):
        run.gate.release(run.state, run.call, NOW)
    run.approved("bob")
    assert (run.call.phase, run.call.approved_by) == (Phase.APPROVED, "eve, bob")
    run.gate.release(run.state, run.call, NOW)


def test_a_call_that_says_it_is_approved_by_fewer_than_must_gets_no_permit() -> None:
    run = Asking(locked_agent(policy=TWO)).approved("eve")
    with pytest.raises(PermitError, match="was not approved by 2 people"):
        run.gate.release(run.state, replace(run.call, phase=Phase.APPROVED), NOW)


@pytest.mark.parametrize("again", ["eve", "EVE", " Eve "])
def test_the_same_person_twice_is_one_person(again: str) -> None:
    run = Asking(locked_agent(policy=TWO)).approved("eve")
    with pytest.raises(ValueError, match="it needs 2 different people"):
        run.approved(again)


def test_the_one_for_whom_it_acts_may_not_approve_where_that_is_said() -> None:
    run = Asking(replace(ASKING, principal_may_approve=False))
    with pytest.raises(ValueError, match="The run acts for Ada, who may not approve its calls"):
        run.approved("Ada")
    assert Asking().approved("ada").call.phase is Phase.APPROVED


def test_one_refusal_is_enough_even_after_an_approval() -> None:
    run = Asking(locked_agent(policy=TWO)).approved("eve")
    run.says(answered(run.call, given=False, by="bob", because="no"))
    assert (run.call.phase, run.call.refused_by) == (Phase.DONE, "bob")


@pytest.mark.parametrize("value", ["", "0", "10", "two", "-1", "2.0"])
def test_approvers_is_a_number_of_people(value: str) -> None:
    text = ALLOW_ALL + f'@ask("?") @approvers("{value}") forbid (principal, action, resource);'
    with pytest.raises(ConfigError, match="`@approvers` is"):
        Policies.parse({"p.cedar": text})


def test_approvers_without_a_question_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no meaning without `@ask`"):
        Policies.parse({"p.cedar": '@approvers("2") forbid (principal, action, resource);'})


# --- given beforehand ---

GIVEN = Standing(
    id="g1",
    agent="traveller",
    directory="/agents/traveller",
    lock=Digest("1" * 64),
    tool="book",
    where=(("/flight", '"BA1"'),),
    from_ms=0,
    until_ms=NOW + 1,
    by="eve",
)


def test_a_standing_approval_covers_what_it_states() -> None:
    run = Asking()
    assert covers(GIVEN, run.state, run.call)
    assert covers(replace(GIVEN, where=(), principal="ada"), run.state, run.call)


@pytest.mark.parametrize(
    "changes",
    [
        {"agent": "other"},
        {"lock": Digest("2" * 64)},
        {"tool": "send"},
        {"principal": "bob"},
        {"where": (("/flight", '"BA2"'),)},
        {"where": (("/seat", '"1A"'),)},
        {"where": (("/flight", '"BA1"'), ("/price", "1"))},
    ],
    ids=["agent", "lock", "tool", "principal", "value", "absent argument", "one of two"],
)
def test_a_standing_approval_covers_nothing_else(changes: dict[str, object]) -> None:
    run = Asking()
    assert not covers(replace(GIVEN, **changes), run.state, run.call)  # type: ignore[arg-type]


def test_a_standing_approval_covers_no_text_for_a_number_and_no_number_for_true() -> None:
    run = Asking(arguments='{"flight": 1}')
    stated = {
        value: covers(replace(GIVEN, where=(("/flight", value),)), run.state, run.call)
        for value in ("1", '"1"', "true")
    }
    assert stated == {"1": True, '"1"': False, "true": False}


def test_a_standing_approval_is_not_for_unlocked_runs_repeats_or_what_two_must_look_at() -> None:
    run = Asking()
    assert not covers(GIVEN, replace(run.state, unlocked=True), run.call)
    assert not covers(GIVEN, run.state, replace(run.call, again=True))
    assert not covers(GIVEN, run.state, replace(run.call, approvers=2))


def test_a_standing_approval_of_the_principal_is_none_where_they_may_not_approve() -> None:
    run = Asking(replace(ASKING, principal_may_approve=False))
    assert not covers(replace(GIVEN, by="ada"), run.state, run.call)
    assert covers(GIVEN, run.state, run.call)


# --- budgets at the gate ---

FEE = locked_tool("book", Effect.ONCE, fee_usd="2.00")


def judged(
    budget: Budget, *, others: dict[str, Usage] | None = None, earlier: int = 0, tool: object = BOOK
) -> ev.CallJudged:
    agent = locked_agent(tool, budget=budget)  # type: ignore[arg-type]
    state = replace(apply(start(RunId("r1"), opening(agent)), started(), NOW), others=others or {})
    done = [
        CallState(id=f"0.{n}", provider_id="", name="book", arguments="{}", asked_at_ms=0, verdict="allow")
        for n in range(earlier)
    ]
    call = CallState(id="1.0", provider_id="", name="book", arguments='{"flight": "BA1"}', asked_at_ms=NOW)
    return gate_of(agent).judge(replace(state, settled=tuple(done)), call)


def test_a_tool_that_is_used_up_is_denied_and_the_model_is_told_why() -> None:
    budget = Budget(calls_per_tool={"book": 2})
    assert judged(budget, earlier=1).verdict == "allow"
    verdict = judged(budget, earlier=2)
    assert (verdict.verdict, verdict.error_type) == ("deny", "budget")
    assert verdict.reasons == ("book may be called twice in a run (budget.calls_per_tool)",)
    assert verdict.note == (
        "Not run: book may be called twice in a run (budget.calls_per_tool), and that is used up."
        " Do not ask for it again."
    )


def test_a_tool_may_be_used_up_by_the_other_runs_of_a_scope() -> None:
    budget = Budget(scopes={"session": Limits(calls_per_tool={"book": 3})})
    assert judged(budget, others={"session": Usage(by_tool={"book": 1})}, earlier=1).verdict == "allow"
    verdict = judged(budget, others={"session": Usage(by_tool={"book": 2})}, earlier=1)
    assert verdict.reasons == (
        "book may be called 3 times by the runs of this session (budget.session.calls_per_tool)",
    )


@pytest.mark.parametrize(
    "spent, allow, fits",
    [
        (Usage(cost_usd=Decimal("1.00")), False, True),
        (Usage(cost_usd=Decimal("1.01")), False, False),
        (Usage(cost_known=False), False, False),
        (Usage(cost_known=False), True, True),
    ],
    ids=["room", "no room", "unknown", "unknown and allowed"],
)
def test_a_fee_must_fit_the_limit_that_runs_share(spent: Usage, allow: bool, fits: bool) -> None:
    budget = Budget(unknown_price="allow" if allow else "refuse", scopes={"day": Limits(cost_usd=Decimal(3))})
    verdict = judged(budget, others={"day": spent}, tool=FEE)
    assert verdict.verdict == ("allow" if fits else "deny")
    assert fits or verdict.reasons == ("the fee of book ($2.00) would exceed budget.day.cost_usd ($3)",)
