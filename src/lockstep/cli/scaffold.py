"""The small agent that `lockstep init` writes: one tool, one policy, a scripted model, and it runs as it is."""

from __future__ import annotations

import re
from pathlib import Path

from lockstep.errors import ConfigError

FILES = {
    "agent.toml": """\
[agent]
name = "{name}"
description = "Does sums."

[model]
# A script, so that this runs as it is. A real one: "openai:gpt-4o", "anthropic:claude-sonnet-4-5", ...
name = "scripted:script.jsonl"

[prompt]
file = "prompt.md"

[[tools]]
python = "tools.py"
effect = "read"          # read, idempotent, keyed or once; undeclared is once
isolation = "gvisor"     # no network unless egress = ["host:port GET /path"] opens it
timeout_s = 10

[policy]
files = ["policy.cedar"]

[budget]
steps = 10
wall_s = 120
""",
    "prompt.md": """\
You do sums. Use the `add` tool for every addition; never add in your head. Answer in one short sentence.
""",
    "tools.py": '''\
"""Tools of this agent. They run inside a sandbox; nothing here runs on the host."""

from typing import Annotated

from lockstep import tool


@tool(read_only=True)
def add(a: Annotated[float, "First number."], b: Annotated[float, "Second number."]) -> float:
    """Add two numbers."""
    return a + b
''',
    "policy.cedar": """\
// Anything not permitted here is denied.
@id("sums-are-fine")
permit (principal, action == Action::"add", resource == Agent::"{name}");
""",
    "script.jsonl": """\
{"script": 1, "per": "run"}
{"call": {"name": "add", "arguments": {"a": 2, "b": 2}}}
{"say": "2 + 2 is ${add}."}
""",
    ".gitignore": ".lockstep/\n",
}


def write(directory: Path) -> None:
    """Write the agent into a new or empty directory.

    Raises:
        ConfigError: the directory holds something, or its name cannot name an agent.
    """
    name = directory.resolve().name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
        raise ConfigError(f"{name!r} cannot name an agent.", remedy="Use letters, digits, - and _, a letter first.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an empty directory.", remedy="Name a new one.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in FILES.items():
            (directory / file).write_text(text.replace("{name}", name), encoding="utf-8")
    except OSError as error:
        remedy = "Check the path, space and permissions."
        raise ConfigError(f"{directory} cannot be written: {error.strerror}.", remedy=remedy) from error
