"""What a server's content blocks come to: whole images are kept and shown, all else stays the words for it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pictures import GIF, JPEG, SVG, WEBP, png

from lockstep.tools.client import BadReply
from lockstep.tools.content import (
    MAX_ATTACHMENTS,
    MAX_IMAGE_BYTES,
    read_content,
    read_context,
    reply_of,
    reply_of_error,
)
from lockstep.values import Attachment


def image(data: bytes, mime_type: Any = "image/png", **more: Any) -> dict[str, Any]:
    return {"type": "image", "mimeType": mime_type, "data": base64.b64encode(data).decode(), **more}


def resource(audience: Any = None, **more: Any) -> dict[str, Any]:
    block = {"type": "resource", "resource": {"uri": "file:///work/a%20b.csv", **more}}
    return block if audience is None else {**block, "annotations": {"audience": audience}}


@pytest.mark.parametrize(
    ("mime_type", "data"), [("image/png", png()), ("image/jpeg", JPEG), ("image/gif", GIF), ("image/webp", WEBP)]
)
def test_a_whole_image_is_kept_and_named_in_the_text(mime_type: str, data: bytes) -> None:
    named = {"_meta": {"lockstep/name": "plot"}}
    text, kept = read_content([{"type": "text", "text": "Here:"}, image(data, mime_type, **named)])
    assert kept == (Attachment(name="plot", mime_type=mime_type, data=data, shown=True),)
    assert text == f"Here:\n[image: {mime_type}, {len(data)} bytes]"


BROKEN: dict[str, dict[str, Any]] = {
    "a type nobody shows": image(SVG.encode(), "image/svg+xml"),
    "no type": image(png(), None),
    "a type that is not what it is": image(JPEG, "image/png"),
    "cut short": image(png()[:-4]),
    "empty": image(b""),
    "not base64": {"type": "image", "mimeType": "image/png", "data": "%%%%"},
    "too large": image(png()[:8] + bytes(MAX_IMAGE_BYTES) + png()[-8:]),
    "half a webp": image(WEBP[:-2], "image/webp"),
    "for the user alone, and none": image(png()[:-4], annotations={"audience": "user"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_provider_would_refuse_stays_the_words_for_it(name: str) -> None:
    text, kept = read_content([BROKEN[name]])
    assert kept == ()
    data = BROKEN[name]["data"]
    assert text == f"[image: {BROKEN[name]['mimeType']}, {len(data) * 3 // 4} bytes]"


def test_other_content_is_said_in_words_and_bytes_are_kept() -> None:
    blocks = [
        {"type": "text", "text": "a"},
        {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"},
        {"type": "resource_link", "uri": "file:///x"},
        resource(text="b"),
        resource(blob="AAAA"),
    ]
    said = "a\n[audio: audio/wav, 3 bytes]\n[resource: file:///x]\nb\n[resource: file:///work/a%20b.csv]"
    text, kept = read_content(blocks)
    assert text == said
    assert [(each.name, each.mime_type, each.data, each.shown) for each in kept] == [
        ("", "audio/wav", b"\0\0\0", False),
        ("a b.csv", "application/octet-stream", b"\0\0\0", False),
    ], "bytes are kept; they are not shown to the model"


def test_what_is_addressed_to_the_user_is_kept_as_a_file() -> None:
    blocks = [
        resource(["user", "assistant"], text="x,y\ud800", mimeType="text/csv"),
        resource(["user"], blob="AAEC", mimeType="not a type"),
        image(SVG.encode(), "image/svg+xml", annotations={"audience": ["user"]}),
        image(png(), annotations={"audience": ["user"]}),
        resource(["assistant"], text="x"),
        resource(["user"]),
    ]
    _, kept = read_content(blocks)
    assert [(each.name, each.mime_type, each.shown) for each in kept] == [
        ("a b.csv", "text/csv", False),
        ("a b.csv", "application/octet-stream", False),
        ("", "image/svg+xml", False),
        ("", "image/png", False),
    ]
    assert kept[1].data == b"\0\1\2"


def test_only_so_many_are_kept() -> None:
    text, kept = read_content([image(png())] * (MAX_ATTACHMENTS + 1))
    assert len(kept) == MAX_ATTACHMENTS
    assert len(text.splitlines()) == MAX_ATTACHMENTS + 1


@pytest.mark.parametrize("block", [None, 5, "text", {}, {"type": "text"}, {"type": "video", "data": "AA"}])
def test_a_block_of_no_known_type_is_a_bad_reply(block: Any) -> None:
    with pytest.raises(BadReply):
        read_content([block])


def test_a_name_that_no_record_could_hold_is_made_one_that_can() -> None:
    _, (kept,) = read_content([image(png(), _meta={"lockstep/name": "\ud800" + "x" * 1000})])
    assert kept.name.startswith("?x")
    assert len(kept.name) == 200


PLAIN = {"content": [{"type": "text", "text": "a"}]}
STRUCTURED = {"content": [{"type": "text", "text": '{"a":1}'}], "structuredContent": {"a": 1}}


@pytest.mark.parametrize(
    "result",
    [PLAIN, {**PLAIN, "isError": True, "resultType": "complete"}, STRUCTURED, {**PLAIN, "_meta": {"traceparent": "x"}}],
    ids=["text", "an error", "structure that the text is", "reserved metadata"],
)
def test_nothing_is_kept_for_a_client_of_what_the_text_says(result: dict[str, Any]) -> None:
    assert reply_of(result) == ""


def test_a_client_is_told_what_the_server_said_without_what_is_reserved() -> None:
    block = {"type": "text", "text": "a", "annotations": {"priority": 1}, "_meta": {"x/y": 1, "lockstep/name": "n"}}
    meta = {"own/key": 1, "io.modelcontextprotocol/serverInfo": {}, "mcp.dev/x": 1, "lockstep/run": "r", "baggage": "b"}
    result = {"content": [block, image(png())], "structuredContent": [1], "isError": False, "_meta": meta}
    kept = json.loads(reply_of(result))
    assert kept == {
        "content": [{**block, "_meta": {"x/y": 1}}, image(png())],
        "structuredContent": [1],
        "_meta": {"own/key": 1},
    }


def test_of_an_error_the_data_is_kept_while_it_is_small() -> None:
    assert json.loads(reply_of_error(-32602, "no", {"uri": "a"}))["error"]["data"] == {"uri": "a"}
    assert json.loads(reply_of_error(-32602, "no", "x" * 20_000))["error"]["data"] is None


@pytest.mark.parametrize(
    ("method", "result", "text"),
    [
        ("resources/list", {"resources": [{"uri": "x://1", "name": "one", "mimeType": "a/b"}]}, "x://1 (one, a/b)"),
        ("resources/read", {"contents": [{"uri": "x://1", "text": "all of it"}]}, "all of it"),
        ("resources/read", {"contents": [{"uri": "x://1", "blob": "AAAA"}]}, "[resource: x://1]"),
        ("prompts/get", {"messages": [{"role": "user", "content": {"type": "text", "text": "Greet."}}]}, "Greet."),
        ("completion/complete", {"completion": {"values": ["paris", "park"]}}, "paris\npark"),
    ],
)
def test_what_is_read_beside_tools_has_words_too(method: str, result: dict[str, Any], text: str) -> None:
    assert read_context(method, result)[0] == text
    with pytest.raises(BadReply, match="is not one of"):
        read_context(method, {"other": []})
