"""The built-in `python` tool over stdio, as it is in a sandbox: a real runner process, with limits, without a network.

Limits stand in for the sandbox's: what runs here is hostile on purpose.
"""

from __future__ import annotations

import base64
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pictures import DRAW, GIF, JPEG, SVG, png

from lockstep.agent.builtins import MODULES, builtin_files
from lockstep.tools import guest

INTERPRETER = guest.INTERPRETER if Path(guest.INTERPRETER[0]).exists() else (sys.executable, "-I", "-S")
KIB = 1024


class Called(NamedTuple):
    """What one call gave."""

    is_error: bool
    blocks: list[dict[str, Any]]
    stderr: str

    @property
    def text(self) -> str:
        return "\n".join(block["text"] for block in self.blocks if block["type"] == "text")

    @property
    def files(self) -> dict[str, Any]:
        """Embedded resources by name: text, or bytes."""
        resources = [block["resource"] for block in self.blocks if block["type"] == "resource"]
        return {
            each["uri"].removeprefix("file:///work/"): each["text"]
            if "text" in each
            else base64.b64decode(each["blob"])
            for each in resources
        }

    @property
    def images(self) -> dict[str, tuple[str, bytes]]:
        return {
            block["_meta"]["lockstep/name"]: (block["mimeType"], base64.b64decode(block["data"]))
            for block in self.blocks
            if block["type"] == "image"
        }


