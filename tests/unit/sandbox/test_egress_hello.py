from __future__ import annotations

import ssl

import pytest

from lockstep.sandbox.egress_hello import HELLO_BYTES, ClientHello, HelloReader


def real_hello(server_name: str | None) -> bytes:
    """What this Python's TLS says first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def made_hello(*extensions: tuple[int, bytes], behind: bytes = b"") -> bytes:
    """A small ClientHello in one record, with exactly these extensions."""
    listed = b"".join(kind.to_bytes(2) + len(one).to_bytes(2) + one for kind, one in extensions)
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + len(listed).to_bytes(2) + listed
    return records(b"\x01" + len(body).to_bytes(3) + body + behind)


def records(message: bytes, size: int = 2**14) -> bytes:
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


def server_name(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    listed = b"".join(bytes([kind]) + len(name).to_bytes(2) + name for name in names)
    return 0, len(listed).to_bytes(2) + listed


def read(data: bytes, step: int = 0) -> ClientHello | None:
    reader = HelloReader()
    for at in range(0, len(data), step or len(data)):
        if (hello := reader.feed(data[at : at + (step or len(data))])) is not None:
            return hello
    return None


@pytest.mark.parametrize("step", [0, 1, 7, 100])
@pytest.mark.parametrize("record_bytes", [2**14, 50, 1])
def test_a_real_hello_is_read_however_it_is_cut(step: int, record_bytes: int) -> None:
    message = real_hello("api.example")[5:]
    hello = read(records(message, record_bytes), step)
    assert hello == ClientHello(server_name="api.example", encrypted=False)


def test_a_real_hello_without_a_name_has_none() -> None:
    assert read(real_hello(None)) == ClientHello(server_name=None, encrypted=False)


def test_what_was_read_is_kept_to_the_byte_for_passing_on() -> None:
    sent = real_hello("api.example")
    reader = HelloReader()
    assert reader.feed(sent[:10]) is None
    assert reader.feed(sent[10:] + b"early data") is not None
    assert bytes(reader.raw) == sent + b"early data"


def test_half_a_hello_is_no_hello_yet() -> None:
    assert read(real_hello("api.example")[:-1]) is None


def test_a_name_is_compared_in_lower_case() -> None:
    assert read(made_hello(server_name(b"API.Example"))) == ClientHello(server_name="api.example", encrypted=False)


@pytest.mark.parametrize("kind", [0xFE0D, 0xFFCE, 0xFE0A])
def test_an_encrypted_name_is_seen(kind: int) -> None:
    hello = read(made_hello(server_name(b"api.example"), (kind, b"\0")))
    assert hello is not None
    assert hello.encrypted


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not begin"),
        (b"CONNECT evil.example:443 HTTP/1.1\r\n", "does not begin"),
        (b"\x80\x2e\x01\x03\x01", "does not begin"),  # SSL 2
        (b"\x17\x03\x03\0\x01x", "does not begin"),
        (b"\x16\x02\x01\0\x01\x01", "does not begin"),
        (b"\x16\x03\x01\0\0", "does not begin"),
        (b"\x16\x03\x01\xff\xff", "does not begin"),
        (b"\x16\x03\x01\0\x04\x02\0\0\0", "does not begin"),
        (records(b"\x01\0\0\x01") + b"\x14\x03\x03\0\x01\x01", "does not begin"),
        (made_hello(server_name(b"a.example"), server_name(b"b.example")), "twice"),
        (made_hello(server_name(b"a.example", b"b.example")), "more than one"),
        (made_hello(server_name(b"a.example", kind=1)), "more than one"),
        (made_hello(server_name("\u00e4.example".encode())), "ASCII"),
        (made_hello((0, b"\0\x10\0\0\x01a")), "malformed"),
        (made_hello((0, b"")), "malformed"),
        (made_hello(behind=b"\x01\0\0\0"), "behind"),
        (records(b"\x01\0\0\x02\x03\x03"), "malformed"),
        (records(b"\x01\xff\xff\xff" + bytes(HELLO_BYTES)), "longer"),
    ],
)
def test_what_is_no_plain_hello_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(data)


def test_no_cut_piece_makes_the_reader_fail_in_another_way() -> None:
    sent = real_hello("api.example")
    for end in range(6, len(sent), 3):
        broken = records(sent[5:end])
        assert read(broken) is None
        shortened = b"\x01" + (end - 9).to_bytes(3) + sent[9:end] if end > 9 else b"\x01\0\0\0"
        with pytest.raises(ValueError, match=r"malformed|more than one"):
            read(records(shortened))
