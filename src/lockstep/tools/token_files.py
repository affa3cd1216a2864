"""Tokens for servers elsewhere, in files of the store that only their owner reads. Never in a lock, a journal or a log.

One file for each server and principal. What is in it belongs to one authorization server, the issuer, and to one
resource; it is sent to no other.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lockstep.errors import StoreError
from lockstep.values import digest_json, new_token

_EARLY_S = 30.0
"""A token is renewed so long before it ends, so that it does not end on its way."""


_TEXTS = ("client_id", "client_secret", "token_endpoint_auth_method")
_SENDABLE = re.compile(r"[!-~]{1,16384}")


class Token(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What an authorization server gave. `expires_at` in seconds since the epoch; None when it did not say."""

    access_token: str
    refresh_token: str | None = None
    scope: str | None = None
    expires_at: float | None = None

    @property
    def is_good(self) -> bool:
        """Whether it can be sent: it has not ended, and is text that a header carries."""
        return not self.is_over and bool(_SENDABLE.fullmatch(self.access_token))

    @property
    def is_over(self) -> bool:
        return self.expires_at is not None and time.time() > self.expires_at - _EARLY_S


class Challenge(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a server said last when it refused: the next login answers this."""

    status: int
    www_authenticate: str


class Kept(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """All that is known of one principal at one server."""

    server: str
    principal: str
    issuer: str = ""
    resource: str = ""
    token_endpoint: str = ""
    client: Mapping[str, Any] = {}
    """The client as the issuer registered it; the secret of one that was registered beforehand is not kept here."""
    token: Token | None = None
    challenge: Challenge | None = None


class TokenFiles:
    """The files below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._locks: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)

    def lock(self, server: str, principal: str) -> asyncio.Lock:
        """Held by whoever renews a token: a refresh token may be good for one use only."""
        return self._locks[self._path(server, principal)]

    def read(self, server: str, principal: str) -> Kept:
        """What is kept; with nothing in it where there is no file, or none that can be read.

        Raises:
            StoreError: it is there and may not be read.
        """
        try:
            found = msgspec.json.decode(self._path(server, principal).read_bytes(), type=Kept)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Kept(server=server, principal=principal)
        except OSError as error:
            raise _unusable(self._directory, error) from error
        of_this = (found.server, found.principal) == (server, principal)
        sound = all(isinstance(found.client.get(name, ""), str) for name in _TEXTS)
        return found if of_this and sound else Kept(server=server, principal=principal)

    def write(self, kept: Kept) -> None:
        """Keep this in place of what there was; the file changes whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        path = self._path(kept.server, kept.principal)
        beside = path.with_name(f".{path.name}.{new_token('t')}")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._directory.chmod(0o700)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(kept))
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise _unusable(self._directory, error) from error

    def forget(self, server: str, principal: str) -> bool:
        """Remove what is kept; whether there was anything.

        Raises:
            StoreError: it cannot be removed.
        """
        try:
            self._path(server, principal).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unusable(self._directory, error) from error
        return True

    def _path(self, server: str, principal: str) -> Path:
        return self._directory / f"{digest_json([server, principal])[:32]}.json"


def _unusable(directory: Path, error: OSError) -> StoreError:
    return StoreError(
        f"Tokens cannot be kept in {directory}: {error.strerror}.", remedy="Check its permissions and the space there."
    )
