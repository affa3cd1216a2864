"""From the proxy to a server: resolve once, refuse what is not public, connect to the very address that was checked."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

from lockstep.sandbox.egress_rules import address_is_open
from lockstep.sandbox.egress_wire import HEAD_BYTES, Refused

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> addresses; raises OSError when there are none."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Dialer:
    """Opens connections for one proxy; each step has `timeout_s` seconds."""

    def __init__(self, timeout_s: float, resolve: Resolver | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._timeout_s = timeout_s
        self._resolve = resolve or resolve_on_host
        self._tls = tls

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Where a permitted host is, all of it open to it.

        Raises:
            Refused: it has no address, or one that no rule names and that is not public.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._look_up(host, port)
        except TimeoutError:
            raise Refused(504, f"The name {host} was not resolved in time.") from None
        except OSError:
            raise Refused(502, f"The name {host} cannot be resolved.") from None
        if closed := [address for address in found if not address_is_open(host, address)]:
            raise Refused(403, f"{host} resolves to {closed[0]}, which is not public and which no rule names.")
        return found

    async def connect(self, host: str, port: int, addresses: Sequence[str], *, tls: bool) -> Streams:
        """A connection to the first address that answers; with `tls` the certificate must be for `host`.

        Raises:
            Refused: none answers (502), or not in time (504).
        """
        context = (self._tls or default_tls()) if tls else None
        refusal = Refused(502, f"{host}:{port} cannot be reached.")
        for address in addresses:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await asyncio.open_connection(
                        address, port, limit=HEAD_BYTES, ssl=context, server_hostname=host if tls else None
                    )
            except TimeoutError:
                refusal = Refused(504, f"{host}:{port} did not answer in time.")
            except OSError as error:  # certificate errors too
                refusal = Refused(502, f"{host}:{port} cannot be reached: {error.strerror or error}.")
        raise refusal

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            addresses = await self._resolve(host, port)
        if not addresses:
            raise OSError("no addresses")
        return addresses


async def resolve_on_host(host: str, port: int) -> Sequence[str]:
    """The host's own resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@functools.cache
def default_tls() -> ssl.SSLContext:
    """Certificate and host name are verified; nothing else is accepted."""
    return ssl.create_default_context()
