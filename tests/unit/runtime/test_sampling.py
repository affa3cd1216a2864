"""Servers that ask a model, answered by the agent's own: within its budget, on its record, and paid for once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from inprocess import (
    BOOK,
    LOOK,
    Functions,
    ListedModel,
    call,
    driver_of,
    locked_agent,
    ok,
    reply,
    rounds,
    started,
    types_of,
)

from lockstep.agent.budget import Limits
from lockstep.agent.locked import Budget, LockedTool
from lockstep.errors import InputError
from lockstep.journal import events as ev
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.sampling import MAX_SAMPLES
from lockstep.kernel.state import Phase, State, Status
from lockstep.model.port import Failure, FailureKind, Prompt, Reply, UserMessage
from lockstep.model.recorded import RecordedModel, read_recording, write_recording
from lockstep.runtime.answers import cancel
from lockstep.runtime.inputs import Said, answer_input, waiting_input
from lockstep.runtime.reading import doubts, read_run, read_state, verify_run
from lockstep.runtime.recording import recording_of
from lockstep.runtime.sampling import MODEL
from lockstep.telemetry.tree import Node, build_tree
from lockstep.tools.inputs import read_request
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import JsonObject, now_ms

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}
FORM = {"method": "elicitation/create", "params": {"message": "Well?", "requestedSchema": SCHEMA}}
YES: JsonObject = {"action": "accept", "content": {"n": 2}}
PARIS = reply(text="Paris", cost_usd="0.02")
SLOW = Failure(kind=FailureKind.TIMEOUT, message="No answer in time.")
NO = Failure(kind=FailureKind.REFUSED, message="No such key.")


def think(words: str = "Capital of France?", **more: Any) -> dict[str, Any]:
    said = {"role": "user", "content": {"type": "text", "text": words}}
    return {"method": "sampling/createMessage", "params": {"messages": [said], "maxTokens": 9, **more}}


def samples(tool: LockedTool) -> LockedTool:
    return replace(tool, asks=("elicitation", "sampling"), samples=True)


TOOLS = (samples(BOOK), samples(LOOK))
PLENTY = Budget(steps=50)
Book = Callable[[PermittedCall], Outcome | Awaitable[Outcome]]


class World:
    """One store, one server, and a model that is asked by the agent and by the server."""

    def __init__(self, journal: SQLiteJournal) -> None:
        self.journal = journal
        self.tools = Functions()
        self.model = ListedModel()

    async def run(
        self,
        book: Book,
        *to_servers: Reply | Failure,
        budget: Budget = PLENTY,
        calls: int = 1,
        approve: str = "ask",
        **more: Any,
    ) -> State:
        self.model = ListedModel(
            reply(*[call("book", {"flight": f"BA{n}"}) for n in range(calls)]),
            reply(text="Done."),
            to_servers=to_servers,
        )
        self.tools = Functions(book=book, look=book)
        self.driver = driver_of(self.journal, self.model, self.tools, locked_agent(*TOOLS, budget=budget), **more)
        return await self.driver.advance(await self.driver.start(started(approve=approve)))

    async def events(self, state: State, kind: type[Any] = ev.ModelSampled) -> list[Any]:
        return [each.event for each in await read_run(self.journal, state.run) if isinstance(each.event, kind)]

    @property
    def asked(self) -> list[Prompt]:
        """What the model was asked for servers."""
        return [each for each in self.model.prompts if each.for_server]


def during(path: Path, work: Callable[[World], Awaitable[None]]) -> None:
    async def bounded() -> None:
        journal = SQLiteJournal.open(path)
        try:
            await asyncio.wait_for(work(World(journal)), 30)
        finally:
            await journal.close()

    asyncio.run(bounded())


async def at_once(seconds: float) -> None:
    await asyncio.sleep(0)


def test_a_server_is_told_what_the_model_says_to_its_words_alone(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"m": think(systemPrompt="Be brief.")}), PARIS, approve="none")
        assert (state.status, state.output) == (Status.FINISHED, "Done.")
        (said,) = json.loads(state.settled[0].text).values()
        assert (said["content"]["text"], said["model"], said["stopReason"]) == ("Paris", "fake-1", "endTurn")
        (prompt,) = world.asked
        assert (prompt.system, prompt.tools) == ("Be brief.", ())
        assert prompt.messages == (UserMessage(text="Capital of France?"),)
        assert world.model.settings[1].max_tokens == 9
        assert "Capital" not in repr(state.transcript.messages)
        types = types_of(await read_run(world.journal, state.run))
        assert types[4:9] == ["effect.intended", "input.asked", "model.sampled", "input.given", "effect.intended"]
        (given,) = await world.events(state, ev.InputGiven)
        assert given.by == MODEL
        assert (await verify_run(world.journal, state.run)).broken_seq is None

    during(tmp_path, work)


def test_it_costs_the_run_what_it_costs(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"m": think()}), PARIS)
        assert (state.totals.cost_usd, state.totals.steps, state.totals.sampled) == (Decimal("0.04"), 2, 1)
        used = state.used(state.last_at_ms)
        assert (used.tokens, used.steps) == (45, 3)
        assert (await read_state(world.journal, state.run)).totals == state.totals

    during(tmp_path, work)


def test_a_price_that_nobody_knows_is_not_zero(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        budget = Budget(steps=50, cost_usd=Decimal(1))
        asks = rounds({"a": think("One?"), "b": think("Two?")})
        state = await world.run(asks, reply(text="1", cost_usd=None), budget=budget)
        assert (state.settled or state.calls)[0].outcome == "cost_unknown"
        assert (state.stop_reason, state.totals.cost_usd, len(world.asked)) == ("cost_unknown", None, 1)

    during(tmp_path, work)


@pytest.mark.parametrize(
    ("budget", "outcome"),
    [
        (Budget(steps=1), "budget_steps"),
        (Budget(steps=50, tokens=15), "budget_tokens"),
        (Budget(steps=50, cost_usd=Decimal("0.01")), "budget_cost"),
        (Budget(steps=50, scopes={"principal": Limits(steps=1)}), "budget_principal"),
    ],
)
def test_where_the_budget_is_used_up_the_model_is_not_asked_and_the_call_ends(
    tmp_path: Path, budget: Budget, outcome: str
) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"m": think()}), budget=budget)
        assert (state.calls[0].outcome, state.stop_reason) == (outcome, outcome)
        assert "Not carried out: book asked for input" in state.calls[0].text
        assert world.asked == []
        assert await doubts(world.journal) == []

    during(tmp_path, work)


def test_a_server_may_have_so_many_answers_and_no_more(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        asks = [{"a": think(f"{n}a"), "b": think(f"{n}b"), "c": think(f"{n}c")} for n in range(5)]
        state = await world.run(rounds(*asks), *[PARIS] * 20)
        assert state.settled[0].outcome == "input_refused"
        assert f"asked the agent's model more than {MAX_SAMPLES} times" in state.settled[0].text
        assert len(world.asked) == MAX_SAMPLES

    during(tmp_path, work)


def test_an_attempt_that_may_pass_is_made_again(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"m": think()}), SLOW, SLOW, PARIS, sleep=at_once)
        assert state.output == "Done."
        failures = [each.failure for each in await world.events(state)]
        assert failures == ["timeout", "timeout", ""]
        assert state.totals.sampled == 1

    during(tmp_path, work)


@pytest.mark.parametrize("failures", [(NO,), (SLOW, SLOW, SLOW)])
def test_a_model_that_gives_no_answer_ends_the_call(tmp_path: Path, failures: tuple[Failure, ...]) -> None:
    async def work(world: World) -> None:
        budget = Budget(steps=50, model_retries=2)
        state = await world.run(rounds({"m": think()}), *failures, budget=budget, sleep=at_once)
        assert state.settled[0].outcome == "model_failed"
        assert state.settled[0].text.endswith(f"because the agent's model gave no answer: {failures[0].message}")

    during(tmp_path, work)


@pytest.mark.parametrize(
    ("asks", "why"),
    [
        (think(tools=[{"name": "t"}]), "it gives the model tools"),
        (think(messages=[{"role": "user", "content": {"type": "image"}}]), "shows the model image"),
    ],
)
def test_what_the_model_is_not_asked_ends_the_call(tmp_path: Path, asks: dict[str, Any], why: str) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"m": asks}))
        assert (state.settled[0].outcome, world.asked) == ("input_refused", [])
        assert why in state.settled[0].text

    during(tmp_path, work)


def test_what_was_not_followed_is_on_record(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"m": think(includeContext="allServers")}), PARIS)
        (event,) = await world.events(state)
        assert event.ignored == ("includeContext",)

    during(tmp_path, work)


def test_a_person_answers_their_part_and_the_model_its_own(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"who": FORM, "m": think()}), PARIS)
        asked = waiting_input(state)
        assert asked is not None
        assert (state.suspended_for, len(world.asked)) == ("input", 1)
        await answer_input(world.journal, asked.input, Said(responses={"who": YES, "m": {"role": "user"}}, by="ada"))
        state = await world.driver.resume(state.run, by="ada")
        told = json.loads(state.settled[0].text)
        assert (told["who"], told["m"]["content"]["text"]) == (YES, "Paris")

    during(tmp_path, work)


def test_where_no_person_answers_the_model_is_not_asked_for_nothing(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"who": FORM, "m": think()}), approve="none")
        assert (state.settled[0].outcome, world.asked) == ("input_refused", [])

    during(tmp_path, work)


class Killed(Exception):
    pass


@pytest.mark.parametrize("when", ["before it is asked", "before it answers", "when it has answered"])
def test_a_process_that_is_killed_pays_no_answer_twice(tmp_path: Path, when: str) -> None:
    async def work(world: World) -> None:
        dies = True

        class Mortal:
            """A journal whose process dies as it has become durable what happened."""

            async def append(self, run: Any, first_seq: int, entries: Any) -> None:
                await world.journal.append(run, first_seq, entries)
                kinds = {event.TYPE for _, event in entries}
                after = {"before it is asked": "input.asked", "when it has answered": "model.sampled"}
                if dies and after.get(when) in kinds:
                    raise Killed

            def __getattr__(self, name: str) -> Any:
                return getattr(world.journal, name)

        class Model(ListedModel):
            async def reply(self, prompt: Prompt, *rest: Any, **more: Any) -> Reply | Failure:
                if dies and prompt.for_server and when == "before it answers":
                    raise Killed
                return await super().reply(prompt, *rest, **more)

        model = Model(reply(call("book", {"flight": "BA1"})), reply(text="Done."), to_servers=[PARIS])
        tools = Functions(book=rounds({"m": think()}))
        driver = driver_of(Mortal(), model, tools, locked_agent(*TOOLS))  # type: ignore[arg-type]
        run = await driver.start(started())
        with pytest.raises(Killed):
            await driver.advance(run)
        dies = False
        waits = await read_state(world.journal, run)
        if when in ("before it is asked", "before it answers"):
            with pytest.raises(InputError, match="has not answered its part"):
                await answer_input(world.journal, waits.calls[0].input, Said(responses={}, by="ada"))
        state = await driver_of(world.journal, model, tools, locked_agent(*TOOLS)).resume(run, by="ada")
        assert (state.output, model.to_servers) == ("Done.", [])
        assert state.totals.sampled == 1
        assert len(tools.calls) == 2

    during(tmp_path, work)


def test_a_run_that_is_cancelled_meanwhile_leaves_no_doubt(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(rounds({"who": FORM, "m": think()}), PARIS)
        await cancel(world.journal, state.run, by="ada")
        assert await doubts(world.journal) == []

    during(tmp_path, work)


def test_a_run_that_asked_can_be_run_again_by_its_recording(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        book = rounds({"a": think("One?"), "b": think("Two?")}, {"c": think("Three?")})
        first = await world.run(book, *(reply(text=each) for each in ("1", "2", "3")))
        write_recording(tmp_path / "said.jsonl", recording_of(await world.journal.read(first.run)))
        recording = read_recording(tmp_path / "said.jsonl")
        assert len(recording.turns) == 2
        for words in ("Three?", "Four?"):
            model = RecordedModel(recording=recording)
            again = rounds({"a": think("One?"), "b": think("Two?")}, {"c": think(words)})
            driver = driver_of(world.journal, model, Functions(book=again), locked_agent(*TOOLS))
            state = await driver.advance(await driver.start(started(session=words)))
            if words == "Three?":
                assert (state.settled[0].text, state.totals) == (first.settled[0].text, first.totals)
                assert state.stop_reason == "completed"
            else:
                assert (state.calls[0].outcome, state.stop_reason) == ("model_failed", "recording_mismatch")

    during(tmp_path, work)


def nodes(node: Node) -> list[Node]:
    return [node, *(each for child in node.children for each in nodes(child))]


def test_the_models_time_is_the_models_also_while_a_call_is_held_open(tmp_path: Path) -> None:
    recorded = [
        (0, started()),
        (0, ev.ContextBuilt(step=1, digest=started().lock)),
        (0, ev.ModelReplied(step=1, calls=(ev.Asked(id="1.0", provider_id="", name="look", arguments="{}"),))),
        (0, ev.CallJudged(call="1.0", verdict="allow", effect="read")),
        (
            100,
            ev.InputAsked(
                call="1.0", input="q", asked='{"requests":{}}', digest=started().lock, live=True, expires_at_ms=9
            ),
        ),
        (400, ev.ModelSampled(call="1.0", input="q", key="k", digest=started().lock, latency_ms=300.0, text="Paris")),
        (400, ev.InputGiven(call="1.0", input="q", digest=started().lock, by=MODEL, responses='{"k":{}}')),
        (500, ev.EffectSettled(call="1.0", outcome="ok", text="", run_ms=500.0)),
        (500, ev.RunFinished(stop_reason="completed")),
    ]
    items = [ev.Recorded(seq=n, at_ms=at, event=event, hash=b"") for n, (at, event) in enumerate(recorded, start=1)]
    tree, spent = build_tree(items)
    assert (spent.model, spent.tools, spent.total, spent.other) == (300.0, 200.0, 500, 0.0)
    (asked,) = [each for each in nodes(tree) if each.kind == "input"]
    assert [(each.kind, each.outcome) for each in asked.children] == [("model", "ok")]
    assert asked.outcome == f"answered by {MODEL}"


# --- servers that hold their call open ---


def held(*asked: dict[str, Any]) -> Callable[[World], Book]:
    """A legacy server's tool that asks these while its call is open, and says what it was told."""

    def of(world: World) -> Book:
        async def book(call: PermittedCall) -> Outcome:
            ask = world.tools.ask
            assert ask is not None
            return ok(json.dumps([await ask(read_request(each, call.may_ask)) for each in asked]))

        return book

    return of


