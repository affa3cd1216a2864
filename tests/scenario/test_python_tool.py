"""The built-in `python` tool in an agent: real gVisor, a scripted model that computes and draws, record and re-run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import BAD_INPUT, FINISHED, SANDBOX, Agent, call, copy_of, make_agent

pytestmark = SANDBOX

TOOLS = '[[tools]]\nbuiltin = "python"\ncode = ["prices.csv"]\ntimeout_s = 20\n'
PRICES = "item,usd\nbread,3\nmilk,2\n"
DRAW = """\
import struct, zlib

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def png(width, height, rgb):
    rows = b"".join(b"\\0" + bytes(rgb) * width for _ in range(height))
    start = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
"""
COMPUTE = (
    DRAW
    + """
import csv
rows = list(csv.DictReader(open("/tool/prices.csv")))
total = sum(int(row["usd"]) for row in rows) * int(open("factor.txt").read())
open("total.txt", "w").write(f"{total} USD")
open("plot.png", "wb").write(png(64, total, (200, 30, 30)))
open("raw.bin", "wb").write(bytes(range(256)))
print("rows:", len(rows))
total
"""
)
SCRIPT = (
    {"say": "First try.", "call": {"name": "python", "arguments": {"code": "prices['bread']"}}},
    call(
        "python",
        code=COMPUTE,
        files={"factor.txt": "10"},
        outputs=["total.txt", "plot.png", "raw.bin", "missing.csv"],
    ),
    {"say": "It is 50."},
)


def accept_gvisor(agent: Agent) -> None:
    agent.change("agent.toml", "[policy]\n", '[policy]\nuntrusted = "gvisor"\n')


@pytest.fixture(scope="module")
def analyst(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    directory = tmp_path_factory.mktemp("python") / "analyst"
    agent = make_agent(directory, code="", tools=TOOLS, script=SCRIPT, files={"prices.csv": PRICES}, lock=False)
    accept_gvisor(agent)
    done = agent("lock", agent.directory)
    assert done.code == FINISHED, done.err
    return agent


@pytest.fixture(scope="module")
def ran(analyst: Agent) -> dict[str, Any]:
    done = analyst.run("What does it all cost, times ten?")
    assert done.code == FINISHED, done.err
    shown: dict[str, Any] = done.json
    return shown


def test_the_model_computes_draws_and_recovers_from_its_own_mistake(ran: dict[str, Any]) -> None:
    first, second = ran["calls"]
    assert (first["outcome"], second["outcome"]) == ("tool_error", "ok")
    assert first["result"].endswith("NameError: name 'prices' is not defined")
    assert (second["tier"], second["effect"]) == ("gvisor", "read")
    lines = second["result"].splitlines()
    assert lines[:4] == ["rows: 2", "50", "total.txt:", "50 USD"]
    assert lines[4] == "plot.png:"
    assert lines[5].startswith("[image: image/png, ")
    assert lines[6] == "[resource: file:///work/raw.bin]"
    assert lines[7] == "[Not returned: missing.csv does not exist.]"
    assert [(each["name"], each["mime_type"]) for each in second["attachments"]] == [
        ("total.txt", "text/plain"),
        ("plot.png", "image/png"),
        ("raw.bin", "application/octet-stream"),
    ]
    assert "attachments" not in first


def test_show_names_what_was_kept_and_writes_it_out(analyst: Agent, ran: dict[str, Any], tmp_path: Path) -> None:
    shown = analyst("show", ran["run_id"])
    assert "[image: image/png, " in shown.out
    assert "kept [file: application/octet-stream, 256 bytes] raw.bin" in shown.out
    saved = analyst("show", ran["run_id"], "--save", tmp_path / "out")
    assert f"wrote {tmp_path / 'out'}/2.0-plot.png" in saved.out
    assert (tmp_path / "out/2.0-raw.bin").read_bytes() == bytes(range(256))
    assert (tmp_path / "out/2.0-total.txt").read_text() == "50 USD"
    image = (tmp_path / "out/2.0-plot.png").read_bytes()
    assert hashlib.sha256(image).hexdigest() == ran["calls"][1]["attachments"][1]["sha256"]
    assert image.startswith(b"\x89PNG")
    assert analyst("verify", ran["run_id"]).code == FINISHED


def test_the_run_is_run_again_from_its_recording(analyst: Agent, ran: dict[str, Any], tmp_path: Path) -> None:
    recording = tmp_path / "analyst.jsonl"
    assert analyst("record", ran["run_id"], recording).code == FINISHED
    last = json.loads(recording.read_text().splitlines()[-1])
    assert [image["mime_type"] for image in last["expects"][0]["images"]] == ["image/png"]
    again = analyst.run("What does it all cost, times ten?", "--model", f"recorded:{recording}")
    assert again.code == FINISHED, again.all
    assert again.json["output"] == "It is 50."
    assert again.json["calls"][1]["attachments"] == ran["calls"][1]["attachments"]


def test_without_a_policy_that_accepts_less_it_needs_a_microvm(analyst: Agent, tmp_path: Path) -> None:
    agent = copy_of(analyst, tmp_path / "strict")
    agent.change("agent.toml", 'untrusted = "gvisor"\n', "")
    assert agent("lock", agent.directory).code == FINISHED
    locked = json.loads((agent.directory / "agent.lock").read_text())
    assert locked["dimensions"]["tools"]["parts"]["tool python"]["value"]["isolation"] == "microvm"
    done = agent.run("What does it all cost?")
    if done.code != FINISHED:  # where there is a machine for it, it runs there
        assert done.code == BAD_INPUT
        assert "Tool python needs isolation 'microvm'" in done.all
    else:
        assert {each["tier"] for each in done.json["calls"]} == {"microvm"}


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed (Debian package bubblewrap)")
def test_a_policy_may_accept_the_process_tier_for_it(analyst: Agent, tmp_path: Path) -> None:
    agent = copy_of(analyst, tmp_path / "quick")
    agent.change("agent.toml", 'untrusted = "gvisor"\n', 'untrusted = "process"\nisolation = "process"\n')
    assert agent("lock", agent.directory).code == FINISHED
    done = agent.run("What does it all cost, times ten?")
    assert done.code == FINISHED, done.all
    assert [(each["tier"], each["outcome"]) for each in done.json["calls"]] == [
        ("process", "tool_error"),
        ("process", "ok"),
    ]
    assert len(done.json["calls"][1]["attachments"]) == 3


SERVER = """\
import base64, json, sys

