"""The runner as it is in a sandbox: a real process of the system's Python, isolated, without site-packages."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lockstep.errors import StoreError
from lockstep.tools import guest

INTERPRETER = guest.INTERPRETER if Path(guest.INTERPRETER[0]).exists() else (sys.executable, "-I", "-S")
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Session(NamedTuple):
    """What a runner said until its stdin ended."""

    replies: list[dict[str, Any]]
    stderr: str
    exit_code: int
    stdout: bytes


class Bench:
    """A tool module in a directory, and the guest files beside it."""

    def __init__(self, directory: Path, guest_directory: Path) -> None:
        self.tool = directory
        self.guest = guest_directory

    def write(self, source: str, name: str = "flights.py") -> None:
        head = "" if source.startswith("#raw\n") else "from lockstep import OutcomeUnknown, tool\n"
        (self.tool / name).write_text(head + textwrap.dedent(source), encoding="utf-8")

    def talk(
        self,
        *messages: dict[str, Any] | bytes,
        only: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        file: str = "flights.py",
    ) -> Session:
        command = guest.command(str(self.tool / file), only, interpreter=INTERPRETER)
        command = tuple(part.replace(f"{guest.LOCKSTEP_MOUNT!r}", repr(str(self.guest))) for part in command)
        lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in messages]
        done = subprocess.run(
            command, input=b"\n".join([*lines, b""]), capture_output=True, timeout=60, env=env or {}, check=False
        )
        replies = [json.loads(line) for line in done.stdout.splitlines()]
        return Session(replies, done.stderr.decode(), done.returncode, done.stdout)

    def call(self, source: str, /, tool: str = "act", **arguments: Any) -> dict[str, Any]:
        """The result of one call of a tool in this source."""
        self.write(source)
        session = self.talk(call(tool, arguments))
        assert session.replies, session.stderr
        result: dict[str, Any] = session.replies[0]["result"]
        return result


def call(tool: str, arguments: Any = None, request_id: int | str = 1, **params: Any) -> dict[str, Any]:
    return request("tools/call", {"name": tool, "arguments": arguments or {}, **params}, request_id)


def request(method: str, params: Any = None, request_id: int | str = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, **({} if params is None else {"params": params})}


def text(result: dict[str, Any]) -> str:
    assert len(result["content"]) == 1
    assert result["content"][0]["type"] == "text"
    return str(result["content"][0]["text"])


def error(result: dict[str, Any]) -> dict[str, Any]:
    assert result["isError"] is True
    found: dict[str, Any] = result["_meta"]["lockstep/error"]
    return found


@pytest.fixture(scope="session", params=["imported from its files", "from its bundle"])
def guest_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundled = INTERPRETER if request.param == "from its bundle" else ()
    return guest.materialize(tmp_path_factory.mktemp("guest"), bundled)


@pytest.fixture
def bench(tmp_path: Path, guest_directory: Path) -> Bench:
    return Bench(tmp_path, guest_directory)


ECHO = """
@tool
def act(word: str = "hi") -> str:
    return word
