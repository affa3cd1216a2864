"""The runner against the official MCP client over real stdio, in every era the client speaks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lockstep.tools import guest

mcp = pytest.importorskip("mcp", reason="needs the package mcp (uv sync --group dev)")

MODULE = '''
from typing import Annotated, TypedDict
from lockstep import tool

class Sum(TypedDict):
    total: int

@tool(title="Add", read_only=True)
def add(a: Annotated[int, "One."], b: int = 2) -> Sum:
    """Add two numbers.

    Args:
        b: the other.
    """
    print("noise on stdout")
    return {"total": a + b}

@tool
def fail() -> str:
    raise TimeoutError("no reply")
'''
ERAS = {"auto": "2026-07-28", "legacy": "2025-11-25", "2026-07-28": "2026-07-28"}


async def converse(command: tuple[str, ...], mode: str, module: Path) -> dict[str, Any]:
    target = mcp.StdioServerParameters(command=command[0], args=list(command[1:]))
    async with mcp.Client(target, mode=mode) as client:
        return {
            "version": client.protocol_version,
            "tools": (await client.list_tools()).tools,
            "sum": await client.call_tool("add", {"a": 1}),
            "failure": await client.call_tool("fail", {}),
        }


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    module = tmp_path / "numbers.py"
    module.write_text(MODULE, encoding="utf-8")
    made = guest.materialize(tmp_path / "guest")
    parts = guest.command(str(module))
    return tuple(part.replace(f"{guest.LOCKSTEP_MOUNT!r}", repr(str(made))) for part in parts)


@pytest.mark.parametrize("mode", ERAS)
def test_the_official_client_lists_and_calls_tools(command: tuple[str, ...], mode: str, tmp_path: Path) -> None:
    seen = asyncio.run(asyncio.wait_for(converse(command, mode, tmp_path), timeout=60))
    assert seen["version"] == ERAS[mode]
    add, fail = seen["tools"]
    assert (add.name, add.title, add.description) == ("add", "Add", "Add two numbers.")
    assert add.annotations.read_only_hint is True
    assert add.input_schema["properties"]["b"] == {"type": "integer", "default": 2, "description": "the other."}
    assert add.output_schema["required"] == ["total"]
    assert fail.name == "fail"
    assert seen["sum"].structured_content == {"total": 3}
    assert seen["sum"].content[0].text == '{"total":3}'
    assert not seen["sum"].is_error
    assert seen["failure"].is_error
    assert seen["failure"].content[0].text == "TimeoutError: no reply"
    assert seen["failure"].meta["lockstep/error"]["unknown"] is True


def test_an_import_failure_reaches_the_client_as_an_error_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "numbers.py").write_text("import nowhere\n", encoding="utf-8")
    made = guest.materialize(tmp_path / "guest")
    parts = guest.command(str(tmp_path / "numbers.py"))
    command = tuple(part.replace(f"{guest.LOCKSTEP_MOUNT!r}", repr(str(made))) for part in parts)

    async def ask() -> Any:
        async with mcp.Client(mcp.StdioServerParameters(command=command[0], args=list(command[1:]))) as client:
            with pytest.raises(mcp.MCPError) as raised:
                await client.list_tools()
            return raised.value.error

    error = asyncio.run(asyncio.wait_for(ask(), timeout=60))
    assert error.code == -32001
    assert "No module named 'nowhere' (numbers.py:1)" in error.message
