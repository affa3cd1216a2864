"""What a reply costs, and when nobody knows."""

from __future__ import annotations

from decimal import Decimal

import pytest

from lockstep.errors import ModelError
from lockstep.model.port import Usage
from lockstep.model.prices import UNKNOWN, cost_by, cost_by_book, is_priced, read_prices

USAGE = Usage(input_tokens=1000, output_tokens=100, cache_read_tokens=400, cache_write_tokens=200)


def test_stated_prices_follow_the_formula() -> None:
    prices = read_prices({"input": 2.5, "output": 10, "cache_read": 1.25, "cache_write": "3.125"})
    cost = cost_by(prices, USAGE)
    assert cost.usd == Decimal("0.003125")  # 400 x 2.5 + 400 x 1.25 + 200 x 3.125 + 100 x 10 dollars per million
    assert cost.book == "agent.toml"


def test_cached_tokens_cost_what_input_costs_when_nothing_else_is_stated() -> None:
    assert cost_by(read_prices({"input": 1, "output": 0}), USAGE).usd == Decimal("0.001")


def test_prices_are_decimals_not_floats() -> None:
    assert read_prices({"input": 0.1, "output": 0.3}).input == Decimal("0.1")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"input": 1}, "no 'output'"),
        ({"input": 1, "output": -1}, "prices.output is -1"),
        ({"input": 1, "output": float("nan")}, "prices.output is nan"),
        ({"input": 1, "output": True}, "prices.output is True"),
        ({"input": "much", "output": 1}, "prices.input is 'much'"),
        ({"input": 1, "output": 1, "cached": 1}, "'cached', which is none of input, output"),
    ],
)
def test_wrong_prices_are_named(table: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_prices(table)
    assert says in caught.value.message
    assert caught.value.remedy


def test_the_price_book_names_its_version_and_follows_the_same_formula() -> None:
    cost = cost_by_book(
        Usage(input_tokens=1000, output_tokens=100, cache_read_tokens=400), provider="openai", model="gpt-4o-2024-08-06"
    )
    assert cost.usd == Decimal("0.003")  # 600 x 2.5 + 400 x 1.25 + 100 x 10 dollars per million
    assert cost.book.startswith("genai-prices ")


def test_the_address_decides_between_providers_of_the_same_name() -> None:
    at_deepseek = cost_by_book(USAGE, provider="openai", model="deepseek-chat", base_url="https://api.deepseek.com")
    assert at_deepseek.usd is not None
    assert cost_by_book(USAGE, provider="openai", model="deepseek-chat") == UNKNOWN


@pytest.mark.parametrize(("provider", "model"), [("openai", "house-model"), ("nobody", "gpt-nothing"), ("", "")])
def test_an_unknown_model_has_an_unknown_cost(provider: str, model: str) -> None:
    assert cost_by_book(USAGE, provider=provider, model=model) == UNKNOWN
    assert not is_priced(provider=provider, model=model)


def test_usage_that_does_not_add_up_has_an_unknown_cost() -> None:
    impossible = Usage(input_tokens=10, cache_read_tokens=400)
    assert cost_by_book(impossible, provider="openai", model="gpt-4o") == UNKNOWN