"""

# --- the protocol


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
def test_a_known_handshake_version_is_echoed(bench: Bench, version: str) -> None:
    bench.write(ECHO)
    started = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    session = bench.talk(request("initialize", {"protocolVersion": version}), started, request("ping", request_id=2))
    result = session.replies[0]["result"]
    assert result["protocolVersion"] == version
    assert result["capabilities"] == {"tools": {}}
    assert result["serverInfo"]["name"] == "lockstep-runner"
    assert session.replies[1:] == [{"jsonrpc": "2.0", "id": 2, "result": {}}]
    assert (session.exit_code, session.stderr) == (0, "")


@pytest.mark.parametrize("version", ["1999-01-01", "2026-07-28", None, 7])
def test_an_unknown_handshake_version_is_answered_with_the_newest(bench: Bench, version: Any) -> None:
    bench.write(ECHO)
    session = bench.talk(request("initialize", {"protocolVersion": version}))
    assert session.replies[0]["result"]["protocolVersion"] == "2025-11-25"


def test_the_stateless_form_needs_no_handshake(bench: Bench) -> None:
    bench.write(ECHO)
    session = bench.talk(
        request("server/discover", {"_meta": ENVELOPE}, 1),
        request("tools/list", {"_meta": ENVELOPE}, 2),
        call("act", {"word": "hello"}, 3, _meta=ENVELOPE),
    )
    discovered, listed, called = (reply["result"] for reply in session.replies)
    assert "2026-07-28" in discovered["supportedVersions"]
    assert {each["resultType"] for each in (discovered, listed, called)} == {"complete"}
    assert (listed["ttlMs"], listed["cacheScope"]) == (0, "private")
    assert [each["name"] for each in listed["tools"]] == ["act"]
    assert text(called) == "hello"
    assert called["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "lockstep-runner"


def test_an_unknown_stateless_version_is_refused_with_those_that_are_known(bench: Bench) -> None:
    bench.write(ECHO)
    meta = {**ENVELOPE, "io.modelcontextprotocol/protocolVersion": "2030-01-01"}
    refused = bench.talk(request("tools/list", {"_meta": meta})).replies[0]["error"]
    assert refused["code"] == -32022
    assert refused["data"]["requested"] == "2030-01-01"
    assert "2026-07-28" in refused["data"]["supported"]


def test_the_older_form_has_no_fields_of_the_newer_one(bench: Bench) -> None:
    bench.write(ECHO)
    session = bench.talk(request("tools/list", request_id="a"), call("act", request_id="b"))
    assert set(session.replies[0]["result"]) == {"tools"}
    assert session.replies[1] == {
        "jsonrpc": "2.0",
        "id": "b",
        "result": {"content": [{"type": "text", "text": "hi"}], "isError": False},
    }


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"{", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}', -32700, None),
        (b"[" * 100_000, -32700, None),
        (b"[]", -32600, None),
        (b'{"id":1,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1}', -32600, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"resources/list"}', -32601, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32602, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"other"}}', -32602, 1),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["act"]}}', -32602, 1),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_bad_request_gets_an_error_and_the_next_one_an_answer(
    bench: Bench, line: bytes, code: int, request_id: int | None
) -> None:
    bench.write(ECHO)
    session = bench.talk(line, request("ping", request_id=9))
    assert session.replies[0]["error"]["code"] == code
    assert session.replies[0]["id"] == request_id
    assert session.replies[1:] == [{"jsonrpc": "2.0", "id": 9, "result": {}}]


def test_notifications_replies_and_blank_lines_get_no_answer(bench: Bench) -> None:
    bench.write(ECHO)
    silent = (
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        {"jsonrpc": "2.0", "id": 4, "result": {}},
        b"",
        b"   ",
    )
    session = bench.talk(*silent)
    assert (session.replies, session.exit_code) == ([], 0)


def test_requests_are_answered_in_the_order_asked(bench: Bench) -> None:
    bench.write("n = 0\n@tool\ndef act() -> int:\n    global n\n    n += 1\n    return n\n")
    session = bench.talk(*(call("act", request_id=each) for each in range(20)))
    assert [reply["id"] for reply in session.replies] == list(range(20))
    assert [text(reply["result"]) for reply in session.replies] == [str(each) for each in range(1, 21)]


def test_only_the_tools_asked_for_are_offered(bench: Bench) -> None:
    bench.write("@tool\ndef one() -> str:\n    return '1'\n@tool\ndef two() -> str:\n    return '2'\n")
    session = bench.talk(request("tools/list"), call("one"), call("two"), only=("two",))
    listed, one, two = session.replies
    assert [each["name"] for each in listed["result"]["tools"]] == ["two"]
    assert one["error"] == {"code": -32602, "message": "Unknown tool: one"}
    assert text(two["result"]) == "2"


def test_functions_without_the_mark_are_not_offered(bench: Bench) -> None:
    bench.write(ECHO + "def helper(x: int) -> int:\n    return x\n")
    assert [each["name"] for each in bench.talk(request("tools/list")).replies[0]["result"]["tools"]] == ["act"]


# --- results


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("'Zürich\\n<ok>'", "Zürich\n<ok>"),
        ("None", ""),
        ("True", "true"),
        ("12", "12"),
        ("1.5", "1.5"),
        ("{'a': [1, 'ü', None], 'b': (2,)}", '{"a":[1,"ü",null],"b":[2]}'),
        ("[]", "[]"),
        ("datetime.date(2026, 3, 1)", "2026-03-01"),
        ("{'at': datetime.datetime(2026, 3, 1, 9, 30)}", '{"at":"2026-03-01T09:30:00"}'),
        ("decimal.Decimal('12.50')", "12.50"),
        ("Cabin.ECONOMY", "economy"),
        ("StrCabin.ECONOMY", "economy"),
        ("[Cabin.ECONOMY, StrCabin.ECONOMY]", '["economy","economy"]'),
        ("Point(1, [Point(2, None)])", '{"x":1,"rest":[{"x":2,"rest":null}]}'),
    ],
)
def test_a_value_is_sent_as_text_or_as_compact_json(bench: Bench, expression: str, expected: str) -> None:
    result = bench.call(VALUES.format(expression))
    assert (text(result), result["isError"]) == (expected, False)
    assert "structuredContent" not in result


VALUES = """
import dataclasses, datetime, decimal, enum, functools

