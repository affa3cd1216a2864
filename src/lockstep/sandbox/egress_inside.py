"""What a sandbox gets inside for its way out: roots to trust, and placeholders for secrets."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from lockstep.sandbox.contract import SandboxSpec
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.secrets import new_placeholder

ROOTS_MOUNT = "/egress/roots.pem"
ROOTS_ENV = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")


async def furnished(spec: SandboxSpec, authority: EgressCA) -> tuple[SandboxSpec, EgressProxy | None]:
    """The spec with what its egress needs inside, and the proxy that belongs to it, shut and not listening yet.

    With https egress, a file of roots and the variables that lead common clients to it; a variable that the spec sets
    itself stays as it is. Each secret's variable holds a placeholder of this sandbox alone.

    Raises:
        SandboxUnavailable: the authority cannot be had.
    """
    placeholders = {secret.env: new_placeholder() for secret in spec.secrets}
    mounts, env = dict(spec.mounts), {**spec.env, **placeholders}
    if any(rule.scheme == "https" for rule in spec.egress):
        mounts[ROOTS_MOUNT] = await asyncio.to_thread(authority.roots)
        env = {**dict.fromkeys(ROOTS_ENV, ROOTS_MOUNT), **env}
    proxy = None
    if spec.egress:
        proxy = EgressProxy(spec.egress, secrets=spec.secrets, placeholders=placeholders, authority=authority)
    return replace(spec, mounts=mounts, env=env), proxy
