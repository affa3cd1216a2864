from __future__ import annotations

import socket
import threading
from dataclasses import replace

import pytest
from inprocess import locked_tool

from lockstep.agent.locked import LockedTool
from lockstep.agent.spec import SecretSection
from lockstep.tools import egress_checks
from lockstep.tools.egress_checks import egress_problems, private_names


def tool(
    *egress: str, host: str = "api.example:443", header: str = "Authorization", env: str = "KEY", set_already: str = ""
) -> LockedTool:
    secret = SecretSection(env=env, host=host, header=header, **{"from": "env:KEY"})
    return replace(locked_tool("fly"), egress=egress, secrets=(secret,), env={set_already: "x"} if set_already else {})


@pytest.mark.parametrize(
    "fine",
    [
        tool("api.example:443"),
        tool("api.example:443 GET /v1", header="X-Api_Key2", env="flights_key"),
        tool("https://API.example:8443", host="api.example:8443"),
        tool("127.0.0.1:8080", host="127.0.0.1:8080"),
        tool("localhost:8080", host="localhost:8080"),
        tool("10.0.0.7:8080", host="10.0.0.7:8080"),
        tool("http://[::1]:8080", host="[::1]:8080"),
    ],
)
def test_a_secret_bound_to_an_open_host_is_fine(fine: LockedTool) -> None:
    assert egress_problems(fine) == []


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (tool(), "no egress rule opens api.example:443"),
        (tool("api.example:8443"), "no egress rule opens api.example:443"),
        (tool("www.api.example:443"), "no egress rule opens"),
        (tool("api.example:8080", host="api.example:8080"), "clear text by the rule 'http://api.example:8080'"),
        (tool("api.example:443", "http://api.example:443"), "clear text"),
        (tool("8.8.8.8:80", host="8.8.8.8:80"), "clear text"),
        (tool("api.example:443", host="api.example"), "bound to no usable host"),
        (tool("api.example:443", host="*.example:443"), "bound to no usable host"),
        (tool("api.example:443", host="https://api.example:443"), "bound to no usable host"),
        (tool("api.example:443", set_already="KEY"), "is set already"),
        (tool("api.example:443", env="HTTPS_PROXY"), "belongs to the sandbox"),
        (tool("api.example:443", env="SSL_CERT_FILE"), "belongs to the sandbox"),
        (tool("api.example:443", env="LOCKSTEP_EGRESS"), "belongs to the sandbox"),
        *(
            (tool("api.example:443", header=header), f"the header {header!r} cannot carry a secret")
            for header in (
                *("Host", "content-length", "Transfer-Encoding", "Connection", "Proxy-Authorization", "Proxy-X"),
                *("Lockstep-Run", "lockstep_run", "Upgrade", "Accept-Encoding", "Range", "", "X: y", "X Y", "X\r\nY"),
            )
        ),
        (tool("*.example:443"), "wildcards are not allowed"),
        (tool("api.example"), "no usable port"),
    ],
)
def test_what_is_wrong_is_said_in_a_phrase(wrong: LockedTool, why: str) -> None:
    problems = egress_problems(wrong)
    assert any(why in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_a_variable_is_given_once() -> None:
    one = tool("api.example:443")
    assert "secret KEY: its variable is set already" in egress_problems(replace(one, secrets=one.secrets * 2))


ANSWERS = {"intranet.example": "10.0.0.7", "metadata.example": "169.254.169.254", "api.example": "93.184.216.34"}


def test_a_private_address_reached_by_a_name_is_told_and_one_named_itself_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host not in ANSWERS:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ANSWERS[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    names = (*(f"{host}:443" for host in ANSWERS), "no-such-name.example:443", "10.0.0.7:443", "localhost:80")
    problems = private_names([replace(locked_tool("fly"), egress=names)])
    told = "which is not public: name the address itself"
    assert problems == [
        f"egress rule 'intranet.example:443': intranet.example is 10.0.0.7 here, {told}",
        f"egress rule 'metadata.example:443': metadata.example is 169.254.169.254 here, {told}",
    ]


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait())
    monkeypatch.setattr(egress_checks, "_LOOK_UP_S", 0.05)
    assert private_names([replace(locked_tool("fly"), egress=("slow.example:443", "slower.example:443"))]) == []