class Cabin(enum.Enum):
    ECONOMY = "economy"

class StrCabin(str, enum.Enum):
    ECONOMY = "economy"

@dataclasses.dataclass
class Point:
    x: int
    rest: object

loop = []
loop.append({{"again": loop}})

@tool
def act():
    return {}
"""


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("float('nan')", "`$` is nan"),
        ("{'a': [1, 2, 3, float('inf')]}", "`$.a[3]` is inf, which JSON cannot hold"),
        ("{'a b': {'c': b'x'}}", "`$['a b'].c` is a bytes, which has no JSON form"),
        ("{'a': {1, 2}}", "`$.a` is a set"),
        ("[object()]", "`$[0]` is an object"),
        ("{('a', 'b'): 1}", "`$` has the key ('a', 'b') (tuple); keys of a JSON object are strings"),
        ("(each for each in [1])", "`$` is a generator"),
        ("lambda: 1", "`$` is a function"),
        ("'\\ud800'", "`$` holds a lone surrogate at character 0"),
        ("{'a': 'x\\ud800'}", "`$.a` holds a lone surrogate at character 1"),
        ("Point(float('nan'), None)", "`$.x` is nan"),
        ("loop", "`$[0].again` contains itself"),
        ("10 ** 10000", "`$` is an integer of 33220 bits"),
        ("functools.reduce(lambda deep, _: [deep], range(100000), [])", "is nested too deeply"),
    ],
)
def test_a_value_that_is_not_json_is_an_error_that_says_where(bench: Bench, expression: str, said: str) -> None:
    result = bench.call(VALUES.format(expression))
    assert said in text(result)
    assert text(result).startswith("The tool returned a value that is not JSON: ")
    found = error(result)
    assert (found["type"], found["stage"], found["unknown"]) == ("NotJson", "result", False)


def test_a_value_whose_own_code_fails_while_it_is_encoded_is_an_error(bench: Bench) -> None:
    result = bench.call(
        """
        class Trap(dict):
            def items(self):
                raise RuntimeError("sprung")
        @tool
        def act():
            return [Trap(a=1), object()]
        """
    )
    assert error(result)["type"] == "NotJson"


STRUCTURED = """
from typing import TypedDict
import dataclasses

class Flight(TypedDict):
    number: str
    price: float

@dataclasses.dataclass
class Booking:
    id: str
    flights: list[Flight]

@tool
def act(nothing: bool = False) -> Flight:
    return None if nothing else {"number": "LH 1", "price": 12.5}

@tool
def book() -> Booking:
    return Booking("b1", [{"number": "Ü", "price": 1}])
