"""What we say to Firecracker, and what we understand of its answers, held against its own published OpenAPI file.

The file stays outside the repository; FIRECRACKER_OPENAPI names it. Recorded requests and answers are checked always.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.firecracker import CLONE_CALLS, SNAPSHOT_CALLS, boot_calls
from lockstep.sandbox.firecracker_api import Call, Describe, InstanceInfo, fault, instance_info
from lockstep.sandbox.monitor import Machine

jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="needs jsonschema-rs")
yaml = pytest.importorskip("yaml", reason="needs PyYAML")

DATA = Path(__file__).parent / "data"
REQUESTS = DATA / "firecracker_requests.txt"
"""One line each: method, path, body. Written by hand when a request is meant to change."""
ANSWERS = DATA / "firecracker_answers.json"
"""What Firecracker 1.16.1 answered: operation, status, body."""
OPENAPI = Path(os.environ.get("FIRECRACKER_OPENAPI") or "firecracker.yaml is not named")
published = pytest.mark.skipif(
    not OPENAPI.is_file(),
    reason="needs Firecracker's src/firecracker/swagger/firecracker.yaml (set FIRECRACKER_OPENAPI)",
)
MACHINE = Machine(
    kernel=Path("/k"), initrd=Path("/i"), cmdline="quiet", drives=(Path("/a"), Path("/b")), memory_mib=192, vcpus=2
)
CALLS: tuple[Call, ...] = (Describe(), *boot_calls(MACHINE), *SNAPSHOT_CALLS, *CLONE_CALLS)
"""Every request the monitor sends."""


def line(call: Call) -> str:
    return f"{call.METHOD} {call.path} {call.body().decode()}".rstrip()


def test_the_requests_are_byte_for_byte_the_recorded_ones() -> None:
    assert [line(call) for call in CALLS] == REQUESTS.read_text().splitlines()


def test_every_kind_of_request_is_among_the_checked_ones() -> None:
    assert {type(call).__name__ for call in CALLS} == {kind.__name__ for kind in Call.__subclasses__()}


def test_recorded_answers_are_understood() -> None:
    for answer in answers():
        body = json.dumps(answer["body"]).encode()
        if answer["status"] == 200:
            assert instance_info(body) == InstanceInfo(id="demo", state="Not started", vmm_version="1.16.1")
        else:
            assert fault(body) == answer["body"]["fault_message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"id": "a"}', b"<html>"])
def test_an_answer_that_is_not_firecrackers_is_no_instance(body: bytes) -> None:
    with pytest.raises(SandboxUnavailable, match="answered something else"):
        instance_info(body)
    assert fault(body)


@published
@pytest.mark.parametrize("call", CALLS, ids=line)
def test_every_request_is_one_that_firecracker_documents(call: Call) -> None:
    operation = operations()[call.METHOD, call.path.replace("/vda", "/{drive_id}").replace("/vdb", "/{drive_id}")]
    schema = next((p["schema"] for p in operation.get("parameters", ()) if p["in"] == "body"), None)
    if call.METHOD == "GET":
        assert schema is None
        assert "200" in operation["responses"]
    else:
        assert faults(schema, json.loads(call.body())) == []
        assert "204" in operation["responses"]


@published
def test_a_field_or_value_that_firecracker_does_not_document_would_be_noticed() -> None:
    schema = {"$ref": "#/definitions/SnapshotLoadParams"}
    good = json.loads(CLONE_CALLS[0].body())
    assert faults(schema, good) == []
    assert faults(schema, {**good, "memory": "m"})
    assert faults(schema, {**good, "resume_vm": "yes"})
    assert faults(schema, {**good, "mem_backend": {"backend_type": "Tape", "backend_path": "m"}})
    assert faults(schema, {name: value for name, value in good.items() if name != "snapshot_path"})


@published
def test_recorded_answers_are_ones_that_firecracker_documents() -> None:
    for answer in answers():
        responses = operations()[answer["method"], answer["path"]]["responses"]
        schema = responses.get(str(answer["status"]), responses["default"])["schema"]
        assert faults(schema, answer["body"]) == []


@published
def test_what_we_read_from_an_answer_is_promised_there() -> None:
    definitions = document()["definitions"]
    assert {field.name for field in fields(InstanceInfo)} <= set(definitions["InstanceInfo"]["required"])
    assert definitions["Error"]["properties"]["fault_message"]["type"] == "string"


def answers() -> list[dict[str, Any]]:
    recorded: list[dict[str, Any]] = json.loads(ANSWERS.read_text())
    assert recorded
    return recorded


@cache
def document() -> dict[str, Any]:
    """The file, with status codes as the strings they are in JSON, and no object allowed a field it does not name."""
    loaded: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(OPENAPI.read_text())))
    for definition in everywhere(loaded["definitions"]):
        if definition.get("type") == "object" and "properties" in definition:
            definition.setdefault("additionalProperties", False)
    return loaded


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    found = document()["paths"].items()
    return {(method.upper(), path): operation for path, methods in found for method, operation in methods.items()}


def faults(schema: dict[str, Any], body: Any) -> list[str]:
    """Why a body does not fit. Swagger's schemas are JSON Schema's draft 4."""
    validator = jsonschema_rs.Draft4Validator({"allOf": [schema], "definitions": document()["definitions"]})
    return [error.message for error in validator.iter_errors(body)]


def everywhere(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from everywhere(item)
