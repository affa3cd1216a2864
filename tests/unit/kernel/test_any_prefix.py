"""From any prefix of any recorded run: what is settled never runs again, what must not be repeated is never repeated.

Random runs, seeded: replies, verdicts, outcomes, answers of people. A death may fall between any two events, also where
storage would have kept both or none.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from running import DIGEST, RESUMED, Run, failed, intended, settled
from test_apply import answered_exactly_once

from lockstep.agent.locked import Budget
from lockstep.journal import events as ev
from lockstep.kernel import decide as do
from lockstep.kernel.state import CallState, Phase, Status
from lockstep.values import Effect

BUDGET = Budget(steps=6, calls=20, cost_usd=None, wall_s=10_000, malformed=2, model_retries=2)
COMMAND_LIMIT = 500
SEEDS = range(60)


class World(Run):
    """A run with a random model, gate, tools and people; counts what is let out into the world."""

    def __init__(self, random: Random) -> None:
        super().__init__(approve=random.choice(["ask", "ask", "all", "none"]))
        self.random = random
        self.record: list[tuple[ev.Event, int]] = []
        self.ran: Counter[str] = Counter()

    def happens(self, *events: ev.Event) -> None:
        for event in events:
            self.now += self.random.randrange(3)
            self.says(event)
            self.record.append((event, self.now))

    def live(self, most: int = COMMAND_LIMIT) -> None:
        """Drive to the end, people included."""
        for _ in range(most):
            command = self.next(BUDGET)
            if command is not None:
                self.perform(command)
            elif self.state.status is Status.SUSPENDED:
                self.answer()
            else:
                return
        raise AssertionError("the run does not end")

    def perform(self, command: do.Command) -> None:
        match command:
            case do.Infer():
                self.now += int(command.delay_s * 1000)
                self.happens(self.reply(command.step))
            case do.Judge(call):
                self.happens(self.verdict(call))
            case do.Ask(call):
                expires = self.now + self.random.randrange(50)
                self.happens(
                    ev.ApprovalAsked(
                        call=call.id, approval="a" + call.id, digest=DIGEST, question="?", expires_at_ms=expires
                    )
                )
            case do.Answer(call, is_given, by, because):
                self.happens(answer(call, is_given, by, because))
            case do.Execute(calls):
                self.execute(calls)
            case do.Doubt(call, why):
                self.happens(ev.EffectDoubted(call=call.id, why=why))
            case do.Suspend(reason, call, message):
                self.happens(ev.RunSuspended(reason=reason, call=call.id, message=message))
            case do.Finish(stop_reason, message):
                self.happens(ev.RunFinished(stop_reason=stop_reason, message=message))

    def reply(self, step: int) -> ev.Event:
        if self.random.random() < 0.15:
            return failed(transient=self.random.random() < 0.8)
        calls = tuple(
            ev.Asked(id=f"{step}.{place}", provider_id=f"c{step}{place}", name="tool", arguments="{}")
            for place in range(self.random.choice([0, 1, 1, 2, 3, 5]))
        )
        return ev.ModelReplied(step=step, text="" if calls else "done", calls=calls, cost_usd="0.01")

    def verdict(self, call: CallState) -> ev.Event:
        effect = self.random.choice(list(Effect)).value
        chance = self.random.random()
        if chance < 0.1:
            kind = self.random.choice(["tool_hallucinated", "tool_args_malformed"])
            return ev.CallJudged(call=call.id, verdict="invalid", error_type=kind, note="Wrong.", effect="read")
        if chance < 0.2:
            return ev.CallJudged(call=call.id, verdict="deny", error_type="policy_denied", note="No.", effect=effect)
        verdict = "ask" if chance < 0.4 else "allow"
        return ev.CallJudged(call=call.id, verdict=verdict, digest=DIGEST, effect=effect, dedupe_key=call.id)

    def execute(self, calls: tuple[CallState, ...]) -> None:
        assert len(calls) == 1 or all(call.effect is Effect.READ for call in calls)
        self.happens(*(intended(call.id) for call in calls if call.effect is not Effect.READ))
        self.ran.update(call.id for call in calls)
        for call in self.random.sample(calls, len(calls)):
            if call.effect is Effect.ONCE and self.random.random() < 0.3:
                self.happens(ev.EffectDoubted(call=call.id, why="no answer"))
            else:
                self.happens(settled(call.id, self.random.choice(["ok", "ok", "tool_error", "timeout"])))

    def answer(self) -> None:
        for call in self.state.calls:
            if call.phase is Phase.WAITING and self.random.random() < 0.7:
                self.happens(answer(call, self.random.random() < 0.6, "ada", ""))
            elif call.phase is Phase.DOUBTED:
                happened = self.random.random() < 0.5
                self.happens(ev.EffectReconciled(call=call.id, happened=happened, by="ada", text="looked"))
        self.now += 60
        if do.resumable(self.state, self.now):
            self.happens(RESUMED)


def answer(call: CallState, is_given: bool, by: str, because: str) -> ev.Event:
    if is_given:
        return ev.ApprovalGiven(call=call.id, approval=call.approval, digest=DIGEST, by=by)
    return ev.ApprovalRefused(call=call.id, approval=call.approval, digest=DIGEST, by=by, because=because)


def revived(recorded: list[tuple[ev.Event, int]], approve: str, seed: int) -> World:
    """A new process that finds these events of the run and goes on with them."""
    world = World(Random(seed))
    world.state = Run(approve=approve).state
    for event, at_ms in recorded:
        world.now = at_ms
        world.says(event)
    world.record = list(recorded)
    if world.state.status is Status.RUNNING and recorded:
        world.happens(ev.RunResumed(by="ada", after_crash=True))
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_going_on_from_any_prefix_repeats_nothing(seed: int) -> None:
    first = World(Random(seed))
    first.live()
    assert all(count == 1 for count in first.ran.values())
    for length in range(len(first.record) + 1):
        prefix = first.record[:length]
        effects = {event.call: event.effect for event, _ in prefix if isinstance(event, ev.CallJudged)}
        intents = {event.call for event, _ in prefix if isinstance(event, ev.EffectIntended)}
        over = {event.call for event, _ in prefix if isinstance(event, ev.EffectSettled | ev.EffectReconciled)}
        second = revived(prefix, first.state.approve, seed * 1000 + length)
        second.live()
        assert not over & set(second.ran), "a settled call ran again"
        assert not {call for call in intents if effects[call] == "once"} & set(second.ran), "an effect was repeated"
        assert all(count == 1 for count in second.ran.values())
        assert answered_exactly_once(second.state.transcript.messages)
        assert second.state.status is Status.FINISHED


@pytest.mark.parametrize("seed", SEEDS)
def test_folding_in_two_parts_is_folding_at_once_and_decides_the_same(seed: int) -> None:
    world = World(Random(seed))
    world.live()
    again = Run(approve=world.state.approve)
    for event, at_ms in world.record:
        again.now = at_ms
        again.says(event)
    assert again.state == world.state
    assert again.next(BUDGET) == world.next(BUDGET) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_cancelled_anywhere_leaves_a_history_a_provider_accepts_and_doubt_where_there_is_doubt(seed: int) -> None:
    world = World(Random(seed))
    world.live()
    for length in range(len(world.record)):
        cut = Run(approve=world.state.approve)
        for event, at_ms in world.record[:length]:
            cut.now = at_ms
            cut.says(event)
        unknown = [call.id for call in cut.state.calls if call.phase in (Phase.INTENDED, Phase.DOUBTED)]
        unknown = [call_id for call_id in unknown if cut.call(call_id).effect is Effect.ONCE]
        cut.says(ev.RunFinished(stop_reason="cancelled"))
        assert answered_exactly_once(cut.state.transcript.messages)
        assert {key for key, receipt in cut.state.receipts.items() if receipt.in_doubt} == set(unknown)