class Python:
    """The tool mounted in a directory, with a working directory that is new to every call."""

    def __init__(self, directory: Path, guest_directory: Path) -> None:
        self.directory = directory
        self.tool = directory / "tool"
        self.tool.mkdir()
        for name, data in builtin_files("python").items():
            (self.tool / name).write_bytes(data)
        parts = guest.command(str(self.tool / MODULES["python"]), interpreter=INTERPRETER)
        self.command = [part.replace(f"{guest.LOCKSTEP_MOUNT!r}", repr(str(guest_directory))) for part in parts]

    def ask(self, method: str, params: Any = None, output_kb: int = 1024) -> tuple[dict[str, Any], str]:
        work = self.directory / f"work-{len(list(self.directory.iterdir()))}"
        work.mkdir()
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
        done = subprocess.run(
            self.command,
            input=json.dumps(message).encode() + b"\n",
            capture_output=True,
            timeout=60,
            env={"LOCKSTEP_OUTPUT_BYTES": str(output_kb * KIB)},
            cwd=work,
            check=False,
            preexec_fn=_limit,
        )
        assert len(done.stdout) <= output_kb * KIB
        replies = done.stdout.splitlines()
        assert len(replies) == 1, done.stderr.decode()
        result: dict[str, Any] = json.loads(replies[0])["result"]
        return result, done.stderr.decode()

    def __call__(self, code: str, *, output_kb: int = 1024, **more: Any) -> Called:
        result, stderr = self.ask("tools/call", {"name": "python", "arguments": {"code": code, **more}}, output_kb)
        if result["isError"]:
            assert result["_meta"]["lockstep/error"]["unknown"] is False
        return Called(result["isError"], result["content"], stderr)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (512 * KIB**2, 512 * KIB**2))
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * KIB**2, 32 * KIB**2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@pytest.fixture(scope="session")
def guest_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest.materialize(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def python(tmp_path: Path, guest_directory: Path) -> Python:
    return Python(tmp_path, guest_directory)


# --- what the model is told


def test_the_definition_states_the_caps_and_what_is_there(python: Python) -> None:
    result, _ = python.ask("tools/list")
    (definition,) = result["tools"]
    assert definition["name"] == "python"
    assert "no network" in definition["description"]
    assert "/tool" in definition["description"]
    schema = definition["inputSchema"]
    assert schema["required"] == ["code"]
    assert "At most 16" in schema["properties"]["files"]["description"]
    assert schema["properties"]["files"]["maxProperties"] == 16
    assert schema["properties"]["outputs"]["maxItems"] == 16
    assert definition["annotations"] == {"readOnlyHint": True, "openWorldHint": False}


def test_output_and_errors_come_in_order_and_the_last_expression_is_shown(python: Python) -> None:
    called = python("import sys\nprint('a', end=' ')\nprint('b', file=sys.stderr)\nprint('c')\n[1] + [2]")
    assert (called.is_error, called.text, called.stderr) == (False, "a b\nc\n[1, 2]", "")


def test_what_other_processes_print_is_there_too(python: Python) -> None:
    code = "import subprocess, os\nprint('one')\nsubprocess.run(['/bin/echo', 'two'])\nos.write(1, b'three')"
    assert python(code).text == "one\ntwo\nthree5"


@pytest.mark.parametrize("code", ["x = 1", "None", "", "# nothing", "def f(): pass"])
def test_code_that_says_nothing_is_said_to(python: Python, code: str) -> None:
    called = python(code)
    assert (called.is_error, called.text) == (False, "(no output)")


def test_nothing_of_one_call_is_there_in_the_next(python: Python) -> None:
    assert python("x = 1\nopen('kept', 'w').close()\nx").text == "1"
    assert "NameError: name 'x'" in python("x").text
    assert python("import os\nos.listdir()").text == "[]"


def test_code_is_a_main_module_without_the_tools_own_names(python: Python) -> None:
    code = "import pickle\nclass A: pass\n(__name__, type(pickle.loads(pickle.dumps(A()))).__name__, 'tool' in dir())"
    assert python(code).text == "('__main__', 'A', False)"
    assert "annotations" not in python("def f(x: 1 + 1): pass\nf.__annotations__['x']").text


# --- errors


def test_an_exception_is_a_traceback_of_the_models_own_code(python: Python) -> None:
    called = python("print('before')\nimport json\ndef parse(text):\n    return json.loads(text)\nparse('{')")
    assert called.is_error
    assert called.text.startswith('before\nTraceback (most recent call last):\n  File "code.py", line 5, in <module>\n')
    assert '  File "code.py", line 4, in parse\n    return json.loads(text)' in called.text
    assert "JSONDecodeError: Expecting property name" in called.text
    assert "builtin_python" not in called.text
    assert "json/" not in called.text


def test_a_syntax_error_names_its_line(python: Python) -> None:
    called = python("x = 1\ny = (\n")
    assert called.is_error
    assert 'File "code.py", line 2' in called.text
    assert "SyntaxError: '(' was never closed" in called.text


@pytest.mark.parametrize(
    ("code", "is_error", "text"),
    [
        ("print('x'); raise SystemExit", False, "x"),
        ("import sys; print('x'); sys.exit(0)", False, "x"),
        ("import sys; print('x'); sys.exit(3)", True, "x\n[The code ended with exit code 3.]"),
        ("import sys; sys.exit('bye')", True, "bye\n[The code ended with exit code 1.]"),
        ("raise KeyboardInterrupt", True, 'File "code.py", line 1, in <module>'),
        ("class A:\n    def __repr__(self): raise ValueError('no')\nA()", True, "ValueError: no"),
        ("input()", True, "EOFError"),
    ],
)
def test_every_end_of_its_own_is_a_result(python: Python, code: str, is_error: bool, text: str) -> None:
    called = python(code)
    assert called.is_error is is_error
    assert text in called.text


# --- files


def test_files_go_in_as_text_and_bytes_and_come_out_by_name(python: Python) -> None:
    data = bytes(range(256))
    files = {"a.csv": "x,y\n1,2\n", "b in.bin": "data:application/x;base64," + base64.b64encode(data).decode()}
    code = "open('out.txt', 'w').write(open('a.csv').read().upper()); print(len(open('b in.bin', 'rb').read()))"
    called = python(code, files=files, outputs=["out.txt", "b in.bin"])
    assert called.text == "256\nout.txt:"
    assert called.files == {"out.txt": "X,Y\n1,2\n", "b%20in.bin": data}
    audiences = [block["annotations"]["audience"] for block in called.blocks if block["type"] == "resource"]
    assert audiences == [["user", "assistant"], ["user"]]


def test_images_are_known_by_what_is_in_them(python: Python) -> None:
    code = DRAW + "open('plot.txt', 'wb').write(png(4, 3, (200, 30, 30)))"
    wire = {name: f"data:;base64,{base64.b64encode(data).decode()}" for name, data in (("g", GIF), ("j", JPEG))}
    called = python(code, files={**wire, "s": SVG}, outputs=["plot.txt", "g", "j", "s"])
    assert called.images == {
        "plot.txt": ("image/png", png()),
        "g": ("image/gif", GIF),
        "j": ("image/jpeg", JPEG),
        "s": ("image/svg+xml", SVG.encode()),
    }


def test_open_figures_are_returned_where_there_is_matplotlib(python: Python) -> None:
    package = python.tool / "matplotlib"
    package.mkdir()
    (package / "__init__.py").touch()
    saves = "    def savefig(self, path, format):\n        open(path, 'wb').write(png(4, 3, (200, 30, 30)))"
    (package / "pyplot.py").write_text(
        f"{DRAW}\nclass Figure:\n{saves}\ndef get_fignums(): return [1, 2]\ndef figure(number): return Figure()\n"
    )
    called = python("import matplotlib.pyplot as plt\nimport os\nos.environ['MPLBACKEND']")
    assert called.text.startswith("'Agg'\n")
    assert called.images == {f"figure-{number}.png": ("image/png", png()) for number in (1, 2)}


def test_a_long_text_is_shown_in_part_and_kept_whole(python: Python) -> None:
    called = python("open('long.txt', 'w').write('x' * 100_000)", outputs=["long.txt"])
    assert "long.txt, the first of 100000 bytes:\nxxx" in called.text
    assert len(called.text) < 40 * KIB
    assert called.files == {"long.txt": b"x" * 100_000}


def test_what_cannot_be_returned_is_named_and_the_rest_is_returned(python: Python) -> None:
    code = (
        "import os\nopen('here', 'w').write('x')\nos.symlink('/etc/passwd', 'link')\nos.mkdir('dir')\nos.mkfifo('pipe')"
    )
    names = ["gone", "here", "../tool/x", "link", "dir", "pipe", "/etc/passwd", "", ".hidden"]
    called = python(code, outputs=names)
    assert called.files == {"here": "x"}
    note = called.text.splitlines()[-1]
    for said in (
        "gone does not exist",
        "'../tool/x' is not a plain name",
        "link is a link",
        "dir is not a plain file",
        "pipe is not a plain file",
        "'/etc/passwd' is not a plain name",
        "'' is not a plain name",
        "'.hidden' is not a plain name",
    ):
        assert said in note
    assert "root:" not in json.dumps(called.blocks)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"files": {"../x": ""}}, "'../x' is not a plain name"),
        ({"files": {"/etc/x": ""}}, "'/etc/x' is not a plain name"),
        ({"files": {"a/b": ""}}, "'a/b' is not a plain name"),
        ({"files": {"x\n": ""}}, "is not a plain name"),
        ({"files": {f"f{number}": "" for number in range(17)}}, "there are 17 files; at most 16"),
        ({"outputs": [f"f{number}" for number in range(17)]}, "there are 17 files; at most 16"),
        ({"files": {"x": "y" * 4_000_001}}, "at most 4000000 go in together"),
        ({"files": {"x": "data:text/plain;base64,%%%"}}, "is not valid base64"),
    ],
)
def test_what_goes_in_is_held_to_its_caps(python: Python, arguments: dict[str, Any], said: str) -> None:
    called = python("print('ran')", **arguments)
    assert called.is_error
    assert said in called.text
    assert "ran" not in called.text.splitlines()


