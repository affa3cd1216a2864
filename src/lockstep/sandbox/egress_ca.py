"""The certificate authority of one store: signs for hosts whose TLS the egress proxy ends, trusted by sandboxes alone.

It lies in a directory of its own (0700): `authority.pem` with its key (0600), and `roots.pem`, the host's own roots and
ours, which sandboxes mount. Made when first needed. Nothing on the host is told to trust it.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.errors import SandboxUnavailable

if TYPE_CHECKING:
    from lockstep.sandbox.egress_x509 import Authority

AUTHORITY_FILE = "authority.pem"
ROOTS_FILE = "roots.pem"
_LEAF_S = 12 * 3600.0
"""How long one leaf is used; it is valid for twice as long."""
_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


class EgressCA:
    """The authority in `directory`; nothing is read, made or imported before it is asked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority: Authority | None = None
        self._roots: Path | None = None
        self._contexts: dict[str, tuple[float, ssl.SSLContext]] = {}
        self._lock = threading.Lock()

    def roots(self) -> Path:
        """The file of roots a sandbox is to trust: the host's, and this authority. Blocks for a moment the first time.

        Raises:
            SandboxUnavailable: it cannot be made, or what lies there is broken.
        """
        with self._lock:
            if self._roots is None:
                content = _system_roots() + self._opened().certificate
                path = self._directory / ROOTS_FILE
                with self._explained():
                    if not path.exists() or path.read_bytes() != content:
                        _write(path, content, 0o644)  # what is mounted somewhere keeps the file it has
                self._roots = path
            return self._roots

    def server(self, host: str) -> ssl.SSLContext:
        """What speaks TLS as `host` towards a sandbox.

        Raises:
            SandboxUnavailable: as `roots`.
        """
        with self._lock:
            until, context = self._contexts.get(host, (0.0, None))
            if context is None or time.monotonic() > until:
                context = _context(self._opened().leaf(host))
                self._contexts[host] = (time.monotonic() + _LEAF_S, context)
            return context

    def _opened(self) -> Authority:
        """The authority that is there, made when there is none, or none for much longer."""
        if self._authority is None:
            from lockstep.sandbox import egress_x509  # loads `cryptography`: time that only https egress pays

            path = self._directory / AUTHORITY_FILE
            with self._explained():
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not path.exists():
                    _write(path, egress_x509.new_authority(), 0o600, replace=False)
                found = egress_x509.Authority(path.read_bytes())
                if found.ends_soon:
                    _write(path, egress_x509.new_authority(), 0o600)
                    found = egress_x509.Authority(path.read_bytes())
                self._authority = found
        return self._authority

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        where = self._directory / AUTHORITY_FILE
        try:
            yield
        except OSError as error:
            message = f"The certificate authority for https egress, {where}, cannot be used: {error.strerror or error}."
            raise SandboxUnavailable(message, remedy="Check space and permissions there.") from error
        except ValueError as error:
            message = f"The certificate authority for https egress, {where}, is broken."
            raise SandboxUnavailable(message, remedy="Delete the file; the next run makes a new one.") from error


def _context(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # each tunnel is its own session
    context.set_alpn_protocols(["http/1.1"])
    file = os.memfd_create("leaf")  # `ssl` reads keys from files only, and this one need not touch a disk
    try:
        os.write(file, pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


def _system_roots() -> bytes:
    """What this host trusts, as one file of it says; empty when there is none."""
    for name in (ssl.get_default_verify_paths().cafile, *_SYSTEM_ROOTS):
        with contextlib.suppress(OSError):
            if name:
                return Path(name).read_bytes().rstrip() + b"\n"
    return b""


def _write(path: Path, content: bytes, mode: int, *, replace: bool = True) -> None:
    """Put a file there whole; without `replace`, only when there is none: another process may have been first."""
    file, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # closed to others from the start
    try:
        with open(file, "wb") as open_file:
            os.fchmod(file, mode)
            open_file.write(content)
        if replace:
            os.replace(beside, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)
