"""What a reply costs: from the price book `genai-prices`, or from the prices an `agent.toml` states itself.

Cost = (in - cr - cw) p_in + cr p_cr + cw p_cw + out p_out, in US dollars; a price nobody knows makes the cost unknown,
never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from lockstep.errors import ModelError
from lockstep.model.port import Usage

OWN_BOOK = "agent.toml"
_MILLION = Decimal(1_000_000)
_KEYS = ("input", "output", "cache_read", "cache_write")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """US dollars per million tokens. Without a price of their own, cached tokens cost what other input costs."""

    input: Decimal
    output: Decimal
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of a reply; `usd` None is unknown. `book` names the price book with its version, empty when unknown."""

    usd: Decimal | None
    book: str


UNKNOWN = Cost(usd=None, book="")


def read_prices(table: Mapping[str, object]) -> Prices:
    """Prices out of a table like `{input = 2.5, output = 10}`.

    Raises:
        ModelError: `input` or `output` is missing, a key is unknown, or a price is no amount of money.
    """
    remedy = "Write US dollars per million tokens: prices = {input = 2.5, output = 10, cache_read = 1.25}."
    unknown = sorted(set(table) - set(_KEYS))
    if unknown:
        raise ModelError(f"prices holds {unknown[0]!r}, which is none of {', '.join(_KEYS)}.", remedy=remedy)
    amounts = {key: _dollars(key, value, remedy) for key, value in table.items()}
    missing = [key for key in ("input", "output") if key not in amounts]
    if missing:
        raise ModelError(f"prices has no {missing[0]!r}.", remedy=remedy)
    return Prices(
        input=amounts["input"],
        output=amounts["output"],
        cache_read=amounts.get("cache_read"),
        cache_write=amounts.get("cache_write"),
    )


def _dollars(key: str, value: object, remedy: str) -> Decimal:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
            raise InvalidOperation
        amount = Decimal(str(value))
        if not (amount.is_finite() and amount >= 0):
            raise InvalidOperation
    except InvalidOperation as error:
        raise ModelError(f"prices.{key} is {value!r}, which is no amount of money.", remedy=remedy) from error
    return amount


def cost_by(prices: Prices, usage: Usage) -> Cost:
    """The cost by stated prices. Cached tokens beyond `input_tokens` are billed as they were reported."""
    read, written = usage.cache_read_tokens, usage.cache_write_tokens
    read_price = prices.input if prices.cache_read is None else prices.cache_read
    written_price = prices.input if prices.cache_write is None else prices.cache_write
    total = (
        max(0, usage.input_tokens - read - written) * prices.input
        + read * read_price
        + written * written_price
        + usage.output_tokens * prices.output
    )
    return Cost(usd=total / _MILLION, book=OWN_BOOK)


def cost_by_book(usage: Usage, *, provider: str, model: str, base_url: str = "") -> Cost:
    """The cost by `genai-prices`: looked up by the provider's address first, then by its name.

    The address comes first because several providers sell the same model at different prices.
    """
    # Imported here because its data takes a tenth of a second to load and most commands never need it.
    import genai_prices

    tokens = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    book = f"genai-prices {genai_prices.__version__}"
    for by_address in (True, False) if base_url else (False,):
        try:
            if by_address:
                found = genai_prices.calc_price(tokens, model, provider_api_url=base_url)
            else:
                found = genai_prices.calc_price(tokens, model, provider_id=provider)
        except (LookupError, ValueError):  # unknown address, provider or model; or counts that do not add up
            continue
        # A model without prices adds up to zero there; that is a price nobody knows.
        if found.model_price.input_mtok is not None and found.model_price.output_mtok is not None:
            return Cost(usd=found.total_price, book=book)
    return UNKNOWN


def is_priced(*, provider: str, model: str, base_url: str = "") -> bool:
    """Whether the price book knows this model; a cost limit needs it before the first request."""
    one_token_each = Usage(input_tokens=1, output_tokens=1)
    return cost_by_book(one_token_each, provider=provider, model=model, base_url=base_url).usd is not None
