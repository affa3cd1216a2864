"""Logins at an agent's servers elsewhere: which servers there are, and the token of one principal at one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from lockstep.agent.files import AGENT_FILE
from lockstep.agent.from_lock import remote_of
from lockstep.agent.load import load_spec
from lockstep.agent.locked import Remote
from lockstep.errors import ConfigError
from lockstep.tools.oauth import needs_sdk
from lockstep.wiring.stores import Store


def server_of(directory: Path, named: str | None) -> Remote:
    """The server of this prefix or URL, where people log in; the only one where none is named.

    Raises:
        ConfigError: there is none, or it cannot be told which one is meant.
    """
    found = [remote for each in load_spec(directory).tools if each.mcp and (remote := remote_of(each.mcp))]
    servers = {
        (remote.server, remote.url): remote
        for remote in found
        if remote.oauth and remote.oauth.grant == "authorization_code"
    }
    chosen = [remote for remote in servers.values() if named in (None, remote.prefix, remote.url)]
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(server for server, _ in servers) or "none"
    if named is None and servers:
        raise ConfigError(f"{directory / AGENT_FILE} has several servers to log in at.", remedy=f"Name one: {known}.")
    what = f"no server {named!r} to log in at" if named else "no server to log in at"
    raise ConfigError(
        f"{directory / AGENT_FILE} has {what}; it has: {known}.",
        remedy="People log in at servers that have a `url` and `oauth` under [tools.mcp].",
    )


async def log_in(store: Store, remote: Remote, principal: str, show: Callable[[str], Awaitable[None]]) -> bool:
    """Have the principal log in; False where the server asks for no login. `show` is given the URL to open.

    Raises:
        ConfigError, StoreError: it did not come to a token that is kept.
    """
    try:
        from lockstep.tools.login import login  # lazy: the SDK takes a second to import
    except ModuleNotFoundError as error:
        raise needs_sdk(error) from error
    from lockstep.tools.remote_http import RemoteHttp

    http = RemoteHttp()
    try:
        return await login(store.make().tokens().files, remote, principal, show, http)
    finally:
        await http.close()


def log_out(store: Store, remote: Remote, principal: str) -> bool:
    """Forget the principal's token here; whether there was one. The authorization server is not told.

    Raises:
        StoreError: it cannot be removed.
    """
    return store.tokens().files.forget(remote.url, principal)
