"""What can be wrong with a tool's egress and secrets before anything runs; each problem is a phrase."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Iterable, Sequence

from lockstep.agent.locked import LockedTool
from lockstep.agent.spec import SecretSection
from lockstep.errors import ConfigError
from lockstep.sandbox.contract import EgressRule, SecretBinding
from lockstep.sandbox.egress_inside import ROOTS_ENV
from lockstep.sandbox.egress_rules import (
    LOCALHOST,
    address_is_open,
    format_rule,
    is_private,
    parse_authority,
    parse_rule,
)

_LOOK_UP_S = 3.0
_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_NOT_FOR_SECRETS = re.compile(
    r"host|content-length|transfer-encoding|connection|keep-alive|te|trailer|upgrade|expect|accept-encoding|range"
    r"|if-range|idempotency-key|(?:proxy|lockstep)[-_].*",
    re.IGNORECASE,
)
"""Headers that frame the request, or that the egress proxy writes or drops itself."""
_NOT_FOR_PLACEHOLDERS = re.compile(rf"HOME|(?:HTTPS?|ALL|NO)_PROXY|LOCKSTEP_.*|{'|'.join(ROOTS_ENV)}", re.IGNORECASE)


def binding(secret: SecretSection) -> SecretBinding:
    """What of a secret the sandbox and its proxy know.

    Raises:
        ConfigError: its host is not host:port.
    """
    try:
        host, port = parse_authority(secret.host)
    except ValueError as error:
        problem = f"The secret {secret.env} is bound to no usable host: {error}."
        raise ConfigError(problem, remedy="Write host:port, as in api.example:443.") from None
    return SecretBinding(env=secret.env, host=host, port=port, header=secret.header)


def egress_problems(tool: LockedTool) -> list[str]:
    """What is wrong with the rules and secrets of a tool, as far as they say it themselves."""
    problems, rules = [], []
    for text in tool.egress:
        try:
            rules.append(parse_rule(text))
        except ValueError as error:
            problems.append(str(error))
    taken = set(tool.env)
    for secret in tool.secrets:
        problems += [f"secret {secret.env}: {problem}" for problem in _secret_problems(secret, rules, taken)]
        taken.add(secret.env)
    return problems


def private_names(tools: Iterable[LockedTool]) -> list[str]:
    """Rules that name a host which is, seen from here, at an address that the proxy will refuse.

    Names are looked up for at most `_LOOK_UP_S` seconds in all; one that has no answer by then, or none here, is no
    problem of the rule.
    """
    named = {text: parse_rule(text) for tool in tools for text in tool.egress}
    hosts = {rule.host for rule in named.values() if rule.host != LOCALHOST and not _is_address(rule.host)}
    found = _looked_up(hosts)
    return [
        f"egress rule {text!r}: {rule.host} is {closed[0]} here, which is not public: name the address itself"
        for text, rule in named.items()
        if (closed := [at for at in found.get(rule.host, ()) if not address_is_open(rule.host, at)])
    ]


def _secret_problems(secret: SecretSection, rules: Sequence[EgressRule], taken: set[str]) -> list[str]:
    try:
        bound = binding(secret)
    except ConfigError as error:
        return [error.message.rstrip(".")]
    problems = []
    if secret.env in taken:
        problems.append("its variable is set already")
    if _NOT_FOR_PLACEHOLDERS.fullmatch(secret.env):
        problems.append("its variable belongs to the sandbox itself")
    if not _HEADER.fullmatch(secret.header) or _NOT_FOR_SECRETS.fullmatch(secret.header):
        problems.append(f"the header {secret.header!r} cannot carry a secret")
    opening = [rule for rule in rules if (rule.host, rule.port) == (bound.host, bound.port)]
    if not opening:
        problems.append(f"no egress rule opens {secret.host}")
    if not is_private(bound.host) and (plain := [rule for rule in opening if rule.scheme == "http"]):
        problems.append(f"it would travel in clear text by the rule '{format_rule(plain[0])}': use https")
    return problems


def _looked_up(hosts: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}

    def look(host: str) -> None:
        try:
            found[host] = [str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
        except OSError:
            found[host] = []

    # Threads of our own: nobody waits for a resolver that hangs, also not at the end of the process.
    threads = [threading.Thread(target=look, args=(host,), daemon=True) for host in sorted(hosts)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + _LOOK_UP_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(found)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
