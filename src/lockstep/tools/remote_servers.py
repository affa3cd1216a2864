"""Servers elsewhere as something that can be leased: a connection for each run, server and principal, over one client.

Nothing of such a server runs here, so there is no isolation to choose and no room of the machine to wait for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from lockstep.agent.locked import LockedTool, Remote
from lockstep.agent.mcp_spec import McpServer, OAuth
from lockstep.agent.spec import LimitsSection
from lockstep.errors import ConfigError
from lockstep.sandbox.contract import EgressRule, Findings, Limits, Process, SandboxSpec
from lockstep.sandbox.egress_rules import is_private, parse_rule, parse_target
from lockstep.sandbox.pool import Pool
from lockstep.sandbox.warm import Room
from lockstep.tools.conversation import Ready
from lockstep.tools.egress_checks import binding
from lockstep.values import Tier

if TYPE_CHECKING:  # an HTTP client takes a tenth of a second to import, and most agents need none
    from lockstep.tools.remote import Credentials
    from lockstep.tools.remote_http import RemoteHttp

_ROOM = Room(running=256, idle=0, starting=1)


class Tokens(Protocol):
    """Where credentials for servers with `oauth` come from."""

    async def credentials(self, remote: Remote, principal: str) -> Credentials:
        """How this principal's requests are authenticated.

        Raises:
            ConfigError: something that is needed for it cannot be had.
        """


class RemoteServers:
    """The servers elsewhere of one tool host. `http` in place of a client of its own."""

    def __init__(self, tokens: Tokens | None = None, http: RemoteHttp | None = None) -> None:
        self._tokens = tokens
        self._http = http
        self.pool: Pool[Ready] = Pool(_ROOM)

    def backend(self, remote: Remote) -> RemoteBackend:
        return RemoteBackend(servers=self, remote=remote)

    @property
    def http(self) -> RemoteHttp:
        if self._http is None:
            from lockstep.tools.remote_http import RemoteHttp  # lazy: see above

            self._http = RemoteHttp()
        return self._http

    async def credentials(self, remote: Remote, principal: str) -> Credentials | None:
        """Raises ConfigError."""
        if remote.oauth is None:
            return None
        require_secrecy(remote)
        if self._tokens is None:
            raise ConfigError(
                f"The server {remote.server} wants a token, and there is no store to keep one in.",
                remedy="Give the tool host a store.",
            )
        return await self._tokens.credentials(remote, principal)

    async def close(self) -> None:
        await self.pool.close()
        if self._http is not None:
            await self._http.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteBackend:
    """Implements `Backend`: what it starts is a line to a server, over which nothing has been said yet."""

    servers: RemoteServers
    remote: Remote

    @property
    def tier(self) -> Tier:
        return Tier.REMOTE

    async def canary(self) -> Findings:
        return await self.available()

    async def available(self) -> Findings:
        return Findings(tier=Tier.REMOTE, backend="http", available=True, details=())

    async def start(self, spec: SandboxSpec) -> Process:
        from lockstep.tools.remote import Line, RemoteProcess  # lazy: see above
        from lockstep.tools.remote_http import Reach

        _, principal = spec.argv
        line = Line(
            http=self.servers.http,
            url=self.remote.url,
            reach=Reach(rules=spec.egress, named=named(self.remote)),
            headers=spec.env,
            secrets=spec.secrets,
            credentials=await self.servers.credentials(self.remote, principal),
        )
        return RemoteProcess(line, spec.limits)


def named(remote: Remote) -> frozenset[str]:
    """What the operator wrote down for a server: its origin and that of its authorization server; and their hosts,
    where these may be asked at any port."""
    oauth, found = remote.oauth or OAuth(), set()
    for each in (remote.url, oauth.issuer):
        with contextlib.suppress(ValueError):  # one that cannot be reached at all
            target = parse_target(each or "")
            found |= {target.origin, target.host} if oauth.any_port else {target.origin}
    return frozenset(found)


def require_secrecy(remote: Remote) -> None:
    """Raises ConfigError where a token would travel in clear text."""
    url = urlsplit(remote.url)
    if url.scheme != "https" and not is_private(str(url.hostname)):
        raise ConfigError(f"A token for {remote.url} would travel in clear text.", remedy="Write https in `url`.")


def own_rules(remote: Remote) -> tuple[EgressRule, ...]:
    """What may be reached for it beside what tokens take: exactly its URL. Raises ConfigError as `remote_spec`."""
    return _rules(remote, McpServer(url=remote.url).egress)


def remote_spec(tool: LockedTool, remote: Remote, principal: str) -> SandboxSpec:
    """A server elsewhere in the words of a sandbox: `argv` is its URL and who asks, `env` its headers.

    Raises:
        ConfigError: its URL is none that a rule of egress can name.
    """
    return SandboxSpec(
        argv=(remote.url, principal),
        mounts={},
        env=remote.headers,
        egress=_rules(remote, tool.egress),
        secrets=tuple(binding(secret) for secret in tool.secrets),
        limits=_limits(tool.limits, tool.timeout_s + tool.repeats.late_s),
        single_use=False,
    )


def _rules(remote: Remote, rules: Iterable[str]) -> tuple[EgressRule, ...]:
    try:
        return tuple(parse_rule(rule) for rule in rules)
    except ValueError as error:
        raise ConfigError(
            f"The server at {remote.url} cannot be reached: {error}.", remedy="Correct its `url` in agent.toml."
        ) from None


def _limits(limits: LimitsSection, wall_s: float) -> Limits:
    return Limits(output_bytes=limits.output_kb * 1024, wall_s=wall_s)
