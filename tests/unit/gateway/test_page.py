"""docs/gateway.md: its snippets are what they say they are."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[3] / "docs/gateway.md").read_text()
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("language", "text"), SNIPPETS, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(SNIPPETS)])
def test_a_snippet_parses(language: str, text: str) -> None:
    match language:
        case "python":
            compile(text, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        case "toml":
            assert tomllib.loads(text)["principal"]
        case "sh":
            assert all(line.startswith("lockstep ") for line in text.splitlines())
        case other:
            pytest.fail(f"a snippet in {other}")
