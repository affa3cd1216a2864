"""Calls that the gateway answers with tasks: to clients that take them, while they run or wait, and to nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from inprocess import ASK_BOOK, BOOK, LOOK, ListedModel, elsewhere, locked_agent, lost, ok, reply
from test_asking_clients import FORM, rounds
from test_serving_calls import ACCEPT, BA1, TOKENS, World, http, opened, run, yes

from lockstep.gateway import tasks
from lockstep.journal.events import InputGiven
from lockstep.kernel.state import Status
from lockstep.runtime.reading import doubts, read_run, read_state
from lockstep.tools.port import Listener, Outcome, PermittedCall

TASKS = "io.modelcontextprotocol/tasks"
TAKES: dict[str, Any] = {"extensions": {TASKS: {}}}
FORMS: dict[str, Any] = {"elicitation": {"form": {}}}
YES = {"action": "accept", "content": {"approve": True}}
MISSING, INVALID, MISMATCH, UNKNOWN = -32021, -32602, -32020, -32601


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AFTER_S", 0.05)


@dataclass(kw_only=True)
class Raw:
    """A modern client over HTTP, which says what it is told to."""

    url: str
    client: httpx.AsyncClient
    name: str = "ada"
    capabilities: Mapping[str, Any] = field(default_factory=lambda: TAKES)

    async def ask(self, method: str, params: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """The result, or the error."""
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": self.capabilities,
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        named = str(params.get("taskId", params.get("name", "")))
        sent = {
            **ACCEPT,
            "Authorization": f"Bearer {TOKENS[self.name]}",
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": method,
            **({"Mcp-Name": named} if named else {}),
            **headers,
        }
        answer = await self.client.post(self.url, json=body, headers=sent, timeout=30)
        if answer.headers["content-type"].startswith("text/event-stream"):
            frames = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
            (found,) = [frame for frame in frames if frame.get("id") == 1]
        else:
            found = answer.json()
        return dict(found.get("result") or found["error"])

    async def call(self, name: str = "book", arguments: Any = None) -> dict[str, Any]:
        return await self.ask("tools/call", {"name": name, "arguments": BA1 if arguments is None else arguments})

    async def get(self, task: str, **headers: str) -> dict[str, Any]:
        return await self.ask("tasks/get", {"taskId": task}, **headers)

    async def until(self, task: str, status: str) -> dict[str, Any]:
        said = await self.get(task)
        while said["status"] != status:
            await asyncio.sleep(0.01)
            said = await self.get(task)
        return said

    def who(self, name: str = "ada", **capabilities: Any) -> Raw:
        return replace(self, name=name, capabilities=capabilities)


@asynccontextmanager
async def gateway(
    path: Path, agent: Any = None, model: Any = None, **functions: Any
) -> AsyncIterator[tuple[World, Raw]]:
    async with opened(path, agent, model, **functions) as world, http(world) as url, httpx.AsyncClient() as client:
        yield world, Raw(url=url, client=client)


class Slow:
    """A tool that is not done before it is let."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.begun = asyncio.Event()
        self.listener: Listener | None = None

    async def __call__(self, call: PermittedCall) -> Outcome:
        self.listener = call.listener
        self.begun.set()
        await self.may_end.wait()
        return ok("booked")


def test_a_call_that_takes_long_is_a_task_and_its_result_is_the_calls(tmp_path: Path) -> None:
    async def work() -> None:
        slow = Slow()
        async with gateway(tmp_path, book=slow) as (world, raw):
            made = await raw.call()
            assert (made["resultType"], made["status"], made["ttlMs"]) == ("task", "working", None)
            assert "requestState" not in made
            working = await raw.get(made["taskId"])
            assert (working["resultType"], working["status"]) == ("complete", "working")
            slow.may_end.set()
            done = await raw.until(made["taskId"], "completed")
            assert done["result"]["content"] == [{"type": "text", "text": "booked"}]
            assert done["result"]["_meta"]["lockstep/run"] == made["taskId"]
            again = await raw.call()
            assert again["resultType"] == "complete"
            assert world.tools.count("book") == 1

    run(work)


