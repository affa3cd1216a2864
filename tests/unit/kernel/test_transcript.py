"""The prompt: deterministic, with a digest that says exactly which prefix it has."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from inprocess import LOOK, NOTE, locked_agent, locked_tool

from lockstep.kernel.transcript import Transcript, build_prompt, definitions, opening
from lockstep.model.port import AskedCall, AssistantMessage, Message, ToolMessage, UserMessage
from lockstep.values import Attachment

ASKED = AskedCall(provider_id="c1", name="look", arguments='{"to": "SFO"}')
RESULT = ToolMessage(provider_id="c1", name="look", text="BA1")
PLOT = Attachment(name="plot.png", mime_type="image/png", data=b"pixels", shown=True)
MESSAGES: tuple[Message, ...] = (
    UserMessage(text="Find a flight."),
    AssistantMessage(text="Looking.", calls=(ASKED,)),
    RESULT,
    AssistantMessage(text="BA1 it is."),
)


def digests(*messages: Message, system: str = "Be careful.") -> list[str]:
    """The digest of the prompt after each message."""
    agent = locked_agent(LOOK, system=system)
    transcript, out = opening(agent), []
    for message in messages:
        transcript = transcript.add(message)
        out.append(build_prompt(agent, definitions(agent), transcript).digest)
    return out


def test_the_same_prefix_has_the_same_digests_whatever_follows() -> None:
    other = (*MESSAGES[:2], ToolMessage(provider_id="c1", name="look", text="LH2"), MESSAGES[3])
    ours, theirs = digests(*MESSAGES), digests(*other)
    assert ours[:2] == theirs[:2]
    assert not set(ours[2:]) & set(theirs[2:])


def test_adding_messages_together_is_adding_them_one_by_one() -> None:
    agent = locked_agent(LOOK)
    together = opening(agent).add(*MESSAGES)
    assert together.digest.hex() == digests(*MESSAGES)[-1]
    assert opening(agent, MESSAGES) == together
    assert together.add() == together


def test_a_result_without_images_is_digested_as_before_there_were_any() -> None:
    before = bytes.fromhex(digests(*MESSAGES[:2])[-1])
    encoded = json.dumps(["tool", "c1", "look", "BA1", False]).encode()
    assert digests(*MESSAGES[:3])[-1] == hashlib.sha256(before + encoded).hexdigest()


CHANGED: dict[str, tuple[Message, ...]] = {
    "user text": (UserMessage(text="Find a flight!"), *MESSAGES[1:]),
    "assistant text": (MESSAGES[0], AssistantMessage(text="Looking", calls=(ASKED,)), *MESSAGES[2:]),
    "call name": (
        MESSAGES[0],
        AssistantMessage(text="Looking.", calls=(replace(ASKED, name="note"),)),
        *MESSAGES[2:],
    ),
    "call arguments": (
        MESSAGES[0],
        AssistantMessage(text="Looking.", calls=(replace(ASKED, arguments='{"to":"SFO"}'),)),
        *MESSAGES[2:],
    ),
    "call id": (
        MESSAGES[0],
        AssistantMessage(text="Looking.", calls=(replace(ASKED, provider_id="c2"),)),
        *MESSAGES[2:],
    ),
    "one call more": (MESSAGES[0], AssistantMessage(text="Looking.", calls=(ASKED, ASKED)), *MESSAGES[2:]),
    "result text": (*MESSAGES[:2], ToolMessage(provider_id="c1", name="look", text="BA2"), MESSAGES[3]),
    "result is an error": (
        *MESSAGES[:2],
        ToolMessage(provider_id="c1", name="look", text="BA1", is_error=True),
        MESSAGES[3],
    ),
    "result has an image": (*MESSAGES[:2], replace(RESULT, images=(PLOT,)), MESSAGES[3]),
    "result has another image": (
        *MESSAGES[:2],
        replace(RESULT, images=(replace(PLOT, data=b"other"),)),
        MESSAGES[3],
    ),
    "order": (MESSAGES[1], MESSAGES[0], *MESSAGES[2:]),
    "one message less": MESSAGES[1:],
    "role": (AssistantMessage(text="Find a flight."), *MESSAGES[1:]),
    "text moved between messages": (UserMessage(text="Find a "), UserMessage(text="flight."), *MESSAGES[1:]),
    "half a pair": (UserMessage(text="Find a flight.\ud83d"), *MESSAGES[1:]),
}


@pytest.mark.parametrize("messages", CHANGED.values(), ids=CHANGED.keys())
def test_any_change_of_a_message_changes_the_digest(messages: tuple[Message, ...]) -> None:
    assert digests(*messages)[-1] != digests(*MESSAGES)[-1]


def test_system_message_and_tool_definitions_are_in_the_digest() -> None:
    wider = locked_tool("look", schema={"type": "object", "properties": {"to": {"type": "string"}}})
    agents = [
        locked_agent(LOOK),
        locked_agent(LOOK, system="Be careful!"),
        locked_agent(LOOK, NOTE),
        locked_agent(NOTE),
        locked_agent(wider),
    ]
    assert len({opening(agent).digest for agent in agents}) == len(agents)


def test_the_order_of_keys_in_a_definition_does_not_matter() -> None:
    one = locked_tool("look", schema={"type": "object", "title": "x"})
    two = locked_tool("look", schema={"title": "x", "type": "object"})
    assert opening(locked_agent(one)).digest == opening(locked_agent(two)).digest


def test_another_process_comes_to_the_same_digest() -> None:
    code = "from test_transcript import MESSAGES, digests; import json; print(json.dumps(digests(*MESSAGES)))"
    here = Path(__file__).parent
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{here}:{here.parent}"},
        )
        assert json.loads(done.stdout) == digests(*MESSAGES)


def test_the_prompt_is_system_message_tools_and_messages_as_they_are() -> None:
    agent = locked_agent(LOOK, NOTE)
    transcript: Transcript = opening(agent).add(*MESSAGES)
    prompt = build_prompt(agent, definitions(agent), transcript)
    assert prompt.system == "Be careful."
    assert [(tool.name, tool.description, tool.input_schema) for tool in prompt.tools] == [
        ("look", "look it", {"type": "object"}),
        ("note", "note it", {"type": "object"}),
    ]
    assert prompt.messages == MESSAGES
