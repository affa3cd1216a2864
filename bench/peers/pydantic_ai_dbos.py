"""Pydantic AI with DBOS on SQLite. Runs in the peer's own environment.

`DBOSDurability` makes each model request a DBOS step; it replaces `DBOSAgent`, which is deprecated. A function tool is
made a step by its author, as the guide says. DBOS leaves SQLite's `synchronous` at FULL and the journal in rollback
mode; the file is put into WAL first, which is what a careful user would do and no slower.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dbos import DBOS
from pydantic_ai import Agent, UsageLimits
from pydantic_ai.durable_exec.dbos import DBOSDurability
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from workload import FINAL_TEXT, USER_MESSAGE, Options, Script, parse_options, run_contender, tool_text

NAME = "pydantic-ai + DBOS (SQLite)"
PACKAGES = ("pydantic-ai-slim", "dbos", "sqlalchemy")


def build_agent(script: Script) -> Agent[None, str]:
    async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        record = script.next_record(len(messages))
        if record is None:
            return ModelResponse(parts=[TextPart(FINAL_TEXT)])
        return ModelResponse(parts=[ToolCallPart("lookup", {"record": record}, tool_call_id=f"call-{record}")])

    agent = Agent(FunctionModel(model), name="bench", capabilities=[DBOSDurability()])

    @agent.tool_plain
    @DBOS.step(name="lookup")
    async def lookup(record: int) -> str:
        """Look up one record."""
        return tool_text(record)

    return agent


def launch_dbos(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{database}", "log_level": "ERROR"})
    DBOS.launch()


async def drive(agent: Agent[None, str], options: Options, script: Script) -> list[str]:
    @DBOS.workflow()
    async def run_agent(prompt: str) -> str:
        result = await agent.run(prompt, usage_limits=UsageLimits(request_limit=None))
        return result.output

    await run_agent(USER_MESSAGE)
    script.begin(options.steps)
    outputs = await asyncio.gather(*(run_agent(USER_MESSAGE) for _ in range(options.runs or 1)))
    script.end()
    return outputs


def loop(options: Options, script: Script) -> list[str]:
    agent = build_agent(script)
    launch_dbos(options.directory / "dbos.sqlite")
    try:
        return asyncio.run(drive(agent, options, script))
    finally:
        DBOS.destroy()


def main() -> None:
    options, rest = parse_options()
    if rest:
        raise SystemExit(f"unknown arguments: {rest}")
    run_contender(NAME, PACKAGES, options, loop)


if __name__ == "__main__":
    main()
