"""What a client of the gateway is shown of a tool."""

from __future__ import annotations

import pytest

pytest.importorskip("mcp", reason="the extra lockstep-agents[mcp] is not installed")

from lockstep.gateway.server import _tool
from lockstep.model.port import ToolDefinition


def test_a_tool_of_a_server_has_the_name_by_which_it_can_be_called() -> None:
    schema = {"type": "object", "properties": {"again": {"type": "boolean"}}}
    shown = ToolDefinition(name="bank__pay", description="Pay.", input_schema=schema)
    told = _tool(shown, {"name": "pay", "description": "Pay.", "inputSchema": {"type": "object"}})
    assert (told.name, told.input_schema) == ("bank__pay", schema)