@pytest.mark.parametrize("capabilities", [{}, FORMS])
def test_who_takes_no_tasks_gets_none_and_may_not_ask_after_one(tmp_path: Path, capabilities: dict[str, Any]) -> None:
    async def work() -> None:
        slow = Slow()
        async with gateway(tmp_path, book=slow) as (_, raw):
            made = await raw.call()
            plain = raw.who(**capabilities)
            for method in ("tasks/get", "tasks/update", "tasks/cancel"):
                refused = await plain.ask(method, {"taskId": made["taskId"], "inputResponses": {}})
                assert (refused["code"], refused["data"]["requiredCapabilities"]) == (MISSING, TAKES)
            waiting = asyncio.create_task(plain.call("book", {"flight": "BA2"}))
            slow.may_end.set()
            assert (await waiting)["resultType"] == "complete"

    run(work)


def test_a_quick_call_is_answered_and_nothing_else_becomes_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "AFTER_S", 60.0)  # quick on a machine that has other things to do

    async def work() -> None:
        async with gateway(tmp_path) as (_, raw):
            assert (await raw.call("look", {}))["content"][0]["text"] == "look {}"
            found = await raw.ask("server/discover", {})
            assert found["capabilities"]["extensions"] == {TASKS: {}}
            for gone in ("tasks/list", "tasks/result"):
                assert (await raw.ask(gone, {}))["code"] == UNKNOWN

    run(work)


NONE = {
    "of nobody": "r0000000000000000",
    "that is none": "../../etc/passwd",
    "of 1 MB": "r" * 2**20,
    "that is empty": "",
}


@pytest.mark.parametrize("task", NONE.values(), ids=NONE)
def test_a_task_that_is_not_there_is_not_found(tmp_path: Path, task: str) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as (_, raw):
            headers = {} if 0 < len(task) < 100 else {"Mcp-Name": "x"}
            assert (await raw.get(task, **headers)).get("code") in (INVALID, MISMATCH)

    run(work)


def test_a_task_is_there_for_its_principal_alone(tmp_path: Path) -> None:
    async def work() -> None:
        slow = Slow()
        async with gateway(tmp_path, book=slow) as (world, raw):
            made = await raw.call()
            eve = raw.who("eve", **TAKES)
            for method in ("tasks/get", "tasks/update", "tasks/cancel"):
                refused = await eve.ask(method, {"taskId": made["taskId"], "inputResponses": {}})
                assert (refused["code"], refused["message"]) == (INVALID, "Task not found.")
            assert (await raw.get(made["taskId"]))["status"] == "working"
            slow.may_end.set()
            await raw.until(made["taskId"], "completed")
            assert world.tools.count("book") == 1

    run(work)


def test_the_header_that_requests_are_routed_by_must_name_the_task(tmp_path: Path) -> None:
    async def work() -> None:
        slow = Slow()
        async with gateway(tmp_path, book=slow) as (_, raw):
            made = await raw.call()
            assert (await raw.get(made["taskId"], **{"Mcp-Name": "another"}))["code"] == MISMATCH
            slow.may_end.set()

    run(work)


def test_what_a_server_says_is_not_told_once_its_call_is_a_task(tmp_path: Path) -> None:
    async def work() -> None:
        from lockstep.tools.port import Notice

        slow = Slow()
        async with gateway(tmp_path, book=slow) as (_, raw):
            made = await raw.call()
            assert slow.listener is not None
            slow.listener.hear(Notice(method="notifications/progress", params={"progress": 1}))
            slow.may_end.set()
            await raw.until(made["taskId"], "completed")

    run(work)


def test_a_call_that_waits_for_somebody_else_is_a_task_until_they_have_spoken(tmp_path: Path) -> None:
    async def work() -> None:
        agent = locked_agent(BOOK, LOOK, policy=ASK_BOOK)
        async with gateway(tmp_path, agent) as (world, raw):
            made = await raw.call()
            waits = await raw.get(made["taskId"])
            assert waits["status"] == "working"
            assert "lockstep approve" in waits["statusMessage"]
            state = await read_state(world.journal, made["taskId"])
            await yes(world.journal, state.calls[0].approval, agent)
            assert (await raw.get(made["taskId"]))["status"] == "working"
            await world.desk.go_on(state.run, by="grace", fetched=False)
            assert (await raw.until(made["taskId"], "completed"))["result"]["isError"] is False
            assert world.tools.count("book") == 1

    run(work)


