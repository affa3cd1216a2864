"""What a server asks back, read with care: requests that may be put to people, and those that may not."""

from __future__ import annotations

from typing import Any

import pytest

from lockstep.tools.inputs import (
    MAX_BYTES,
    Asked,
    BadQuestion,
    parse,
    read_pages,
    read_request,
    read_result,
    url_problem,
)

EMPTY = {"type": "object", "properties": {}}
ALL = ("elicitation", "sampling", "roots")


def form(**more: Any) -> dict[str, Any]:
    return {"method": "elicitation/create", "params": {"message": "Well?", "requestedSchema": EMPTY, **more}}


def page(url: Any) -> dict[str, Any]:
    return {"method": "elicitation/create", "params": {"mode": "url", "message": "There.", "url": url}}


def asked(may: tuple[str, ...] = ALL, **requests: Any) -> Asked:
    return read_result({"inputRequests": requests, "requestState": "s"}, may)


def test_what_is_asked_reads_back_from_the_journal_as_it_was() -> None:
    said = asked(a=form(_meta={"x": 1}), b=page("https://x.example/"), c={"method": "roots/list"}, d=form(mode="fax"))
    assert parse(said.text) == said
    assert [each.kind for each in said.requests] == ["form", "url", "roots", "form"]
    assert [each.key for each in said.open] == ["a", "b", "c"]
    assert "_meta" not in said.requests[0].params
    assert said.responses({"a": {}}) == {"a": {}, "d": {"action": "decline"}}
    assert read_result({"requestState": ""}, ALL) == Asked(requests=(), state="")
    assert parse(read_result({"inputRequests": {"a": form()}}, ALL).text).state is None


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"inputRequests": []},
        {"inputRequests": {"a": 7}},
        {"inputRequests": {"a": {"method": "tools/call", "params": {}}}},
        {"inputRequests": {"a": {"method": "elicitation/create", "params": []}}},
        {"inputRequests": {f"a{n}": form() for n in range(11)}},
        {"inputRequests": {"a": form()}, "requestState": 5},
        {"inputRequests": {"a" * 300: form()}},
        {"requestState": "x" * (MAX_BYTES + 1)},
    ],
)
def test_what_is_no_question_is_none(result: dict[str, Any]) -> None:
    with pytest.raises(BadQuestion):
        read_result(result, ALL)


def test_what_is_nested_without_end_is_no_question() -> None:
    nested: dict[str, Any] = {}
    for _ in range(200):
        nested = {"a": nested}
    with pytest.raises(BadQuestion, match="64 levels"):
        asked(a=form(requestedSchema=nested))


def test_only_what_was_offered_is_asked() -> None:
    said = asked((), a=form(), b={"method": "sampling/createMessage", "params": {}})
    assert [each.refused for each in said.requests] == [
        "elicitation is not offered to this server",
        "sampling is not offered to this server",
    ]
    assert said.unanswerable == "sampling is not offered to this server"
    assert not asked((), a=form()).unanswerable, "a decline is an answer"


@pytest.mark.parametrize(
    "params", [{"message": 5}, {"mode": "fax"}, {"requestedSchema": {"properties": {"x": {"type": "object"}}}}]
)
def test_a_question_that_nobody_can_be_asked_is_declined(params: dict[str, Any]) -> None:
    (request,) = asked(a=form(**params)).requests
    assert request.refused


def test_a_message_is_as_long_as_a_person_reads() -> None:
    (request,) = asked(a=form(message="x" * 10_000)).requests
    assert len(request.message) == 2001


def test_a_legacy_request_is_a_question_with_one_request() -> None:
    said = read_request({"id": 1, **form()}, ALL)
    assert [(each.key, each.kind) for each in said.requests] == [("request", "form")]


def test_pages_that_a_legacy_server_wants_visited_are_a_question() -> None:
    page = {"mode": "url", "message": "Log in.", "url": "https://x.example/", "elicitationId": "e"}
    said = read_pages({"elicitations": [page, {**page, "url": "http://x.example/"}]}, ALL)
    assert [(each.key, each.kind, bool(each.refused)) for each in said.requests] == [
        ("page 1", "url", False),
        ("page 2", "url", True),
    ]
    for wrong in (None, {}, {"elicitations": []}, {"elicitations": [page] * 11}, {"elicitations": [1]}):
        with pytest.raises(BadQuestion):
            read_pages(wrong, ALL)


@pytest.mark.parametrize(
    "url", ["https://x.example/a?b=c#d", "http://127.0.0.1:8000/", "http://localhost/", "http://[::1]/"]
)
def test_an_address_that_a_person_may_be_sent_to(url: str) -> None:
    assert url_problem(url) == ""


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "x.example",
        "http://x.example/",
        "ftp://x.example/",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "https:///nowhere",
        "https://bank.example@evil.example/",
        "https://b\u0430nk.example/",
        "https://x.example/\u202e",
        "https://x.example/a b",
        "https://x.example\\@evil.example/",
        "https://x.example/\n",
        "https://x.example:port/",
        "https://[::1/",
        "http://127.0.0.1.evil.example/",
        "https://x.example/" + "a" * 3000,
    ],
)
def test_an_address_that_nobody_is_sent_to(url: Any) -> None:
    assert url_problem(url)
