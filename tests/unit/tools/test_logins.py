"""Which server a person means who logs in."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.errors import ConfigError
from lockstep.wiring.logins import server_of

BASE = '[agent]\nname = "a"\n[model]\nname = "scripted:s"\n[prompt]\nfile = "p"\n'
BANK = '[[tools]]\nmcp = { url = "https://bank.example/mcp", prefix = "bank", oauth = {} }\n'
SHOP = '[[tools]]\nmcp = { url = "https://shop.example/mcp", oauth = {} }\n'
OPEN = '[[tools]]\nmcp = { url = "https://open.example/mcp", prefix = "open" }\n'


def agent(place: Path, *tools: str) -> Path:
    (place / "agent.toml").write_text(BASE + "".join(tools))
    return place


def test_the_only_one_need_not_be_named(tmp_path: Path) -> None:
    assert server_of(agent(tmp_path, BANK, BANK, OPEN), None).prefix == "bank"


@pytest.mark.parametrize("named, url", [("bank", "https://bank.example/mcp"), ("https://shop.example/mcp",) * 2])
def test_one_of_several_is_named_by_prefix_or_url(tmp_path: Path, named: str, url: str) -> None:
    assert server_of(agent(tmp_path, BANK, SHOP), named).url == url


@pytest.mark.parametrize(
    "tools, named, says",
    [
        ((BANK, SHOP), None, "has several servers to log in at. Name one: bank, https://shop.example/mcp"),
        ((BANK,), "open", "no server 'open' to log in at; it has: bank"),
        ((OPEN,), None, "no server to log in at; it has: none"),
    ],
)
def test_what_cannot_be_told_is_a_sentence(
    tmp_path: Path, tools: tuple[str, ...], named: str | None, says: str
) -> None:
    with pytest.raises(ConfigError) as wrong:
        server_of(agent(tmp_path, *tools), named)
    assert says in str(wrong.value)
