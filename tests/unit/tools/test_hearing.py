"""What is passed on of what a server says while it is called: of this call alone, not too much, and not too long."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from inprocess import LOOK
from test_client import Server

from lockstep.tools.client import MAX_NOTICES, MAX_STRAY_FRAMES, MODERN, McpClient
from lockstep.tools.conversation import _asked
from lockstep.tools.port import Listener, Notice, PermittedCall
from lockstep.values import Digest, RunId

OURS = "r1/1.0"


def progress(number: int, token: str = OURS, **more: Any) -> dict[str, Any]:
    return {"method": "notifications/progress", "params": {"progressToken": token, "progress": number, **more}}


def heard(*frames: dict[str, Any], listens: bool = True, level: str = "") -> tuple[list[Notice], Server]:
    told: list[Notice] = []
    listener = Listener(hear=told.append, progress=True, log_level=level) if listens else None
    tool = replace(LOOK, protocol=MODERN)
    call = PermittedCall(
        run=RunId("r1"),
        session="s",
        id="1.0",
        tool=tool,
        arguments={},
        digest=Digest("1" * 64),
        key="",
        listener=listener,
    )

    class Talking(Server):
        async def receive(self) -> bytes:
            return (await super().receive()).replace(b'"id": null, ', b"")  # what is unasked has no id

    server = Talking(lambda asked: [*({"id": None, **each} for each in frames), {"result": {"content": []}}])

    async def ask() -> None:
        client = McpClient(server)  # type: ignore[arg-type]
        client.protocol = MODERN
        await _asked(client, call)
        assert client.hear is None

    asyncio.run(ask())
    return told, server


def test_progress_of_this_call_is_heard_and_that_of_another_is_not() -> None:
    told, server = heard(progress(1), progress(2, "r1/0.0"), progress(3))
    assert [each.params["progress"] for each in told] == [1, 3]
    assert server.heard[0]["params"]["_meta"]["progressToken"] == OURS


def test_what_is_long_is_not_passed_on_and_what_is_too_much_ends() -> None:
    assert heard(progress(1, message="x" * 20_000))[0] == []
    told, _ = heard(*(progress(number) for number in range(MAX_STRAY_FRAMES - 1)))
    assert len(told) == MAX_NOTICES


def test_a_server_is_asked_for_what_somebody_hears_and_no_more() -> None:
    meta = "io.modelcontextprotocol/logLevel"
    assert heard(level="info")[1].heard[0]["params"]["_meta"][meta] == "info"
    assert meta not in heard()[1].heard[0]["params"]["_meta"]
    asked = heard(progress(1), listens=False)[1].heard[0]["params"]["_meta"]
    assert "progressToken" not in asked
