"""Tokens for servers elsewhere: got by a login, kept for their owner, renewed by nobody, and sent where they belong."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

pytest.importorskip("mcp", reason="the extra lockstep-agents[mcp] is not installed")
sys.path.append(str(Path(__file__).parent.parent / "security"))
from identity_peer import Identity
from remote_peer import Asked, Caller, Say, answer, remote_tool, serving, whole

from lockstep.agent.locked import LockedTool
from lockstep.agent.mcp_spec import OAuth
from lockstep.errors import ConfigError
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.login import login
from lockstep.tools.oauth import StoredTokens
from lockstep.tools.port import Outcome
from lockstep.tools.remote_http import RemoteHttp
from lockstep.tools.remote_servers import RemoteServers
from lockstep.tools.starting import Guest
from lockstep.tools.token_files import TokenFiles


class Desk(Caller):
    """A tool host with tokens, whose operator is ann."""

    def __init__(self, place: Path) -> None:
        self.files = TokenFiles(place / "oauth")
        self.http = RemoteHttp()
        remotes = RemoteServers(StoredTokens(self.files, operator="ann"), self.http)
        super().__init__(host=SandboxedTools((), CodeStore(place / "code"), Guest(place / "guest"), remotes=remotes))

    async def login(self, tool: LockedTool, principal: str = "ann") -> bool:
        assert tool.remote is not None
        return await login(self.files, tool.remote, principal, agree, self.http)


async def agree(url: str) -> None:
    async with httpx2.AsyncClient(follow_redirects=True, trust_env=False) as browser:
        (await browser.get(url)).raise_for_status()


@contextlib.asynccontextmanager
async def desk(place: Path) -> AsyncIterator[Desk]:
    made = Desk(place)
    try:
        yield made
    finally:
        await made.host.close()


def tool_of(peer: Identity, oauth: OAuth | None = None) -> LockedTool:
    tool = remote_tool(peer.port)
    assert tool.remote is not None
    return replace(tool, remote=replace(tool.remote, oauth=oauth or OAuth()))


async def echoes(asked: Asked, say: Say) -> None:
    await say(answer(asked, {"content": [{"type": "text", "text": asked.headers["authorization"]}]}))


def test_whoever_logged_in_may_call_and_the_token_is_seen_by_nobody(tmp_path: Path) -> None:
    peer = Identity(called=echoes)

    async def go() -> tuple[Outcome, Outcome, Outcome]:
        async with serving(peer), desk(tmp_path) as at:
            before = await at.call(tool_of(peer))
            assert await at.login(tool_of(peer))
            return before, await at.call(tool_of(peer)), await at.call(tool_of(peer), principal="bob")

    before, after, other = asyncio.run(go())
    wants = "wants a login of ann: run `lockstep tools login AGENT http://127.0.0.1"
    assert (before.kind, before.unknown, wants in before.text) == ("tool_error", False, True)
    assert (after.kind, after.text) == ("ok", "Bearer [token]")
    assert "wants a login of bob" in other.text
    assert "--principal bob" in other.text
    assert "token-number-1" not in repr((before, after, other))
    (kept,) = [path for path in (tmp_path / "oauth").iterdir() if b"token-number-1" in path.read_bytes()]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert peer.asked_for[0]["resource"] == f"{peer.at}/mcp"


def test_a_token_that_is_over_is_renewed_without_anybody(tmp_path: Path) -> None:
    peer = Identity(expires_in=1)

    async def go() -> list[str]:
        async with serving(peer), desk(tmp_path) as at:
            await at.login(tool_of(peer))
            peer.expires_in = 3600
            return [(await at.call(tool_of(peer), run=run)).kind for run in ("r1", "r2")]

    assert asyncio.run(go()) == ["ok", "ok"]
    assert [form["grant_type"] for form in peer.token_requests] == ["authorization_code", "refresh_token"]
    assert peer.token_requests[1]["resource"] == f"{peer.at}/mcp"


def test_a_token_that_is_taken_back_is_renewed_once(tmp_path: Path) -> None:
    async def tells(asked: Asked, say: Say) -> None:
        await say(answer(asked, {"content": [{"type": "text", "text": "it was token-number-1"}]}))

    peer = Identity(called=tells)

    async def go() -> Outcome:
        async with serving(peer), desk(tmp_path) as at:
            await at.login(tool_of(peer))
            del peer.granted["token-number-1"]
            peer.granted["somebody-elses"] = ""
            return await at.call(tool_of(peer))

    outcome = asyncio.run(go())
    assert (outcome.kind, outcome.text) == ("ok", "it was [token]")
    assert len(peer.token_requests) == 2


def test_what_cannot_be_renewed_is_a_sentence_and_no_browser(tmp_path: Path) -> None:
    peer = Identity(expires_in=1, renews=False)

    async def go() -> Outcome:
        async with serving(peer), desk(tmp_path) as at:
            await at.login(tool_of(peer))
            return await at.call(tool_of(peer))

    outcome = asyncio.run(go())
    assert (outcome.kind, outcome.unknown) == ("tool_error", False)
    assert "run `lockstep tools login AGENT" in outcome.text
    assert len(peer.asked_for) == 1


def test_a_call_that_needs_more_rights_says_which_and_the_next_login_asks_for_them(tmp_path: Path) -> None:
    peer = Identity(wanted="pay")

    async def go() -> tuple[Outcome, Outcome]:
        async with serving(peer), desk(tmp_path) as at:
            tool = tool_of(peer, OAuth(scopes=("look",)))
            await at.login(tool)
            weak = await at.call(tool)
            await at.login(tool)
            return weak, await at.call(tool)

    weak, strong = asyncio.run(go())
    assert (weak.kind, weak.unknown, strong.kind) == ("tool_error", False, "ok")
    assert "wants more rights than ann was given (pay)" in weak.text
    assert [asked["scope"] for asked in peer.asked_for] == ["look", "look pay"]


def test_an_agent_with_credentials_of_its_own_needs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT", "a-robots-secret")

    async def tells(asked: Asked, say: Say) -> None:
        text = f"{asked.headers['authorization']} a-robots-secret"
        await say(answer(asked, {"content": [{"type": "text", "text": text}]}))

    peer = Identity(called=tells)

    async def go() -> tuple[Outcome, Outcome]:
        async with serving(peer), desk(tmp_path) as at:
            oauth = OAuth(grant="client_credentials", client_id="robot", client_secret="env:ROBOT", issuer=peer.at)
            return await at.call(tool_of(peer, oauth)), await at.call(tool_of(peer, oauth), run="r2")

    first, second = asyncio.run(go())
    assert (first.kind, first.text, second.text) == ("ok", "Bearer [token] [token]", "Bearer [token] [token]")
    assert [form["grant_type"] for form in peer.token_requests] == ["client_credentials"]
    assert not (tmp_path / "oauth").exists()


REFUSED: dict[str, tuple[Callable[[Identity], None], str]] = {
    "metadata at a private address": (
        lambda peer: setattr(peer, "metadata_url", "http://169.254.169.254/latest"),
        "169.254.169.254 is not public, and neither `url` nor `issuer` in agent.toml names it",
    ),
    "metadata on this machine under another name": (
        lambda peer: setattr(peer, "metadata_url", f"http://localhost:{peer.port}/x"),
        "http://localhost:",
    ),
    "an authorization server that is not public": (
        lambda peer: setattr(peer, "authorization_server", "http://10.0.0.1/"),
        "10.0.0.1 is not public",
    ),
    "an authorization server without TLS": (
        lambda peer: setattr(peer, "authorization_server", "http://id.example/"),
        "is not https",
    ),
    "a token endpoint that is not public": (
        lambda peer: peer.metadata.update(token_endpoint="http://192.168.0.1/token"),
        "192.168.0.1 is not public",
    ),
    "no PKCE": (lambda peer: peer.metadata.update(code_challenge_methods_supported=["plain"]), "does not know PKCE"),
    "PKCE that it does not mention": (
        lambda peer: peer.metadata.update(code_challenge_methods_supported=None),
        "does not know PKCE",
    ),
    "no metadata": (
        lambda peer: setattr(peer, "authorization_server", f"{peer.at}/nowhere"),
        "publishes no metadata",
    ),
    "metadata of somebody else": (lambda peer: peer.metadata.update(issuer="https://evil.example"), "mismatch"),
    "metadata without end": (lambda peer: peer.metadata.update(x="x" * 2**21), "larger than 1048576 bytes"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_a_login_goes_nowhere_it_should_not(tmp_path: Path, which: str) -> None:
    change, says = REFUSED[which]
    peer = Identity()

    async def go() -> None:
        async with serving(peer), desk(tmp_path) as at:
            change(peer)
            await at.login(tool_of(peer))

    with pytest.raises(ConfigError) as refused:
        asyncio.run(go())
    assert says in refused.value.message
    assert peer.granted == {}


def test_credentials_go_to_no_other_issuer_than_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT", "a-robots-secret")
    oauth = OAuth(client_id="robot", client_secret="env:ROBOT", issuer="https://id.example")
    peer = Identity()

    async def go(oauth: OAuth) -> Outcome | bool:
        async with serving(peer), desk(tmp_path) as at:
            tool = tool_of(peer, oauth)
            return await at.login(tool) if oauth.grant == "authorization_code" else await at.call(tool)

    with pytest.raises(ConfigError, match=r"agent\.toml https://id\.example"):
        asyncio.run(go(oauth))
    outcome = asyncio.run(go(oauth.model_copy(update={"grant": "client_credentials"})))
    assert isinstance(outcome, Outcome)
    assert "no token is to be had" in outcome.text
    assert peer.token_requests == []


def test_only_the_answer_to_the_question_is_taken(tmp_path: Path) -> None:
    peer = Identity()
    unforeseen: list[object] = []

    async def knock(url: str) -> None:
        async with httpx2.AsyncClient(trust_env=False) as browser:
            back = httpx2.URL(url).params["redirect_uri"]
            for wrong in ("/", "?code=stolen&state=guessed", "?error=access_denied", "?state="):
                assert (await browser.get(back + wrong)).status_code in (400, 404)
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: unforeseen.append(context))
            reader, writer = await asyncio.open_connection("127.0.0.1", httpx2.URL(back).port)
            writer.write(b"\r\n\r\n")
            assert await reader.read() == b""  # and the connection is closed
            writer.close()
            assert (await browser.post(back)).status_code == 404
        await agree(url)

    async def go() -> bool:
        async with serving(peer), desk(tmp_path) as at:
            tool = tool_of(peer)
            assert tool.remote is not None
            return await login(at.files, tool.remote, "ann", knock, at.http)

    assert asyncio.run(go()) is True
    assert unforeseen == []


def test_what_somebody_refuses_is_said(tmp_path: Path) -> None:
    peer = Identity()

    async def refuse(url: str) -> None:
        params = httpx2.URL(url).params
        async with httpx2.AsyncClient(trust_env=False) as browser:
            said = {"error": "access_denied", "error_description": "not \x1b[31mtoday", "state": params["state"]}
            await browser.get(params["redirect_uri"], params=said)

    async def go() -> None:
        async with serving(peer), desk(tmp_path) as at:
            tool = tool_of(peer)
            assert tool.remote is not None
            await login(at.files, tool.remote, "ann", refuse, at.http)

    with pytest.raises(ConfigError, match=r"says 'not \\x1b\[31mtoday'"):
        asyncio.run(go())


def test_a_server_that_asks_for_no_login_needs_none(tmp_path: Path) -> None:
    class Open(Identity):
        async def answer(self, asked: Asked, say: Say) -> None:
            await say(whole(b"", 404))

    async def go() -> bool:
        async with serving(Open()) as peer, desk(tmp_path) as at:
            return await at.login(tool_of(peer))  # type: ignore[arg-type]

    assert asyncio.run(go()) is False


def test_a_file_of_another_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    files = TokenFiles(tmp_path / "oauth")
    files.write(msgspec.structs.replace(files.read("https://a.example", "ann"), issuer="https://id.example"))
    (path,) = (tmp_path / "oauth").iterdir()
    moved = files._path("https://a.example", "bob")
    path.rename(moved)
    assert files.read("https://a.example", "bob").issuer == ""
    deep = b'{"server": "s", "principal": "bob", "client": {"a": ' + b"[" * 100_000
    for broken in (b"{", b'{"server": "\xff"}', deep):
        moved.write_bytes(broken)
        assert files.read("https://a.example", "bob").token is None
    assert (files.forget("https://a.example", "bob"), files.forget("https://a.example", "bob")) == (True, False)


@pytest.mark.parametrize(
    "broken",
    [
        {"client": {"client_id": 5}},
        {"client": {"client_id": "c", "client_secret": 7, "token_endpoint_auth_method": "client_secret_basic"}},
        {"token_endpoint": "http://[::1"},
    ],
)
def test_what_is_odd_in_a_file_of_tokens_is_a_sentence(tmp_path: Path, broken: dict[str, Any]) -> None:
    peer = Identity(expires_in=1)

    async def go() -> Outcome:
        async with serving(peer), desk(tmp_path) as at:
            tool = tool_of(peer)
            await at.login(tool)
            assert tool.remote is not None
            at.files.write(msgspec.structs.replace(at.files.read(tool.remote.url, "ann"), **broken))
            peer.expires_in = 3600
            return await at.call(tool)

    outcome = asyncio.run(go())
    assert (outcome.kind, outcome.unknown) == ("tool_error", False), outcome


def test_a_token_that_no_header_can_carry_is_none(tmp_path: Path) -> None:
    peer = Identity(expires_in=1)

    async def go() -> Outcome:
        async with serving(peer), desk(tmp_path) as at:
            await at.login(tool_of(peer))
            peer.token = "a\r\nHost: evil"
            return await at.call(tool_of(peer))

    assert "run `lockstep tools login AGENT" in asyncio.run(go()).text
    assert len(peer.token_requests) == 2


def test_a_token_never_travels_in_clear_text(tmp_path: Path) -> None:
    async def go() -> Outcome:
        async with desk(tmp_path) as at:
            tool = remote_tool(80, host="bank.example")
            assert tool.remote is not None
            tool = replace(tool, remote=replace(tool.remote, oauth=OAuth()))
            with pytest.raises(ConfigError, match="in clear text"):
                await at.login(tool)
            return await at.call(tool)

    outcome = asyncio.run(go())
    assert (outcome.kind, "in clear text" in outcome.text, outcome.egress) == ("sandbox_unavailable", True, ())