# --- hostile code


def test_a_flood_is_cut_in_the_middle_with_a_note(python: Python) -> None:
    called = python("print('first')\nfor _ in range(300): print('x' * 10_000)\nprint('last')")
    assert not called.is_error
    assert called.text.startswith("first\n")
    assert called.text.endswith("last")
    assert "bytes of output cut here ...]" in called.text
    assert len(called.text) < 33 * KIB


def test_a_small_output_limit_is_kept_with_a_message(python: Python) -> None:
    code = "print('\\x01' * 100_000)\nfor name in 'ab': open(name, 'wb').write(bytes(2 * 1024))"
    called = python(code, output_kb=8, outputs=["a", "b"])
    assert not called.is_error
    assert "a is too large" in called.text or "b is too large" in called.text
    huge = python("with open('huge', 'wb') as file: file.truncate(30 << 20)", outputs=["huge"])
    assert "huge is too large: 31457280 bytes" in huge.text


def test_a_process_that_ends_itself_costs_nothing_but_the_call(python: Python) -> None:
    called = python("import os\nprint('so far', flush=True)\nos._exit(7)")
    assert (called.is_error, called.text) == (True, "so far\n[The code ended with exit code 7.]")
    killed = python("import os, signal\nprint('so far')\nos.kill(os.getpid(), signal.SIGKILL)")
    assert (killed.is_error, killed.text) == (True, "so far\n[The code's process was ended by SIGKILL.]")
    crashed = python("import ctypes\nprint('so far')\nctypes.string_at(0)")
    assert (crashed.is_error, crashed.text) == (True, "so far\n[The code's process was ended by SIGSEGV.]")


def test_recursion_without_end_is_an_error_the_model_sees(python: Python) -> None:
    called = python("def f(): return f()\nf()")
    assert called.is_error
    assert "RecursionError" in called.text
    assert len(called.text) < 2 * KIB
    less = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**26, 2**26))\n"  # ends sooner
    deeper = python(less + "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()")
    assert deeper.is_error
    compiled = python("(" * 50_000 + ")" * 50_000)
    assert compiled.is_error


def test_the_channel_to_the_host_is_out_of_reach(python: Python) -> None:
    forged = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"content": [], "isError": False}})
    code = f"import os\nfor fd in range(1, 64):\n    try: os.write(fd, {forged!r}.encode() + b'\\n')"
    called = python(code + "\n    except OSError: pass\nprint('done')")
    assert called.text.endswith("done")
    assert called.text.count("jsonrpc") == 2, "what was written to 1 and 2 was printed, and nothing else was open"
    closed = python("import os\nos.closerange(0, 64)\n1/0")
    assert closed.is_error


def test_processes_left_behind_do_not_hold_up_the_result(python: Python) -> None:
    code = "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        time.sleep(600)\nprint('parent')"
    assert python(code).text == "parent"
    floods = "import os\nprint('parent')\nif os.fork() == 0:\n    while True: os.write(1, b'y' * 4096)"
    called = python(floods)
    assert (called.is_error, called.text.splitlines()[0]) == (False, "parent")


def test_code_that_removes_its_own_directory_and_module_is_answered(python: Python) -> None:
    code = "import os, shutil\nshutil.rmtree(os.getcwd())\nprint('gone')"
    called = python(code, files={"x": "y"}, outputs=["x"])
    assert called.text.startswith("gone\n")
    assert "x does not exist" in called.text


def test_what_is_not_unicode_comes_back_in_escapes(python: Python) -> None:
    assert python("import os\nprint('\\ud800')\nos.write(1, b'\\xff\\n')\nNone").text == "\\ud800\n\\xff"