"""


def test_a_promised_record_also_travels_as_structured_content(bench: Bench) -> None:
    bench.write(STRUCTURED)
    first, second = (reply["result"] for reply in bench.talk(call("act"), call("book", request_id=2)).replies)
    assert first["structuredContent"] == {"number": "LH 1", "price": 12.5} == json.loads(text(first))
    assert second["structuredContent"] == {"id": "b1", "flights": [{"number": "Ü", "price": 1}]}
    assert text(second) == '{"id":"b1","flights":[{"number":"Ü","price":1}]}'


def test_a_promised_record_that_does_not_come_is_an_error(bench: Bench) -> None:
    result = bench.call(STRUCTURED, nothing=True)
    assert "`$` is None, but the tool's annotation promises an object" in text(result)
    assert error(result)["stage"] == "result"


# --- arguments

TYPED = """#raw
from __future__ import annotations
from lockstep import tool
import dataclasses, datetime, decimal, enum
from typing import Literal, TypedDict

class Cabin(enum.Enum):
    ECONOMY = "economy"

class Leg(TypedDict, total=False):
    day: datetime.date

@dataclasses.dataclass
class Passenger:
    name: str
    born: datetime.date
    def __post_init__(self):
        if not self.name:
            raise ValueError("a passenger has a name")

@tool
def act(
    cabin: Cabin = None, passenger: Passenger = None, pair: tuple[int, datetime.date] = None, tags: set[str] = None,
    leg: Leg = None, many: list[Cabin] = None, table: dict[Cabin, datetime.date] = None, count: int = None,
    when: datetime.datetime | str | None = None, cost: decimal.Decimal = None, flag: bool = None,
    level: Literal[1, True] = None, price: float = None,
) -> str:
    return repr(next((value for value in locals().values() if value is not None), None))
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"cabin": "economy"}, "<Cabin.ECONOMY: 'economy'>"),
        (
            {"passenger": {"name": "Ann", "born": "1990-05-01"}},
            "Passenger(name='Ann', born=datetime.date(1990, 5, 1))",
        ),
        ({"pair": [1, "2026-03-01"]}, "(1, datetime.date(2026, 3, 1))"),
        ({"tags": ["a", "a"]}, "{'a'}"),
        ({"leg": {"day": "2026-03-01"}}, "{'day': datetime.date(2026, 3, 1)}"),
        ({"many": ["economy"]}, "[<Cabin.ECONOMY: 'economy'>]"),
        ({"table": {"economy": "2026-03-01"}}, "{<Cabin.ECONOMY: 'economy'>: datetime.date(2026, 3, 1)}"),
        ({"count": 2.0}, "2"),
        ({"price": 2}, "2"),
        ({"when": "2026-03-01T09:30:00Z"}, "datetime.datetime(2026, 3, 1, 9, 30, tzinfo=datetime.timezone.utc)"),
        ({"when": "tomorrow"}, "'tomorrow'"),
        ({"cost": "12.50"}, "Decimal('12.50')"),
        ({"level": True}, "True"),
        ({"level": 1}, "1"),
    ],
    ids=str,
)
def test_arguments_arrive_as_the_annotated_types(bench: Bench, arguments: dict[str, Any], expected: str) -> None:
    assert text(bench.call(TYPED, **arguments)) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cabin": "first"}, 'cabin must be one of "economy", not "first".'),
        ({"many": ["economy", 3]}, 'many[1] must be one of "economy", not 3.'),
        ({"passenger": {"name": "Ann"}}, "passenger.born is required and missing."),
        ({"passenger": {"name": "", "born": "1990-05-01"}}, "refused by Passenger: a passenger has a name."),
        ({"passenger": {"name": "A", "born": "May"}}, 'passenger.born must be a date such as 2026-03-01, not "May".'),
        ({"leg": {"night": 1}}, "leg.night is not known; known are day."),
        ({"pair": [1]}, "pair must be an array of exactly 2 values."),
        ({"tags": "a"}, "tags must be an array, not a string."),
        ({"table": []}, "table must be an object, not an array."),
        ({"count": 2.5}, "count must be an integer, not a number."),
        ({"count": True}, "count must be an integer, not a boolean."),
        ({"flag": 1}, "flag must be a boolean, not an integer."),
        ({"when": 5}, "when must be a string, not an integer."),
        ({"cost": "much"}, 'cost must be a decimal number such as 12.50, not "much".'),
        ({"other": 1}, "other is not known; known are cabin, passenger,"),
        ([1], "The arguments must be an object, not an array."),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_an_error_before_the_call(bench: Bench, arguments: Any, said: str) -> None:
    bench.write(TYPED)
    result = bench.talk(call("act", arguments)).replies[0]["result"]
    assert said in text(result)
    assert error(result)["stage"] == "arguments"


