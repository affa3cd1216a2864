from __future__ import annotations

import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.egress_ca import AUTHORITY_FILE, EgressCA


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A whole TLS handshake in memory; raises what the client raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert ends == []


@pytest.mark.parametrize("host", ["api.example", "localhost", "127.0.0.1", "2001:db8::1"])
def test_who_trusts_the_roots_file_trusts_the_host_that_was_signed_for(tmp_path: Path, host: str) -> None:
    authority = EgressCA(tmp_path / "ca")
    client = ssl.create_default_context(cafile=str(authority.roots()))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    handshake(authority.server(host), client, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.server(host), client, "other.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.server(host), ssl.create_default_context(), host)


def test_key_and_directory_are_closed_to_others(tmp_path: Path) -> None:
    EgressCA(tmp_path / "ca").roots()
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ca" / AUTHORITY_FILE).stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == ["authority.pem", "roots.pem"]
    assert b"PRIVATE" not in (tmp_path / "ca" / "roots.pem").read_bytes()


def test_an_authority_is_made_once_for_a_store(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        roots = list(pool.map(lambda _: EgressCA(tmp_path / "ca").roots().read_bytes(), range(8)))
    assert len(set(roots)) == 1
    client = ssl.create_default_context(cadata=roots[0].decode())
    handshake(EgressCA(tmp_path / "ca").server("api.example"), client, "api.example")


def test_a_certificate_is_made_once_for_a_host(tmp_path: Path) -> None:
    authority = EgressCA(tmp_path / "ca")
    assert authority.server("a.example") is authority.server("a.example")
    assert authority.server("a.example") is not authority.server("b.example")


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    EgressCA(tmp_path / "ca")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n"])
def test_a_broken_authority_is_told_in_one_sentence_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / AUTHORITY_FILE).write_bytes(content)
    with pytest.raises(SandboxUnavailable, match="is broken") as refused:
        EgressCA(tmp_path).roots()
    assert "Delete the file" in refused.value.remedy


def test_a_place_that_cannot_be_written_is_told_too() -> None:
    with pytest.raises(SandboxUnavailable, match="cannot be used"):
        EgressCA(Path("/proc/nowhere")).roots()
