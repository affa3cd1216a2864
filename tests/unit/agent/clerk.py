"""An agent directory for tests of the lock, and the definitions its two sources give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lockstep.agent.load import load_spec
from lockstep.agent.lock import Lock
from lockstep.agent.resolve import resolve

TOML = """\
[agent]
name = "clerk"

[model]
name = "scripted:script.jsonl"
temperature = 0.0

[prompt]
file = "prompt.md"

[[tools]]
python = "tools.py"
code = ["table"]
include = ["look"]
effect = "read"

[[tools]]
mcp = { command = ["/usr/bin/python3", "server.py"] }
code = ["server.py"]
dedupe_on = ["to"]
egress = ["127.0.0.1:9 POST /pay"]
env = { BANK = "one" }
timeout_s = 20

[policy]
files = ["policy.cedar"]

[memory]
window_runs = 3

[budget]
steps = 5
"""
FILES = {
    "agent.toml": TOML,
    "prompt.md": "You pay bills.\nAsk before you pay.\n",
    "policy.cedar": '@id("all")\npermit (principal, action, resource);\n',
    "script.jsonl": '{"say": "Nothing to pay."}\n',
    "tools.py": "# looks things up\n",
    "table/a.json": "{}\n",
    "server.py": "# pays\n",
}
LOOK: dict[str, Any] = {
    "name": "look",
    "description": "Look someone up.",
    "inputSchema": {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]},
}
PAY: dict[str, Any] = {
    "name": "pay",
    "description": "Pay someone.",
    "inputSchema": {
        "type": "object",
        "properties": {"to": {"type": "string"}, "cents": {"type": "integer", "maximum": 5000}},
        "required": ["to", "cents"],
    },
}


class Clerk:
    """The directory, and what its sources would answer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.definitions = copy.deepcopy({0: [LOOK, {**LOOK, "name": "unused"}], 1: [PAY]})
        for name, text in FILES.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)

    def change(self, file: str, old: str, new: str) -> None:
        text = (self.directory / file).read_text()
        assert old in text, f"{old!r} is not in {file}"
        (self.directory / file).write_text(text.replace(old, new))

    def lock(self) -> Lock:
        return resolve(self.directory, load_spec(self.directory), copy.deepcopy(self.definitions))
