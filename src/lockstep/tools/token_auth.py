"""Requests with a token that somebody logged in for: renewed where that needs nobody, else refused with what to do.

A run never opens a browser. A token that is missing, over or too weak is a sentence that names the command.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncGenerator
from urllib.parse import quote

import httpx2
import msgspec

from lockstep.agent.locked import Remote
from lockstep.tools.client import Unauthorized
from lockstep.tools.token_files import Challenge, Token, TokenFiles

_KEPT_SENT = 4
_TOO_WEAK = re.compile(r"\berror=\"?insufficient_scope\b")
_SCOPE = re.compile(r"\bscope=\"([!#-\[\]-~ ]{1,300})\"")


class _Given(msgspec.Struct):
    """What a token endpoint answers."""

    access_token: str
    refresh_token: str | None = None
    scope: str | None = None
    expires_in: float | None = None


class StoredLogin(httpx2.Auth):
    """Implements `Credentials` for one principal at one server. `secret`: of a client registered beforehand."""

    def __init__(self, files: TokenFiles, remote: Remote, principal: str, *, operator: str, secret: str = "") -> None:
        self._files = files
        self._remote = remote
        self._principal = principal
        self._operator = operator
        self._secret = secret
        self._kept = files.read(remote.url, principal)
        self._sent: tuple[str, ...] = ()
        """The tokens sent last: one that was renewed meanwhile may still be good."""

    @property
    def auth(self) -> httpx2.Auth:
        return self

    def in_use(self) -> tuple[str, ...]:
        token = self._kept.token
        tokens = (token.access_token, token.refresh_token) if token else ()
        return tuple(filter(None, (*tokens, *self._sent, self._secret, self._kept.client.get("client_secret"))))

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        renewed = False
        async with self._lock():
            self._read()
            if self._can_renew() and self._kept.token is not None and self._kept.token.is_over:
                self._take((yield self._renewal()))
                renewed = True
        sent = self._sign(request)
        response = yield request
        if response.status_code == 401 and sent and not renewed:
            async with self._lock():
                self._read()  # another run may have renewed it meanwhile
                if self._can_renew() and self._kept.token is not None and self._kept.token.access_token == sent:
                    self._take((yield self._renewal()))
            if self._sign(request) not in ("", sent):
                response = yield request
        said = str(response.headers.get("www-authenticate", ""))[:4000]
        too_weak = response.status_code == 403 and bool(_TOO_WEAK.search(said))
        if response.status_code == 401 or too_weak:
            challenge = Challenge(status=response.status_code, www_authenticate=said)
            self._kept = msgspec.structs.replace(self._kept, challenge=challenge)
            self._files.write(self._kept)
            raise Unauthorized(response.status_code, self._what_to_do(challenge))

    def _lock(self) -> asyncio.Lock:
        return self._files.lock(self._remote.url, self._principal)

    def _read(self) -> None:
        self._kept = self._files.read(self._remote.url, self._principal)

    def _sign(self, request: httpx2.Request) -> str:
        """Put the token into the request; which one, or "" where there is none that is good."""
        token = self._kept.token
        if token is None or not token.is_good:
            request.headers.pop("Authorization", None)
            return ""
        request.headers["Authorization"] = f"Bearer {token.access_token}"
        if token.access_token not in self._sent:
            self._sent = (*self._sent[1 - _KEPT_SENT :], token.access_token)
        return token.access_token

    def _can_renew(self) -> bool:
        kept = self._kept
        return bool(kept.token and kept.token.refresh_token and kept.token_endpoint and kept.client.get("client_id"))

    def _renewal(self) -> httpx2.Request:
        kept = self._kept
        assert kept.token is not None
        client = {"client_secret": self._secret, **kept.client}
        data = {
            "grant_type": "refresh_token",
            "refresh_token": kept.token.refresh_token or "",
            "client_id": client["client_id"],
            "resource": kept.resource,
        }
        headers = {}
        if client.get("token_endpoint_auth_method") == "client_secret_basic":
            named = f"{quote(client['client_id'], safe='')}:{quote(client['client_secret'], safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(named.encode()).decode()}"
        elif client.get("token_endpoint_auth_method") == "client_secret_post":
            data["client_secret"] = client["client_secret"]
        try:
            return httpx2.Request("POST", kept.token_endpoint, data=data, headers=headers)
        except httpx2.InvalidURL as error:
            raise Unauthorized(502, f"the token endpoint that its login left is none: {error}") from error

    def _take(self, response: httpx2.Response) -> None:
        """The new token; the old one is gone where the authorization server does not renew it."""
        old = self._kept.token
        assert old is not None
        if response.status_code >= 500 or response.status_code == 429:
            raise Unauthorized(response.status_code, f"its authorization server answered {response.status_code}")
        token: Token | None = None
        if response.status_code == 200:
            try:
                given = msgspec.json.decode(response.content, type=_Given)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise Unauthorized(502, "its authorization server answered with no token") from None
            token = Token(
                access_token=given.access_token,
                refresh_token=given.refresh_token or old.refresh_token,
                scope=given.scope or old.scope,
                expires_at=None if given.expires_in is None else time.time() + given.expires_in,
            )
        self._kept = msgspec.structs.replace(self._kept, token=token)
        self._files.write(self._kept)

    def _what_to_do(self, challenge: Challenge) -> str:
        whose = "" if self._principal == self._operator else f" --principal {self._principal}"
        command = f"`lockstep tools login AGENT {self._remote.server}{whose}`"
        if challenge.status == 401:
            return f"{self._remote.server} wants a login of {self._principal}: run {command}"
        wanted = _SCOPE.search(challenge.www_authenticate)
        more = f" ({wanted[1]})" if wanted else ""
        return f"{self._remote.server} wants more rights than {self._principal} was given{more}: run {command}"
