"""The SDK's own server over Streamable HTTP, asking back in both eras: in results, and over either of its streams."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="the extra lockstep-agents[mcp] is not installed")
from dataclasses import replace

from lockstep.agent.lock import to_text, write_lock
from lockstep.cli.stores import opened
from lockstep.journal.events import InputAsked, RunStarted
from lockstep.kernel.state import CallState, State
from lockstep.runtime.inputs import Said, answer_input, filled, waiting_input
from lockstep.runtime.reading import read_run
from lockstep.tools.inputs import Asked, parse
from lockstep.values import JsonObject
from lockstep.wiring import running, stores
from lockstep.wiring.pinning import approved_lock, review
from lockstep.wiring.stores import Store

AGENT = """
[agent]
name = "airline"
[model]
name = "scripted:script.jsonl"
[prompt]
file = "prompt.md"
[[tools]]
timeout_s = 20
[tools.mcp]
url = "{url}"
elicitation = "ask"
[policy]
files = ["policy.cedar"]
"""
TOLD = {"seats": 1, "name": "Ada"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("asking_server.py")), "http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
        finally:
            process.kill()


class Ada:
    """Somebody who is there."""

    offers = frozenset({"elicitation"})
    by, login = "ada", "ada"

    async def answer(self, state: State, call: CallState, asked: Asked) -> JsonObject | None:
        return filled(asked, {"name": ["Ada"]})


async def called(directory: Path, url: str, tool: str, protocol: str) -> tuple[State, list[bool]]:
    """A run that makes one call, with a person before it; and of each question, whether its server waited for it."""
    call = {"call": {"name": tool, "arguments": {}}}
    files = {
        "agent.toml": AGENT.format(url=url),
        "prompt.md": "You book.",
        "policy.cedar": "permit (principal, action, resource);",
        "script.jsonl": f"{json.dumps(call)}\n{json.dumps({'say': 'Done.'})}\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    where = Store.of(directory)
    async with stores.opened_tools(where) as tools, opened(where) as journal:
        seen = await review(directory, tools, where.code())
        seen = replace(seen, asked=replace(seen.asked, protocols=dict.fromkeys(seen.asked.protocols, protocol)))
        write_lock(directory, approved_lock(directory, seen))
        lock = (await running.prepare(directory, tools, where.code())).lock
        settings: dict[str, Any] = {"directory": directory, "journal": journal, "tools": tools, "code": where.code()}
        driver = running.open_driver(lock, **settings, attendant=Ada())
        started = RunStarted(
            agent="airline",
            lock=lock.digest,
            lock_text=to_text(lock),
            directory=str(directory),
            principal="ada",
            session="s",
            input="Book.",
        )
        state = await driver.advance(await driver.start(started))
        while (waits := waiting_input(state)) is not None:
            said = Said(responses=filled(parse(waits.asked), {"name": ["Ada"]}), by="ada")
            await answer_input(journal, waits.input, said)
            state = await running.open_driver(lock, **settings).resume(state.run, by="ada")
        events = [each.event for each in await read_run(journal, state.run)]
        return state, [event.live for event in events if isinstance(event, InputAsked)]


@pytest.mark.parametrize(
    ("tool", "protocol", "told", "live"),
    [
        ("book", "2026-07-28", ["accept", TOLD, "mine"], [False]),
        ("book", "2025-11-25", ["accept", TOLD], [True]),
        ("wander", "2025-11-25", ["accept", TOLD], [True]),
    ],
    ids=["in a result", "beside its answer", "over its own stream"],
)
def test_a_server_elsewhere_asks_and_is_answered(
    tmp_path: Path, url: str, tool: str, protocol: str, told: list[Any], live: list[bool]
) -> None:
    state, asked = asyncio.run(called(tmp_path, url, tool, protocol))
    (call,) = state.all_calls
    assert (call.outcome, json.loads(call.text), asked) == ("ok", told, live)
