"""What a server asks back while one of its tools is called: read with care, before anybody is shown it.

Two ways there are: a result of the modern revision that requires input, with a state to be sent back as it came, and a
request of a legacy server that waits for its answer. All of it is attacker-controlled. What may not be asked (by the
tool's entry, or by a form at all) is refused here, and the reason kept.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from lockstep.gate.arguments import is_deeper
from lockstep.tools.forms import BadForm, Form, read_form
from lockstep.values import Digest, Json, JsonObject, sha256

ELICIT, SAMPLE, ROOTS = "elicitation/create", "sampling/createMessage", "roots/list"
WORDS: Mapping[str, str] = {"elicitation": ELICIT, "sampling": SAMPLE, "roots": ROOTS}
"""What an entry may let its server ask for, by the capability's name."""
ONE = "request"
"""The key of what a legacy server asks, where there is but one thing asked at a time."""
MAX_REQUESTS = 10
MAX_BYTES = 256 * 2**10
MAX_MESSAGE = 2000
MAX_URL = 2048
_MAX_KEY = 200
_MAX_DEPTH = 64
_LOOPBACK_NAMES = ("localhost",)

Kind = Literal["form", "url", "sampling", "roots"]


class BadQuestion(ValueError):
    """What a server sent as a question is none; the message is a phrase that says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One thing that is asked for. `refused` says why it is not put to anybody; empty when it is."""

    key: str
    method: str
    params: JsonObject
    """As the server said them, without what is not for people."""
    kind: Kind
    form: Form | None = None
    refused: str = ""
    by_model: bool = False
    """The agent's own model answers it, and nobody else."""

    @property
    def message(self) -> str:
        """The server's own words: untrusted, of any length up to `MAX_MESSAGE`."""
        text = str(self.params.get("message", ""))
        return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"

    @property
    def url(self) -> str:
        return str(self.params.get("url", ""))

    @property
    def host(self) -> str:
        """Whose page it is."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Everything that is asked at once. `state` is the server's own, sent back as it came; None where it sent none."""

    requests: tuple[Request, ...]
    state: str | None = None

    @property
    def text(self) -> str:
        """As it stands in the journal; `parse` reads it back."""
        requests = {each.key: {"method": each.method, "params": each.params} for each in self.requests}
        refused = {each.key: each.refused for each in self.requests if each.refused}
        model = {"model": [each.key for each in self.for_model]} if self.for_model else {}
        state = {} if self.state is None else {"state": self.state}
        return json.dumps({"requests": requests, "refused": refused, **model, **state}, separators=(",", ":"))

    @property
    def digest(self) -> Digest:
        return sha256(self.text.encode())

    @property
    def open(self) -> tuple[Request, ...]:
        """Those that somebody is to answer."""
        return tuple(each for each in self.requests if not each.refused and not each.by_model)

    @property
    def for_model(self) -> tuple[Request, ...]:
        """Those that the agent's own model answers."""
        return tuple(each for each in self.requests if each.by_model)

    @property
    def unanswerable(self) -> str:
        """Why the call cannot go on: the protocol has no answer for what was asked and is refused."""
        return next((each.refused for each in self.requests if each.refused and each.method != ELICIT), "")

    def responses(self, said: Mapping[str, Json]) -> JsonObject:
        """The answers to all of it: what was said, and a decline where a question was refused."""
        declined: dict[str, Json] = {each.key: {"action": "decline"} for each in self.requests if each.refused}
        return {**said, **declined}


def parse(text: str) -> Asked:
    """What `Asked.text` wrote."""
    said = json.loads(text)
    requests = tuple(
        replace(
            _request(key, each["method"], each["params"], said["refused"].get(key, "")),
            by_model=key in said.get("model", ()),
        )
        for key, each in said["requests"].items()
    )
    return Asked(requests=requests, state=said.get("state"))