def test_a_missing_argument_is_named(bench: Bench) -> None:
    assert text(bench.call("@tool\ndef act(a: int, b: int) -> int:\n    return a\n", a=1)) == (
        "b is required and missing."
    )


def test_keyword_arguments_are_passed_through(bench: Bench) -> None:
    assert text(bench.call("@tool\ndef act(**more: int) -> dict:\n    return more\n", a=1, b=2)) == '{"a":1,"b":2}'


# --- what tools do wrong


def test_printing_and_writing_to_stdout_do_not_touch_the_channel(bench: Bench) -> None:
    bench.write(
        """
        import os, subprocess, sys
        print("at import")
        @tool
        def act() -> str:
            print("printed")
            sys.__stdout__.write("dunder\\n")
            sys.__stdout__.flush()
            os.write(1, b"descriptor\\n")
            subprocess.run(["/bin/echo", "child"], check=True)
            return "done"
        """
    )
    session = bench.talk(call("act"))
    assert len(session.stdout.splitlines()) == 1
    assert text(session.replies[0]["result"]) == "done"
    for word in ("at import", "printed", "dunder", "descriptor", "child"):
        assert word in session.stderr


def test_reading_stdin_finds_its_end_and_takes_no_request_away(bench: Bench) -> None:
    bench.write("import os, sys\n@tool\ndef act() -> str:\n    return repr((sys.stdin.read(), os.read(0, 10)))\n")
    session = bench.talk(call("act"), call("act", request_id=2))
    assert [text(reply["result"]) for reply in session.replies] == ["('', b'')"] * 2


def test_fifty_megabytes_are_not_sent(bench: Bench) -> None:
    bench.write(
        """
        @tool
        def act() -> str:
            return "x" * 50_000_000
        @tool
        def other() -> dict:
            return {"rows": ["é" * 100] * 300_000}
        """
    )
    session = bench.talk(call("act"), call("other", request_id=2))
    assert len(session.stdout) < 2000
    first, second = (reply["result"] for reply in session.replies)
    assert text(first) == "The reply has 50000090 bytes; at most 1048576 bytes may be sent."
    for result in (first, second):
        assert (error(result)["type"], error(result)["stage"]) == ("OutputTooLarge", "result")


def test_the_output_cap_is_taken_from_the_environment_and_holds_for_each_call(bench: Bench) -> None:
    bench.write("@tool\ndef act(size: int) -> str:\n    return 'x' * size\n")
    calls = [call("act", {"size": size}, number) for number, size in enumerate((2000, 5000, 2400))]
    session = bench.talk(*calls, env={"LOCKSTEP_OUTPUT_BYTES": "4000"})
    first, second, third = (reply["result"] for reply in session.replies)
    assert text(first) == "x" * 2000
    assert "The reply has 5090 bytes; at most 4000 bytes may be sent." in text(second)
    assert text(third) == "x" * 2400


def test_a_raised_exception_is_a_result_with_the_tools_own_traceback(bench: Bench) -> None:
    result = bench.call(
        """
        import json

        def inner(word):
            return json.loads(word)

        @tool
        def act() -> str:
            return inner("nonsense")
        """
    )
    assert text(result) == "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
    found = error(result)
    assert (found["type"], found["stage"], found["unknown"]) == ("JSONDecodeError", "call", False)
    assert found["traceback"].splitlines() == [
        '  File "flights.py", line 10, in act',
        '    return inner("nonsense")',
        '  File "flights.py", line 6, in inner',
        "    return json.loads(word)",
    ]


def test_an_exception_without_a_message_is_its_name(bench: Bench) -> None:
    assert text(bench.call("@tool\ndef act() -> str:\n    raise KeyError\n")) == "KeyError"


def test_a_very_long_message_is_shortened(bench: Bench) -> None:
    result = bench.call("@tool\ndef act() -> str:\n    raise ValueError('x' * 5_000_000)\n")
    assert len(text(result)) < 5000
    assert text(result).endswith("more characters]")


