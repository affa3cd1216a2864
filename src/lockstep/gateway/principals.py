"""Who may call: bearer tokens, one principal each, kept as digests; and how many requests each may make.

A token is compared by its SHA-256, so the file that names the principals holds nothing that opens a door. Tokens are
made by `lockstep token`: 256 bits of chance, for which a plain digest is as good as a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lockstep.errors import ConfigError

TOKEN_ENV = "LOCKSTEP_GATEWAY_TOKEN"  # noqa: S105 - the name of a variable
PREFIX = "lsg_"

Approvals = Literal["client", "operator"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=200)
    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: int = Field(default=600, ge=1)
    approvals: Approvals = "client"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    principal: tuple[_Entry, ...] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """Somebody who may call. `approvals`: whether their client may put an approval to its own user, or only an operator
    may answer it."""

    name: str
    approvals: Approvals = "client"
    requests_per_minute: int = 600


@dataclass(kw_only=True, slots=True)
class _Bucket:
    tokens: float
    at: float = field(default_factory=time.monotonic)


class Principals:
    """Tokens to principals, and what each has left of its rate."""

    def __init__(self, by_digest: Mapping[str, Principal]) -> None:
        self._by_digest = dict(by_digest)
        self._by_name = {each.name: each for each in by_digest.values()}
        self._buckets: dict[str, _Bucket] = {}

    def of_token(self, token: str) -> Principal | None:
        """Whose token this is. Takes as long for a wrong one."""
        digest = token_digest(token)
        found = None
        for known, principal in self._by_digest.items():
            if hmac.compare_digest(known, digest):
                found = principal
        return found

    def find(self, name: str) -> Principal | None:
        return self._by_name.get(name)

    def wait_s(self, principal: Principal) -> float:
        """0 and one request less to make; or how long until there is one, and nothing taken."""
        now, rate = time.monotonic(), principal.requests_per_minute / 60
        bucket = self._buckets.setdefault(principal.name, _Bucket(tokens=float(principal.requests_per_minute)))
        bucket.tokens = min(principal.requests_per_minute, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) / rate


def read_principals(path: Path) -> Principals:
    """The principals of a file of `[[principal]]` tables.

    Raises:
        ConfigError: it cannot be read, is not such a file, or gives two principals one name or one token.
    """
    remedy = "`lockstep token NAME` prints a token and its table."
    try:
        entries = _File.model_validate(tomllib.loads(path.read_text())).principal
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy=remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}.", remedy=remedy) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}.", remedy=remedy) from error
    for what in ("name", "token_sha256"):
        values: Sequence[str] = [getattr(entry, what) for entry in entries]
        if len(set(values)) != len(values):
            raise ConfigError(f"{path}: two principals have the same {what}.", remedy="Give each its own.")
    return Principals(
        {
            entry.token_sha256: Principal(
                name=entry.name, approvals=entry.approvals, requests_per_minute=entry.requests_per_minute
            )
            for entry in entries
        }
    )


def one_principal(name: str, token: str, approvals: Approvals) -> Principals:
    """The one whose token the environment holds."""
    return Principals({token_digest(token): Principal(name=name, approvals=approvals)})


def new_token() -> tuple[str, str]:
    """A token and the digest to keep of it."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, token_digest(token)


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
