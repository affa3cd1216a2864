"""Tokens of an OAuth authorization server: this gateway as a resource server.

A token is a JWT that the issuer signed for this resource and no other; its subject is the principal. The keys are a
file, so that no request ever makes the gateway fetch anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from mcp.server.auth.provider import AccessToken

from lockstep.errors import ConfigError

_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
"""Signatures only: a secret that this process could sign with would be none."""
_LEEWAY_S = 30
_MAX_SUBJECT_CHARACTERS = 200
_REMEDY = "Save what the issuer's jwks_uri serves there."


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """An authorization server: its name, its keys (a JWK set), and this gateway's name with it (RFC 8707)."""

    issuer: str
    resource: str
    keys: jwt.PyJWKSet

    @classmethod
    def read(cls, issuer: str, resource: str, keys: Path) -> Issuer:
        """Raises ConfigError: the file is no JWK set."""
        try:
            return cls(issuer=issuer, resource=resource, keys=jwt.PyJWKSet.from_dict(json.loads(keys.read_text())))
        except OSError as error:
            raise ConfigError(f"{keys} cannot be read: {error.strerror}.", remedy=_REMEDY) from error
        except (ValueError, AttributeError, jwt.PyJWTError) as error:
            raise ConfigError(f"{keys} is no JWK set: {error}.", remedy=_REMEDY) from error

    def verify(self, token: str) -> AccessToken | None:
        """The token, if this issuer signed it for this resource and it holds now; its subject is the client id."""
        try:
            key = self.keys[str(jwt.get_unverified_header(token).get("kid"))]
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(_ALGORITHMS),
                audience=self.resource,
                issuer=self.issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, KeyError):
            return None
        subject = str(claims["sub"])
        if not subject.isprintable() or not 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS:
            return None  # nobody, or a name that could stand for another's where it is shown
        return AccessToken(
            token="",
            client_id=f"{self.issuer}#{subject}",
            scopes=str(claims.get("scope", "")).split(),
            expires_at=int(claims["exp"]),
            resource=self.resource,
            subject=subject,
            claims={"iss": self.issuer},
        )
