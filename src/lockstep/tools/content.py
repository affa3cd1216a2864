"""What the content blocks of an MCP result come to: text for the model, and what is kept beside it.

All of it is attacker-controlled. An image that a provider would refuse must not get into a conversation, because every
later request repeats it: what is not plainly a whole image of a known type stays the words for it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec

from lockstep.tools.client import BadReply
from lockstep.values import IMAGE_TYPES, Attachment, Json

NAME_META = "lockstep/name"
MAX_ATTACHMENTS = 32
MAX_IMAGE_BYTES = 3_750_000
"""Providers take 5 MB of base64."""
_MAX_NAME_CHARACTERS = 200
_MIME_TYPE = re.compile(r"[A-Za-z0-9.+-]{1,64}/[A-Za-z0-9.+-]{1,64}")
_BYTES = "application/octet-stream"
_MAX_ERROR_DATA_BYTES = 16 * 2**10
_TRACE = frozenset({"traceparent", "tracestate", "baggage", "progressToken"})
_RESERVED = re.compile(
    r"(?:[A-Za-z0-9-]+\.)*(?:modelcontextprotocol|mcp)(?:\.[A-Za-z0-9-]+)*/|lockstep/", re.IGNORECASE
)
_ENCODER = msgspec.json.Encoder()


def read_content(blocks: Sequence[Any]) -> tuple[str, tuple[Attachment, ...]]:
    """The text of a result, and its attachments: images, and what is addressed to the user.

    Raises:
        BadReply: a block is of no known type.
    """
    texts: list[str] = []
    kept: list[Attachment] = []
    for block in blocks:
        text = _text(block)
        attachment = _attachment(block) if len(kept) < MAX_ATTACHMENTS else None
        if attachment is not None:
            kept.append(attachment)
            if attachment.shown:
                text = f"[image: {attachment.kind}]"
        texts.append(text)
    return "\n".join(texts), tuple(kept)


def read_context(method: str, result: Mapping[str, Any]) -> tuple[str, tuple[Attachment, ...]]:
    """The same of what is read of a server beside tools: a resource, a list of them, a prompt, a completion.

    Raises:
        BadReply: it is not what the method answers with.
    """
    try:
        match method:
            case "resources/read":
                return read_content([{"type": "resource", "resource": {**each}} for each in result["contents"]])
            case "resources/list":
                return "\n".join(_listing(each) for each in result["resources"]), ()
            case "prompts/get":
                text, kept = read_content([each["content"] for each in result["messages"]])
                return text, kept
            case _:
                return "\n".join(map(str, result["completion"]["values"])), ()
    except (KeyError, TypeError) as error:
        raise BadReply(f"its result is not one of {method}") from error


def _listing(resource: Mapping[str, Any]) -> str:
    """A line about a resource."""
    named = ", ".join(str(resource[key]) for key in ("name", "mimeType", "description") if resource.get(key))
    return f"{resource['uri']} ({named})" if named else str(resource["uri"])


def reply_of(result: Mapping[str, Any]) -> str:
    """What a client of the protocol is told beside the text of a result; empty where the text says it all.

    That is the result as it came, without the metadata that is for the two ends of a connection.
    """
    content = result.get("content")
    kept = {name: value for name, value in result.items() if name not in ("isError", "resultType", "_meta")}
    if meta := _passed_on(result.get("_meta")):
        kept["_meta"] = meta
    if isinstance(content, list):
        if len(content) == 1 and set(content[0]) <= {"type", "text"} and _says_it(kept, content[0].get("text")):
            return ""
        kept["content"] = [_without_reserved(block) for block in content]
    return _ENCODER.encode(kept).decode()


def reply_of_error(code: int, message: str, data: Json) -> str:
    """The same of an error that the server answered with."""
    shown = data if len(_ENCODER.encode(data)) <= _MAX_ERROR_DATA_BYTES else None
    return _ENCODER.encode({"error": {"code": code, "message": message, "data": shown}}).decode()


def _says_it(kept: Mapping[str, Any], text: Any) -> bool:
    """Whether there is nothing but the one text, or structured content that it is, as our own runner writes it."""
    if set(kept) != {"content", "structuredContent"}:
        return set(kept) == {"content"}
    try:
        return bool(msgspec.json.decode(text) == kept["structuredContent"])
    except (msgspec.MsgspecError, TypeError, UnicodeError):
        return False


def _without_reserved(block: Mapping[str, Any]) -> Mapping[str, Any]:
    if "_meta" not in block:
        return block
    meta = _passed_on(block["_meta"])
    rest = {name: value for name, value in block.items() if name != "_meta"}
    return {**rest, "_meta": meta} if meta else rest


def _passed_on(meta: Any) -> dict[str, Any]:
    """Of a `_meta`, what is nobody's but the server's: no trace context, no name that the protocol or we have."""
    if not isinstance(meta, dict):
        return {}
    return {name: value for name, value in meta.items() if name not in _TRACE and not _RESERVED.match(name)}


def _text(block: Any) -> str:
    """A block in words."""
    if isinstance(block, dict):
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            return str(block["text"])
        if block.get("type") in ("image", "audio") and isinstance(block.get("data"), str):
            return f"[{block['type']}: {block.get('mimeType', 'unknown type')}, {len(block['data']) * 3 // 4} bytes]"
        if block.get("type") == "resource_link":
            return f"[resource: {block.get('uri')}]"
        if isinstance(resource := block.get("resource"), dict):
            return str(resource.get("text", f"[resource: {resource.get('uri')}]"))
    raise BadReply("its result holds a content block of no known type")


def _attachment(block: Mapping[str, Any]) -> Attachment | None:
    """What is kept of a block beside its words; None for nothing."""
    audience = _audience(block)
    if block.get("type") == "image":
        return _image(block, audience)
    if block.get("type") == "audio":
        data = _bytes(block.get("data"))
        return None if data is None else _file("", block.get("mimeType"), data)
    resource = block.get("resource")
    if not isinstance(resource, dict):
        return None
    data = _bytes(resource.get("blob"))  # bytes are nothing that the words for them could stand for
    if isinstance(text := resource.get("text"), str):
        data = text.encode("utf-8", "surrogatepass") if "user" in audience else None
    name = unquote(str(resource.get("uri", ""))).rstrip("/").rpartition("/")[2]
    return None if data is None else _file(name, resource.get("mimeType"), data)


def _image(block: Mapping[str, Any], audience: Sequence[Any]) -> Attachment | None:
    data, mime_type = _bytes(block.get("data")), block.get("mimeType")
    if data is None:
        return None
    meta = block.get("_meta")
    name = str(meta.get(NAME_META, "")) if isinstance(meta, dict) else ""
    showable = mime_type in IMAGE_TYPES and len(data) <= MAX_IMAGE_BYTES and _is_whole(str(mime_type), data)
    if showable and (not audience or "assistant" in audience):
        return Attachment(name=_clean(name), mime_type=str(mime_type), data=data, shown=True)
    return _file(name, mime_type, data) if "user" in audience else None


def _file(name: str, mime_type: Any, data: bytes) -> Attachment:
    known = isinstance(mime_type, str) and _MIME_TYPE.fullmatch(mime_type)
    return Attachment(name=_clean(name), mime_type=str(mime_type) if known else _BYTES, data=data)


def _audience(block: Mapping[str, Any]) -> Sequence[Any]:
    """Whom a block says it is for; empty when it does not say."""
    annotations = block.get("annotations")
    audience = annotations.get("audience") if isinstance(annotations, dict) else None
    return audience if isinstance(audience, list) else ()


def _bytes(text: Any) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        return None


def _is_whole(mime_type: str, data: bytes) -> bool:
    """Whether the data begins and ends as an image of this type does."""
    match mime_type:
        case "image/png":
            return data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
        case "image/jpeg":
            return data.startswith(b"\xff\xd8\xff") and data.rstrip(b"\0").endswith(b"\xff\xd9")
        case "image/gif":
            return data.startswith((b"GIF87a", b"GIF89a")) and data.endswith(b";")
        case _:
            size_bytes = int.from_bytes(data[4:8], "little") + 8
            return data.startswith(b"RIFF") and data[8:12] == b"WEBP" and size_bytes <= len(data)


def _clean(name: str) -> str:
    """A name that a record can hold; what a file may be called is decided by whoever writes one."""
    return name[:_MAX_NAME_CHARACTERS].encode("utf-8", "replace").decode()
