"""Servers and authorization servers that mean harm while somebody logs in, or while a token is renewed."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="the extra lockstep-agents[mcp] is not installed")
sys.path.append(str(Path(__file__).parent.parent / "contract"))
from identity_peer import METADATA, PRM, Identity
from remote_peer import Asked, Peer, Say, head, serving, whole
from test_mcp_oauth import agree, desk, tool_of

from lockstep.agent.mcp_spec import OAuth
from lockstep.errors import ConfigError
from lockstep.tools import remote_http
from lockstep.tools.login import login
from lockstep.tools.port import Outcome

NONSENSE = {
    "nothing": b"",
    "no JSON": b"<html>",
    "nested deeply": b'{"access_token": ' + b"[" * 100_000,
    "not text": b'{"access_token": "\xff\xfe"}',
    "a number": b'{"access_token": 7, "token_type": "bearer"}',
    "no token": b'{"token_type": "bearer"}',
    "of another kind": b'{"access_token": "x", "token_type": "mac"}',
    "without end in time": b'{"access_token": "x", "token_type": "bearer", "expires_in": 1e999}',
    "a list": b"[]",
    "steering a terminal": b'{"error": "\\u001b[2J", "error_description": "\\u001b]0;owned\\u0007\\u202e"}',
}


@dataclass(kw_only=True)
class Liar(Identity):
    """Answers some paths otherwise: `instead` by path, with bytes as they go over the wire."""

    instead: dict[str, Callable[[Liar], bytes]]
    asked_paths: list[str]

    async def answer(self, asked: Asked, say: Say) -> None:
        path = asked.path.partition("?")[0]
        self.asked_paths.append(path)
        if path in self.instead:
            await say(self.instead[path](self))
        else:
            await super().answer(asked, say)


def liar(instead: dict[str, Callable[[Liar], bytes]] | None = None, **more: Any) -> Liar:
    return Liar(instead=instead or {}, asked_paths=[], **more)


def failed(place: Path, peer: Liar, oauth: OAuth | None = None, show: Any = agree) -> str:
    """What is said of a login that comes to nothing."""

    async def go() -> None:
        async with serving(peer), desk(place) as at:
            tool = tool_of(peer, oauth)
            assert tool.remote is not None
            await login(at.files, tool.remote, "ann", show, at.http)

    with pytest.raises(ConfigError) as refused:
        asyncio.run(asyncio.wait_for(go(), 60))
    said = str(refused.value)
    assert said.isprintable()
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("which", NONSENSE)
def test_a_token_endpoint_that_answers_nonsense_gives_nobody_a_token(tmp_path: Path, which: str) -> None:
    peer = liar({"/token": lambda peer: whole(NONSENSE[which], 400 if "terminal" in which else 200)})
    assert "The login at" in failed(tmp_path, peer)
    assert not list((tmp_path / "oauth").glob("*.json"))


def redirect(where: str) -> Callable[[Liar], bytes]:
    return lambda peer: whole(b"", 302, Location=where.format(peer.port))


REDIRECTS = ("http://169.254.169.254/latest", "http://127.0.0.1:{}/elsewhere", "file:///etc/passwd", "//evil.example")


@pytest.mark.parametrize("path", [PRM, METADATA, "/register", "/token"])
@pytest.mark.parametrize("where", REDIRECTS)
def test_no_redirect_is_followed(tmp_path: Path, path: str, where: str) -> None:
    peer = liar({path: redirect(where)})
    if path == PRM:  # as where it has none: the server itself is asked for a login

        async def go() -> bool:
            async with serving(peer), desk(tmp_path) as at:
                return await at.login(tool_of(peer))

        assert asyncio.run(asyncio.wait_for(go(), 60))
    else:
        failed(tmp_path, peer)
        assert peer.granted == {}
    assert path in peer.asked_paths
    assert "/elsewhere" not in peer.asked_paths


Told = Callable[[Liar, int], None]
ELSEWHERE: dict[str, Told] = {
    "metadata of the server": lambda peer, port: setattr(peer, "metadata_url", f"http://127.0.0.1:{port}/x"),
    "an authorization server": lambda peer, port: setattr(peer, "authorization_server", f"http://127.0.0.1:{port}"),
    "where clients register": lambda peer, port: peer.metadata.update(
        registration_endpoint=f"http://127.0.0.1:{port}/register"
    ),
    "where tokens are had": lambda peer, port: peer.metadata.update(token_endpoint=f"http://127.0.0.1:{port}/token"),
}


@pytest.mark.parametrize("which", ELSEWHERE)
def test_another_port_of_the_same_machine_is_another_service(tmp_path: Path, which: str) -> None:
    """A server that somebody runs here, or reaches at a private address, names what else is there."""
    bystander, peer = Peer(), liar()

    async def go() -> None:
        async with serving(bystander), serving(peer), desk(tmp_path) as at:
            ELSEWHERE[which](peer, bystander.port)
            await at.login(tool_of(peer))

    with pytest.raises(ConfigError, match=r"is not public, and neither `url` nor `issuer` in agent\.toml names it"):
        asyncio.run(asyncio.wait_for(go(), 60))
    assert bystander.heard == []


def test_an_authorization_server_beside_its_server_is_reached_where_it_is_named(tmp_path: Path) -> None:
    async def go(**named: Any) -> bool:
        async with serving(Identity()) as gives, serving(Identity()) as peer, desk(tmp_path) as at:
            peer.authorization_server = gives.at
            gives.metadata.update(resource=f"{peer.at}/mcp")
            gives._token = peer._token  # type: ignore[method-assign]  # for the resource that is the peer
            peer.asked_for = gives.asked_for
            return await at.login(tool_of(peer, OAuth(**(named or {"issuer": gives.at}))))

    for named in ({}, {"any_port": True}):
        assert asyncio.run(asyncio.wait_for(go(**named), 60)) is True


PAGES = (
    "http://127.0.0.1:9/authorize",
    "https://127.0.0.1:9/authorize",
    "http://192.168.0.1/reboot",
    "https://10.0.0.1/",
    "http://id.example/",
    "https://user:secret@id.example/",
    "https://id.example:0/",
    "file:///etc/passwd",
    "javascript:alert(1)",
)


@pytest.mark.parametrize("page", PAGES)
def test_nobody_is_sent_to_a_page_that_is_none_of_a_public_server(tmp_path: Path, page: str) -> None:
    shown: list[str] = []

    async def show(url: str) -> None:
        shown.append(url)
        raise AssertionError(url)

    failed(tmp_path, liar(metadata={"authorization_endpoint": page}), show=show)
    assert shown == []


MIXED = {
    "another issuer": {"iss": "https://evil.example"},
    "its issuer but for a slash": {"iss": "{}/"},
    "no issuer, although it says that it names it": {"iss": None},
}


@pytest.mark.parametrize("which", MIXED)
def test_an_answer_of_another_authorization_server_is_not_taken(tmp_path: Path, which: str) -> None:
    class Mixed(Liar):
        def _code(self, asked: dict[str, str]) -> str:
            iss = MIXED[which]["iss"]
            said = super()._code(asked).partition("&iss=")[0]
            return said if iss is None else f"{said}&iss={iss.format(self.at)}"

    peer = Mixed(instead={}, asked_paths=[])
    assert "iss" in failed(tmp_path, peer)
    assert peer.token_requests == []


def test_an_authorization_server_that_does_not_answer_leaves_no_doubt_about_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_http, "OAUTH_S", 0.5)

    class Silent(Identity):
        async def answer(self, asked: Asked, say: Say) -> None:
            if asked.path == "/token" and self.granted:
                await say(head(200)[:20])
                await asyncio.sleep(3600)
            await super().answer(asked, say)

    async def go() -> Outcome:
        async with serving(Silent(expires_in=1)) as peer, desk(tmp_path) as at:
            await at.login(tool_of(peer))  # type: ignore[arg-type]
            return await at.call(tool_of(peer))  # type: ignore[arg-type]

    outcome = asyncio.run(asyncio.wait_for(go(), 60))
    assert (outcome.kind, outcome.unknown) == ("process_ended", False), outcome
    assert "did not answer within 0.5 s" in outcome.text


def test_what_an_authorization_server_says_reaches_no_log(tmp_path: Path) -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        body = json.dumps({"error": "invalid_grant", "error_description": "\x1b[2J my-secret-token"}).encode()
        failed(tmp_path, liar({"/token": lambda peer: whole(body, 400)}))
    finally:
        logging.getLogger().removeHandler(handler)
    assert said.getvalue() == ""
