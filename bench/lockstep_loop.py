"""Lockstep's own contender: the real driver, gate (schema validation, Cedar policy, permit) and SQLite journal.

The tool runs in this process, as the peers' do. Every step is durable (synchronous FULL) before it goes on.
"""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path

from workload import FINAL_TEXT, USER_MESSAGE, Options, Script, parse_options, run_contender, tool_text

from lockstep import tool
from lockstep.agent.load import load_spec
from lockstep.agent.lock import Lock, to_text
from lockstep.agent.resolve import resolve
from lockstep.journal.events import RunStarted
from lockstep.model.port import AskedCall, OnText, Prompt, Reply, Settings
from lockstep.tools.inprocess import InProcessTools
from lockstep.tools.schema import definition
from lockstep.wiring import running, stores

AGENT = """
[agent]
name = "bench"
[model]
name = "bench:instant"
[prompt]
file = "prompt.md"
[[tools]]
python = "tools.py"
effect = "read"
[policy]
files = ["policy.cedar"]
[budget]
steps = 1000
calls = 1000
[memory]
window_runs = 0
"""
POLICY = '@id("lookups") permit (principal, action == Action::"lookup", resource == Agent::"bench");'


@tool
def lookup(record: int) -> str:
    """Look up one record."""
    return tool_text(record)


class Instant:
    """A model that answers at once, as the workload's script says."""

    name = "bench:instant"

    def __init__(self, script: Script) -> None:
        self._script = script

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply:
        record = self._script.next_record(len(prompt.messages))
        if record is None:
            return Reply(text=FINAL_TEXT, model="instant", provider="bench", cost_usd=Decimal(0))
        call = AskedCall(provider_id=f"call-{record}", name="lookup", arguments=json.dumps({"record": record}))
        return Reply(text="", calls=(call,), model="instant", provider="bench", cost_usd=Decimal(0))


def loop(options: Options, script: Script) -> list[str]:
    return asyncio.run(run_all(options, script))


async def run_all(options: Options, script: Script) -> list[str]:
    agent = options.directory / "agent"
    lock = write_agent(agent)
    store = stores.Store(directory=options.directory / "store")
    journal = store.journal()
    driver = running.open_driver(
        lock,
        directory=agent,
        journal=journal,
        tools=InProcessTools({"lookup": lookup}),
        code=store.code(),
        model=Instant(script),
    )

    async def one(session: str) -> str:
        run = await driver.start(
            RunStarted(
                agent=lock.agent,
                lock=lock.digest,
                lock_text=to_text(lock),
                directory=str(agent),
                principal="bench",
                session=session,
                input=USER_MESSAGE,
            )
        )
        return (await driver.advance(run)).output

    try:
        await one("warm-up")
        script.begin(options.steps)
        texts = list(await asyncio.gather(*(one(f"s{number}") for number in range(options.runs or 1))))
        script.end()
    finally:
        await journal.close()
    return texts


def write_agent(directory: Path) -> Lock:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in {"agent.toml": AGENT, "policy.cedar": POLICY, "prompt.md": "Look up.", "tools.py": ""}.items():
        (directory / name).write_text(text, encoding="utf-8")
    return resolve(directory, load_spec(directory), {0: [definition(lookup)]})


if __name__ == "__main__":
    options, _ = parse_options()
    run_contender("lockstep", ("lockstep-agents",), options, loop)
