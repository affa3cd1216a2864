"""HTTPS out of a sandbox: tunnels that say one thing and carry another, and what is asked inside them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from egress_world import LOCALHOST, OK, PATIENCE_S, QUICK, World, https_world, play, status, world

from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_exchange import EgressCaps

WHOLE = "https://localhost:PORT"
NARROW = "https://localhost:PORT GET,POST /v1"
CONNECT = "CONNECT localhost:PORT HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n"
GET = "GET /v1/x?q=1 HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n"
CONNECTED = b"HTTP/1.1 200 Connected\r\n\r\n"


def hello(name: bytes, *others: tuple[int, bytes]) -> bytes:
    """A small ClientHello."""
    entry = b"\0" + len(name).to_bytes(2) + name
    extensions = ((0, len(entry).to_bytes(2) + entry), *others)
    listed = b"".join(kind.to_bytes(2) + len(one).to_bytes(2) + one for kind, one in extensions)
    body = b"\x03\x03" + os.urandom(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + len(listed).to_bytes(2) + listed
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


# Passed through


def test_where_a_rule_opens_the_whole_host_tls_is_passed_through_untouched(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, WHOLE) as here:
            here.trust = ssl.create_default_context(cafile=str(tmp_path / "upstream/roots.pem"))  # and not ours
            assert await here.inside("GET /any HTTP/1.1\r\nHost: x\r\n\r\n") == OK
            assert here.service.seen == [b"GET /any HTTP/1.1\r\nHost: x\r\n\r\n"]
            record = here.record()
            assert (record.method, record.allowed, record.url) == ("CONNECT", True, f"localhost:{here.service.port}")
            assert record.bytes_out > 200
            assert record.bytes_in > 200

    play(scene)


def test_a_hello_may_come_in_pieces_and_in_several_records(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, WHOLE, names=LOCALHOST, hang=True) as here:
            whole = hello(b"localhost")
            message = whole[5:]
            cut = b"".join(b"\x16\x03\x01\0\x01" + message[at : at + 1] for at in range(len(message)))
            reader, writer = await asyncio.open_unix_connection(here.socket)
            writer.write(here.filled(CONNECT))
            assert await reader.readexactly(len(CONNECTED)) == CONNECTED
            for at in range(0, len(cut), 11):
                writer.write(cut[at : at + 11])
                await writer.drain()
            writer.write(b"behind\r\n\r\n")
            async with asyncio.timeout(PATIENCE_S):
                await here.service.arrived.wait()
            assert here.service.seen == [cut + b"behind\r\n\r\n"]
            writer.close()

    play(scene)


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"GET /v1 HTTP/1.1\r\nHost: localhost\r\n\r\n", "does not begin with a TLS ClientHello"),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n", "does not begin with a TLS"),
        (b"SSH-2.0-OpenSSH_9\r\n", "does not begin with a TLS"),
        (hello(b"evil.example"), "inside it asks for evil.example"),
        (hello(b"localhost."), "inside it asks for localhost."),
        (hello(b"localhost", (0xFE0D, b"\0")), "ECH"),
        (hello(b"localhost")[:40], "ended before its ClientHello did"),
    ],
    ids=["HTTP", "CONNECT", "SSH", "another name", "a trailing dot", "ECH", "cut off"],  # a hello is never the same
)
@pytest.mark.parametrize("rule", [WHOLE, NARROW])
def test_a_tunnel_that_carries_something_else_is_closed_before_a_byte_flows(
    tmp_path: Path, first: bytes, why: str, rule: str
) -> None:
    async def scene() -> None:
        names = LOCALHOST
        async with world(tmp_path, rule, names=names, authority=EgressCA(tmp_path / "ca")) as here:
            answer = await here.talk(here.filled(CONNECT) + first, finish=True)
            assert answer.startswith(CONNECTED)
            assert len(answer) <= len(CONNECTED) + 7
            record = here.record()
            assert (record.method, record.allowed, record.status) == ("CONNECT", False, None)
            assert why in record.reason
            assert all(seen.startswith(b"broken: 0 bytes") for seen in here.service.seen)

    play(scene)


@asynccontextmanager
async def retrying_world(folder: Path) -> AsyncIterator[World]:
    """A service that wants a key of a kind that no client here sends first, and so asks for another ClientHello."""
    upstream = EgressCA(folder / "upstream")
    server = upstream.server("localhost")
    server.set_ecdh_curve("secp384r1")
    trust = ssl.create_default_context(cafile=str(upstream.roots()))
    trust.minimum_version = ssl.TLSVersion.TLSv1_3
    async with world(folder, WHOLE, names=LOCALHOST, server=server, trust=trust) as here:
        yield here


def test_a_second_hello_for_the_same_host_is_passed_on(tmp_path: Path) -> None:
    async def scene() -> None:
        async with retrying_world(tmp_path) as here:
            assert await here.inside(GET) == OK
            assert here.record().allowed

    play(scene)


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (hello(b"evil.example"), "inside it asks for evil.example"),
        (bytes((20, 3, 3, 0, 1, 1)) + hello(b"evil.example"), "inside it asks for evil.example"),
        (hello(b"localhost", (0xFE0D, b"\0")), "ECH"),
        (bytes((22, 3, 3, 0, 4, 11, 0, 0, 0)), "does not begin with a TLS ClientHello"),
    ],
    ids=["another name", "behind a change of cipher", "ECH", "something else"],
)
@pytest.mark.parametrize("early", [False, True], ids=["asked for", "not waiting to be asked"])
@pytest.mark.parametrize("step", [0, 3], ids=["whole", "in pieces"])
def test_a_second_hello_for_another_host_closes_the_tunnel(
    tmp_path: Path, second: bytes, why: str, early: bool, step: int
) -> None:
    async def scene() -> None:
        async with retrying_world(tmp_path) as here:
            assert here.trust is not None
            outgoing = ssl.MemoryBIO()
            client = here.trust.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                client.do_handshake()
            reader, writer = await asyncio.open_unix_connection(here.socket)
            writer.write(here.filled(CONNECT))
            assert await reader.readexactly(len(CONNECTED)) == CONNECTED
            writer.write(outgoing.read() + (second if early else b""))
            if not early:
                asked = await reader.readexactly(5)
                assert asked[0] == 22
                retry = await reader.readexactly(int.from_bytes(asked[3:]))
                assert retry[6:38] == sha256(b"HelloRetryRequest").digest()
                for at in range(0, len(second), step or len(second)):
                    writer.write(second[at : at + (step or len(second))])
                    await writer.drain()
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    pass
            writer.close()
            record = here.record()
            assert (record.allowed, record.status) == (False, None)
            assert ("before the server has answered" if early else why) in record.reason

    play(scene)


def test_an_address_needs_no_name_inside_and_no_other_will_do(tmp_path: Path) -> None:
    async def scene() -> None:
        for rule in ("https://127.0.0.1:PORT", "https://127.0.0.1:PORT GET"):
            async with https_world(tmp_path, rule, served_as="127.0.0.1") as here:
                answer = await here.inside(
                    "GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n", to="127.0.0.1:PORT", sni="127.0.0.1"
                )
                assert status(answer) == 200
                with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
                    await here.inside("GET / HTTP/1.1\r\nHost: x\r\n\r\n", to="127.0.0.1:PORT", sni="localhost")
                assert "inside it asks for localhost" in here.record().reason
                (tmp_path / "e.sock").unlink()

    play(scene)


def test_a_host_name_needs_a_name_inside(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, WHOLE) as here:
            assert here.trust is not None
            here.trust.check_hostname = False
            with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
                await here.inside(GET, sni=None)
            assert "no host at all" in here.record().reason

    play(scene)


@pytest.mark.parametrize("rule", [WHOLE, NARROW])
def test_a_hello_that_never_ends_is_given_up(tmp_path: Path, rule: str) -> None:
    async def scene() -> None:
        async with world(tmp_path, rule, names=LOCALHOST, caps=QUICK, authority=EgressCA(tmp_path / "ca")) as here:
            for first in (b"", hello(b"localhost")[:30]):
                assert (await here.talk(here.filled(CONNECT) + first)).startswith(CONNECTED)
                assert "time" in here.record().reason
            endless = b"\x16\x03\x01\x40\0\x01\xff\xff\xff" + bytes(60_000)
            assert (await here.talk(here.filled(CONNECT) + endless)).startswith(CONNECTED)
            assert not here.record().allowed

    play(scene)


def test_a_tunnel_is_no_way_around_the_byte_caps(tmp_path: Path) -> None:
    async def scene() -> None:
        caps = EgressCaps(request_bytes=1000)
        async with world(tmp_path, WHOLE, names=LOCALHOST, caps=caps) as here:
            await here.talk(here.filled(CONNECT) + hello(b"localhost") + bytes(2000))
            assert "more than 1000 bytes" in here.record().reason
            assert all(seen.startswith(b"broken") for seen in here.service.seen)

    play(scene)


# Ended here


def test_a_key_against_repeated_effects_is_stamped_also_where_the_rule_opens_the_whole_host(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, WHOLE) as here:
            here.proxy.admit({"Idempotency-Key": "k1"})
            assert status(await here.inside("POST /any HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n")) == 200
            assert b"idempotency-key: k1\r\n" in here.service.seen[0].lower()

    play(scene)


def test_where_a_rule_is_narrower_a_request_inside_is_checked_like_a_plain_one(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, NARROW) as here:
            answer = await here.inside(GET)
            assert status(answer) == 200
            assert answer.endswith(b"hello")
            (sent,) = here.service.seen
            assert sent.lower().startswith(b"get /v1/x?q=1 http/1.1\r\n")
            assert b"lockstep-run: r1" in sent.lower()
            place = f"https://localhost:{here.service.port}"
            for line in ("DELETE /v1", "GET /v2", "GET /v1/../v2", "GET /v1/%2e%2e/v2", "GET //v1", "GET /"):
                refused = await here.inside(f"{line} HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n")
                assert status(refused) == 403
                assert f"permitted: {place} GET,POST /v1.".encode() in refused
            assert len(here.service.seen) == 1
            records = here.proxy.records()
            assert [record.method for record in records] == ["GET", "DELETE", *["GET"] * 5]
            assert records[0].url == f"{place}/v1/x?q=1"
            assert [record.allowed for record in records] == [True, *[False] * 6]

    play(scene)


def test_bodies_pass_both_ways_inside(tmp_path: Path) -> None:
    async def scene() -> None:
        reply = b"HTTP/1.1 201 Made\r\nContent-Length: 300000\r\n\r\n" + b"y" * 300_000
        async with https_world(tmp_path, NARROW, reply=reply) as here:
            head = "POST /v1 HTTP/1.1\r\nHost: localhost:PORT\r\nContent-Length: 200000\r\n\r\n"
            answer = await here.inside(head.encode() + b"x" * 200_000, cut=50_000)
            assert status(answer) == 201
            assert answer.endswith(b"y" * 300_000)
            assert here.service.seen[0].endswith(b"x" * 200_000)
            assert (here.record().bytes_out, here.record().bytes_in) == (200_000, 300_000)

    play(scene)


@pytest.mark.parametrize(
    ("request_text", "code"),
    [
        ("GET /v1 HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET /v1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        ("GET https://localhost:PORT/v1 HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET https://evil.example/v1 HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n", 403),
        ("GET http://localhost:PORT/v1 HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n", 403),
        ("CONNECT localhost:PORT HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n", 403),
        ("CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", 403),
        ("connect /v1 HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n", 403),
        ("GET /v1 HTTP/1.1\r\nHost: localhost:PORT\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n", 403),
        ("GET /v1 HTTP/1.0\r\n\r\n", 400),
        ("GET /v1 HTTP/1.1\r\nHost: localhost:PORT\r\nHost: evil.example\r\n\r\n", 400),
        ("GET /v1 HTTP/1.1\r\nHost: localhost:PORT, evil.example\r\n\r\n", 400),
        ("GET @evil.example/v1 HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n", 400),
        ("POST /v1 HTTP/1.1\r\nHost: localhost:PORT\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("POST /v1 HTTP/1.1\r\nHost: localhost:PORT\r\nContent-Length: 4\r\nContent-Length: 2\r\n\r\nabcd", 400),
        ("POST /v1 HTTP/1.1\r\nHost: localhost:PORT\r\nX: y\n\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("\x16\x03\x01\r\n\r\n", 400),
    ],
)
def test_a_request_inside_for_another_host_or_of_two_meanings_goes_nowhere(
    tmp_path: Path, request_text: str, code: int
) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, NARROW) as here:
            assert status(await here.inside(request_text)) == code
            assert here.service.seen == []
            record = here.record()
            assert (record.allowed, record.status) == (False, code)
            assert record.reason

    play(scene)


def test_a_target_in_absolute_form_may_stand_inside(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, NARROW) as here:
            answer = await here.inside("GET https://localhost:PORT/v1 HTTP/1.1\r\nHost: LOCALHOST:PORT\r\n\r\n")
            assert status(answer) == 200

    play(scene)


def test_a_second_request_inside_is_not_served(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, NARROW) as here:
            answer = await here.inside(GET + "GET /v2 HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n")
            assert answer.count(b"HTTP/1.1") == 1
            assert len(here.service.seen) == 1

    play(scene)


def test_a_redirect_inside_is_passed_on_and_not_followed(tmp_path: Path) -> None:
    reply = b"HTTP/1.1 302 Found\r\nLocation: https://evil.example/\r\nContent-Length: 0\r\n\r\n"

    async def scene() -> None:
        async with https_world(tmp_path, NARROW, reply=reply) as here:
            answer = await here.inside(GET)
            assert status(answer) == 302
            assert b"https://evil.example/" in answer
            with pytest.raises(ConnectionRefusedError, match="403"):
                await here.inside("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", to="evil.example:443")
            assert len(here.service.seen) == 1

    play(scene)


def test_a_server_whose_certificate_does_not_hold_gets_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, NARROW, served_as="other.example") as here:
            answer = await here.inside(GET)
            assert status(answer) == 502
            assert b"certificate" in answer.lower()
            assert here.service.seen == []

    play(scene)


def test_a_client_that_does_not_trust_us_sends_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, NARROW) as here:
            here.trust = ssl.create_default_context(cafile=str(tmp_path / "upstream/roots.pem"))
            with pytest.raises(ssl.SSLCertVerificationError):
                await here.inside(GET)
            while not here.proxy.records():
                await asyncio.wait(here.proxy._tasks, timeout=PATIENCE_S)
            assert "TLS inside the tunnel to localhost failed" in here.record().reason
            assert here.service.seen == []

    play(scene)


def test_a_tunnel_in_which_nothing_is_asked_is_told(tmp_path: Path) -> None:
    async def scene() -> None:
        async with https_world(tmp_path, NARROW) as here:
            with pytest.raises(ValueError, match="range"):  # a client that says nothing
                await here.inside(b"")
            while not here.proxy.records():
                await asyncio.wait(here.proxy._tasks, timeout=PATIENCE_S)
            assert "Nothing was asked" in here.record().reason

    play(scene)


def test_too_large_a_reply_inside_is_cut_off_visibly(tmp_path: Path) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"

    async def scene() -> None:
        async with https_world(tmp_path, NARROW, reply=chunked, caps=EgressCaps(reply_bytes=4)) as here:
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                await here.inside(GET)
            assert here.record().status is None
            assert "larger" in here.record().reason

    play(scene)


def test_without_an_authority_a_narrow_rule_opens_no_tunnel(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, NARROW, names=LOCALHOST) as here:
            answer = await here.talk(CONNECT)
            assert status(answer) == 403
            assert b"would hide method and path" in answer

    play(scene)


# Names


@pytest.mark.parametrize("rule", ["https://api.example:PORT", "https://api.example:PORT GET"])
def test_a_name_that_turns_private_between_two_requests_is_refused_at_the_second(tmp_path: Path, rule: str) -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["192.88.99.1"] if len(asked) == 1 else ["127.0.0.1"]  # first a public address where nothing is

    async def scene(here: World) -> None:
        request = "GET https://api.example:PORT/ HTTP/1.1\r\nHost: api.example\r\n\r\n"
        assert status(await here.talk(request)) in (502, 504)
        assert asked == ["api.example"], "resolved once: the address that was checked is the one that is dialled"
        second = await here.talk(request)
        assert status(second) == 403
        assert b"not public" in second
        assert here.service.seen == []

    async def bounded() -> None:
        async with world(tmp_path, rule, resolve=rebinding, caps=QUICK, authority=EgressCA(tmp_path / "ca")) as here:
            await scene(here)

    play(bounded)