def test_a_client_with_a_person_before_it_is_asked_through_its_task(tmp_path: Path) -> None:
    async def work() -> None:
        agent = locked_agent(BOOK, LOOK, policy=ASK_BOOK)
        async with gateway(tmp_path, agent) as (world, raw):
            made = await raw.call()  # it cannot show a form, as far as this request says
            both = raw.who(**TAKES, **FORMS)
            asked = await both.get(made["taskId"])
            assert asked["status"] == "input_required"
            ((key, request),) = asked["inputRequests"].items()
            assert '{"flight": "BA1"}' in request["params"]["message"]
            assert "requestState" not in asked
            update = {"taskId": made["taskId"], "inputResponses": {"other": YES}}
            assert (await both.ask("tasks/update", update))["resultType"] == "complete"
            assert (await both.get(made["taskId"]))["status"] == "input_required"
            unable = await raw.ask("tasks/update", {"taskId": made["taskId"], "inputResponses": {key: YES}})
            assert unable["resultType"] == "complete"
            assert (await both.get(made["taskId"]))["status"] == "input_required", "who cannot be asked answered"
            said = await both.ask("tasks/update", {"taskId": made["taskId"], "inputResponses": {key: YES}})
            assert said["resultType"] == "complete"
            assert (await both.until(made["taskId"], "completed"))["result"]["isError"] is False
            late = await both.ask("tasks/update", {"taskId": made["taskId"], "inputResponses": {key: YES}})
            assert late["resultType"] == "complete"
            assert world.tools.count("book") == 1

    run(work)


ASKING = locked_agent(replace(BOOK, asks=("elicitation",)))


def test_what_a_server_asks_is_answered_piece_by_piece(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path, ASKING, book=rounds({"who": FORM, "whom": FORM})) as (world, raw):
            made = await raw.call()
            both = raw.who(**TAKES, **FORMS)
            asked = await both.get(made["taskId"])
            who, whom = sorted(asked["inputRequests"], key=lambda key: key.endswith("whom"))
            ada = {"action": "accept", "content": {"name": "Ada"}}
            bad = {"taskId": made["taskId"], "inputResponses": {who: {"action": "accept"}, whom: ada}}
            assert (await both.ask("tasks/update", bad))["code"] == INVALID
            await both.ask("tasks/update", {"taskId": made["taskId"], "inputResponses": {who: ada}})
            assert list((await both.get(made["taskId"]))["inputRequests"]) == [whom]
            await both.ask("tasks/update", {"taskId": made["taskId"], "inputResponses": {whom: {"action": "decline"}}})
            done = await both.until(made["taskId"], "completed")
            assert json.loads(done["result"]["content"][0]["text"]) == {"who": ada, "whom": {"action": "decline"}}
            given = [each.event for each in await read_run(world.journal, made["taskId"])]
            (said,) = [each for each in given if isinstance(each, InputGiven)]
            assert (said.by, said.login) == ("ada", "asked by raw 1")

    run(work)


def test_a_task_that_is_cancelled_while_it_acts_is_in_doubt(tmp_path: Path) -> None:
    async def work() -> None:
        slow = Slow()
        async with gateway(tmp_path, book=slow) as (world, raw):
            made = await raw.call()
            assert (await raw.ask("tasks/cancel", {"taskId": made["taskId"]}))["resultType"] == "complete"
            await raw.until(made["taskId"], "cancelled")
            (doubt,) = await doubts(world.journal)
            assert doubt.state.run == made["taskId"]  # type: ignore[union-attr]
            assert (await raw.ask("tasks/cancel", {"taskId": made["taskId"]}))["resultType"] == "complete"

    run(work)


