"""Getting tokens, with the OAuth client of the SDK: a person logs in, or the agent has credentials of its own.

The SDK knows the protocol; what it may reach, where tokens are kept and which authorization server is trusted is
decided here. Imported only when a token is to be had: the SDK takes a second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError, OAuthRegistrationError, OAuthTokenError
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.auth.utils import issuers_match
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl, ValidationError

from lockstep.agent.locked import Remote
from lockstep.agent.mcp_spec import OAuth
from lockstep.tools.client import Unauthorized
from lockstep.tools.scan import visible
from lockstep.tools.token_files import Kept, Token, TokenFiles

_log = logging.getLogger("mcp.client.auth")
_log.addHandler(logging.NullHandler())
_log.propagate = False  # its errors quote what token endpoints answer

CLIENT_NAME = "Lockstep"
_FAILURES = (OAuthFlowError, OAuthRegistrationError, OAuthTokenError, ValidationError, ValueError, UnicodeError)


class SdkAuth(httpx2.Auth):
    """Implements `Credentials` over a provider of the SDK; what it cannot do is said as `Unauthorized`."""

    def __init__(self, provider: OAuthClientProvider, secret: str = "") -> None:
        self._provider = provider
        self._secret = secret

    @property
    def auth(self) -> httpx2.Auth:
        return self

    def in_use(self) -> tuple[str, ...]:
        token, client = self._provider.context.current_tokens, self._provider.context.client_info
        tokens = (token.access_token, token.refresh_token) if token else ()
        return tuple(filter(None, (*tokens, client.client_secret if client else "", self._secret)))

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        flow = self._provider.async_auth_flow(request)
        try:
            outgoing = await anext(flow)
            while True:
                response = yield outgoing
                outgoing = await flow.asend(response)
        except StopAsyncIteration:
            return
        except _FAILURES as error:
            raise Unauthorized(401, f"no token is to be had: {_sentence(error, self.in_use())}") from error
        finally:
            await flow.aclose()


class Login(OAuthClientProvider):
    """One login of one person: answers what the server last wanted, and keeps what comes of it."""

    def __init__(
        self,
        files: TokenFiles,
        remote: Remote,
        principal: str,
        *,
        redirect_uri: str,
        show: Callable[[str], Awaitable[None]],
        returned: Callable[[], Awaitable[AuthorizationCodeResult]],
        check: Callable[[str], None],
        secret: str = "",
    ) -> None:
        """`check` raises OAuthFlowError for a page that nobody is sent to. `secret`: of a client that was registered
        beforehand; it is not kept."""
        oauth = remote.oauth or OAuth()
        kept = files.read(remote.url, principal)
        super().__init__(
            server_url=remote.url,
            client_metadata=OAuthClientMetadata(
                client_name=CLIENT_NAME,
                redirect_uris=[AnyUrl(redirect_uri)],
                grant_types=["authorization_code", "refresh_token"],
                response_types=["code"],
            ),
            storage=_Storage(files, kept, redirect_uri, keep_secret=oauth.client_id is None),
            redirect_handler=show,
            callback_handler=returned,
            client_metadata_url=oauth.client_metadata_url,
        )
        self.context.storage.context = self.context  # type: ignore[attr-defined]
        self._oauth = oauth
        self._check = check
        self._kept = kept
        self._known_client = _registered(oauth, redirect_uri, secret)
        self.done = False
        """Whether a token was given."""

    async def _initialize(self) -> None:
        await super()._initialize()
        self.context.current_tokens = None  # what there was is not good enough, or nobody would log in
        self.context.client_info = self._known_client or self.context.client_info

    async def _auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """As the SDK does it, but that the server's last refusal stands for the first answer where there is one."""
        flow = super()._auth_flow(request)
        try:
            outgoing = await anext(flow)
            if (challenge := self._kept.challenge) is not None:
                if challenge.status == 403 and self._kept.token is not None:
                    self.context.current_tokens = _sdk_token(self._kept.token)  # its rights are asked for again
                headers = {"WWW-Authenticate": challenge.www_authenticate}
                refused = httpx2.Response(challenge.status, headers=headers, request=request)
                outgoing = await flow.asend(refused)
            while True:
                response = yield outgoing
                outgoing = await flow.asend(response)
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()

    def _select_authorization_server(self, advertised: list[str]) -> str:
        if self._oauth.issuer is None:
            return advertised[0]
        found = next((each for each in advertised if issuers_match(each, self._oauth.issuer)), None)
        if found is None:
            raise OAuthFlowError(f"the server names {', '.join(advertised)}, and agent.toml {self._oauth.issuer}")
        return found

    async def _perform_authorization(self) -> httpx2.Request:
        metadata, oauth = self.context.oauth_metadata, self._oauth
        if metadata is None:
            raise OAuthFlowError("its authorization server publishes no metadata")
        if "S256" not in (metadata.code_challenge_methods_supported or ()):
            raise OAuthFlowError("its authorization server does not know PKCE with S256")
        if oauth.issuer and not issuers_match(str(metadata.issuer), oauth.issuer):
            raise OAuthFlowError(f"it is {metadata.issuer}, and agent.toml names {oauth.issuer} as issuer")
        self._check(str(metadata.authorization_endpoint))
        if self.context.client_metadata.scope is None and oauth.scopes:
            self.context.client_metadata.scope = " ".join(oauth.scopes)
        if (client := self._known_client) is not None and client.client_secret is not None:
            methods = metadata.token_endpoint_auth_methods_supported or ["client_secret_basic"]
            basic = "client_secret_basic" in methods
            client.token_endpoint_auth_method = "client_secret_basic" if basic else "client_secret_post"
        return await super()._perform_authorization()

    async def _handle_token_response(self, response: httpx2.Response) -> None:
        await super()._handle_token_response(response)
        self.done = True


