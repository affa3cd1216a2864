"""Somebody logs in at a server elsewhere: what the server last wanted is asked for, and the token is kept.

The browser is the person's; it comes back to a port of loopback. Everything else goes out by the rules of egress.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
import msgspec
from mcp.client.auth import OAuthFlowError
from mcp.shared.auth import AuthorizationCodeResult

from lockstep.agent.locked import Remote
from lockstep.agent.mcp_spec import OAuth
from lockstep.errors import ConfigError
from lockstep.sandbox.egress_rules import parse_target
from lockstep.sandbox.egress_wire import Refused
from lockstep.tools.client import META, MODERN, Unauthorized
from lockstep.tools.loopback import waiting
from lockstep.tools.oauth import client_secret
from lockstep.tools.oauth_sdk import Login, SdkAuth
from lockstep.tools.remote_headers import routing_headers
from lockstep.tools.remote_http import OAUTH, Log, Lost, Reach, RemoteHttp, Unreached, authorized
from lockstep.tools.remote_servers import named, own_rules, require_secrecy
from lockstep.tools.token_files import TokenFiles

LOGIN_S = 300.0
"""How long somebody may take."""
_DISCOVER = "server/discover"


async def login(
    files: TokenFiles, remote: Remote, principal: str, show: Callable[[str], Awaitable[None]], http: RemoteHttp
) -> bool:
    """Have somebody log in and keep the token; False where the server asks for none. `show` is given the URL to open.

    Raises:
        ConfigError: it did not come to a token, in a sentence.
        StoreError: the token cannot be kept.
    """
    oauth = remote.oauth or OAuth()
    require_secrecy(remote)
    secret = await client_secret(oauth)
    async with waiting(oauth.redirect_port) as back:

        async def put(url: str) -> None:
            back.expect(url)
            await show(url)

        async def returned() -> AuthorizationCodeResult:
            answer = await back.answer()
            if "code" not in answer:
                why = answer.get("error_description") or answer.get("error", "")
                raise OAuthFlowError(f"the authorization server says {why!r:.200}")
            return AuthorizationCodeResult(code=answer["code"], state=answer.get("state"), iss=answer.get("iss"))

        reach = Reach(rules=own_rules(remote), named=named(remote))

        def check(url: str) -> None:
            try:
                reach.check("GET", parse_target(url), OAUTH)
            except ValueError as error:
                raise OAuthFlowError(f"its login page is at {url!r:.200}: {error}") from None
            except Refused as error:
                raise OAuthFlowError(f"its login page may not be opened: {error.sentence.rstrip('.')}") from None

        flow = Login(
            files, remote, principal, redirect_uri=back.uri, show=put, returned=returned, check=check, secret=secret
        )
        try:
            async with asyncio.timeout(LOGIN_S):
                await _knock(http, remote, SdkAuth(flow, secret), reach)
            return flow.done
        except TimeoutError:
            why = f"nobody logged in within {LOGIN_S:g} s"
        except (Unauthorized, Unreached, Lost, Refused) as error:
            why = str(error).rstrip(".")
    raise ConfigError(f"The login at {remote.server} failed: {why}.", remedy="Correct that, and log in again.")


async def _knock(http: RemoteHttp, remote: Remote, auth: httpx2.Auth, reach: Reach) -> None:
    """Ask the server the one thing that changes nothing; what it answers does not matter, only what that takes."""
    meta = {f"{META}protocolVersion": MODERN, f"{META}clientCapabilities": {}}
    body = {"jsonrpc": "2.0", "id": 1, "method": _DISCOVER, "params": {"_meta": meta}}
    headers = {
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        "MCP-Protocol-Version": MODERN,
        **routing_headers(_DISCOVER, {}),
    }
    request = httpx2.Request("POST", remote.url, headers=headers, content=msgspec.json.encode(body))
    await (await authorized(http, request, auth, reach, Log(), _DISCOVER)).aclose()
