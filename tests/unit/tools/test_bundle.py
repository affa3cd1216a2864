"""The start-up bundle: what it serves, when it is made, when it is ignored; `test_runner` runs with it and without."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.errors import StoreError
from lockstep.tools import guest
from lockstep.tools.bundle import BUNDLE

INTERPRETER = guest.INTERPRETER if Path(guest.INTERPRETER[0]).exists() else (sys.executable, "-I", "-S")
TOOL = """
import json, os, sys
from lockstep import tool
from lockstep.tools.results import encode

@tool
def act() -> str:
    return json.dumps({
        "loaders": {name: type(sys.modules[name].__loader__).__name__ for name in ("json", "re", "lockstep")},
        "json": json.__file__,
        "ours": encode.__code__.co_filename,
        "path": sys.path[0],
        "descriptors": sorted(os.listdir("/proc/self/fd")),
    })

@tool
def later() -> str:
    import dataclasses
    return f"{type(dataclasses.__loader__).__name__} {sorted(os.listdir('/proc/self/fd'))}"
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest.materialize(tmp_path_factory.mktemp("guest"), INTERPRETER)


def ask(directory: Path, tools: Path, name: str = "act") -> str:
    (tools / "flights.py").write_text(TOOL)
    command = guest.command(str(tools / "flights.py"), interpreter=INTERPRETER)
    command = tuple(part.replace(repr(guest.LOCKSTEP_MOUNT), repr(str(directory))) for part in command)
    call = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}})
    done = subprocess.run(command, input=call.encode(), capture_output=True, timeout=60, check=True, env={})
    return str(json.loads(done.stdout)["result"]["content"][0]["text"])


def test_the_runner_and_what_it_imports_come_from_the_bundle(kept: Path, tmp_path: Path) -> None:
    seen = json.loads(ask(kept, tmp_path))
    assert set(seen["loaders"].values()) == {"Bundled"}
    assert Path(seen["json"]).is_file()
    assert seen["ours"] == "/lockstep/lockstep/tools/results.py"


def test_a_tool_finds_the_same_descriptors_with_and_without(kept: Path, tmp_path: Path) -> None:
    plain = json.loads(ask(guest.materialize(tmp_path / "plain"), tmp_path))
    seen = json.loads(ask(kept, tmp_path))
    assert set(plain["loaders"].values()) == {"SourceFileLoader"}
    assert seen["descriptors"] == plain["descriptors"]
    assert seen["json"] == plain["json"]


def test_what_a_tool_imports_later_comes_from_the_bundle_and_leaves_no_descriptor(kept: Path, tmp_path: Path) -> None:
    loader, _, descriptors = ask(kept, tmp_path, "later").partition(" ")
    assert loader == "Bundled"
    assert descriptors == str(json.loads(ask(kept, tmp_path))["descriptors"])


@pytest.mark.parametrize("mark", [b"\x00\x00\r\n", b"3.11.0 of another build"], ids=["byte code", "version"])
def test_a_bundle_of_another_interpreter_is_ignored(kept: Path, tmp_path: Path, mark: bytes) -> None:
    other = tmp_path / "other"
    shutil.copytree(kept, other)
    head, rest = (kept / BUNDLE).read_bytes()[:4], (kept / BUNDLE).read_bytes()[4:]
    changed = mark + rest if len(mark) == 4 else head + mark + rest[rest.index(b"\0") :]
    (other / BUNDLE).write_bytes(changed)
    seen = json.loads(ask(other, tmp_path))
    assert set(seen["loaders"].values()) == {"SourceFileLoader"}
    assert seen["path"] == str(other)


def test_a_bundle_that_was_changed_is_not_mounted(tmp_path: Path) -> None:
    made = guest.materialize(tmp_path, INTERPRETER)
    data = bytearray((made / BUNDLE).read_bytes())
    data[-1] ^= 1
    (made / BUNDLE).write_bytes(data)
    with pytest.raises(StoreError, match="was changed in the store"):
        guest.materialize(tmp_path, INTERPRETER)


def test_a_bundle_is_made_once_and_again_when_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = guest.materialize(tmp_path, INTERPRETER)
    with monkeypatch.context() as patched:
        patched.setattr(guest, "make", lambda *_: pytest.fail("made again"))
        assert guest.materialize(tmp_path, INTERPRETER) == made
    shutil.rmtree(made)
    assert (guest.materialize(tmp_path, INTERPRETER) / BUNDLE).is_file()


def test_a_bundle_is_made_again_when_the_standard_library_has_changed(tmp_path: Path) -> None:
    guest.materialize(tmp_path, INTERPRETER)
    (record,) = tmp_path.glob("bundle-*.json")
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({**kept, "stdlib": {**kept["stdlib"], INTERPRETER[0]: "0" * 64}}))
    guest.materialize(tmp_path, INTERPRETER)
    assert json.loads(record.read_text())["stdlib"] == kept["stdlib"]


def test_a_python_that_cannot_make_one_gets_the_files_alone(tmp_path: Path) -> None:
    made = guest.materialize(tmp_path, ("/bin/false",))
    assert (made / "lockstep/tools/runner.py").is_file()
    assert not (made / BUNDLE).exists()
