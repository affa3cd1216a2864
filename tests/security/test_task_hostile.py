"""Servers elsewhere that make tasks of calls, and mean harm or break: each ends in time, and none is called twice.

`unknown` is true wherever the task may have been carried out, which nobody here could exclude.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from remote_peer import DO, DONE, Asked, Behaviour, Caller, Peer, Say, answer, calling, error, remote_tool, serving

from lockstep.agent.locked import pin
from lockstep.errors import PermitError
from lockstep.gate.permit import PermitMint
from lockstep.gate.rounds import Round
from lockstep.sandbox.bubblewrap import Bubblewrap
from lockstep.tools import tasks
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.inputs import Asked as Questions
from lockstep.tools.port import Outcome, Tasking
from lockstep.tools.starting import Guest
from lockstep.values import Tier, digest_json, now_ms, sha256

TASK: dict[str, Any] = {"resultType": "task", "taskId": "t-1", "status": "working", "ttlMs": None, "pollIntervalMs": 0}
FORM = {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": {"type": "object"}}}
YES = {"action": "accept", "content": {}}
GETS = ["tasks/get"]


def is_now(status: str, **more: Any) -> dict[str, Any]:
    return {**TASK, "resultType": "complete", "status": status, **more}


WORKING = is_now("working")
COMPLETED = is_now("completed", result=DONE)


def with_result(result: Any) -> Behaviour:
    async def behave(asked: Asked, say: Say) -> None:
        await say(answer(asked, result))

    return behave


def in_turn(*behaviours: Behaviour | dict[str, Any]) -> Behaviour:
    """One after another; the last for all that follows."""
    left = list(behaviours)

    async def behave(asked: Asked, say: Say) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        await (with_result(now) if isinstance(now, dict) else now)(asked, say)

    return behave


def refusing(code: int, status: int = 200) -> Behaviour:
    async def behave(asked: Asked, say: Say) -> None:
        await say(error(asked, code, status))

    return behave


async def breaks(asked: Asked, say: Say) -> None:
    raise ConnectionError


async def hangs(asked: Asked, say: Say) -> None:
    await asyncio.sleep(3600)


@dataclass(kw_only=True)
class Kept:
    """What would stand in the journal, and whether somebody wants the task to end."""

    names: list[str] = field(default_factory=list)
    unwanted: bool = False
    left_s: float = 20.0

    @property
    def tasking(self) -> Tasking:
        async def begun(task: str) -> None:
            self.names.append(task)

        return Tasking(left_s=self.left_s, begun=begun, unwanted=lambda: self.unwanted)


def met(
    place: Path,
    tasked: Behaviour,
    *,
    made: Mapping[str, Any] = TASK,
    kept: Kept | None = None,
    round: Round | None = None,
    **more: Any,
) -> tuple[Outcome, Peer, Kept]:
    """A call that is answered with `made`, and what is said about it with `tasked`."""
    peer, kept = Peer(called=with_result(dict(made)), tasked=tasked), kept or Kept()

    async def work() -> Outcome:
        async with serving(peer), calling(place) as caller, asyncio.timeout(30):
            tool = replace(remote_tool(peer.port, task_s=20, **more), errors_not_done=False)
            return await caller.call(tool, tasks=kept.tasking, round=round)

    return asyncio.run(work()), peer, kept


def said(peer: Peer) -> list[str]:
    return [each for each in peer.said if each != "tools/list"]


def test_a_task_is_asked_after_until_its_result_is_there(tmp_path: Path) -> None:
    outcome, peer, kept = met(tmp_path, in_turn(WORKING, COMPLETED))
    assert (outcome.kind, outcome.text, outcome.unknown) == ("ok", "done", False)
    assert said(peer) == ["tools/call", "tasks/get", "tasks/get"]
    assert kept.names == ["t-1"]
    called, *asked = [each for each in peer.heard if each.says != "tools/list"]
    assert [each.headers["mcp-name"] for each in asked] == ["t-1", "t-1"]
    assert [each.headers["lockstep-call"] for each in asked] == [called.headers["lockstep-call"]] * 2
    declared = called.body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
    assert declared == {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    assert [(one["purpose"], one["status"]) for one in outcome.egress][-2:] == [("tools/call", 200), ("tasks/get", 200)]


def test_a_server_that_may_make_no_task_is_not_told_of_them_and_its_task_is_no_answer(tmp_path: Path) -> None:
    peer = Peer(called=with_result(TASK))

    async def work() -> Outcome:
        async with serving(peer), calling(tmp_path) as caller:
            return await caller.call(remote_tool(peer.port))

    outcome = asyncio.run(work())
    assert (outcome.kind, outcome.unknown) == ("bad_reply", True)
    (called,) = [each for each in peer.heard if each.says == "tools/call"]
    assert called.body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] == {}
    assert said(peer) == ["tools/call"]


def test_the_name_is_durable_before_anything_is_asked_after_it(tmp_path: Path) -> None:
    peer, heard = Peer(called=with_result(TASK), tasked=with_result(COMPLETED)), []

    async def begun(task: str) -> None:
        heard.append((task, list(said(peer))))

    async def work() -> None:
        async with serving(peer), calling(tmp_path) as caller:
            tasking = Tasking(left_s=20, begun=begun, unwanted=bool)
            await caller.call(remote_tool(peer.port, task_s=20), tasks=tasking)

    asyncio.run(work())
    assert heard == [("t-1", ["tools/call"])]


HOSTILE_NAMES = {
    "of 1 MB": "x" * 2**20,
    "with a line in it": "a\r\nMcp-Name: b",
    "that turns what follows around": "\u202e1-t",
    "that is empty": "",
    "that is a number": 7,
    "that is none": None,
}


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_a_task_with_a_name_that_is_none_is_never_asked_after(tmp_path: Path, name: Any) -> None:
    outcome, peer, kept = met(tmp_path, with_result(COMPLETED), made={**TASK, "taskId": name}, output_kb=4096)
    assert (outcome.kind, outcome.unknown, kept.names) == ("bad_reply", True, [])
    assert said(peer) == ["tools/call"]


WRONG = {
    "another task's": is_now("completed", result=DONE, taskId="t-2"),
    "of no status": is_now("sleeping"),
    "of a status that is none": is_now({"a": 1}),  # type: ignore[arg-type]
    "completed without a result": is_now("completed"),
    "completed with a result of the wrong shape": is_now("completed", result={"content": 7}),
    "completed with another task": is_now("completed", result=TASK),
    "completed with a question": is_now("completed", result={"resultType": "input_required", "requestState": "s"}),
    "failed without an error": is_now("failed"),
    "a question without one": is_now("input_required"),
    "a question that is none": is_now("input_required", inputRequests={"q": 7}),
}


@pytest.mark.parametrize("reply", WRONG.values(), ids=WRONG)
def test_what_is_said_of_a_task_and_is_nothing_of_the_kind_leaves_it_in_doubt(
    tmp_path: Path, reply: dict[str, Any]
) -> None:
    outcome, peer, _ = met(tmp_path, with_result(reply))
    assert (outcome.kind, outcome.unknown, outcome.task_open) == ("bad_reply", True, False)
    assert said(peer) == ["tools/call", "tasks/get"]


@pytest.mark.parametrize("wish", [0, -5, 10**400, 0.001, True, "soon", None], ids=str)
def test_how_often_it_is_asked_after_is_not_for_its_server_alone_to_say(wish: Any) -> None:
    task = tasks.read_task({**TASK, "pollIntervalMs": wish})
    assert tasks.MIN_WAIT_S <= task.wait_s <= tasks.MAX_WAIT_S
    assert (task.wait_s == tasks.WAIT_S) == ((wish in (True, "soon", None) and wish != 1) or wish is True)


def test_one_that_never_ends_is_told_to_end_and_asked_once_more(tmp_path: Path) -> None:
    outcome, peer, _ = met(tmp_path, in_turn(WORKING), kept=Kept(left_s=0.6))
    assert (outcome.kind, outcome.unknown, outcome.task_open) == ("timeout", True, False)
    assert said(peer)[-2:] == ["tasks/cancel", "tasks/get"]
    assert said(peer).count("tasks/get") <= 5


def test_one_whose_time_is_over_is_still_asked_after_once(tmp_path: Path) -> None:
    goes_on = Round(responses={}, state=None, task="t-1")
    outcome, peer, _ = met(tmp_path, with_result(COMPLETED), kept=Kept(left_s=0), round=goes_on)
    assert (outcome.kind, peer.said) == ("ok", ["tasks/get"])


def test_one_that_goes_on_is_never_called_again_nor_held_against_its_pin(tmp_path: Path) -> None:
    goes_on = Round(responses={}, state=None, task="t-1")
    outcome, peer, kept = met(tmp_path, in_turn(WORKING, COMPLETED), round=goes_on)
    assert (outcome.kind, peer.said, kept.names) == ("ok", ["tasks/get", "tasks/get"], [])


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_one_that_failed_or_was_cancelled_may_have_been_carried_out(tmp_path: Path, status: str) -> None:
    ended = is_now(status, error={"code": -32602, "message": "no seat"}, statusMessage="no seat")
    outcome, _, _ = met(tmp_path, with_result(ended))
    assert (outcome.kind, outcome.unknown, outcome.task_open) == ("tool_error", True, False)
    assert "no seat" in outcome.text


@pytest.mark.parametrize("ended", [is_now("failed", error={"code": 1, "message": "x"}), is_now("cancelled")])
def test_the_operator_may_vouch_that_it_was_not(tmp_path: Path, ended: dict[str, Any]) -> None:
    peer = Peer(called=with_result(TASK), tasked=with_result(ended))

    async def work() -> Outcome:
        async with serving(peer), calling(tmp_path) as caller:
            tool = replace(remote_tool(peer.port, task_s=20), errors_not_done=True)
            return await caller.call(tool, tasks=Kept().tasking)

    assert asyncio.run(work()).unknown is False


@pytest.mark.parametrize("before", [(), (WORKING,)], ids=["at once", "later"])
def test_one_that_its_server_does_not_know_is_lost(tmp_path: Path, before: tuple[dict[str, Any], ...]) -> None:
    outcome, _, _ = met(tmp_path, in_turn(*before, refusing(-32602)))
    assert (outcome.kind, outcome.unknown, outcome.task_open) == ("task_lost", True, False)


UNANSWERED: Mapping[str, Behaviour] = {
    "the connection breaks": breaks,
    "its server is down": refusing(0, 503),
    "its server fails": refusing(-32603),
    "the credentials are refused": refusing(0, 401),
}


@pytest.mark.parametrize("how", UNANSWERED)
def test_where_nothing_is_learnt_the_task_is_open(tmp_path: Path, how: str) -> None:
    outcome, _, _ = met(tmp_path, in_turn(WORKING, UNANSWERED[how]))
    assert (outcome.unknown, outcome.task_open, outcome.heard) == (True, True, True)


def test_what_is_heard_when_its_time_is_over_is_no_reason_to_ask_on(tmp_path: Path) -> None:
    goes_on = Round(responses={}, state=None, task="t-1")
    outcome, _, _ = met(tmp_path, in_turn(WORKING, breaks), kept=Kept(left_s=0), round=goes_on)
    assert (outcome.task_open, outcome.heard) == (True, False)


def test_a_server_that_does_not_answer_for_it_takes_no_longer_than_for_a_call(tmp_path: Path) -> None:
    outcome, _, _ = met(tmp_path, in_turn(WORKING, hangs), timeout_s=1)
    assert (outcome.kind, outcome.unknown, outcome.task_open) == ("timeout", True, True)


def test_the_time_and_the_output_of_a_call_are_those_of_one_request(tmp_path: Path) -> None:
    long = is_now("working", statusMessage="x" * 40_000)
    outcome, peer, _ = met(tmp_path, in_turn(long, long, long, COMPLETED), output_kb=64, timeout_s=0.7)
    assert (outcome.kind, said(peer).count("tasks/get")) == ("ok", 4)


def test_a_result_that_is_too_large_is_not_asked_for_again(tmp_path: Path) -> None:
    large = is_now("completed", result={"content": [{"type": "text", "text": "x" * 100_000}]})
    outcome, _, _ = met(tmp_path, with_result(large), output_kb=64)
    assert (outcome.kind, outcome.unknown, outcome.task_open) == ("output_too_large", True, False)


def test_what_it_asks_for_ends_the_round_and_may_have_been_carried_out_in_part(tmp_path: Path) -> None:
    asks = is_now("input_required", inputRequests={"who": FORM})
    outcome, peer, _ = met(tmp_path, with_result(asks), asks=("elicitation",))
    assert (outcome.kind, outcome.acted) == ("input_required", True)
    assert isinstance(outcome.asked, Questions)
    assert [each.key for each in outcome.asked.requests] == ["who"]
    assert said(peer) == ["tools/call", "tasks/get"]


def test_what_was_answered_is_told_once_however_long_it_is_still_listed(tmp_path: Path) -> None:
    asks = is_now("input_required", inputRequests={"who": FORM})
    goes_on = Round(responses={"who": YES}, state=None, task="t-1")
    outcome, peer, _ = met(
        tmp_path, in_turn(asks, {"resultType": "complete"}, asks, asks, COMPLETED), round=goes_on, asks=("elicitation",)
    )
    assert outcome.kind == "ok"
    assert peer.said == ["tasks/get", "tasks/update", "tasks/get", "tasks/get", "tasks/get"]
    (update,) = [each for each in peer.heard if each.says == "tasks/update"]
    assert update.body["params"]["inputResponses"] == {"who": YES}
    assert update.headers["mcp-name"] == "t-1"


def test_what_was_not_asked_for_is_not_told(tmp_path: Path) -> None:
    goes_on = Round(responses={"who": YES}, state=None, task="t-1")
    asks = is_now("input_required", inputRequests={"pay": FORM})
    outcome, peer, _ = met(tmp_path, with_result(asks), round=goes_on, asks=("elicitation",))
    assert (outcome.kind, peer.said) == ("input_required", GETS)


def test_a_question_that_its_entry_does_not_let_it_ask_is_refused(tmp_path: Path) -> None:
    asks = is_now("input_required", inputRequests={"who": FORM})
    outcome, _, _ = met(tmp_path, with_result(asks))
    assert outcome.asked is not None
    assert outcome.asked.open == ()


async def broken_off(place: Path, peer: Peer, unwanted: bool) -> float:
    """Cancel a call whose task has been asked after; how long that takes, in seconds."""
    asked_after, tasked = asyncio.Event(), peer.tasked

    async def behave(asked: Asked, say: Say) -> None:
        asked_after.set()
        await tasked(asked, say)

    peer.tasked = behave
    async with serving(peer), calling(place) as caller, asyncio.timeout(20):
        tasking = Kept(unwanted=unwanted).tasking
        running = asyncio.create_task(caller.call(remote_tool(peer.port, task_s=20), tasks=tasking))
        await asked_after.wait()
        began = asyncio.get_running_loop().time()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("unwanted", [True, False])
def test_it_is_told_to_end_where_somebody_said_so_and_goes_on_where_our_process_merely_ends(
    tmp_path: Path, unwanted: bool
) -> None:
    peer = Peer(called=with_result(TASK), tasked=in_turn(WORKING))
    asyncio.run(broken_off(tmp_path, peer, unwanted))
    assert ("tasks/cancel" in peer.said) is unwanted


def test_a_server_that_does_not_answer_to_that_holds_nobody_up(tmp_path: Path) -> None:
    peer = Peer(called=with_result(TASK), tasked=hangs)
    assert asyncio.run(broken_off(tmp_path, peer, True)) < 10


@pytest.mark.parametrize("permit", ["of another gate", "for another task"])
def test_without_a_permit_for_it_nothing_is_asked_after_a_task(tmp_path: Path, permit: str) -> None:
    peer = Peer(tasked=with_result(COMPLETED))
    goes_on = Round(responses={}, state=None, task="t-1")

    async def work(caller: Caller) -> None:
        mint = PermitMint() if permit == "of another gate" else caller.mint
        wrong = mint.issue(digest_json({"task": "t-2"}), expires_at_ms=now_ms() + 60_000)
        with pytest.raises(PermitError):
            await caller.call(remote_tool(peer.port, task_s=20), tasks=Kept().tasking, round=goes_on, permit=wrong)

    async def bounded() -> None:
        async with serving(peer), calling(tmp_path) as caller:
            await work(caller)

    asyncio.run(bounded())
    assert peer.said == []


# In a sandbox: what a server does between two questions, and that nothing of it is left.

HERE = """
import json, os, sys, time
def send(**frame): print(json.dumps({"jsonrpc": "2.0", **frame}), flush=True)
def task(**more): return {"taskId": "t-1", "status": "working", "pollIntervalMs": 0, "ttlMs": None, **more}
ASKED = 0
for line in sys.stdin:
    asked = json.loads(line)
    number, method = asked.get("id"), asked["method"]
    if method == "tools/list":
        send(id=number, result={"tools": [{"name": "do", "description": "Do it.", "inputSchema": {"type": "object"}}]})
    elif method == "tools/call":
        send(id=number, result=task(resultType="task"))
    elif method == "tasks/get":
        ASKED += 1
        DOES
        send(id=number, result=task())
    elif method == "tasks/update":
        send(id=number, result={})