def answer(method):
    if method == "initialize":
        server = {"name": "x", "version": "1"}
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        return {"tools": [{"name": "draw", "inputSchema": {"type": "object"}}]}
    image = {"type": "image", "mimeType": "image/png", "data": base64.b64encode(png(8, 8, (0, 0, 9))).decode()}
    return {"content": [{"type": "text", "text": "Drawn."}, image, {**image, "data": image["data"][:40]}]}

for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer(asked["method"])}), flush=True)
"""


def test_images_of_an_mcp_server_take_the_same_path(tmp_path: Path) -> None:
    entry = '[[tools]]\nmcp = { command = ["/usr/bin/python3", "server.py"] }\ncode = ["server.py"]\neffect = "read"\n'
    agent = make_agent(
        tmp_path / "drawer",
        code="",
        tools=entry,
        script=(call("draw"), {"say": "Look."}),
        files={"server.py": DRAW + SERVER},
    )
    done = agent.run("Draw.")
    assert done.code == FINISHED, done.all
    (drawn,) = done.json["calls"]
    text, whole, broken = drawn["result"].splitlines()
    assert (text, broken) == ("Drawn.", "[image: image/png, 30 bytes]")
    (kept,) = drawn["attachments"]
    assert whole == f"[image: image/png, {kept['bytes']} bytes]"
    assert (kept["name"], kept["mime_type"]) == ("", "image/png")
