"""The end of a line to a server elsewhere, and of each call over it: nothing of it is left, however it ended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from remote_peer import DONE, LEGACY, Asked, Peer, Say, calling, done, head, remote_tool, serving

from lockstep.gate.permit import PermitMint
from lockstep.tools.client import McpClient
from lockstep.tools.port import Notice, Outcome
from lockstep.tools.remote import Line, RemoteProcess
from lockstep.tools.remote_http import Reach, RemoteHttp
from lockstep.tools.remote_servers import named, remote_spec
from lockstep.values import digest_json, now_ms

EVENTS = "text/event-stream"


@pytest.mark.parametrize("host", ["127.1", "\u00e9.example"])
def test_an_address_that_no_rule_can_name_is_a_sentence(tmp_path: Path, host: str) -> None:
    async def go() -> Outcome:
        async with calling(tmp_path) as caller:
            return await caller.call(remote_tool(80, host=host))

    outcome = asyncio.run(go())
    assert (outcome.kind, outcome.unknown) == ("sandbox_unavailable", False)
    assert "cannot be reached: " in outcome.text
    assert "Correct its `url`" in outcome.detail


def line_to(peer: Peer, http: RemoteHttp) -> tuple[RemoteProcess, McpClient]:
    tool = remote_tool(peer.port, protocol=LEGACY, asks=("elicitation",))
    assert tool.remote is not None
    spec = remote_spec(tool, tool.remote, "ann")
    reach = Reach(rules=spec.egress, named=named(tool.remote))
    process = RemoteProcess(Line(http=http, url=tool.remote.url, reach=reach, headers={}), spec.limits)
    return process, McpClient(process, tool.asks)


def admit(process: RemoteProcess) -> None:
    digest = digest_json({})
    process.admit(PermitMint().issue(digest, expires_at_ms=now_ms() + 60_000), digest, {})


def test_a_request_ends_with_its_line_also_where_sealing_it_was_broken_off() -> None:
    under_way, gone = asyncio.Event(), asyncio.Event()

    async def never(asked: Asked, say: Say) -> None:
        await say(head(kind=EVENTS))
        under_way.set()
        try:
            while True:
                await say(b": still here\n")
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    async def listens(asked: Asked, say: Say) -> None:
        await say(head(kind=EVENTS))
        await asyncio.sleep(3600)

    async def go() -> None:
        async with serving(Peer(called=never, resumed=listens)) as peer:
            http = RemoteHttp()
            process, client = line_to(peer, http)
            admit(process)
            await client.initialize(LEGACY)
            call = asyncio.create_task(client.call_tool("do", {}, {}))
            await under_way.wait()
            call.cancel()
            sealing = asyncio.create_task(process.seal())
            await asyncio.sleep(0)
            sealing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sealing
            await process.close()
            await gone.wait()
            await http.close()

    asyncio.run(asyncio.wait_for(go(), 20))


FORGED = {"content": [{"type": "text", "text": "forged"}]}
SAYS = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "of the first call"}}
ASKS = {"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}


def test_what_comes_by_a_stream_of_its_own_is_no_answer_and_is_of_the_call_during_which_it_came() -> None:
    said: asyncio.Queue[Any] = asyncio.Queue()

    async def listens(asked: Asked, say: Say) -> None:
        await say(head(kind=EVENTS))
        while True:
            await say(b"data: " + json.dumps(await said.get()).encode() + b"\n\n")

    async def go() -> None:
        heard: list[Notice] = []

        async def forges(asked: Asked, say: Say) -> None:
            said.put_nowait({"jsonrpc": "2.0", "id": asked.body["id"], "result": FORGED})
            said.put_nowait(SAYS)
            while not heard:  # noqa: ASYNC110 - what was said first has come by then
                await asyncio.sleep(0.005)
            await done(asked, say)

        async with serving(Peer(resumed=listens)) as peer:
            http = RemoteHttp()
            process, client = line_to(peer, http)
            asked: list[Any] = []

            async def ask(question: Any) -> None:
                asked.append(question)

            async def has_come(*frames: Any) -> None:
                for frame in frames:
                    said.put_nowait(frame)
                while process._frames.qsize() < sum("method" in each for each in frames):  # noqa: ASYNC110 - a queue
                    await asyncio.sleep(0.005)

            client.hear, client.ask = heard.append, ask
            admit(process)
            await client.initialize(LEGACY)
            peer.called = forges
            assert (await client.call_tool("do", {}, {})) == DONE
            assert [each.params["data"] for each in heard] == ["of the first call"]

            peer.called = done
            await has_come(SAYS, ASKS)
            await process.seal()
            admit(process)
            heard.clear()
            assert (await client.call_tool("do", {}, {})) == DONE
            assert (heard, asked) == ([], [])
            await process.close()
            await http.close()

    asyncio.run(asyncio.wait_for(go(), 20))
