"""Servers that ask back, through the gateway: to the SDK's own client of both eras, or to a person elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from inprocess import BOOK, LOOK, locked_agent, ok, rounds, types_of
from mcp import Client, MCPError
from mcp import types as mcp_types
from test_serving_calls import ADA, ERAS, World, meta, opened, run, text

from lockstep.agent.budget import Budget, Limits
from lockstep.errors import StoreFull
from lockstep.gateway.principals import Principal
from lockstep.journal.inbox import Answer, Inbox
from lockstep.kernel.state import Status
from lockstep.runtime.inputs import Said, answer_input
from lockstep.runtime.reading import read_run, read_state
from lockstep.tools.inputs import read_request, read_result
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import JsonObject

NAME = {"type": "object", "properties": {"name": {"type": "string", "minLength": 2}}, "required": ["name"]}
FORM = {"method": "elicitation/create", "params": {"message": "Who flies?\u202e", "requestedSchema": NAME}}
PAGE = {"method": "elicitation/create", "params": {"mode": "url", "message": "Pay.", "url": "https://pay.example/1"}}
SAMPLE = {
    "method": "sampling/createMessage",
    "params": {"messages": [{"role": "user", "content": {"type": "text", "text": "Capital?"}}], "maxTokens": 9},
}
ROOTS = {"method": "roots/list", "params": {}}
ASKING = replace(BOOK, asks=("elicitation", "sampling", "roots"), source="mcp:/usr/bin/airline --x")
AGENT = locked_agent(ASKING)
BA1 = {"flight": "BA1"}


class Person:
    """A user before the SDK's client, who answers what they are shown."""

    def __init__(self, *said: Any) -> None:
        self.said: Sequence[Any] = said
        self.shown: list[Any] = []

    async def elicit(self, context: Any, params: Any) -> Any:
        self.shown.append(params)
        said = self.said[len(self.shown) - 1]
        if isinstance(said, str):
            return mcp_types.ElicitResult(action=said)  # type: ignore[arg-type]
        return mcp_types.ElicitResult(action="accept", content=said)

    async def sample(self, context: Any, params: Any) -> Any:
        self.shown.append(params)
        content = mcp_types.TextContent(text="Paris")
        return mcp_types.CreateMessageResult(role="assistant", content=content, model="m")

    async def roots(self, context: Any) -> Any:
        return mcp_types.ListRootsResult(roots=[mcp_types.Root(uri="file:///x")])


def client(world: World, era: str, person: Person, *, more: bool = False, who: Principal = ADA) -> Client:
    extra = {"sampling_callback": person.sample, "list_roots_callback": person.roots} if more else {}
    return world.client(era, who, elicitation_callback=person.elicit, **extra)