def test_an_exception_that_cannot_print_itself_is_a_result(bench: Bench) -> None:
    result = bench.call(
        """
        class Mute(Exception):
            def __str__(self):
                raise RuntimeError
        @tool
        def act() -> str:
            raise Mute
        """
    )
    assert text(result) == "Mute: (its message cannot be shown: RuntimeError)"


def test_deep_recursion_is_a_result_and_the_process_goes_on(bench: Bench) -> None:
    bench.write(
        "def down(n):\n    return down(n + 1)\n@tool\ndef act() -> str:\n    return down(0)\n"
        + ECHO.replace("act", "echo")
    )
    session = bench.talk(call("act"), call("echo", request_id=2))
    first, second = (reply["result"] for reply in session.replies)
    assert text(first).startswith("RecursionError: maximum recursion depth exceeded")
    assert len(error(first)["traceback"].splitlines()) <= 20
    assert text(second) == "hi"


@pytest.mark.parametrize(
    ("ending", "exit_code"),
    [
        ("sys.exit(7)", 7),
        ("sys.exit()", 0),
        ("sys.exit('gone')", 1),
        ("raise KeyboardInterrupt", 130),
        ("os._exit(9)", 9),
        ("os.kill(os.getpid(), 9)", -9),
    ],
)
def test_a_tool_that_exits_ends_the_process_without_a_reply(bench: Bench, ending: str, exit_code: int) -> None:
    bench.write(f"import os, sys\n@tool\ndef act() -> str:\n    {ending}\n")
    session = bench.talk(call("act"), call("act", request_id=2))
    assert session.replies == []
    assert session.exit_code == exit_code
    assert ("gone" in session.stderr) == ("gone" in ending)


def test_a_thread_left_behind_does_not_hold_the_process_up(bench: Bench) -> None:
    bench.write(
        """
        import threading
        @tool
        def act() -> str:
            threading.Thread(target=threading.Event().wait).start()
            return "started"
        """
    )
    session = bench.talk(call("act"))
    assert text(session.replies[0]["result"]) == "started"
    assert session.exit_code == 0


def test_a_forked_child_that_returns_does_not_answer_too(bench: Bench) -> None:
    bench.write(
        """
        import os
        @tool
        def act() -> str:
            child = os.fork()
            if child:
                os.waitpid(child, 0)
            return "parent" if child else "child"
        """
    )
    session = bench.talk(call("act"), call("act", request_id=2))
    assert [text(reply["result"]) for reply in session.replies] == ["parent", "parent"]


def test_a_cancelled_or_strange_exception_is_a_result(bench: Bench) -> None:
    result = bench.call("import asyncio\n@tool\nasync def act() -> str:\n    raise asyncio.CancelledError\n")
    assert error(result)["type"] == "CancelledError"


def test_a_coroutine_function_is_run(bench: Bench) -> None:
    bench.write(
        """
        import asyncio
        @tool
        async def act(word: str) -> str:
            return "".join(await asyncio.gather(half(word), half(word)))
        async def half(word):
            await asyncio.sleep(0)
            return word
        """
    )
    session = bench.talk(call("act", {"word": "a"}), call("act", {"word": "b"}, 2))
    assert [text(reply["result"]) for reply in session.replies] == ["aa", "bb"]


# --- did its effect happen?


