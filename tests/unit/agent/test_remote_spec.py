"""What `agent.toml` may say about an MCP server that runs elsewhere, and what of it stands in the lock."""

from __future__ import annotations

from pathlib import Path

import pytest
from clerk import PAY, Clerk

from lockstep.agent.from_lock import locked_agent
from lockstep.agent.load import load_spec
from lockstep.agent.lock import differing_parts, from_text, to_text
from lockstep.agent.locked import LockedTool
from lockstep.agent.resolve import resolve, resolve_static
from lockstep.errors import ConfigError
from lockstep.values import Tier

PLAIN = 'mcp = { command = ["/usr/bin/python3", "server.py"] }'
URL = 'url = "https://Bank.example/mcp"'
KEY = 'secrets = [{ env = "KEY", from = "env:BANK_KEY", host = "bank.example:443", header = "Authorization" }]'
BEARER = 'headers = { Authorization = "Bearer ${KEY}" }'
CREDENTIALS = 'client_id = "me", client_secret = "env:SECRET"'


@pytest.fixture
def clerk(tmp_path: Path) -> Clerk:
    made = Clerk(tmp_path / "clerk")
    for line in ('code = ["server.py"]\n', 'egress = ["127.0.0.1:9 POST /pay"]\n', 'env = { BANK = "one" }\n'):
        made.change("agent.toml", line, "")
    return made


def locked(clerk: Clerk, mcp: str, *lines: str) -> LockedTool:
    clerk.change("agent.toml", PLAIN, "\n".join([f"mcp = {{ {mcp} }}", *lines]))
    spec = load_spec(clerk.directory)
    made = resolve(clerk.directory, spec, {0: clerk.definitions[0], 1: [PAY]}, {1: "2026-07-28"})
    lock = from_text(to_text(made), "agent.lock")
    assert differing_parts(lock, resolve_static(clerk.directory, spec, lock)) == ()
    return locked_agent(lock).tools["pay"]


def test_a_server_elsewhere_runs_nothing_here_and_may_be_reached_at_its_url_alone(clerk: Clerk) -> None:
    tool = locked(clerk, URL)
    assert (tool.tier, tool.run_lifetime, tool.source) == (Tier.REMOTE, True, "mcp:https://Bank.example/mcp")
    assert tool.egress == ("https://bank.example:443 DELETE,GET,POST /mcp",)
    assert tool.remote is not None
    assert (tool.remote.url, dict(tool.remote.headers), tool.remote.oauth) == ("https://Bank.example/mcp", {}, None)


def test_another_url_is_another_pin(clerk: Clerk) -> None:
    here = locked(clerk, URL)
    clerk.change("agent.toml", "Bank.example", "rival.example")
    spec = load_spec(clerk.directory)
    made = resolve(clerk.directory, spec, {0: clerk.definitions[0], 1: [PAY]}, {1: "2026-07-28"})
    assert locked_agent(made).tools["pay"].pin != here.pin


def test_a_header_takes_its_secret_by_name_and_the_lock_has_no_value(clerk: Clerk) -> None:
    tool = locked(clerk, f"{URL}, {BEARER}", KEY)
    assert tool.remote is not None
    assert dict(tool.remote.headers) == {"Authorization": "Bearer ${KEY}"}
    assert [secret.env for secret in tool.secrets] == ["KEY"]


def test_oauth_stands_in_the_lock_as_it_was_said(clerk: Clerk) -> None:
    tool = locked(clerk, f'{URL}, oauth = {{ issuer = "https://id.example", {CREDENTIALS}, scopes = ["pay"] }}')
    assert tool.remote is not None
    assert tool.remote.oauth is not None
    assert (tool.remote.oauth.client_id, tool.remote.oauth.client_secret) == ("me", "env:SECRET")


WRONG = {
    "neither": ("prefix = 'x'", [], "needs either `command = [...]` or `url"),
    "both": (f"{URL}, command = ['x']", [], "and only one"),
    "not http": ("url = 'ftp://x'", [], "whole http or https URL"),
    "a user": ("url = 'https://me:pw@x.example/'", [], "without a user"),
    "a fragment": ("url = 'https://x.example/#a'", [], "without a user, spaces or #"),
    "a port that is none": ("url = 'https://x.example:99999/'", [], "no usable port"),
    "files": (f"{URL}, files = {{ a = {{ from = 'notes' }} }}", [], "which only a server with `command` has"),
    "oauth of a command": ("command = ['x'], oauth = {}", [], "which only a server with `url` has"),
    "a url as command": ("command = ['https://x.example']", [], "write `url"),
    "isolation": (URL, ['isolation = "gvisor"'], "nothing of such a server runs here"),
    "egress": (URL, ['egress = ["a.example:443"]'], "nothing of such a server runs here"),
    "memory": (URL, ["limits = { memory_mb = 64 }"], "`limits.memory_mb`"),
    "lifetime": (URL, ['lifetime = "call"'], "its connection serves a run"),
    "a key in the file": (f"{URL}, headers = {{ Authorization = 'Bearer abc' }}", [], "write ${NAME}"),
    "a key under another name": (f"{URL}, headers = {{ X-Api-Key = 'abc' }}", [], "write ${NAME}"),
    "a header of the protocol": (f"{URL}, headers = {{ Mcp-Name = 'a' }}", [], "not one to set here"),
    "two lines": (f'{URL}, headers = {{ X-Tenant = "a\\r\\nb" }}', [], "no header can carry"),
    "no such secret": (f"{URL}, {BEARER}", [], "no secret with env = 'KEY'"),
    "a secret for another host": (f"{URL}, {BEARER}", [KEY.replace("bank.", "rival.")], "bind it so"),
    "a secret in another header": (f"{URL}, {BEARER}", [KEY.replace('"Authorization"', '"X-Key"')], "bind it so"),
    "an unused secret": (URL, [KEY], "stands in none of"),
    "a token twice": (f"{URL}, {BEARER}, oauth = {{}}", [KEY], "the token stands there"),
    "credentials of nobody": (f"{URL}, oauth = {{ {CREDENTIALS} }}", [], "name it"),
    "no credentials": (f'{URL}, oauth = {{ grant = "client_credentials" }}', [], "to have tokens without a person"),
    "a secret without a client": (f'{URL}, oauth = {{ client_secret = "env:X" }}', [], "no client_id"),
    "a document without a path": (f'{URL}, oauth = {{ client_metadata_url = "https://x.example" }}', [], "with a path"),
}


@pytest.mark.parametrize("which", WRONG)
def test_what_cannot_be_meant_is_a_sentence(clerk: Clerk, which: str) -> None:
    mcp, lines, says = WRONG[which]
    with pytest.raises(ConfigError) as wrong:
        locked(clerk, mcp, *lines)
    assert says in wrong.value.message
