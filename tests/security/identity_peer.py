"""A server elsewhere that wants tokens, and the authorization server that gives them: one peer on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from remote_peer import Asked, Peer, Say, whole

PRM = "/.well-known/oauth-protected-resource/mcp"
METADATA = "/.well-known/oauth-authorization-server"


@dataclass(kw_only=True)
class Identity(Peer):
    """Knobs of what it says; `granted` are its tokens with their scopes, `asked_for` every authorization request."""

    wanted: str = ""
    """The scope that a call needs."""
    metadata_url: str = ""
    authorization_server: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    expires_in: int = 3600
    renews: bool = True
    granted: dict[str, str] = field(default_factory=dict)
    asked_for: list[dict[str, str]] = field(default_factory=list)
    token_requests: list[dict[str, str]] = field(default_factory=list)

    @property
    def at(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, asked: Asked, say: Say) -> None:
        path, _, query = asked.path.partition("?")
        form = dict(parse_qsl(asked.raw.decode())) if asked.method == "POST" else {}
        match path:
            case "/mcp":
                await self._guarded(asked, say)
            case _ if path == PRM:
                server = self.authorization_server or self.at
                await say(_json({"resource": f"{self.at}/mcp", "authorization_servers": [server]}))
            case _ if path == METADATA:
                await say(_json(self._metadata()))
            case "/register":
                await say(_json({**json.loads(asked.raw), "client_id": "registered"}, 201))
            case "/authorize":
                await say(whole(b"", 302, Location=self._code(dict(parse_qsl(query)))))
            case "/token":
                self.token_requests.append(form)
                await say(self._token(form, asked.headers.get("authorization", "")))
            case _:
                await say(whole(b"", 404))

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.at,
            "authorization_endpoint": f"{self.at}/authorize",
            "token_endpoint": f"{self.at}/token",
            "registration_endpoint": f"{self.at}/register",
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            **self.metadata,
        }

    async def _guarded(self, asked: Asked, say: Say) -> None:
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        where = f'resource_metadata="{self.metadata_url or self.at + PRM}"'
        if token not in self.granted:
            await say(whole(b"", 401, WWW_Authenticate=f"Bearer {where}"))
        elif asked.says == "tools/call" and self.wanted not in self.granted[token]:
            more = f'Bearer error="insufficient_scope", scope="{self.wanted}", {where}'
            await say(whole(b"", 403, WWW_Authenticate=more))
        else:
            await super().answer(asked, say)

    def _code(self, asked: dict[str, str]) -> str:
        self.asked_for.append(asked)
        back = {"code": f"code{len(self.asked_for)}", "state": asked["state"], "iss": self.at}
        return f"{asked['redirect_uri']}?{urlencode(back)}"

    def _token(self, form: dict[str, str], authorization: str) -> bytes:
        scope = form.get("scope", "")
        match form.get("grant_type"):
            case "authorization_code":
                asked = self.asked_for[int(form["code"].removeprefix("code")) - 1]
                digest = hashlib.sha256(form["code_verifier"].encode()).digest()
                right = base64.urlsafe_b64encode(digest).decode().rstrip("=") == asked["code_challenge"]
                scope = asked.get("scope", "")
            case "refresh_token":
                right = self.renews and form["refresh_token"] == f"refresh-of-{len(self.granted)}"
            case _:
                right = authorization == f"Basic {base64.b64encode(b'robot:a-robots-secret').decode()}"
        if not right or form.get("resource") != f"{self.at}/mcp":
            return _json({"error": "invalid_grant"}, 400)
        token = f"token-number-{len(self.granted) + 1}"
        self.granted[token] = scope
        given = {"access_token": token, "token_type": "bearer", "expires_in": self.expires_in, "scope": scope}
        if form["grant_type"] != "client_credentials":
            given["refresh_token"] = f"refresh-of-{len(self.granted)}"
        return _json(given)


def query_of(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query)


def _json(value: Any, status: int = 200) -> bytes:
    return whole(json.dumps(value).encode(), status)
