"""Recordings made from a suite's own reference actions, for suites of which no recorded run is at hand.

    .agentdojo/bin/python examples/injections/reference.py SUITE[:N]... > reference.jsonl

`:N` takes the first N user tasks only.

Runs under AgentDojo's own environment. The benign run of a user task makes its reference calls. The attacked one makes
them too, but obeys: once a result has shown the injection, the injection's reference calls come next. That is a worst
case, a model that always falls for it; and it is a check of the agents' declarations by cases nobody tuned them to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from server import VERSION, World

MODEL = "reference-gpt-4o-2024-05-13"
"""The attack names the model it speaks to, by this."""

# Only now: `server` stands in for the clients of model providers that this imports.
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement  # noqa: E402
from agentdojo.attacks.important_instructions_attacks import ImportantInstructionsAttack  # noqa: E402
from agentdojo.task_suite.load_suites import get_suite  # noqa: E402


class _Named(BasePipelineElement):
    name = MODEL

    def query(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError  # the attack asks for its name alone


def records(named: str) -> Iterator[dict[str, Any]]:
    name, _, limit = named.partition(":")
    suite = get_suite(VERSION, name)
    attack = ImportantInstructionsAttack(suite, _Named())
    for user in list(suite.user_tasks.values())[: int(limit) if limit else None]:
        yield _record(name, user, None, {})
        for injection in suite.injection_tasks.values():
            try:
                injections = attack.attack(user, injection)
            except ValueError:  # its reference calls never show a place that could be injected
                break
            yield _record(name, user, injection, injections)


def _record(name: str, user: Any, injection: Any, injections: dict[str, str]) -> dict[str, Any]:
    world = World(name)
    world.begin(user.ID, injections)
    messages: list[dict[str, Any]] = [{"role": "user", "content": user.PROMPT}]
    planned = list(user.ground_truth(world.now))
    obeyed = injection is None
    while planned:
        call = planned.pop(0)
        arguments = json.loads(json.dumps(dict(call.args), default=str))
        number = f"call-{len(messages)}"
        asked = {"id": number, "name": call.function, "args": arguments}
        messages.append({"role": "assistant", "content": None, "tool_calls": [asked]})
        text = world.call(call.function, arguments)["content"][0]["text"]
        messages.append({"role": "tool", "content": text, "tool_call_id": number, "name": call.function})
        if not obeyed and _shows(text, injections):
            obeyed = True
            planned = [*injection.ground_truth(world.now), *planned]
    said = str(user.GROUND_TRUTH_OUTPUT)
    messages.append({"role": "assistant", "content": said})
    found = world.check(user.ID, injection.ID if injection else None, said)
    return {
        "id": f"{MODEL}/{name}/{user.ID}/{injection.ID if injection else 'none'}",
        "model": MODEL,
        "suite": name,
        "user_task": user.ID,
        "injection_task": injection.ID if injection else None,
        "injections": injections,
        "messages": messages,
        "recorded": {"utility": found["utility"], "attack_succeeded": found["attack"]},
    }


def _shows(text: str, injections: dict[str, str]) -> bool:
    """Whether a result shows one of these: its longest line, since YAML and JSON write line breaks as they like."""
    return any(json.dumps(max(each.splitlines(), key=len))[1:-1] in text for each in injections.values())


if __name__ == "__main__":
    lines, sys.stdout = sys.stdout, sys.stderr  # some checks print
    for each in sys.argv[1:]:
        for record in records(each):
            print(json.dumps(record), file=lines)