def test_a_server_that_holds_its_call_open_is_answered_meanwhile(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(held(think())(world), SLOW, PARIS, sleep=at_once)
        ((told,),) = [each.values() for each in json.loads(state.settled[0].text)]
        assert told["content"]["text"] == "Paris"
        types = types_of(await read_run(world.journal, state.run))
        assert types[4:10] == [
            "effect.intended",
            "input.asked",
            "model.sampled",
            "model.sampled",
            "input.given",
            "effect.settled",
        ]
        assert (state.totals.sampled, state.totals.cost_usd) == (1, Decimal("0.04"))

    during(tmp_path, work)


def test_a_model_that_is_asked_meanwhile_uses_the_runs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lockstep.runtime import driver, live, sampling

    async def work(world: World) -> None:
        clock = now_ms()

        class Slow(ListedModel):
            async def reply(self, prompt: Prompt, *rest: Any, **more: Any) -> Reply | Failure:
                nonlocal clock
                clock += 700 * prompt.for_server
                return await super().reply(prompt, *rest, **more)

        for module in (driver, live, sampling):
            monkeypatch.setattr(module, "now_ms", lambda: clock)
        model = Slow(reply(call("book", {"flight": "BA1"})), reply(text="Done."), to_servers=[PARIS])
        world.tools = Functions(book=held(think())(world))
        driving = driver_of(world.journal, model, world.tools, locked_agent(*TOOLS))
        state = await driving.advance(await driving.start(started()))
        assert state.active_ms(state.last_at_ms) == 700

    during(tmp_path, work)


@pytest.mark.parametrize("why", ["budget", "failure", "tools"])
def test_a_server_that_holds_its_call_open_is_told_no_and_goes_on(tmp_path: Path, why: str) -> None:
    async def work(world: World) -> None:
        asks = think(tools=[{"name": "t"}]) if why == "tools" else think()
        budget = Budget(steps=1) if why == "budget" else PLENTY
        state = await world.run(held(asks, asks)(world), NO, NO, budget=budget)
        done = (*state.settled, *state.calls)[0]
        assert (done.phase, done.text) == (Phase.DONE, "[null, null]")
        given = await world.events(state, ev.InputGiven)
        said = {"budget": "The run has used its 1 steps", "failure": "No such key.", "tools": "gives the model tools"}
        assert all(said[why] in each.because and each.responses == "" for each in given)
        assert len(given) == 2

    during(tmp_path, work)


def test_a_server_that_holds_its_call_open_may_have_so_many_answers_and_no_more(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        state = await world.run(held(*[think()] * (MAX_SAMPLES + 2))(world), *[PARIS] * 20)
        answers = json.loads(state.settled[0].text)
        assert [each is None for each in answers] == [False] * MAX_SAMPLES + [True] * 2
        assert len(world.asked) == MAX_SAMPLES

    during(tmp_path, work)


def test_two_reads_that_ask_the_model_at_once_are_within_one_budget(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        class Both(Functions):
            async def call(self, item: Any, permit: Any, on_overdue: Any = None, ask: Any = None) -> Outcome:
                await super().call(item, permit)
                return ok(json.dumps(await ask(read_request(think(), item.may_ask))))

        model = ListedModel(reply(call("look", {"n": 1}), call("look", {"n": 2})), to_servers=[PARIS])
        agent = locked_agent(*TOOLS, budget=Budget(steps=2))
        driver = driver_of(world.journal, model, Both(), agent)
        state = await driver.advance(await driver.start(started()))
        told = sorted((each.text for each in state.all_calls), key=len)
        assert told[0] == "null"
        assert "Paris" in told[1]
        assert state.stop_reason == "budget_steps"

    during(tmp_path, work)