def read_result(result: Mapping[str, Any], may: Collection[str]) -> Asked:
    """A result that requires input; `may` are the capabilities that the server was told of.

    Raises:
        BadQuestion: it asks for nothing that can be read.
    """
    requests, state = result.get("inputRequests"), result.get("requestState")
    requests = {} if requests is None else requests
    if not requests and state is None:
        raise BadQuestion("it requires input and neither says which nor has a state")
    if not isinstance(requests, dict) or len(requests) > MAX_REQUESTS:
        raise BadQuestion(f"it requires input and what it asks for is no list of at most {MAX_REQUESTS} requests")
    if state is not None and not isinstance(state, str):
        raise BadQuestion("its state is no text")
    asked = Asked(requests=tuple(_read(key, each, may) for key, each in requests.items()), state=state)
    return _bounded(asked)


def read_pages(data: Any, may: Collection[str]) -> Asked:
    """What comes with a legacy server's error that pages must be visited first; the call is then made again.

    Raises:
        BadQuestion: it names none.
    """
    pages = data.get("elicitations") if isinstance(data, dict) else None
    if not isinstance(pages, list) or not 0 < len(pages) <= MAX_REQUESTS or not all(isinstance(p, dict) for p in pages):
        raise BadQuestion(f"it wants pages to be visited and names none, or more than {MAX_REQUESTS}")
    asked = [{"method": ELICIT, "params": {**page, "mode": "url"}} for page in pages]
    return _bounded(Asked(requests=tuple(_read(f"page {n}", each, may) for n, each in enumerate(asked, start=1))))


def read_request(frame: Mapping[str, Any], may: Collection[str]) -> Asked:
    """A request of a legacy server, as a question with one request in it.

    Raises:
        BadQuestion: it asks for nothing that can be read.
    """
    return _bounded(Asked(requests=(_read(ONE, frame, may),)))


def _bounded(asked: Asked) -> Asked:
    if len(asked.text) > MAX_BYTES:
        raise BadQuestion(f"what it asks for has more than {MAX_BYTES} bytes")
    return asked


def _read(key: str, each: Any, may: Collection[str]) -> Request:
    method = each.get("method") if isinstance(each, dict) else None
    params = each.get("params", {}) if isinstance(each, dict) else None
    if method not in WORDS.values() or not isinstance(params, dict) or len(key) > _MAX_KEY:
        raise BadQuestion("it asks for what is no elicitation, sampling or roots")
    if is_deeper(params, _MAX_DEPTH):
        raise BadQuestion(f"what it asks for is nested more than {_MAX_DEPTH} levels deep")
    shown = {name: value for name, value in params.items() if name not in ("_meta", "task")}
    word = next(word for word, known in WORDS.items() if known == method)
    refused = "" if word in may else f"{word} is not offered to this server"
    return _request(key, str(method), shown, refused or _problem(str(method), shown))


def _request(key: str, method: str, params: JsonObject, refused: str) -> Request:
    kind: Kind = "sampling" if method == SAMPLE else "roots"
    if method == ELICIT:
        kind = "url" if params.get("mode") == "url" else "form"
    form = None
    if kind == "form" and not refused:
        try:
            form = read_form(params.get("requestedSchema"))
        except BadForm as problem:
            refused = str(problem)
    return Request(key=key, method=method, params=params, kind=kind, form=form, refused=refused)


def _problem(method: str, params: JsonObject) -> str:
    """Why a question may not be put to a person."""
    if method != ELICIT:
        return ""
    if not isinstance(params.get("message"), str):
        return "it has no words"
    mode = params.get("mode", "form")
    if mode == "url":
        return url_problem(params.get("url"))
    if mode != "form":
        return f"its mode {mode!r:.40} is not known here"
    return ""


def url_problem(url: Any) -> str:
    """Why a person is not sent there: it must be https, or on this machine, and be what it looks like."""
    if not isinstance(url, str) or len(url) > MAX_URL:
        return "its address is none"
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "its address has characters that no address has"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return "its address is none"
    if not host or "@" in parts.netloc:
        return "its address names no host, or somebody before it"
    if parts.scheme == "https" or (parts.scheme == "http" and _is_here(host)):
        return ""
    return "its address is not https"


def _is_here(host: str) -> bool:
    try:
        return host in _LOOPBACK_NAMES or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
