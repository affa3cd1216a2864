from __future__ import annotations

import base64
import json
from dataclasses import replace
from urllib.parse import quote

import pytest

from lockstep.sandbox.contract import SecretBinding
from lockstep.sandbox.secrets import (
    Held,
    Scrubber,
    Watch,
    bound_to,
    emptied,
    filled,
    new_placeholder,
    replacements,
    scrubbed_text,
)

VALUE = b's3cr"t/ value+1'
KEY = Held(
    binding=SecretBinding(env="KEY", host="api.example", port=443, header="Authorization"),
    placeholder=b"lockstep-placeholder-" + b"0123456789abcdef" * 2,
    value=VALUE,
)
P = KEY.placeholder


def test_placeholders_are_never_the_same_and_say_what_they_are() -> None:
    assert new_placeholder() != new_placeholder()
    assert new_placeholder().startswith("lockstep-placeholder-")
    assert VALUE not in repr(KEY).encode()


def test_a_secret_is_bound_to_one_host_and_port() -> None:
    assert bound_to([KEY], "api.example", 443) == [KEY]
    assert bound_to([KEY], "api.example", 80) == []
    assert bound_to([KEY], "www.api.example", 443) == []


@pytest.mark.parametrize("name", [b"authorization", b"Authorization"])
@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (P, VALUE),
        (b"Bearer " + P, b"Bearer " + VALUE),
        (b"Basic " + base64.b64encode(b"me:" + P), b"Basic " + base64.b64encode(b"me:" + VALUE)),
        (b"basic  " + base64.b64encode(P + b":"), b"basic  " + base64.b64encode(VALUE + b":")),
        (b"Basic !!!", b"Basic !!!"),
        (b"Basic abc", b"Basic abc"),
    ],
)
def test_a_placeholder_becomes_the_value_in_its_header(name: bytes, written: bytes, sent: bytes) -> None:
    assert filled([(name, written)], [KEY]) == [(name, sent)]
    ((_, left),) = emptied([(name, written)], [KEY])
    assert not Watch([KEY]).sees(left)


@pytest.mark.parametrize(
    "header",
    [
        (b"x-key", P),
        (b"authorization2", P),
        (b"x-key", b"Basic " + base64.b64encode(b"me:" + P)),
        (b"authorization", b"Bearer " + base64.b64encode(P)),
        (b"authorization", quote(P.decode().replace("-", "%2D"), safe="%").encode()),
        (P, b"authorization"),
    ],
)
def test_anywhere_else_it_stays_and_is_seen(header: tuple[bytes, bytes]) -> None:
    assert filled([header], [KEY]) == [header]
    ((name, value),) = emptied([header], [KEY])
    assert Watch([KEY]).sees(name + b": " + value)


FORMS = {
    "plain": P,
    "percent-encoded": b"".join(b"%%%02x" % byte for byte in P),
    "percent-encoded hyphens": P.replace(b"-", b"%2D"),
    "percent-encoded twice": P.replace(b"-", b"%252D"),
    "base64": base64.b64encode(P),
    "base64 after one byte": base64.b64encode(b"x" + P + b"tail"),
    "base64 after two bytes": base64.b64encode(b"xy" + P + b"t"),
    "base64 for URLs": base64.urlsafe_b64encode(b"\xff\xfe:" + P),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_placeholder_is_seen_in_a_stream_however_it_is_cut(form: str) -> None:
    stream = b"some bytes before, 100% sure " + FORMS[form] + b" and after"
    for at in range(len(stream)):
        watch = Watch([KEY])
        assert [watch.sees(stream[:at]), watch.sees(stream[at:])].count(True) >= 1, at
    watch = Watch([KEY])
    assert any(watch.sees(stream[at : at + 1]) for at in range(len(stream)))


def test_what_holds_no_placeholder_is_left_alone() -> None:
    watch = Watch([KEY])
    assert not watch.sees(b"lockstep-placeholder-" + b"0" * 32)
    assert not watch.sees(P[:-1])
    assert not Watch([]).sees(P)


ECHOES = {
    "plain": VALUE,
    "URL": quote(VALUE.decode(), safe="").encode(),
    "JSON": json.dumps(VALUE.decode()).strip('"').encode(),
    "HTML": b"s3cr&quot;t/ value+1",
    "base64": base64.b64encode(b"me:" + VALUE),
    "base64 for URLs": base64.urlsafe_b64encode(b"x" + VALUE),
}


@pytest.mark.parametrize("form", ECHOES)
def test_a_value_is_scrubbed_from_a_stream_however_it_is_cut(form: str) -> None:
    stream = b'{"you sent": "' + ECHOES[form] + b'"} s3cr s3cr"t and more'
    for at in range(len(stream) + 1):
        scrubber = Scrubber(replacements([KEY], [], []))
        out = scrubber.feed(stream[:at]) + scrubber.feed(stream[at:]) + scrubber.end()
        assert P in out
        assert out.endswith(b'"} s3cr s3cr"t and more')
        assert ECHOES[form][4:-4] not in out, out
    scrubber = Scrubber(replacements([KEY], [], []))
    assert b"".join(scrubber.feed(stream[i : i + 1]) for i in range(len(stream))) + scrubber.end() == out


def test_basic_credentials_come_back_as_the_sandbox_wrote_them() -> None:
    written = [(b"authorization", b"Basic " + base64.b64encode(b"me:" + P))]
    sent = filled(written, [KEY])
    scrubber = Scrubber(replacements([KEY], sent, written))
    assert scrubber.whole(b"you sent " + sent[0][1]) == b"you sent " + written[0][1]


def test_a_stream_is_held_back_only_where_a_value_may_begin() -> None:
    scrubber = Scrubber({b"abcdefgh": b"X"})
    assert scrubber.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert scrubber.feed(b"data: abcd") == b"data: "
    assert scrubber.feed(b"\n\n") == b"abcd\n\n"
    assert scrubber.feed(b"abcabcdefg") == b"abc"
    assert scrubber.end() == b"abcdefg"


@pytest.mark.parametrize("cut", range(12))
def test_of_two_values_the_longer_one_is_scrubbed_whole(cut: int) -> None:
    scrubber = Scrubber({b"12345678": b"<short>", b"1234567890": b"<long>"})
    text = b"1234567890 12345678"
    assert scrubber.feed(text[:cut]) + scrubber.feed(text[cut:]) + scrubber.end() == b"<long> <short>"


def test_a_sentence_of_ours_quotes_no_value() -> None:
    tricky = replace(KEY, value=b'it\'s \\ a "secret"')
    for one in (KEY, tricky):
        said = scrubbed_text(f"illegal header line: {bytearray(one.value)!r}", [one])
        assert said == f"illegal header line: bytearray(b'{P.decode()}')"
    assert scrubbed_text("as it is", []) == "as it is"
