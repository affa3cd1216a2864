"""What a server elsewhere says of the secret that it was sent: it is taken out, however it is spelt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_peer import Asked, Behaviour, Peer, Say, answer, calling, head, remote_tool, serving, whole

from lockstep.agent.spec import SecretSection
from lockstep.tools.port import Outcome

KEY = "a-very-secret-value"


def to(reply: Callable[[Asked], bytes]) -> Behaviour:
    async def behave(asked: Asked, say: Say) -> None:
        await say(reply(asked))

    return behave


def called(place: Path, peer: Peer) -> Outcome:
    """A call that is sent the secret, which the environment holds as PEER_KEY."""

    async def call() -> Outcome:
        async with serving(peer), calling(place) as caller:
            host = f"127.0.0.1:{peer.port}"
            secret = SecretSection(**{"from": "env:PEER_KEY"}, env="KEY", host=host, header="Authorization")
            headers = {"Authorization": "Bearer ${KEY}"}
            return await caller.call(remote_tool(peer.port, headers=headers, secrets=(secret,)))

    return asyncio.run(call())


def test_a_secret_is_sent_and_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def echoes(asked: Asked, say: Say) -> None:
        text = f"{asked.headers['authorization']} {json.dumps(KEY)}"
        await say(answer(asked, {"content": [{"type": "text", "text": text}]}))

    monkeypatch.setenv("PEER_KEY", KEY)
    peer = Peer(called=echoes)

    outcome = called(tmp_path, peer)
    assert outcome.text == 'Bearer [secret KEY] "[secret KEY]"'
    assert {asked.headers["authorization"] for asked in peer.heard} == {f"Bearer {KEY}"}
    assert KEY not in repr(outcome)


@pytest.mark.parametrize("spelt", ["\\u0061-very-secret-value", "a\\u002Dvery-secret-valu\\u0065"])
def test_a_secret_that_a_server_spells_with_escapes_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelt: str
) -> None:
    """As the JSON writers of some languages do with `+`, `/` and `-` unasked."""
    result = json.dumps({"content": [{"type": "text", "text": "it is SPELT"}]}).replace("SPELT", spelt)

    def reply(asked: Asked) -> bytes:
        return whole(f'{{"jsonrpc": "2.0", "id": {asked.body["id"]}, "result": {result}}}'.encode())

    monkeypatch.setenv("PEER_KEY", KEY)
    peer = Peer(called=to(reply))

    assert called(tmp_path, peer).text == "it is [secret KEY]"


ECHOES: dict[str, Callable[[str], bytes]] = {
    "a status that is none": lambda key: f"HTTP/9.9 {key}\r\n\r\n".encode(),
    "a length that is none": lambda key: head(Transfer_Encoding="chunked") + f"{key}\r\n".encode(),
    "a refusal that is cut": lambda key: whole(b"", 401, WWW_Authenticate="x" * 285 + key),
    "an address that is cut": lambda key: whole(b"", 302, Location="http://a/" + "x" * 178 + key),
}


@pytest.mark.parametrize("which", ECHOES)
def test_a_secret_is_not_seen_in_what_is_said_of_a_broken_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setenv("PEER_KEY", KEY)
    peer = Peer(called=to(lambda asked: ECHOES[which](asked.headers["authorization"].removeprefix("Bearer "))))

    said = repr(called(tmp_path, peer))
    assert KEY[:9] not in said
    assert "[secret" in said
