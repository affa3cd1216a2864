"""What may leave a sandbox: rules, request targets, and whether one fits the other. Pure; opens nothing.

A rule names exactly one scheme, host and port. Anything a server might read differently than we do is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from lockstep.sandbox.contract import EgressRule

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SYNTAX = "host:port [METHOD[,METHOD...]] [/path/prefix]"
LOCALHOST = "localhost"

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_METHODS = re.compile(r"[A-Z]{2,20}(?:,[A-Z]{2,20})*")
_TARGET = re.compile(r"(https?)://([^/?#]*)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
_ENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})|%(?:2[fF]|5[cC]|00|25[0-9A-Fa-f])|\\|//")
_VISIBLE = re.compile(r"[!-~]+")
_DEFAULT_PORT = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a request wants to go. `path` is as it was sent, with the query in `query` ("?..." or "")."""

    scheme: str
    host: str
    port: int
    path: str = "/"
    query: str = ""

    @property
    def authority(self) -> str:
        """host:port as in a Host header; the port only when it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, as one text for each."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return f"{self.origin}{self.path}{self.query}"


def parse_rule(text: str) -> EgressRule:
    """A rule from its text: `host:port [METHOD[,METHOD...]] [/path/prefix]`.

    `http://` or `https://` may stand before it; without, port 443 means https and every other port http. IPv6 addresses
    stand in brackets.

    Raises:
        ValueError: one sentence that says what is wrong with the text.
    """
    first, *rest = text.split() or [""]
    scheme, separator, place = first.partition("://")
    if not separator:
        scheme, place = "", first
    elif scheme not in _DEFAULT_PORT:
        raise ValueError(f"egress rule {text!r}: the scheme must be http or https")
    if "*" in text:
        raise ValueError(f"egress rule {text!r}: wildcards are not allowed, name each host")
    if "/" in place:
        raise ValueError(f"egress rule {text!r}: put a space before the path, as in '{SYNTAX}'")
    host, port = _rule_place(text, place)
    methods = tuple(rest.pop(0).split(",")) if rest and _METHODS.fullmatch(rest[0]) else ()
    if "CONNECT" in methods:
        raise ValueError(
            f"egress rule {text!r}: CONNECT cannot be named, it is open where methods and path are not limited"
        )
    prefix = rest.pop(0) if rest and rest[0].startswith("/") else "/"
    if rest:
        raise ValueError(f"egress rule {text!r}: {rest[0]!r} is not understood, write '{SYNTAX}'")
    try:
        segments(prefix)
        if "?" in prefix or "#" in prefix or not _VISIBLE.fullmatch(prefix):
            raise ValueError("it has a query, a fragment or an unusual character")
    except ValueError as error:
        raise ValueError(f"egress rule {text!r}: the path cannot be matched safely: {error}") from None
    scheme = scheme or ("https" if port == _DEFAULT_PORT["https"] else "http")
    return EgressRule(scheme=scheme, host=host, port=port, methods=methods, path_prefix=prefix.rstrip("/") or "/")


def format_rule(rule: EgressRule) -> str:
    """A rule in words that `parse_rule` reads back."""
    host = f"[{rule.host}]" if ":" in rule.host else rule.host
    methods = ",".join(rule.methods)
    path = "" if rule.path_prefix == "/" else rule.path_prefix
    return " ".join(part for part in (f"{rule.scheme}://{host}:{rule.port}", methods, path) if part)


def parse_target(text: str) -> Target:
    """The target of a proxy request in absolute form.

    Raises:
        ValueError: it is not an http or https URL, or one that could be read in two ways.
    """
    found = _TARGET.fullmatch(text)
    if found is None or not _VISIBLE.fullmatch(text):
        raise ValueError("the request target is not an absolute http or https URL")
    scheme = found[1].lower()
    host, port = parse_authority(found[2], _DEFAULT_PORT[scheme])
    return Target(scheme=scheme, host=host, port=port, path=found[3] or "/", query=found[4] or "")


def parse_authority(text: str, default_port: int | None = None) -> tuple[str, int]:
    """(host in lower case without brackets, port).

    Raises:
        ValueError: no such thing, or one with credentials, a trailing dot or an odd spelling of an address.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@]+)(?::([0-9]{1,5}))?", text)
    if found is None:
        raise ValueError(f"{text!r} is not host:port")
    port = int(found[2]) if found[2] else default_port
    if port is None or not 0 < port < 65536:
        raise ValueError(f"{text!r} has no usable port")
    host = found[1].lower()
    if host.startswith("["):
        return str(ipaddress.IPv6Address(host[1:-1])), port
    if re.fullmatch(r"[0-9.]+|.*\.[0-9]+|(?:.*\.)?0x[0-9a-f]*", host):
        return str(ipaddress.IPv4Address(host)), port
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise ValueError(f"{host!r} is not a host name")
    return host, port


def fits(rule: EgressRule, method: str, target: Target) -> bool:
    """Whether the rule permits exactly this request."""
    if (rule.scheme, rule.host, rule.port) != (target.scheme, target.host, target.port):
        return False
    if rule.methods and method not in rule.methods:
        return False
    if rule.path_prefix == "/":
        return True
    try:
        wanted, permitted = segments(target.path), segments(rule.path_prefix)
    except ValueError:
        return False
    return wanted[: len(permitted)] == permitted


def tunnels(rule: EgressRule, host: str, port: int) -> bool:
    """Whether the rule permits a tunnel that hides method and path: of https, and only where neither is limited."""
    place = (rule.scheme, rule.host, rule.port)
    return place == ("https", host, port) and not rule.methods and rule.path_prefix == "/"


def refusal(what: str, rules: Sequence[EgressRule]) -> str:
    """The sentence a sandbox reads when it is refused: what, and what is permitted instead."""
    return f"{what} is not permitted; permitted: {'; '.join(format_rule(rule) for rule in rules) or 'nothing'}."


def segments(path: str) -> list[str]:
    """The decoded segments of a path, without an empty last one.

    Raises:
        ValueError: servers disagree on what the path means: dot segments, encoded slashes, double encoding, ...
    """
    if _ENCODED.search(path):
        raise ValueError("it has empty segments, backslashes or an ambiguous percent-encoding")
    try:
        decoded = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("its percent-encoding is not UTF-8") from None
    if any(ord(character) < 32 or ord(character) == 127 for character in decoded):
        raise ValueError("it contains control characters")
    parts = decoded.removeprefix("/").split("/")
    if any(part.partition(";")[0].strip() in (".", "..") for part in parts):
        raise ValueError("it contains dot segments")
    return parts if parts[-1] else parts[:-1]


def address_is_open(rule_host: str, address: str) -> bool:
    """Whether a connection to this resolved address is right for a rule that names `rule_host`.

    Public addresses are; any other only when the rule names that very address, or `localhost` and it is a loopback.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    try:
        return found == ipaddress.ip_address(rule_host)
    except ValueError:
        if rule_host == LOCALHOST:
            return found.is_loopback
        return all(_is_public(one) for one in (found, *_embedded(found)))


def is_private(host: str) -> bool:
    """Whether this names, literally, this machine or an address that is not public."""
    try:
        return not _is_public(ipaddress.ip_address(host))
    except ValueError:
        return host == LOCALHOST


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address carries and may be delivered to."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    carried: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in carried if one is not None]


def _rule_place(text: str, place: str) -> tuple[str, int]:
    try:
        host, port = parse_authority(place)
    except ValueError as error:
        raise ValueError(f"egress rule {text!r}: {error}; write '{SYNTAX}'") from None
    return host, port
