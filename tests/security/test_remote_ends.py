"""The end of a line to a server elsewhere: nothing of it is left, however it came to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from remote_peer import LEGACY, Asked, Peer, Say, calling, head, remote_tool, serving

from lockstep.gate.permit import PermitMint
from lockstep.tools.client import McpClient
from lockstep.tools.port import Outcome
from lockstep.tools.remote import Line, RemoteProcess
from lockstep.tools.remote_http import Reach, RemoteHttp
from lockstep.tools.remote_servers import named_hosts, remote_spec
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
            http, tool = RemoteHttp(), remote_tool(peer.port, protocol=LEGACY, asks=("elicitation",))
            assert tool.remote is not None
            spec, digest = remote_spec(tool, tool.remote, "ann"), digest_json({})
            reach = Reach(rules=spec.egress, named=named_hosts(tool.remote))
            process = RemoteProcess(Line(http=http, url=tool.remote.url, reach=reach, headers={}), spec.limits)
            process.admit(PermitMint().issue(digest, expires_at_ms=now_ms() + 60_000), digest, {})
            client = McpClient(process, tool.asks)
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
