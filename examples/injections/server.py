"""One AgentDojo suite as an MCP server over stdio. Runs under AgentDojo's own environment, never beside the product.

    .agentdojo/bin/python examples/injections/server.py SUITE

Besides MCP it answers three requests of the harness, which no model can send: `world/begin` sets up a fresh
environment with a record's injections, `world/read` reads recorded arguments as leniently as the suite does, and
`world/check` asks the suite's own `utility` and `security` about what became of it.
Results are JSON, so that their fields have places; AgentDojo itself shows a model the same values as YAML.
"""

from __future__ import annotations

import datetime
import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from typing import Any

VERSION = "v1.1"
METHOD_NOT_FOUND, FAILED = -32601, -32000


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for clients of model providers, which AgentDojo imports: nothing here uses them, so there are none."""

    PREFIXES = ("agentdojo.agent_pipeline.llms", "anthropic", "cohere", "openai", "vertexai")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in self.PREFIXES):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _any_class  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        return


def _any_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


sys.meta_path.insert(0, _Absent())

import yaml  # noqa: E402
from agentdojo.default_suites.v1.tools import cloud_drive_client, email_client  # noqa: E402
from agentdojo.functions_runtime import FunctionCall, FunctionsRuntime  # noqa: E402
from agentdojo.task_suite.load_suites import get_suite  # noqa: E402
from pydantic_core import to_jsonable_python  # noqa: E402


class _Still(datetime.datetime):
    """The wall clock that some tools stamp, standing still: two replays of a record then differ in nothing."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime(2024, 6, 1, 12, 0, tzinfo=tz)


_CLOCK = types.SimpleNamespace(datetime=_Still, date=datetime.date, timedelta=datetime.timedelta)
cloud_drive_client.datetime = _CLOCK
email_client.datetime = _CLOCK


# The same loader in C: an environment is read from its text anew for every record.
yaml.safe_load = lambda text: yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


class World:
    """A suite and the environment of the record under way."""

    def __init__(self, suite: str) -> None:
        self._suite = get_suite(VERSION, suite)
        self._runtime = FunctionsRuntime(self._suite.tools)
        self._calls: list[FunctionCall] = []
        self.before: Any = None
        self.now: Any = None

    def definitions(self) -> list[dict[str, Any]]:
        return [
            {"name": f.name, "description": f.description, "inputSchema": f.parameters.model_json_schema()}
            for f in self._suite.tools
        ]

    def begin(self, user_task: str, injections: dict[str, str]) -> dict[str, Any]:
        fresh = self._suite.load_and_inject_default_environment(injections)
        self.now = self._suite.get_user_task_by_id(user_task).init_environment(fresh)
        self.before = self.now.model_copy(deep=True)
        self._calls = []
        return {}

    def read(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments as the suite reads them, which takes `"100"` for a number; what it cannot read stays as it is."""
        tool = self._runtime.functions.get(name)
        if tool is None:
            return {"arguments": arguments}
        try:
            read = tool.parameters.model_validate(arguments).model_dump(mode="json", exclude_unset=True)
        except ValueError:
            return {"arguments": arguments}
        return {"arguments": arguments if read == arguments else read}

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._calls.append(FunctionCall(function=name, args=arguments))
        value, error = self._runtime.run_function(self.now, name, arguments)
        text = error or (value if isinstance(value, str) else json.dumps(to_jsonable_python(value), ensure_ascii=False))
        return {"content": [{"type": "text", "text": text}], "isError": error is not None}

    def check(self, user_task: str, injection_task: str | None, output: str) -> dict[str, Any]:
        """`utility` and `security` as the suite sees them; `words` is whether the attack succeeds without any call."""
        user = self._suite.get_user_task_by_id(user_task)
        found = {"utility": self._holds(user, output, self.now, self._calls), "attack": None, "words": False}
        if injection_task is not None:
            injection = self._suite.get_injection_task_by_id(injection_task)
            found["attack"] = self._holds(injection, output, self.now, self._calls)
            found["words"] = self._holds(injection, output, self.before.model_copy(deep=True), [])
        return found

    def _holds(self, task: Any, output: str, now: Any, calls: list[FunctionCall]) -> bool:
        return bool(self._suite._check_task_result(task, output, self.before.model_copy(deep=True), now, calls))


def main() -> None:
    replies, sys.stdout = sys.stdout, sys.stderr  # some checks print; only frames may stand on stdout
    world = World(sys.argv[1])
    for line in sys.stdin:
        frame = json.loads(line)
        if "id" not in frame:
            continue
        reply = {"jsonrpc": "2.0", "id": frame["id"], **_answer(world, frame["method"], frame.get("params") or {})}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _answer(world: World, method: str, params: dict[str, Any]) -> dict[str, Any]:
    methods: dict[str, Callable[[], dict[str, Any]]] = {
        "initialize": lambda: {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "agentdojo", "version": VERSION},
        },
        "tools/list": lambda: {"tools": world.definitions()},
        "tools/call": lambda: world.call(params["name"], params.get("arguments") or {}),
        "world/begin": lambda: world.begin(params["user_task"], params["injections"]),
        "world/read": lambda: world.read(params["name"], params["arguments"]),
        "world/check": lambda: world.check(params["user_task"], params["injection_task"], params["output"]),
    }
    if method not in methods:
        return {"error": {"code": METHOD_NOT_FOUND, "message": f"no method {method}"}}
    try:
        return {"result": methods[method]()}
    except Exception as error:  # noqa: BLE001 - the harness says which record it was
        return {"error": {"code": FAILED, "message": f"{type(error).__name__}: {error}"}}


if __name__ == "__main__":
    main()
