"""Opening a provider: what is wrong is said before any request is made."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lockstep.errors import ModelError
from lockstep.model.prices import read_prices
from lockstep.model.providers import ProviderModel, open_provider


def opened(name: str, *, base_url: str | None = None, api_key_env: str | None = None, **env: str) -> ProviderModel:
    return open_provider(name, base_url=base_url, api_key_env=api_key_env, env=env)


def refused(name: str, *, base_url: str | None = None, api_key_env: str | None = None, **env: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        opened(name, base_url=base_url, api_key_env=api_key_env, **env)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("name", ["gpt-4o", "openai:", ":gpt-4o", "", "test"])
def test_a_name_without_a_provider_says_how_to_write_it(name: str) -> None:
    error = refused(name)
    assert "names no provider" in error.message
    assert "openai:gpt-4o" in error.remedy


@pytest.mark.parametrize("name", ["nobody:model", "gateway/openai:gpt-4o", "OpenAI:gpt-4o"])
def test_an_unknown_provider_lists_the_known_ones(name: str) -> None:
    error = refused(name)
    assert name.partition(":")[0] in error.message
    assert "anthropic, azure" in error.remedy


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("openai:gpt-4o", "OPENAI_API_KEY"),
        ("openai-responses:gpt-4o", "OPENAI_API_KEY"),
        ("anthropic:claude-sonnet-4-6", "ANTHROPIC_API_KEY"),
        ("google:gemini-2.5-flash", "GOOGLE_API_KEY"),
        ("deepseek:deepseek-chat", "DEEPSEEK_API_KEY"),
    ],
)
def test_a_missing_key_names_the_variable(name: str, variable: str) -> None:
    error = refused(name)
    assert f"{variable} " in error.message
    assert f"export {variable}=" in error.remedy


def test_a_key_variable_of_ones_own_is_the_only_one_read() -> None:
    error = refused("openai:gpt-4o", api_key_env="TEAM_KEY", OPENAI_API_KEY="sk-other")
    assert "TEAM_KEY is not set" in error.message
    assert opened("openai:gpt-4o", api_key_env="TEAM_KEY", TEAM_KEY="sk-team").name == "openai:gpt-4o"


def test_a_server_of_ones_own_needs_no_key() -> None:
    assert opened("openai:house-model", base_url="http://127.0.0.1:9/v1").base_url == "http://127.0.0.1:9/v1/"


def test_the_sdks_address_variable_is_read_from_the_given_environment() -> None:
    model = opened("openai:gpt-4o", OPENAI_API_KEY="sk-x", OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert model.base_url == "http://127.0.0.1:9/v1/"


def test_an_address_that_cannot_be_changed_says_so() -> None:
    error = refused("deepseek:deepseek-chat", base_url="http://127.0.0.1:9", DEEPSEEK_API_KEY="sk-x")
    assert "always uses its own address" in error.message


@pytest.mark.parametrize(
    ("provider", "extra"), [("anthropic", "anthropic"), ("google", "google"), ("openai", "openai")]
)
def test_a_missing_sdk_names_the_extra(monkeypatch: pytest.MonkeyPatch, provider: str, extra: str) -> None:
    package = {"google": "google.genai"}.get(provider, provider)
    for loaded in [name for name in sys.modules if name.startswith((f"pydantic_ai.providers.{provider}", package))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    error = refused(f"{provider}:model", api_key_env="KEY", KEY="sk-x")
    assert error.message == f"The package for {provider} is not installed."
    assert error.remedy == f"Run `pip install 'lockstep-agents[{extra}]'`."


def test_the_key_is_in_no_repr() -> None:
    assert "sk-very-secret" not in repr(opened("openai:gpt-4o", OPENAI_API_KEY="sk-very-secret"))


def test_whether_a_price_is_known_is_known_before_the_first_request() -> None:
    assert opened("openai:gpt-4o", OPENAI_API_KEY="x").priced
    assert not opened("openai:house-model", OPENAI_API_KEY="x").priced
    prices = read_prices({"input": 0, "output": 0})
    env = {"OPENAI_API_KEY": "x"}
    assert open_provider("openai:house-model", base_url=None, api_key_env=None, env=env, prices=prices).priced


def test_naming_models_loads_neither_pydantic_ai_nor_an_sdk() -> None:
    script = (
        "import sys, lockstep.model.providers, lockstep.model.scripted, lockstep.model.recorded\n"
        "print([name for name in ('pydantic_ai', 'pydantic', 'genai_prices', 'openai', 'anthropic', 'httpx2')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
