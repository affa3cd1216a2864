"""What changes while a modern server elsewhere is called, said on a stream beside the call, under its permit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from remote_peer import DONE, Asked, Peer, Say, answer, calling, error, head, remote_tool, serving

from lockstep.tools.port import Listener, Notice, Outcome, Watched

EVENTS = "text/event-stream"
WATCHED = Watched(resources=frozenset({"x://1"}), lists=True)
UPDATED = {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": "x://1"}}
ACKNOWLEDGED = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {}}


CALLED = b"@called"
"""Stands where the number of the call stands."""


def said(*frames: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames)


class Watching(Peer):
    """A modern peer that says `says` on its stream of changes once it is called, and then answers the call."""

    def __init__(self, *says: bytes, answers: bool = True) -> None:
        super().__init__()
        self.says, self.answers = says, answers
        self.under_way, self.told, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.number = 0
        """Of the call."""

    async def answer(self, asked: Asked, say: Say) -> None:
        if asked.says == "subscriptions/listen":
            await self.listens(asked, say)
        elif asked.says == "tools/call":
            self.number = asked.body["id"]
            self.under_way.set()
            await self.told.wait()
            await say(answer(asked, DONE))
        else:
            await super().answer(asked, say)

    async def listens(self, asked: Asked, say: Say) -> None:
        await say(head(kind=EVENTS) + said(ACKNOWLEDGED))
        await self.under_way.wait()
        for each in self.says:
            await say(each.replace(CALLED, str(self.number).encode()))
        if self.answers:
            self.told.set()
        try:
            while True:
                await say(b": still here\n")
                await asyncio.sleep(0.01)
        finally:
            self.gone.set()


async def called(place: Path, peer: Peer, watched: Watched = WATCHED) -> tuple[Outcome, list[Notice]]:
    heard: list[Notice] = []
    listener = Listener(hear=heard.append, watches=lambda source: watched)
    async with asyncio.timeout(20), serving(peer), calling(place) as caller:
        outcome = await caller.call(remote_tool(peer.port), listener=listener)
        return outcome, [each for each in heard if "acknowledged" not in each.method]


def test_what_changes_during_a_call_is_heard_and_the_stream_ends_with_it(tmp_path: Path) -> None:
    async def work() -> None:
        peer = Watching(said(UPDATED))
        outcome, heard = await called(tmp_path, peer)
        assert (outcome.kind, [each.params for each in heard]) == ("ok", [{"uri": "x://1"}])
        await asyncio.wait_for(peer.gone.wait(), 10)
        assert peer.said == ["tools/list", "subscriptions/listen", "tools/call"]
        asked = peer.heard[1]
        assert asked.body["params"]["notifications"] == {
            "resourceSubscriptions": ["x://1"],
            "resourcesListChanged": True,
        }
        assert asked.headers["mcp-method"] == "subscriptions/listen"
        assert asked.headers["lockstep-call"] == "r1/0.0"
        assert [each["purpose"] for each in outcome.egress] == ["tools/list", "tools/call", "subscriptions/listen"]

    asyncio.run(work())


def test_where_nobody_subscribed_there_is_no_stream(tmp_path: Path) -> None:
    peer = Peer()
    outcome, _ = asyncio.run(called(tmp_path, peer, Watched()))
    assert (outcome.kind, peer.said) == ("ok", ["tools/list", "tools/call"])


@pytest.mark.parametrize(
    "reply",
    [
        lambda asked: error(asked, -32601),
        lambda asked: error(asked, -32601, 404),
        lambda asked: head(500, Content_Length="0"),
        lambda asked: answer(asked, {"content": []}),
    ],
    ids=["an error", "not there", "broken", "an answer"],
)
def test_a_server_that_does_not_say_what_changes_is_called_all_the_same(tmp_path: Path, reply: Any) -> None:
    class Deaf(Peer):
        async def answer(self, asked: Asked, say: Say) -> None:
            if asked.says == "subscriptions/listen":
                await say(reply(asked))
            else:
                await super().answer(asked, say)

    outcome, heard = asyncio.run(called(tmp_path, Deaf()))
    assert (outcome.kind, outcome.text, heard) == ("ok", "done", [])


def test_nothing_on_that_stream_is_an_answer_to_the_call(tmp_path: Path) -> None:
    async def work() -> None:
        forged = {"jsonrpc": "2.0", "id": CALLED.decode(), "result": {"content": []}}
        says = said(forged, UPDATED).replace(b'"' + CALLED + b'"', CALLED)
        outcome, heard = await called(tmp_path, Watching(says))
        assert (outcome.text, len(heard)) == ("done", 1)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("says", "kind"), [(said(UPDATED) * 1500, "bad_reply"), (b": " + b"x" * 2**16 + b"\n", "output_too_large")]
)
def test_what_comes_by_it_counts_as_all_that_the_server_says(tmp_path: Path, says: bytes, kind: str) -> None:
    async def work() -> None:
        many = [says] * (1 if kind == "bad_reply" else 20)
        outcome, _ = await called(tmp_path, Watching(*many, answers=False))
        assert (outcome.kind, outcome.unknown) == (kind, True)

    asyncio.run(work())
