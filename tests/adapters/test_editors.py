"""docs/adapters/editors.md: its JSON is what each editor documents, and what it starts or reaches is a gateway."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from world import ROOT, TOKEN, World

TEXT = (ROOT / "docs/adapters/editors.md").read_text()
SNIPPETS = [
    (head, json.loads(text))
    for head, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    for text in re.findall(r"^```json\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
]
EACH = pytest.mark.parametrize(
    ("editor", "written"), SNIPPETS, ids=[f"{n}-{head}" for n, (head, _) in enumerate(SNIPPETS)]
)
SERVERS = {"Claude Desktop": "mcpServers", "Cursor": "mcpServers", "VS Code": "servers"}
"""Under which word an editor reads its servers."""
WAIT_S = 90


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World.open(tmp_path_factory.mktemp("editor")) as opened:
        yield opened


def test_every_editor_has_its_json() -> None:
    assert {editor for editor, _ in SNIPPETS} == set(SERVERS)
    assert len(SNIPPETS) == 4


@EACH
def test_the_json_is_what_the_editor_documents(editor: str, written: dict[str, Any]) -> None:
    assert set(written) <= {SERVERS[editor], *(["inputs"] if editor == "VS Code" else [])}
    (entry,) = map(dict, written[SERVERS[editor]].values())
    kind = entry.pop("type", None)
    if editor == "VS Code":
        assert kind == ("stdio" if "command" in entry else "http")  # required there, unknown elsewhere
        asked = {each["id"] for each in written.get("inputs", [])}
        assert all(set(each) == {"type", "id", "description", "password"} for each in written.get("inputs", []))
        assert set(re.findall(r"\$\{input:([^}]+)\}", json.dumps(entry))) == asked
    else:
        assert kind is None
    if "command" in entry:
        assert set(entry) == {"command", "args"}
        assert os.path.isabs(entry["command"])
        assert os.path.isabs(entry["args"][-1])
    else:
        assert editor != "Claude Desktop"  # whose file is for servers that it starts
        assert set(entry) == {"url", "headers"}


@pytest.mark.adapters
@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)")
@EACH
def test_what_an_editor_starts_or_reaches_is_a_gateway(editor: str, written: dict[str, Any], world: World) -> None:
    (entry,) = written[SERVERS[editor]].values()
    if "command" in entry:
        assert sorted(_offered(_starting(entry, world))) == sorted(TOOLS)
        return
    (token,) = re.findall(r"\$\{[^}]+\}", entry["headers"]["Authorization"])
    headers = {"Authorization": entry["headers"]["Authorization"].replace(token, TOKEN)}
    with world.gateway() as url:
        assert url.partition("//")[2].partition("/")[2] == entry["url"].partition("//")[2].partition("/")[2]
        http = httpx2.AsyncClient(headers=headers, timeout=WAIT_S)
        assert sorted(_offered(streamable_http_client(url, http_client=http))) == sorted(TOOLS)


TOOLS = [
    *("current_date", "search_flights", "find_bookings", "book_flight"),
    *("add_calendar_entry", "find_calendar_entries", "ask_travel"),
]


def _starting(entry: dict[str, Any], world: World) -> StdioServerParameters:
    lockstep, travel = Path(sys.executable).with_name("lockstep"), world.directory / "travel"
    args = [str(travel) if each == "/path/to/travel" else each for each in entry["args"]]
    assert entry["command"] == "/path/to/.venv/bin/lockstep"
    return StdioServerParameters(command=str(lockstep), args=args, cwd="/", env={"PATH": "/usr/bin:/bin"})


def _offered(target: Any) -> list[str]:
    async def ask() -> list[str]:
        async with asyncio.timeout(WAIT_S), Client(target) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    return asyncio.run(ask())
