"""What the conformance suite runs as a client: an agent whose one server is the suite's, locked and run as agents are.

Usage: client.py URL, with MCP_CONFORMANCE_SCENARIO and MCP_CONFORMANCE_CONTEXT as the suite sets them. The model is
scripted: it asks for what the scenario waits for. Driver, gate with a policy, journal and host are the real ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import read_lock, to_text, write_lock
from lockstep.agent.locked import LockedTool
from lockstep.cli.stores import opened
from lockstep.errors import ConfigError, LockstepError
from lockstep.journal.events import RunStarted
from lockstep.kernel.state import CallState, State
from lockstep.runtime.inputs import Said, answer_input, filled, waiting_input
from lockstep.tools.inputs import Asked, parse
from lockstep.values import JsonObject
from lockstep.wiring import running, stores
from lockstep.wiring.logins import log_in, server_of
from lockstep.wiring.pinning import approved_lock, review
from lockstep.wiring.stores import Store

AGENT = """
[agent]
name = "conformance"
[model]
name = "scripted:script.jsonl"
[prompt]
file = "prompt.md"
[[tools]]
effect = "read"
timeout_s = 25
retries = 0
[tools.mcp]
url = {url}
prefix = "suite"
elicitation = "ask"
{oauth}
[policy]
files = ["policy.cedar"]
"""
FILES = {
    "prompt.md": "You answer.\n",
    "policy.cedar": '@id("all")\npermit (principal, action, resource);\n',
    "script.jsonl": '{"say": "Done."}\n',
}
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"add_numbers": {"a": 5, "b": 3}}
EXAMPLE_ANSWERS = {"text": "text", "number": "1", "integer": "1", "boolean": "yes"}
MAX_LOGINS = 3
EXAMPLES: Mapping[str, Any] = {"string": "text", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}

Calls = Sequence[tuple[str, Mapping[str, Any]]]


def main() -> int:
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    with tempfile.TemporaryDirectory(prefix="lockstep-conformance-") as directory:
        try:
            return asyncio.run(Client(Path(directory), sys.argv[-1], context).work())
        except LockstepError as refused:  # whether that is right, the suite has seen
            print(f"refused: {refused}")
            return 0


class Client:
    """One scenario."""

    def __init__(self, directory: Path, url: str, context: Mapping[str, Any]) -> None:
        self.directory = directory
        self.context = context
        agent = AGENT.format(url=json.dumps(url), oauth=_oauth(url, context))
        for name, text in {**FILES, "agent.toml": agent}.items():
            (directory / name).write_text(text)
        self.store = Store.of(directory)
        self.logins = 0

    async def work(self) -> int:
        await self.lock()
        tools = locked_agent(read_lock(self.directory)).tools
        print("tools:", ", ".join(tools) or "none")
        if calls := list(self.calls(tools)):
            asked = [{"calls": [{"name": name, "arguments": arguments}]} for name, arguments in calls]
            (self.directory / "script.jsonl").write_text("\n".join(map(json.dumps, [*asked, {"say": "Done."}])))
            await self.lock()
        while True:
            state = await self.run()
            for call in state.all_calls:
                print(call.name, call.arguments, "->", call.outcome, call.text[:300])
            if not any(_wants_login(call.text) for call in state.all_calls) or not await self.login():
                return 0

    def calls(self, tools: Mapping[str, LockedTool]) -> Calls:
        """What the scenario says; else each tool once, with what its schema asks for."""
        given = self.context.get("toolCalls")
        if isinstance(given, list):
            named = [(f"suite__{each['name']}", each["arguments"]) for each in given]
            return [(name, _fitting(tools[name], arguments)) for name, arguments in named]
        return [(name, ARGUMENTS.get(tool.own_name) or _example(tool)) for name, tool in tools.items()]

    async def lock(self) -> None:
        async with stores.opened_tools(self.store) as tools:
            while True:
                try:
                    seen = await review(self.directory, tools, self.store.code())
                    break
                except ConfigError as error:
                    print(error.message)
                    if not _wants_login(error.message) or not await self.login():
                        raise
            for problem in seen.asked.problems:
                print(problem)
            write_lock(self.directory, approved_lock(self.directory, seen, None))

    async def login(self) -> bool:
        """What a person does who is told to log in; they give up at some point."""
        self.logins += 1
        if self.logins > MAX_LOGINS:
            return False
        remote = server_of(self.directory, None)
        return await log_in(self.store, remote, self.store.tokens().operator, _browse)

    async def run(self) -> State:
        code = self.store.code()
        async with stores.opened_tools(self.store) as tools:
            prepared = await running.prepare(self.directory, tools, code)
            async with opened(self.store) as journal:
                driver = running.open_driver(
                    prepared.lock,
                    directory=self.directory,
                    journal=journal,
                    tools=tools,
                    code=code,
                    attendant=Agreeable(),
                )
                started = RunStarted(
                    agent=prepared.lock.agent,
                    lock=prepared.lock.digest,
                    lock_text=to_text(prepared.lock),
                    directory=str(self.directory),
                    principal=self.store.tokens().operator,
                    session="s",
                    input="Go on.",
                    approve="ask",
                )
                state = await driver.advance(await driver.start(started))
                while (waiting := waiting_input(state)) is not None:
                    said = Said(responses=_agreed(parse(waiting.asked)), by="somebody")
                    await answer_input(journal, waiting.input, said)
                    state = await driver.resume(state.run, by="somebody")
                return state


class Agreeable:
    """Somebody who is there, and agrees to whatever a server that holds its call open asks for."""

    offers: frozenset[str] = frozenset()
    by, login = "a person", "the suite"

    async def answer(self, state: State, call: CallState, asked: Asked) -> JsonObject | None:
        return _agreed(asked)


def _agreed(asked: Asked) -> JsonObject:
    """What a person types who keeps to the defaults, and to an example where there is none."""
    fields = {
        f"{request.key}/{field.name}": [EXAMPLE_ANSWERS.get(field.kind) or field.options[0].value]
        for request in asked.open
        for field in (request.form.fields if request.form else ())
        if field.required and field.default is None
    }
    return filled(asked, fields)


def _wants_login(text: str) -> bool:
    return "lockstep tools login" in text


async def _browse(url: str) -> None:
    """A person who agrees to everything: the browser follows where the authorization server leads it."""
    async with httpx2.AsyncClient(follow_redirects=True, trust_env=False) as browser:
        print("browser:", (await browser.get(url)).status_code)


def _issuer_at(url: str) -> str:
    """Where a scenario does not say whose its credentials are: the one that its server names."""
    at = httpx2.URL(url)
    answer = httpx2.get(at.copy_with(path=f"/.well-known/oauth-protected-resource{at.path}"), trust_env=False)
    return str(answer.json()["authorization_servers"][0])


def _oauth(url: str, context: Mapping[str, Any]) -> str:
    """What the scenario gives a client beforehand; its authorization servers are elsewhere on this machine."""
    said: dict[str, Any] = {"client_metadata_url": "https://conformance-test.local/client-metadata.json"}
    if "client_id" in context:
        said = {"client_id": context["client_id"], "issuer": context.get("issuer") or _issuer_at(url)}
        for name, variable in (("client_secret", "SUITE_SECRET"), ("private_key_pem", "SUITE_KEY")):
            if name in context:
                os.environ[variable] = context[name]
                said["private_key" if name == "private_key_pem" else name] = f"env:{variable}"
        if "client-credentials" in context.get("name", ""):
            said["grant"] = "client_credentials"
    said["any_port"] = True
    return f"oauth = {{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in said.items())} }}"


def _fitting(tool: LockedTool, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without nulls where the tool's schema takes none: the gate would refuse them."""
    properties: Any = tool.input_schema.get("properties", {})
    return {
        name: value
        for name, value in arguments.items()
        if value is not None or "null" in str(properties.get(name, {}).get("type"))
    }


def _example(tool: LockedTool) -> Mapping[str, Any]:
    properties: Any = tool.input_schema.get("properties", {})
    required: Any = tool.input_schema.get("required", ())
    return {name: EXAMPLES.get(str(properties.get(name, {}).get("type")), "text") for name in required}


if __name__ == "__main__":
    sys.exit(main())