@pytest.mark.parametrize(
    ("raising", "unknown"),
    [
        ("raise OutcomeUnknown('the reply was lost')", True),
        ("raise TimeoutError", True),
        ("raise socket.timeout", True),
        ("raise asyncio.TimeoutError", True),
        ("raise ConnectionResetError", True),
        ("raise BrokenPipeError", True),
        ("raise socket.gaierror", True),
        ("raise ssl.SSLError", True),
        ("raise urllib.error.URLError('down')", True),
        ("raise http.client.RemoteDisconnected", True),
        ("raise http.client.IncompleteRead(b'')", True),
        ("raise OSError(errno.EHOSTUNREACH, 'no route')", True),
        ("raise urllib.error.HTTPError('u', 500, 'm', {}, None)", True),
        ("raise urllib.error.HTTPError('u', 503, 'm', {}, None)", True),
        ("raise urllib.error.HTTPError('u', 404, 'm', {}, None)", False),
        ("raise urllib.error.HTTPError('u', 409, 'm', {}, None)", False),
        ("raise ValueError", False),
        ("raise FileNotFoundError", False),
        ("raise PermissionError", False),
        ("raise OSError(errno.ENOSPC, 'full')", False),
        ("raise RuntimeError from TimeoutError()", True),
        ("raise RuntimeError from None", False),
        ("raise RuntimeError from urllib.error.HTTPError('u', 404, 'm', {}, None)", False),
        ("raise ExceptionGroup('both', [ValueError(), TimeoutError()])", True),
        ("raise ExceptionGroup('both', [ValueError(), KeyError()])", False),
        ("raise socket_like()", False),
    ],
)
def test_unknown_says_whether_the_effect_may_have_happened(bench: Bench, raising: str, unknown: bool) -> None:
    result = bench.call(
        f"""
        import asyncio, errno, http.client, socket, ssl, urllib.error
        class socket_like(Exception): ...
        @tool
        def act() -> str:
            {raising}
        """
    )
    assert error(result)["unknown"] is unknown


def test_an_exception_raised_while_handling_a_timeout_is_unknown_unless_the_tool_says_it_knows(bench: Bench) -> None:
    source = """
        @tool
        def act() -> str:
            try:
                raise TimeoutError
            except TimeoutError:
                raise RuntimeError("service down"){}
    """
    assert error(bench.call(source.format("")))["unknown"] is True
    assert error(bench.call(source.format(" from None")))["unknown"] is False


# --- modules


@pytest.mark.parametrize(
    ("source", "said", "place"),
    [
        ("#raw\n\nimport nowhere\n", "ModuleNotFoundError: No module named 'nowhere'", "flights.py:3"),
        ("#raw\ndef f(:\n", "SyntaxError: ", "flights.py:2"),
        ("#raw\ndef f():\n    raise ValueError('no key')\nf()\n", "ValueError: no key", "flights.py:3"),
        ("#raw\nimport sys\nsys.exit(3)\n", "SystemExit: 3", "flights.py:3"),
        ("#raw\nimport json\njson.loads('{')\n", "JSONDecodeError: ", "flights.py:3"),
        ("@tool\ndef act(x) -> str: ...\n", 'act(): parameter "x" has no annotation', ""),
        ("@tool\ndef a(): ...\n@tool(name='a')\ndef b(): ...\n", 'two tools are called "a"', ""),
    ],
)
def test_a_module_that_cannot_be_imported_says_why_to_whoever_asks(
    bench: Bench, source: str, said: str, place: str
) -> None:
    bench.write(source)
    session = bench.talk(request("initialize"), request("tools/list"), call("act"), request("ping"))
    assert session.replies[0]["result"]["serverInfo"]["name"] == "lockstep-runner"
    assert session.replies[3]["result"] == {}
    for reply in session.replies[1:3]:
        assert reply["error"]["code"] == -32001
        assert said in reply["error"]["message"]
        assert place in reply["error"]["message"]
        assert reply["error"]["data"]["lockstep/error"]["place"] == place
        assert str(bench.tool) not in reply["error"]["message"].replace(str(bench.tool / "flights.py"), "", 1)


def test_a_missing_module_says_so(bench: Bench) -> None:
    session = bench.talk(call("act"), file="other.py")
    assert "FileNotFoundError" in session.replies[0]["error"]["message"]


def test_a_tool_that_is_not_there_is_named_with_those_that_are(bench: Bench) -> None:
    bench.write(ECHO)
    session = bench.talk(request("tools/list"), only=("book",))
    assert 'there is no tool "book"; the module has act.' in session.replies[0]["error"]["message"]


def test_a_module_may_import_its_neighbours(bench: Bench) -> None:
    bench.write("#raw\nWORD = 'near'\n", "common.py")
    (bench.tool / "parts").mkdir()
    bench.write("#raw\nfrom common import WORD\nPART = WORD + 'by'\n", "parts/deep.py")
    result = bench.call("from parts.deep import PART\n@tool\ndef act() -> str:\n    return PART\n")
    assert text(result) == "nearby"