class _Storage:
    """The SDK's view of a file of tokens."""

    def __init__(self, files: TokenFiles, kept: Kept, redirect_uri: str, *, keep_secret: bool) -> None:
        self._files = files
        self._kept = kept
        self._redirect_uri = redirect_uri
        self._keep_secret = keep_secret
        self.context: Any = None

    async def get_tokens(self) -> OAuthToken | None:
        return _sdk_token(self._kept.token) if self._kept.token else None

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """A client that was registered by an earlier login, where its address to come back to is still the same."""
        if not self._kept.client or self._redirect_uri not in (self._kept.client.get("redirect_uris") or ()):
            return None
        return OAuthClientInformationFull.model_validate({**self._kept.client, "issuer": self._kept.issuer or None})

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Kept with the token."""

    async def set_tokens(self, tokens: OAuthToken) -> None:
        context = self.context
        client = context.client_info.model_dump(mode="json", exclude_none=True)
        client.pop("issuer", None)
        if not self._keep_secret:
            client.pop("client_secret", None)
        self._files.write(
            Kept(
                server=self._kept.server,
                principal=self._kept.principal,
                issuer=str(context.oauth_metadata.issuer),
                resource=context.get_resource_url(),
                token_endpoint=str(context.oauth_metadata.token_endpoint),
                client=client,
                token=Token(
                    access_token=tokens.access_token,
                    refresh_token=tokens.refresh_token,
                    scope=tokens.scope,
                    expires_at=None if tokens.expires_in is None else time.time() + tokens.expires_in,
                ),
            )
        )


class Memory:
    """A token for as long as the process lives: another is had without anybody."""

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """The client is the one that was given."""


def machine(remote: Remote, oauth: OAuth, secret: str, kept: Memory) -> SdkAuth:
    """Credentials of the agent itself. `secret`: the client's secret, or its key in PEM."""
    assert oauth.client_id is not None
    named: dict[str, Any] = {
        "server_url": remote.url,
        "storage": kept,
        "client_id": oauth.client_id,
        "scope": " ".join(oauth.scopes) or None,
        "issuer": oauth.issuer,
    }
    if oauth.private_key is None:
        return SdkAuth(ClientCredentialsOAuthProvider(client_secret=secret, **named), secret)
    signed = SignedJWTParameters(
        issuer=oauth.client_id, subject=oauth.client_id, signing_key=secret, signing_algorithm=oauth.key_algorithm
    )
    return SdkAuth(PrivateKeyJWTOAuthProvider(assertion_provider=signed.create_assertion_provider(), **named))


def _registered(oauth: OAuth, redirect_uri: str, secret: str) -> OAuthClientInformationFull | None:
    if oauth.client_id is None:
        return None
    return OAuthClientInformationFull(
        client_id=oauth.client_id,
        client_secret=secret or None,
        redirect_uris=[AnyUrl(redirect_uri)],
        token_endpoint_auth_method="client_secret_basic" if secret else "none",
        issuer=oauth.issuer,
    )


def _sdk_token(token: Token) -> OAuthToken:
    return OAuthToken(access_token=token.access_token, refresh_token=token.refresh_token, scope=token.scope)


def _sentence(error: Exception, secrets: tuple[str, ...]) -> str:
    """What went wrong; a token endpoint is quoted in it, which may say anything it was told."""
    if isinstance(error, ValidationError):
        return "its authorization server answers with what is none of the documents asked for"
    said = (str(error).splitlines() or [type(error).__name__])[0]
    for secret in secrets:
        said = said.replace(secret, "[token]")
    return visible(said[:300].rstrip("."))