@ERAS
def test_a_clients_user_is_asked_and_the_same_call_goes_on(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        person = Person({"name": "Ada"}, "accept")
        async with opened(tmp_path, AGENT, book=rounds({"who": FORM}, {"pay": PAGE})) as world:
            async with client(world, era, person) as caller:
                result = await caller.call_tool("book", BA1)
            assert json.loads(text(result)) == {"pay": {"action": "accept"}}
            form, page = person.shown
            assert form.message == "book (/usr/bin/airline --x) asks:\nWho flies?\\u202e"
            assert form.requested_schema == NAME
            assert page.url == "https://pay.example/1"
            assert [(call.id, call.key) for call in world.tools.calls] == [("1.0", world.tools.calls[0].key)] * 3
            assert len({permit.call_digest for permit in world.tools.permits}) == 3
            types = types_of(await read_run(world.journal, meta(result, "run")))
            assert types.count("effect.intended") == 3
            assert types.count("run.suspended") == types.count("run.resumed") == 2

    run(work)


@ERAS
def test_what_a_model_is_asked_and_roots_go_to_a_client_that_offers_them(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        person = Person({"name": "Ada"})
        everything = {"who": FORM, "think": SAMPLE, "where": ROOTS}
        async with opened(tmp_path, AGENT, book=rounds(everything)) as world:
            async with client(world, era, person, more=True) as caller:
                said = json.loads(text(await caller.call_tool("book", BA1)))
            assert said["who"] == {"action": "accept", "content": {"name": "Ada"}}
            assert said["think"]["content"]["text"] == "Paris"
            assert [each["uri"].rstrip("/") for each in said["where"]["roots"]] == ["file:///x"]

    run(work)


@ERAS
def test_they_are_refused_where_the_client_does_not(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT, book=rounds({"think": SAMPLE})) as world:
            async with client(world, era, Person()) as caller:
                result = await caller.call_tool("book", BA1)
            assert result.is_error
            assert "sampling is not offered" in text(result)
            state = await read_state(world.journal, meta(result, "run"))
            assert (state.status, state.calls[0].outcome, state.receipts) == (Status.FINISHED, "input_refused", {})

    run(work)


@ERAS
@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_no_is_passed_on(tmp_path: Path, era: str, action: str) -> None:
    async def work() -> None:
        tool = rounds({"who": FORM})
        async with opened(tmp_path, AGENT, book=tool) as world, client(world, era, Person(action)) as caller:
            assert json.loads(text(await caller.call_tool("book", BA1))) == {"who": {"action": action}}

    run(work)


@ERAS
@pytest.mark.parametrize("who", ["cannot", "may not"])
def test_a_client_that_cannot_be_asked_leaves_it_to_a_person(tmp_path: Path, era: str, who: str) -> None:
    async def work() -> None:
        program = Principal(name="ada", approvals="operator")
        async with opened(tmp_path, AGENT, book=rounds({"who": FORM})) as world:
            caller = world.client(era) if who == "cannot" else client(world, era, Person(), who=program)
            async with caller:
                waits = await caller.call_tool("book", BA1)
                assert (waits.is_error, meta(waits, "waits_for")) == (True, "input")
                name = meta(waits, "input")
                assert f"`lockstep answer {name}`" in text(waits)
                responses: JsonObject = {"who": {"action": "accept", "content": {"name": "Ada"}}}
                await answer_input(world.journal, name, Said(responses=responses, by="grace"))
                result = await caller.call_tool("book", BA1)
            assert json.loads(text(result)) == responses
            assert meta(result, "run") == meta(waits, "run")

    run(work)


def test_a_person_elsewhere_answers_while_the_gateway_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `lockstep answer` leaves beside the store, as `_answers_taken` takes it."""
    from lockstep.gateway import serving

    monkeypatch.setattr(serving, "_RETRY_S", 0.0)

    async def fails(*_: Any) -> None:
        raise StoreFull("no space")

    async def work() -> None:
        async with opened(tmp_path, AGENT, book=rounds({"who": FORM})) as world, world.client("legacy") as caller:
            name = meta(await caller.call_tool("book", BA1), "input")
            inbox = Inbox(tmp_path)
            inbox.attend()
            said = json.dumps({"who": {"action": "decline"}})
            assert inbox.leave(Answer(approval=name, given=False, by="grace", input=True, responses=said))
            (left,) = inbox.left()
            with monkeypatch.context() as full:
                full.setattr(serving, "answer_input", fails)
                await serving._go_on(left, inbox, world.journal, world.desk)
            assert inbox.left() == [left], "an answer that is not in the journal was forgotten"
            await serving._go_on(left, inbox, world.journal, world.desk)
            assert inbox.left() == []
            inbox.close()
            assert json.loads(text(await caller.call_tool("book", BA1))) == {"who": {"action": "decline"}}

    run(work)


def raw(world: World) -> Client:
    """A modern client that sees what requires input."""
    return world.client("2026-07-28", elicitation_callback=Person().elicit)


async def asked_of(caller: Client, **more: Any) -> Any:
    return await caller.session.call_tool("book", BA1, allow_input_required=True, **more)


@pytest.mark.parametrize(
    "given",
    [
        {"other": {"action": "accept", "content": {"name": "Ada"}}},
        {"who": {"action": "accept", "content": {"name": "A"}}},
        {"who": {"action": "accept"}},
        {"who": {"role": "assistant", "content": {"type": "text", "text": "x"}, "model": "m"}},
    ],
    ids=["another key", "a bad value", "nothing", "of another kind"],
)
@pytest.mark.parametrize("state", ["with", "without"])
def test_an_answer_that_was_not_asked_for_is_asked_for_again(tmp_path: Path, given: Any, state: str) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT, book=rounds({"who": FORM})) as world, raw(world) as caller:
            first = await asked_of(caller)
            assert isinstance(first, mcp_types.InputRequiredResult)
            sealed = first.request_state if state == "with" else None
            again = await asked_of(caller, input_responses=parsed(given), request_state=sealed)
            assert isinstance(again, mcp_types.InputRequiredResult)
            assert list(again.input_requests or {}) == ["who"]
            assert len(world.tools.calls) == 1
            good = parsed({"who": {"action": "accept", "content": {"name": "Ada"}}, "more": {"action": "decline"}})
            result = await asked_of(caller, input_responses=good, request_state=again.request_state)
            assert json.loads(text(result)) == {"who": {"action": "accept", "content": {"name": "Ada"}}}

    run(work)


def test_an_answer_that_comes_with_the_call_is_taken_where_the_server_wants_no_state_back(tmp_path: Path) -> None:
    def book(call: PermittedCall) -> Outcome:
        if call.round is None:
            asked = read_result({"inputRequests": {"who": FORM}}, call.may_ask)
            return Outcome(kind="input_required", text="asks", asked=asked)
        assert call.round.state is None
        return ok(json.dumps(call.round.responses))

    async def work() -> None:
        async with opened(tmp_path, AGENT, book=book) as world, raw(world) as caller:
            good = parsed({"who": {"action": "accept", "content": {"name": "Ada"}}})
            result = await asked_of(caller, input_responses=good)
            assert json.loads(text(result)) == {"who": {"action": "accept", "content": {"name": "Ada"}}}

    run(work)


def test_a_legacy_client_whose_user_was_slower_than_somebody_else_is_told_what_came_of_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT, book=rounds({"who": FORM})) as world:

            class Slow(Person):
                async def elicit(self, context: Any, params: Any) -> Any:
                    (row,) = await world.journal.runs()
                    name = (await read_state(world.journal, row.run)).calls[0].input
                    no: JsonObject = {"who": {"action": "decline"}}
                    await answer_input(world.journal, name, Said(responses=no, by="grace"))
                    await world.desk.go_on(row.run, by="grace", fetched=False)
                    return await super().elicit(context, params)

            async with client(world, "legacy", Slow({"name": "Ada"})) as caller:
                assert json.loads(text(await caller.call_tool("book", BA1))) == {"who": {"action": "decline"}}
            assert len(world.tools.calls) == 2

    run(work)


def test_a_read_that_goes_on_is_driven_once_however_many_ask_for_it(tmp_path: Path) -> None:
    asks = rounds({"who": FORM})
    yes: JsonObject = {"who": {"action": "accept", "content": {"name": "Ada"}}}

    async def look(call: PermittedCall) -> Outcome:
        await asyncio.sleep(0)  # the others get their turn
        return asks(call)  # type: ignore[no-any-return]

    async def work() -> None:
        reading = replace(LOOK, asks=("elicitation",), source="mcp:/usr/bin/airline --x")
        async with opened(tmp_path, locked_agent(reading), look=look) as world, world.client("legacy") as caller:
            waits = await caller.call_tool("look", BA1)
            await answer_input(world.journal, meta(waits, "input"), Said(responses=yes, by="grace"))
            gone_on = world.desk.go_on(meta(waits, "run"), by="grace", fetched=False)
            _, result = await asyncio.gather(gone_on, caller.call_tool("look", BA1))
            assert (json.loads(text(result)), meta(result, "run")) == (yes, meta(waits, "run"))
            assert len(world.tools.calls) == 2

    run(work)


def test_a_client_that_answers_for_a_model_and_not_for_people_is_asked_no_more_than_that(tmp_path: Path) -> None:
    seen: list[frozenset[str]] = []

    def book(call: PermittedCall) -> Outcome:
        seen.append(call.may_ask)
        return ok()

    async def work() -> None:
        person = Person()
        async with opened(tmp_path, AGENT, book=book) as world:
            for more in ({"sampling_callback": person.sample}, {}, {"elicitation_callback": person.elicit}):
                async with world.client("2026-07-28", **more) as caller:
                    await caller.call_tool("book", {"flight": f"BA{len(seen)}"})
        assert [set(each) for each in seen] == [{"sampling"}, {"elicitation"}, {"elicitation"}]

    run(work)


def parsed(given: Any) -> Any:
    params = {"name": "book", "inputResponses": given}
    return mcp_types.CallToolRequestParams.model_validate(params, by_name=False).input_responses


def test_the_servers_own_state_never_reaches_the_client_nor_does_anothers_answer(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT, book=rounds({"who": FORM})) as world, raw(world) as caller:
            first = await asked_of(caller)
            assert first.request_state != "1"
            forged = (first.request_state or "")[:-2] + "xx"
            with pytest.raises(MCPError):
                await asked_of(caller, input_responses=parsed({"who": {"action": "decline"}}), request_state=forged)

    run(work)


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
def test_a_server_that_holds_its_call_open_is_answered_by_a_client_that_can_be_asked_meanwhile(
    tmp_path: Path, era: str
) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT) as world:

            async def book(call: PermittedCall) -> Outcome:
                assert world.tools.ask is not None
                return ok(json.dumps(await world.tools.ask(read_request(FORM, ("elicitation",)))))

            world.tools.functions["book"] = book
            person = Person({"name": "Ada"})
            async with client(world, era, person) as caller:
                result = await caller.call_tool("book", BA1)
            yes = {"action": "accept", "content": {"name": "Ada"}}
            assert json.loads(text(result)) == {"request": yes if era == "legacy" else {"action": "cancel"}}
            types = types_of(await read_run(world.journal, meta(result, "run")))
            assert types[3:6] == ["effect.intended", "input.asked", "input.given"]
            assert "run.suspended" not in types

    run(work)


def test_the_agent_itself_passes_on_what_its_servers_ask(tmp_path: Path) -> None:
    from inprocess import ListedModel, call, reply

    async def work() -> None:
        model = ListedModel(reply(call("book", BA1)), reply(text="Booked."))
        async with opened(tmp_path, AGENT, model, book=rounds({"who": FORM})) as world:
            async with client(world, "legacy", Person({"name": "Ada"})) as caller:
                result = await caller.call_tool("ask_traveller", {"message": "Book it."})
            assert text(result) == "Booked."

    run(work)


def test_a_call_that_waits_is_not_made_twice(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT, book=rounds({"who": FORM})) as world, world.client("legacy") as caller:
            first, second = [await caller.call_tool("book", BA1) for _ in range(2)]
            assert meta(first, "input") == meta(second, "input")
            assert len(world.tools.calls) == 1
        async with opened(tmp_path, AGENT, book=rounds({"who": FORM})) as world, world.client("legacy") as caller:
            assert meta(await caller.call_tool("book", BA1), "input") == meta(first, "input")
            assert world.tools.calls == []

    run(work)


# --- what is asked of a model, answered by the agent's own ---

BY_MODEL = replace(BOOK, asks=("elicitation", "sampling", "roots"), samples=True, source="mcp:/usr/bin/airline --x")


def paris(*replies: Any) -> Any:
    from inprocess import ListedModel, reply

    return ListedModel(*replies, to_servers=[reply(text="Paris", cost_usd="0.02")])


@ERAS
@pytest.mark.parametrize("more", [False, True], ids=["a client without", "a client with a model"])
def test_the_agents_model_answers_what_the_server_of_a_clients_call_asks(tmp_path: Path, era: str, more: bool) -> None:
    """Also where the client has a model of its own: the entry says whose it is."""

    async def work() -> None:
        person = Person()
        agent = locked_agent(BY_MODEL)
        async with opened(tmp_path, agent, paris(), book=rounds({"think": SAMPLE})) as world:
            async with client(world, era, person, more=more) as caller:
                result = await caller.call_tool("book", BA1)
            said = json.loads(text(result))["think"]
            assert (said["content"]["text"], said["model"], person.shown) == ("Paris", "fake-1", [])
            state = await read_state(world.journal, meta(result, "run"))
            assert (state.totals.cost_usd, state.client != "") == (Decimal("0.02"), True)

    run(work)


@ERAS
def test_of_one_question_the_client_answers_what_is_not_for_the_model(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        person = Person({"name": "Ada"})
        tool = rounds({"who": FORM, "think": SAMPLE, "where": ROOTS})
        async with opened(tmp_path, locked_agent(BY_MODEL), paris(), book=tool) as world:
            async with client(world, era, person, more=True) as caller:
                said = json.loads(text(await caller.call_tool("book", BA1)))
            assert (said["who"]["content"], said["think"]["content"]["text"]) == ({"name": "Ada"}, "Paris")
            assert [each["uri"].rstrip("/") for each in said["where"]["roots"]] == ["file:///x"]

    run(work)


@ERAS
def test_a_client_whose_runs_have_used_up_their_budget_is_told_so(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        budget = Budget(steps=50, scopes={"session": Limits(cost_usd=Decimal("0.01"))})
        agent = locked_agent(BY_MODEL, budget=budget)
        async with opened(tmp_path, agent, paris(), book=rounds({"think": SAMPLE})) as world:
            async with client(world, era, Person()) as caller:
                first = await caller.call_tool("book", BA1)
                second = await caller.call_tool("book", {"flight": "BA2"})
            assert not first.is_error
            assert "cost $0.02 of $0.01" in text(second)

    run(work)


@ERAS
def test_the_agent_itself_answers_its_own_servers(tmp_path: Path, era: str) -> None:
    from inprocess import call, reply

    async def work() -> None:
        model = paris(reply(call("book", BA1)), reply(text="Booked."))
        async with opened(tmp_path, locked_agent(BY_MODEL), model, book=rounds({"think": SAMPLE})) as world:
            async with client(world, era, Person()) as caller:
                result = await caller.call_tool("ask_traveller", {"message": "Book it."})
            assert text(result) == "Booked."
            assert "Paris" in (await read_state(world.journal, meta(result, "run"))).settled[0].text

    run(work)


@ERAS
def test_a_legacy_server_of_a_clients_call_is_answered_by_the_agents_model(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path, locked_agent(BY_MODEL), paris()) as world:

            async def book(call: PermittedCall) -> Outcome:
                assert world.tools.ask is not None
                return ok(json.dumps(await world.tools.ask(read_request(SAMPLE, call.may_ask))))

            world.tools.functions["book"] = book
            async with client(world, era, Person()) as caller:
                said = json.loads(text(await caller.call_tool("book", BA1)))
            assert said["request"]["content"]["text"] == "Paris"

    run(work)