@pytest.mark.parametrize("name", ["calendar.py", "json.py", "os.py", "types.py", "lockstep.py"])
def test_a_module_named_like_one_of_pythons_shadows_nothing(bench: Bench, name: str) -> None:
    source = "import http.cookiejar, calendar\n@tool\ndef act() -> str:\n    return calendar.month_name[3]\n"
    bench.write(source, name)
    session = bench.talk(call("act"), file=name)
    assert text(session.replies[0]["result"]) == "March"


def test_byte_code_beside_the_module_is_ignored(bench: Bench) -> None:
    """What runs is the source that the lock has digested, whatever lies in `__pycache__`."""
    source = "@tool\ndef act() -> str:\n    return HELPED\n"
    bench.write("#raw\nHELPED = 'bad!'\n", "helper.py")
    for file in ("helper.py",):
        compile_all = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(bench.tool / file))
        subprocess.run([*INTERPRETER, *compile_all], check=True, timeout=60)
    assert list((bench.tool / "__pycache__").glob("helper.*.pyc"))
    bench.write("#raw\nHELPED = 'good'\n", "helper.py")
    assert text(bench.call("from helper import HELPED\n" + source)) == "good"


def test_a_cached_tool_is_offered_under_its_own_signature(bench: Bench) -> None:
    source = "import functools\n@functools.cache\n@tool\ndef act(number: int) -> int:\n    return number + 1\n"
    assert text(bench.call(source, number=1)) == "2"


def test_definitions_that_cannot_be_sent_are_an_error_not_an_end(bench: Bench) -> None:
    bench.write('@tool\ndef act(word: str = "\\ud800") -> str:\n    return "fine"\n')
    session = bench.talk(request("tools/list"), call("act", request_id=2))
    assert "lone surrogate" in session.replies[0]["error"]["message"]
    assert text(session.replies[1]["result"]) == "fine"


# --- what the sandbox mounts


def test_the_guest_directory_holds_exactly_the_guest_files(guest_directory: Path) -> None:
    found = {path.relative_to(guest_directory).as_posix() for path in guest_directory.rglob("*.py")}
    package = Path(guest.__file__).parent.parent
    assert found == {f"lockstep/{path.relative_to(package).as_posix()}" for path in guest.guest_files()}
    assert {"lockstep/__init__.py", "lockstep/tools/__init__.py", "lockstep/tools/runner.py"} <= found
    assert "lockstep/tools/guest.py" not in found


def test_the_guest_directory_is_made_once_also_by_many_at_a_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: guest.materialize(tmp_path / "guest"), range(8)))
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "guest").iterdir()] == [made.pop().name]


@pytest.mark.parametrize(
    "added", ["lockstep/tools/runner.py", "lockstep/tools/__pycache__/runner.cpython-311.pyc", "json.py"]
)
def test_a_guest_directory_that_was_changed_is_not_mounted(tmp_path: Path, added: str) -> None:
    made = guest.materialize(tmp_path)
    (made / added).parent.mkdir(exist_ok=True)
    (made / added).write_bytes(b"raise SystemExit")
    with pytest.raises(StoreError, match="was changed in the store"):
        guest.materialize(tmp_path)


def test_the_runner_needs_nothing_but_the_standard_library_and_not_the_slow_parts_of_it(guest_directory: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(guest_directory)!r}); before = set(sys.modules); "
        "import lockstep.tools.runner; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([*INTERPRETER, "-c", program], capture_output=True, text=True, timeout=60, check=True, env={})
    brought = set(done.stdout.split())
    assert {name.partition(".")[0] for name in brought} <= {*sys.stdlib_module_names, "lockstep"}
    assert {name for name in brought if name.startswith("lockstep.")} == {
        "lockstep.tools",
        *(
            f"lockstep.tools.{name}"
            for name in ("decorator", "hints", "results", "runner", "schema", "shapes", "toolbox")
        ),
    }
    assert not brought & {"typing", "inspect", "dataclasses", "asyncio", "urllib.request", "traceback", "datetime"}