"""
ASKS = f"send(id=number, result=task(status='input_required', inputRequests={{'q%d' % ASKED: {FORM}}})); continue"
DONE_THEN = "send(id=number, result=task(status='completed', result={'content': [{'type': 'text', 'text': 'done'}]}))"
IN_SANDBOXES: Mapping[str, tuple[str, str]] = {
    "is silent": ("time.sleep(1000)", "timeout"),
    "dies": ("os._exit(3)", "process_ended"),
    "dies between two questions": ("send(id=number, result=task()); os._exit(3)", "process_ended"),
    "talks between them": (
        "send(id=number, result=task())\n        for n in range(1500): send(method='x')",
        "bad_reply",
    ),
    "talks without end": ("while True: os.write(1, b'x' * 4096)", "output_too_large"),
    "says much each time, and ends": (
        f"if ASKED == 4: {DONE_THEN}; continue\n        send(id=number, result=task(more='x' * 40_000)); continue",
        "ok",
    ),
    "asks without end": (ASKS, "input_refused"),
}


@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed (Debian package bubblewrap)")
@pytest.mark.parametrize("name", IN_SANDBOXES)
def test_a_hostile_task_in_a_sandbox_ends_typed(tmp_path: Path, name: str) -> None:
    does, kind = IN_SANDBOXES[name]
    files = {"server.py": HERE.replace("DOES", does).encode()}
    code, source = CodeStore(tmp_path / "code"), "mcp:/usr/bin/python3 -I -S server.py"
    code.put(files)
    digests = {file: sha256(data) for file, data in files.items()}
    tool = replace(
        remote_tool(1, task_s=20, timeout_s=3, output_kb=64),
        remote=None,
        run_lifetime=False,
        tier=Tier.PROCESS,
        egress=(),
        source=source,
        code=digests,
        pin=pin(DO, source, digests, {}),
    )

    async def work() -> Outcome:
        host = SandboxedTools((Bubblewrap(tmp_path / "sandboxes"),), code, Guest(tmp_path / "guest"))
        try:
            async with asyncio.timeout(60):
                return await Caller(host=host).call(tool, tasks=Kept().tasking)
        finally:
            await host.close()

    outcome = asyncio.run(work())
    assert outcome.kind == kind, outcome
