"""Hostile requests, straight at the proxy's socket: what a sandbox that ignores the shim would send."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from egress_world import QUICK, play, status, world

from lockstep.sandbox.egress_exchange import EgressCaps

RULE = "127.0.0.1:PORT GET,POST /v1"
POST = "POST http://127.0.0.1:PORT/v1 HTTP/1.1\r\nHost: x\r\n"
GET = "GET http://127.0.0.1:PORT/v1/x?q=1 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n"


def test_a_permitted_request_arrives_stamped_and_is_recorded(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE) as here:
            answer = await here.talk(
                "POST http://127.0.0.1:PORT/v1/x HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 3\r\n"
                "Lockstep-Run: forged\r\nlockstep_run: forged\r\nLockstep-Other: forged\r\nX-Mine: kept\r\n"
                "Connection: close, X-Hop\r\nX-Hop: 1\r\nProxy-Authorization: Basic eA==\r\n\r\nabc"
            )
            assert status(answer) == 200
            assert answer.endswith(b"hello")
            (sent,) = here.service.seen
            head = sent.lower()
            assert head.startswith(b"post /v1/x http/1.1\r\n")
            assert f"host: 127.0.0.1:{here.service.port}\r\n".encode() in head
            assert head.count(b"lockstep") == 1
            assert b"lockstep-run: r1" in head
            assert b"x-mine: kept" in head
            for gone in (b"evil", b"forged", b"x-hop", b"proxy-authorization"):
                assert gone not in head
            assert sent.endswith(b"\r\n\r\nabc")
            record = here.record()
            assert (record.method, record.allowed, record.status) == ("POST", True, 200)
            assert (record.bytes_out, record.bytes_in) == (3, 5)
            assert record.url == f"http://127.0.0.1:{here.service.port}/v1/x"

    play(scene)


def test_chunked_bodies_pass_both_ways(tmp_path: Path) -> None:
    reply = (
        b"HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )

    async def scene() -> None:
        async with world(tmp_path, RULE, reply=reply) as here:
            answer = await here.talk(f"{POST}Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
            assert status(answer) == 201
            assert b"content-length" not in answer.lower()
            assert answer.endswith(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            assert here.service.seen[0].endswith(b"2\r\nhi\r\n0\r\n\r\n")

    play(scene)


@pytest.mark.parametrize(
    "line",
    [
        "DELETE http://127.0.0.1:PORT/v1",
        "GET http://127.0.0.1:PORT/v2",
        "GET http://127.0.0.1:PORT/v1x",
        "GET http://127.0.0.1:PORT/v1/../v2",
        "GET http://127.0.0.1:PORT/v1/%2e%2e/v2",
        "GET http://127.0.0.1:PORT/v1/..;/v2",
        "GET http://127.0.0.1:PORT/v1%2f..%2fv2",
        "GET http://127.0.0.1:PORT/v1/%252e%252e/v2",
        "GET http://127.0.0.1:PORT//v1",
        "GET http://127.0.0.1:1/v1",
        "GET http://localhost:PORT/v1",
        "GET https://127.0.0.1:PORT/v1",
        "GET http://169.254.169.254/latest/meta-data/",
        "CONNECT 127.0.0.1:PORT",
        "CONNECT evil.example:443",
    ],
)
def test_what_no_rule_permits_is_refused_with_a_sentence_that_names_both(tmp_path: Path, line: str) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE) as here:
            answer = await here.talk(f"{line} HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")
            assert status(answer) == 403
            body = answer.partition(b"\r\n\r\n")[2].decode()
            assert line.split("/v1")[0].replace("PORT", str(here.service.port)).split()[0] in body
            assert f"permitted: http://127.0.0.1:{here.service.port} GET,POST /v1." in body
            record = here.record()
            assert (record.allowed, record.status) == (False, 403)
            assert record.reason == body.strip()
            assert here.service.seen == []

    play(scene)


@pytest.mark.parametrize(
    "request_text",
    [
        "GET /v1 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
        "GET http://user:pw@127.0.0.1:PORT/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
        f"{POST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"{POST}Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        f"{POST}Content-Length: 4\r\nContent-Length: 2\r\n\r\nabcd",
        f"{POST}Content-Length: 4, 4\r\n\r\nabcd",
        f"{POST}Content-Length: +4\r\n\r\nabcd",
        f"{POST}Content-Length : 4\r\n\r\nabcd",
        f"{POST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        f"{POST}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        f"{POST}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "GET http://127.0.0.1:PORT/v1 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "GET http://127.0.0.1:PORT/v1 HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
        "GET http://127.0.0.1:PORT/v1 HTTP/1.1\r\nHost: x\rX: y\r\n\r\n",
        "GET http://127.0.0.1:PORT/v1 HTTP/1.1\r\n\r\n",
        "GET http://127.0.0.1:PORT/v1 HTTP/3.7\r\nHost: x\r\n\r\n",
        "GET http://127.0.0.1:PORT/v1\r\n\r\n",
        "\x16\x03\x01\x02\r\n\r\n",
    ],
)
def test_a_request_that_could_be_read_in_two_ways_goes_nowhere(tmp_path: Path, request_text: str) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE) as here:
            answer = await here.talk(request_text)
            assert 400 <= status(answer) < 600
            assert status(answer) != 403
            assert here.service.seen == []
            assert here.record().allowed is False

    play(scene)


def test_a_broken_chunk_never_becomes_a_whole_request(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE) as here:
            answer = await here.talk(f"{POST}Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n")
            assert status(answer) == 400
            await here.service.arrived.wait()
            assert here.service.seen[0].startswith(b"broken")

    play(scene)


def test_a_second_request_on_the_same_connection_is_not_served(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE) as here:
            answer = await here.talk(GET + "GET http://127.0.0.1:PORT/v2 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.count(b"HTTP/1.1") == 1
            assert b"connection: close" in answer.lower()
            assert len(here.service.seen) == 1

    play(scene)


def test_a_redirect_is_passed_on_and_not_followed(tmp_path: Path) -> None:
    reply = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"

    async def scene() -> None:
        async with world(tmp_path, RULE, reply=reply) as here:
            answer = await here.talk(GET)
            assert status(answer) == 302
            assert b"http://169.254.169.254/" in answer
            assert len(here.proxy.records()) <= 1
            assert here.record().status == 302

    play(scene)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:127.0.0.1"], ["::1"]])
def test_a_name_that_resolves_to_a_private_address_is_refused(tmp_path: Path, addresses: list[str]) -> None:
    async def scene() -> None:
        async with world(
            tmp_path, "http://api.example:PORT", "https://api.example:PORT", names={"api.example": addresses}
        ) as here:
            for line in ("GET http://api.example:PORT/", "CONNECT api.example:PORT"):
                answer = await here.talk(f"{line} HTTP/1.1\r\nHost: api.example\r\n\r\n")
                assert status(answer) == 403
                assert b"not public" in answer
            assert here.service.seen == []
            assert not here.record().allowed

    play(scene)


def test_localhost_is_reached_only_where_a_rule_names_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, "localhost:PORT GET /v1", names={"localhost": ["127.0.0.1"]}) as here:
            answer = await here.talk("GET http://LOCALHOST:PORT/v1 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(answer) == 200

    play(scene)


def test_an_unknown_name_and_a_closed_port_are_gateway_errors(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, "gone.example:80", "127.0.0.1:1") as here:
            assert status(await here.talk("GET http://gone.example/ HTTP/1.1\r\nHost: x\r\n\r\n")) == 502
            assert status(await here.talk("GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\n\r\n")) == 502

    play(scene)


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"])
def test_a_server_that_does_not_answer_in_http_is_a_gateway_error(tmp_path: Path, reply: bytes) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, reply=reply) as here:
            assert status(await here.talk(GET)) == 502
            assert here.record().allowed

    play(scene)


def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, hang=True, caps=QUICK) as here:
            assert status(await here.talk(GET)) == 504
            assert here.record().status == 504

    play(scene)


@pytest.mark.parametrize("dribble", [b"GET http://127", b"GET http://127.0.0.1/v1 HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_never_ends_is_given_up(tmp_path: Path, dribble: bytes) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, caps=QUICK) as here:
            assert status(await here.talk(dribble)) == 504

    play(scene)


def test_a_body_that_never_comes_is_given_up(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, caps=QUICK) as here:
            answer = await here.talk(f"{POST}Content-Length: 9\r\n\r\n")
            assert status(answer) == 504

    play(scene)


def test_an_endless_head_is_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE) as here:
            assert status(await here.talk(b"GET http://127.0.0.1/ HTTP/1.1\r\nX: " + b"x" * 100_000)) == 431

    play(scene)


def test_too_large_a_request_is_refused_before_and_while_it_is_sent(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, caps=EgressCaps(request_bytes=10)) as here:
            start = POST
            assert status(await here.talk(f"{start}Content-Length: 11\r\n\r\n{'x' * 11}")) == 413
            assert here.service.seen == []
            assert (
                status(await here.talk(f"{start}Transfer-Encoding: chunked\r\n\r\nb\r\n{'x' * 11}\r\n0\r\n\r\n")) == 413
            )

    play(scene)


def test_too_large_a_reply_is_refused_or_cut_off_visibly(tmp_path: Path) -> None:
    async def scene() -> None:
        caps = EgressCaps(reply_bytes=4)
        async with world(tmp_path, RULE, caps=caps) as here:
            assert status(await here.talk(GET)) == 502
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
        async with world(tmp_path, RULE, caps=caps, reply=chunked) as here:
            assert not (await here.talk(GET)).endswith(b"0\r\n\r\n")
            assert here.record().status is None
            assert "larger" in here.record().reason

    play(scene)


def test_connections_and_requests_are_bounded(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, caps=EgressCaps(connections=2, requests=3)) as here:
            idle = [await asyncio.open_unix_connection(here.socket) for _ in range(2)]
            assert status(await here.talk(GET)) == 503
            for _, writer in idle:
                writer.close()
            answers = [status(await here.talk(GET)) for _ in range(4)]
            assert answers.count(200) <= 3
            assert answers[-1] == 429
            assert len(here.proxy.records()) == 3

    play(scene)


def test_what_is_under_way_when_the_sandbox_ends_is_broken_off_and_recorded(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, hang=True) as here:
            _, writer = await asyncio.open_unix_connection(here.socket)
            writer.write(GET.replace("PORT", str(here.service.port)).encode())
            await here.service.arrived.wait()
            await here.proxy.close()
            (record,) = here.proxy.records()
            assert (record.allowed, record.status) == (True, None)
            writer.close()

    play(scene)


def test_https_is_fetched_with_a_verified_certificate(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed (Debian package openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    rules = ("https://localhost:PORT GET /v1", "https://127.0.0.1:PORT GET /v1")
    names = {"localhost": ["127.0.0.1"]}

    async def scene() -> None:
        request = "GET https://localhost:PORT/v1 HTTP/1.1\r\nHost: x\r\n\r\n"
        async with world(tmp_path, *rules, names=names, server=served, tls=trusting) as here:
            assert status(await here.talk(request)) == 200
            other_name = await here.talk(request.replace("localhost", "127.0.0.1"))
            assert status(other_name) == 502
            assert b"certificate" in other_name.lower()
        async with world(tmp_path, *rules, names=names, server=served) as here:
            untrusted = await here.talk(request)
            assert status(untrusted) == 502
            assert here.service.seen == []

    play(scene)


def test_nothing_leaves_before_a_call_is_admitted(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, "https://127.0.0.1:PORT", admitted=False) as here:
            for request in (GET, "CONNECT 127.0.0.1:PORT HTTP/1.1\r\nHost: x\r\n\r\n"):
                answer = await here.talk(request)
                assert status(answer) == 403
                assert b"No call has been permitted" in answer
            assert here.service.seen == []
            assert [record.allowed for record in here.proxy.records()] == [False, False]
            here.proxy.admit({"Lockstep-Run": "r2"})
            assert status(await here.talk(GET)) == 200
            assert b"lockstep-run: r2" in here.service.seen[0].lower()
            assert [record.allowed for record in here.proxy.records()] == [True]

    play(scene)


def test_the_next_call_has_its_own_identity_and_records(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE) as here:
            assert status(await here.talk(GET)) == 200
            await here.proxy.shut()
            assert status(await here.talk(GET)) == 403
            assert [record.status for record in here.proxy.records()] == [200, 403]
            here.proxy.admit({"Lockstep-Run": "r2"})
            assert status(await here.talk(GET)) == 200
            here.proxy.admit({"Lockstep-Run": "r3"})
            assert here.proxy.records() == ()
            assert status(await here.talk(GET)) == 200
            runs = [head.lower().partition(b"lockstep-run: ")[2][:2] for head in here.service.seen]
            assert runs == [b"r1", b"r2", b"r3"]

    play(scene)


@pytest.mark.parametrize("by", ["shut", "admit"])
def test_what_one_call_left_under_way_does_not_go_on_into_the_next(tmp_path: Path, by: str) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE, hang=True) as here:
            reader, writer = await asyncio.open_unix_connection(here.socket)
            writer.write(here.filled(GET))
            await here.service.arrived.wait()
            if by == "shut":
                await here.proxy.shut()
                assert [(record.allowed, record.status) for record in here.proxy.records()] == [(True, None)]
            here.proxy.admit({"Lockstep-Run": "r2"})
            assert here.proxy.records() == ()
            assert await reader.read() == b""
            assert here.proxy.records() == ()
            writer.close()

    play(scene)


def test_a_websocket_is_refused_in_words(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, RULE) as here:
            answer = await here.talk(
                "GET http://127.0.0.1:PORT/v1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            assert status(answer) == 403
            assert b"WebSockets" in answer
            assert here.service.seen == []

    play(scene)


@pytest.mark.parametrize("method", ["connect", "Connect"])
def test_connect_in_another_case_is_no_request_to_pass_on(tmp_path: Path, method: str) -> None:
    async def scene() -> None:
        async with world(tmp_path, "127.0.0.1:PORT") as here:
            answer = await here.talk(f"{method} http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: evil.example:443\r\n\r\n")
            assert status(answer) == 403
            assert here.service.seen == []

    play(scene)


def test_a_proxy_behind_an_open_plain_host_gets_no_connect(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, "127.0.0.1:PORT") as here:
            inner = "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n"
            answer = await here.talk(f"CONNECT 127.0.0.1:PORT HTTP/1.1\r\nHost: x\r\n\r\n{inner}")
            assert status(answer) == 403
            assert here.service.seen == []

    play(scene)
