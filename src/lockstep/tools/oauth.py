"""Whose token goes with the requests to a server elsewhere: the principal's who logged in, or the agent's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lockstep.agent.locked import Remote
from lockstep.agent.mcp_spec import OAuth
from lockstep.errors import ConfigError
from lockstep.tools.secret_values import value_from
from lockstep.tools.token_files import TokenFiles

if TYPE_CHECKING:  # an HTTP client takes a tenth of a second to import, and most agents need none
    from lockstep.tools.oauth_sdk import Memory
    from lockstep.tools.remote import Credentials


class StoredTokens:
    """Implements `Tokens` over the files of a store. `operator`: who locks, and runs where nobody else is named."""

    def __init__(self, files: TokenFiles, operator: str) -> None:
        self.files = files
        self.operator = operator
        self._machines: dict[tuple[str, str], Memory] = {}
        """Tokens of agents with credentials of their own, by server and client."""

    async def credentials(self, remote: Remote, principal: str) -> Credentials:
        oauth = remote.oauth or OAuth()
        secret = await client_secret(oauth)
        if oauth.grant == "client_credentials":
            try:
                from lockstep.tools.oauth_sdk import Memory, machine  # lazy: the SDK takes a second to import
            except ModuleNotFoundError as error:
                raise needs_sdk(error) from error
            kept = self._machines.setdefault((remote.url, oauth.client_id or ""), Memory())
            return machine(remote, oauth, secret, kept)
        from lockstep.tools.token_auth import StoredLogin  # lazy: see above

        return StoredLogin(self.files, remote, principal or self.operator, operator=self.operator, secret=secret)


async def client_secret(oauth: OAuth) -> str:
    """The secret of a client that was registered beforehand, or its key in PEM; "" for one that has neither.

    Raises:
        ConfigError: it cannot be had.
    """
    if oauth.private_key is not None:
        return await value_from(oauth.private_key, os.environ, "oauth.private_key", lines=True)
    if oauth.client_secret is not None:
        return await value_from(oauth.client_secret, os.environ, "oauth.client_secret")
    return ""


def needs_sdk(error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(f"OAuth needs {error.name}.", remedy="Install it with: pip install 'lockstep-agents[mcp]'.")
