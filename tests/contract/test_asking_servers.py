"""Our client and the SDK's own server, in both eras: questions, answers and clocks as the protocol has them.

The server runs in a plain process here, without a sandbox: the SDK is ours, and no isolation is what this is about.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lockstep.agent.locked import LockedTool, pin
from lockstep.agent.spec import LimitsSection
from lockstep.gate.rounds import Round
from lockstep.journal.events import ModelSampled
from lockstep.model.port import UserMessage
from lockstep.sandbox.child import kill_child
from lockstep.sandbox.contract import EgressRecord, Limits
from lockstep.sandbox.framed import FramedChild
from lockstep.tools.client import LEGACY, MODERN, McpClient
from lockstep.tools.conversation import converse, greet
from lockstep.tools.inputs import Asked
from lockstep.tools.port import Listener, Notice, Outcome, PermittedCall, Watched
from lockstep.tools.samples import for_model, read_sample, told
from lockstep.values import Effect, JsonObject, RunId, Tier, digest_json

SERVER = Path(__file__).with_name("asking_server.py")
YES: JsonObject = {"action": "accept", "content": {"name": "Ada", "seats": 2}}


class Plain(FramedChild):
    """A process without a sandbox, as far as a conversation needs one."""

    def egress_log(self) -> tuple[EgressRecord, ...]:
        return ()

    def pause(self) -> None:
        self.pause_clock()

    def go_on(self) -> None:
        self.continue_clock()


async def started(wall_s: float = 30.0) -> Any:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, str(SERVER), stdin=pipe, stdout=pipe, stderr=pipe)
    process = Plain(child, Limits(wall_s=wall_s), lambda: kill_child(child), lambda code: "")
    process.start_clock()
    return process


def with_server(work: Callable[[Any], Coroutine[Any, Any, None]], wall_s: float = 30.0) -> None:
    async def bounded() -> None:
        process = await started(wall_s)
        try:
            async with asyncio.timeout(30):
                await work(process)
        finally:
            await process.close(5.0)

    asyncio.run(bounded())


async def booking(
    process: Any, protocol: str, *, asks: tuple[str, ...] = ("elicitation",), name: str = "book"
) -> PermittedCall:
    client = McpClient(process)
    await client.resume(protocol)
    (definition,) = [each for each in (await client.list_tools()).tools if each["name"] == name]
    tool = LockedTool(
        name=name,
        definition=definition,
        pin=pin(definition, "mcp:x", {}, {}),
        effect=Effect.ONCE,
        dedupe_on=None,
        tier=Tier.NONE,
        egress=(),
        env={},
        limits=LimitsSection(),
        timeout_s=20,
        fee_usd=Decimal(0),
        source="mcp:x",
        code={},
        protocol=protocol,
        asks=asks,
        samples="sampling" in asks,
    )
    digest = digest_json({})
    return PermittedCall(run=RunId("r1"), session="s", id="1.0", tool=tool, arguments={}, digest=digest, key="k")


async def said(process: Any, call: PermittedCall, ask: Any = None) -> Outcome:
    return await converse(await greet(call.tool, process), call, process, None, ask)


def test_a_modern_server_asks_in_a_result_and_is_answered_in_another_call() -> None:
    async def work(process: Any) -> None:
        call = await booking(process, MODERN)
        outcome = await said(process, call)
        assert (outcome.kind, outcome.acted) == ("input_required", False)
        assert outcome.asked is not None
        assert outcome.asked.state == "mine"
        (request,) = outcome.asked.requests
        assert (request.key, request.kind, request.message) == ("who", "form", "Who flies?")
        answered = replace(call, round=Round(responses={"who": YES}, state="mine"))
        assert json.loads((await said(process, answered)).text) == ["accept", YES["content"], "mine"]

    with_server(work)


def test_a_modern_server_that_may_not_ask_says_what_it_would_need() -> None:
    """What it would have asked never gets here: it is not told that it could."""

    async def work(process: Any) -> None:
        outcome = await said(process, await booking(process, MODERN, asks=()))
        assert outcome.kind in ("tool_error", "input_required")
        assert outcome.asked is None or all(each.refused for each in outcome.asked.requests)

    with_server(work)


def test_a_legacy_server_is_answered_while_it_holds_its_call_open() -> None:
    async def work(process: Any) -> None:
        async def ask(asked: Asked) -> JsonObject:
            assert asked.requests[0].message == "Who flies?"
            return {"request": YES}

        outcome = await said(process, await booking(process, LEGACY[0]), ask)
        assert json.loads(outcome.text) == ["accept", YES["content"]]

    with_server(work)


SAID = ModelSampled(call="1.0", input="q", key="m", digest=digest_json({}), text="Paris", model="m-1")


def test_a_modern_server_is_told_what_the_agents_model_says() -> None:
    async def work(process: Any) -> None:
        call = await booking(process, MODERN, asks=("sampling",), name="think")
        outcome = await said(process, call)
        assert outcome.asked is not None
        (request,) = for_model(outcome.asked).for_model
        assert read_sample(request.params).prompt.messages == (UserMessage(text="Capital of France?"),)
        answered = replace(call, round=Round(responses={"m": told(SAID)}, state="mine"))
        assert json.loads((await said(process, answered)).text) == ["assistant", "Paris", "m-1", "endTurn"]

    with_server(work)


def test_a_legacy_server_is_told_it_while_it_holds_its_call_open() -> None:
    async def work(process: Any) -> None:
        async def ask(asked: Asked) -> JsonObject:
            assert len(for_model(asked).for_model) == 1
            return {"request": told(SAID)}

        outcome = await said(process, await booking(process, LEGACY[0], asks=("sampling",), name="think"), ask)
        assert json.loads(outcome.text) == ["assistant", "Paris", "m-1", "endTurn"]

    with_server(work)


@pytest.mark.parametrize("action", ["accept", "decline"])
def test_a_legacy_server_that_wants_a_page_visited_is_called_again_when_it_was(action: str) -> None:
    async def work(process: Any) -> None:
        call = await booking(process, LEGACY[0], name="enter")
        outcome = await said(process, call)
        assert outcome.asked is not None
        (request,) = outcome.asked.requests
        assert (request.kind, request.url, request.refused) == ("url", "https://in.example/", "")
        again = replace(call, round=Round(responses={request.key: {"action": action}}, state=None))
        outcome = await said(process, again)
        if action == "accept":
            assert json.loads(outcome.text) == ["entered", None]
        else:
            assert (outcome.kind, "that was declined" in outcome.text) == ("tool_error", True)

    with_server(work)


def test_one_that_may_not_ask_for_that_has_failed() -> None:
    async def work(process: Any) -> None:
        outcome = await said(process, await booking(process, LEGACY[0], asks=(), name="enter"))
        assert (outcome.kind, outcome.asked) == ("tool_error", None)

    with_server(work)


def test_a_persons_time_is_not_the_calls() -> None:
    async def work(process: Any) -> None:
        call = await booking(process, LEGACY[0])

        async def ask(asked: Asked) -> JsonObject:
            assert process._wall.cancelled()
            process._left_s = 5.0  # what was left of it, whatever the machine is doing
            return {"request": YES}

        assert (await said(process, call, ask)).kind == "ok"
        assert not process._wall.cancelled()
        assert process._wall.when() <= asyncio.get_running_loop().time() + 5.0

    with_server(work)


def test_a_legacy_server_that_may_not_ask_cannot() -> None:
    async def work(process: Any) -> None:
        outcome = await said(process, await booking(process, LEGACY[0], asks=()), pytest.fail)
        assert outcome.kind == "tool_error", outcome

    with_server(work)


CHANGES = "notifications/resources/"


@pytest.mark.parametrize(
    ("watched", "told"),
    [
        (Watched(resources=frozenset({"x://1"})), {("updated", "x://1")}),
        (Watched(lists=True), {("list_changed", None)}),
        (Watched(resources=frozenset({"x://1", "x://2"})), {("updated", "x://1"), ("updated", "x://2")}),
        (Watched(), set()),
    ],
)
def test_a_modern_server_says_during_a_call_what_changes_of_what_somebody_subscribed_to(
    watched: Watched, told: set[Any]
) -> None:
    async def work(process: Any) -> None:
        heard: list[Notice] = []
        listener = Listener(hear=heard.append, watches=lambda source: watched)
        call = replace(await booking(process, MODERN, name="change"), listener=listener)
        ready = await greet(call.tool, process)
        kept = replace(call, tool=replace(call.tool, run_lifetime=True))
        unheard = replace(kept, listener=None)
        for each, expected in ((call, set()), (kept, told), (kept, told), (unheard, set())):
            heard.clear()
            assert json.loads((await converse(ready, each, process)).text) == ["changed"]
            found = [(each.method.removeprefix(CHANGES), each.params.get("uri")) for each in heard]
            changes = {each for each in found if each[0] in ("updated", "list_changed")}
            assert changes <= expected
            assert bool(changes) is bool(expected)

    with_server(work)