def test_a_task_that_an_earlier_process_began_can_be_cancelled(tmp_path: Path) -> None:
    async def work() -> None:
        asked_after, broken_off = asyncio.Event(), asyncio.Event()

        async def behave(call: PermittedCall) -> Outcome:
            assert call.tasks is not None
            if call.round is None:
                await call.tasks.begun("t-1")
            else:
                asked_after.set()
            try:
                await asyncio.Event().wait()
            finally:
                broken_off.set()
            raise AssertionError("unreachable")

        agent = locked_agent(elsewhere(BOOK), LOOK)
        async with gateway(tmp_path, agent, book=behave) as (world, raw):
            made = await raw.call()
            await world.desk.close(0)
        broken_off.clear()
        async with gateway(tmp_path, agent, book=behave) as (world, raw):
            await asked_after.wait()
            assert (await raw.get(made["taskId"]))["status"] == "working"
            assert (await raw.ask("tasks/cancel", {"taskId": made["taskId"]}))["resultType"] == "complete"
            await raw.until(made["taskId"], "cancelled")
            assert broken_off.is_set()
            (doubt,) = await doubts(world.journal)
            assert doubt.state.run == made["taskId"]  # type: ignore[union-attr]

    run(work)


def test_a_task_that_is_cancelled_while_it_waits_was_not_carried_out_and_may_be_asked_for_anew(tmp_path: Path) -> None:
    async def work() -> None:
        agent = locked_agent(BOOK, LOOK, policy=ASK_BOOK)
        async with gateway(tmp_path, agent) as (world, raw):
            made = await raw.call()
            await raw.ask("tasks/cancel", {"taskId": made["taskId"]})
            await raw.until(made["taskId"], "cancelled")
            again = await raw.call()
            assert again["resultType"] == "task"
            assert again["taskId"] != made["taskId"]
            assert world.tools.count("book") == 0

    run(work)


def test_a_task_whose_outcome_nobody_knows_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        slow = Slow()

        async def lose(call: PermittedCall) -> Outcome:
            await slow(call)
            return lost()

        async with gateway(tmp_path, book=lose) as (world, raw):
            made = await raw.call()
            slow.may_end.set()
            done = await raw.until(made["taskId"], "completed")
            assert done["result"]["isError"] is True
            assert "Nobody knows whether book happened" in done["result"]["content"][0]["text"]
            await raw.ask("tasks/cancel", {"taskId": made["taskId"]})  # it has ended: nothing changes
            await world.desk.close(5)
            assert (await raw.get(made["taskId"]))["status"] == "completed"

    run(work)


def test_a_result_that_its_task_has_told_is_not_kept_for_the_next_call(tmp_path: Path) -> None:
    async def work() -> None:
        agent = locked_agent(BOOK, LOOK, policy=ASK_BOOK)
        async with gateway(tmp_path, agent) as (world, raw):
            made = await raw.call()
            state = await read_state(world.journal, made["taskId"])
            await yes(world.journal, state.calls[0].approval, agent)
            await world.desk.go_on(state.run, by="grace", fetched=False)
            assert (await raw.get(made["taskId"]))["status"] == "completed"
            again = await raw.call()
            assert again["_meta"]["lockstep/run"] != made["taskId"]
            assert again["_meta"]["lockstep/duplicate_of"] == f"{made['taskId']}/1.0"

    run(work)


def test_the_agent_itself_is_a_task_too(tmp_path: Path) -> None:
    async def work() -> None:
        may_say = asyncio.Event()

        class Thinking(ListedModel):
            async def reply(self, *args: Any, **more: Any) -> Any:
                await may_say.wait()
                return await super().reply(*args, **more)

        async with gateway(tmp_path, None, Thinking(reply(text="Rome."))) as (_, raw):
            made = await raw.call("ask_traveller", {"message": "Where?"})
            assert made["resultType"] == "task"
            may_say.set()
            done = await raw.until(made["taskId"], "completed")
            assert done["result"]["content"] == [{"type": "text", "text": "Rome."}]

    run(work)


def test_a_task_outlives_its_gateway(tmp_path: Path) -> None:
    async def work() -> None:
        agent = locked_agent(BOOK, LOOK, policy=ASK_BOOK)
        async with gateway(tmp_path, agent) as (_, raw):
            made = await raw.call()
        async with gateway(tmp_path, agent) as (world, raw):
            assert (await raw.get(made["taskId"]))["status"] == "working"
            state = await read_state(world.journal, made["taskId"])
            await yes(world.journal, state.calls[0].approval, agent)
            await world.desk.go_on(state.run, by="grace", fetched=False)
            assert (await raw.get(made["taskId"]))["status"] == "completed"
            assert (await read_state(world.journal, made["taskId"])).status is Status.FINISHED

    run(work)
