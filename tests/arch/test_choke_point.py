"""One choke point: nothing is asked of a server's tools but through the host, and there only once a permit is spent.

That a permit is needed at run time is in `tests/contract/test_mcp_permit.py`; here, that there is no other way round.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from source import files, imports, name_of, tree

OAUTH = {"tools/login.py", "tools/oauth_sdk.py"}
CONVERSATION, HOST, CLIENT = "tools/conversation.py", "tools/host.py", "tools/client.py"
TASKS = "tools/tasks.py"


def _places(matches: Callable[[ast.AST], bool]) -> set[str]:
    return {name_of(path) for path in files() for node in ast.walk(tree(path)) if matches(node)}


def _calls(name: str) -> Callable[[ast.AST], bool]:
    """Calls of a function or method of this name."""
    return lambda node: isinstance(node, ast.Call) and _name(node.func) == name


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _function(file: str, name: str) -> ast.AsyncFunctionDef:
    (path,) = (path for path in files() if name_of(path) == file)
    (found,) = (n for n in ast.walk(tree(path)) if isinstance(n, ast.AsyncFunctionDef) and n.name == name)
    return found


def _lines(where: ast.AST, name: str) -> Iterator[int]:
    return (node.lineno for node in ast.walk(where) if isinstance(node, ast.Call) and _name(node.func) == name)


def test_the_words_that_call_a_tool_are_said_in_one_place() -> None:
    says = _places(lambda node: isinstance(node, ast.Constant) and node.value == "tools/call")
    assert {place for place in says if not place.startswith("gateway/")} == {CLIENT, "tools/runner.py"}
    """The runner is the other side: it answers, inside a sandbox. So does the gateway, to its own clients."""


def test_the_words_that_are_about_a_task_are_said_in_one_place() -> None:
    words = {"tasks/get", "tasks/update", "tasks/cancel"}
    says = _places(lambda node: isinstance(node, ast.Constant) and node.value in words)
    assert {place for place in says if not place.startswith("gateway/")} == {CLIENT}


def test_a_task_is_asked_after_in_a_conversation_and_so_once_a_permit_is_spent() -> None:
    assert _places(_calls("ask_task")) == {TASKS}
    assert _places(_calls("Following")) == {CONVERSATION}


def test_only_a_conversation_calls_a_tool_and_only_the_host_has_one() -> None:
    assert _places(_calls("call_tool")) == {CONVERSATION}
    assert _places(_calls("ask_context")) == {CONVERSATION}
    assert _places(_calls("converse")) == {HOST}
    assert _places(_calls("McpClient")) == {CONVERSATION, HOST}


def test_the_host_spends_the_permit_before_it_says_anything_of_a_call() -> None:
    for name, said in (("call", "converse"), ("describe", "McpClient")):
        body = _function(HOST, name)
        (spent,) = _lines(body, "admit")
        assert all(spent < line for line in _lines(body, said)), name
        assert list(_lines(body, said)), name


def test_a_backend_is_started_by_host_and_pool_alone() -> None:
    starts = _places(
        lambda node: (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "start"
            and _name(node.func.value) == "backend"
        )
    )
    assert {place for place in starts if not place.startswith("sandbox/")} == {HOST}


def test_only_the_gate_makes_permits() -> None:
    made = _places(_calls("PermitMint"))
    assert {place for place in made if not place.startswith("gate/")} <= {"sandbox/canary.py"}


def test_no_other_client_of_the_protocol_is_in_the_house() -> None:
    brought = {name_of(path) for path in files() for _, module in imports(path) if module.split(".")[0] == "mcp"}
    assert {place for place in brought if not place.startswith("gateway/")} == OAUTH


def test_of_the_sdk_the_host_has_only_what_gets_tokens() -> None:
    brought = {module for path in files() if name_of(path) in OAUTH for _, module in imports(path)}
    sdk = {module for module in brought if module.split(".")[0] == "mcp"}
    assert all(module.startswith(("mcp.client.auth", "mcp.shared.auth")) for module in sdk)


def test_requests_to_servers_elsewhere_leave_from_their_process_and_for_tokens_alone() -> None:
    assert _places(_calls("authorized")) == {"tools/remote.py", "tools/login.py"}
    assert _places(_calls("handle_async_request")) == {"tools/remote_http.py"}
    assert _places(_calls("RemoteProcess")) == {"tools/remote_servers.py"}
