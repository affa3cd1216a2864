"""Mistakes in agent.toml: each error names file, line and key, and says what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.agent.load import load_spec
from lockstep.errors import ConfigError

WHOLE = """\
[agent]
name = "clerk"

[model]
name = "openai:gpt-4o"

[prompt]
file = "prompt.md"

[[tools]]
python = "a.py"

[[tools]]
python = "b.py"
effect = "once"

[tools.limits]
memory_mb = 64

[budget]
steps = 5
"""


def problem(directory: Path, text: str) -> str:
    (directory / "agent.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_spec(directory)
    return str(raised.value).replace(str(directory), "DIR")


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(WHOLE)
    spec = load_spec(tmp_path)
    assert spec.agent.name == "clerk"
    assert [source.python for source in spec.tools] == ["a.py", "b.py"]
    assert spec.tools[1].limits.memory_mb == 64
    assert spec.budget.steps == 5


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "clerk"', 'nam = "clerk"', "DIR/agent.toml:2: `agent.nam` is not a known key. Did you mean `name`?"),
        ('name = "clerk"', 'nam = "clerk"', "DIR/agent.toml:1: `agent.name` is missing. Add it."),
        ("effect", "efect", "DIR/agent.toml:15: `tools[1].efect` is not a known key. Did you mean `effect`?"),
        (
            "memory_mb",
            "ram_gb",
            "DIR/agent.toml:18: `tools[1].limits.ram_gb` is not a known key. Known keys: memory_mb",
        ),
        ("[budget]", "[budgets]", "DIR/agent.toml:20: `budgets` is not a known key. Did you mean `budget`?"),
        ("memory_mb = 64", "memory_mb = 1", "agent.toml:18: `tools[1].limits.memory_mb` is 1: input should be greater"),
        ("steps = 5", 'steps = "5"', 'DIR/agent.toml:21: `budget.steps` is "5": input should be a valid integer.'),
        ("steps = 5", "steps = true", "DIR/agent.toml:21: `budget.steps` is true: input should be a valid integer."),
        (
            "steps = 5",
            "steps = 0",
            "DIR/agent.toml:21: `budget.steps` is 0: input should be greater than or equal to 1",
        ),
        ("steps = 5", f"steps = {2**53}", f"DIR/agent.toml:21: `budget.steps` is {2**53}: larger than"),
        ("steps = 5", "wall_s = inf", "DIR/agent.toml:21: `budget.wall_s` is inf: input should be a finite number."),
        ("steps = 5", "cost_usd = -1", "DIR/agent.toml:21: `budget.cost_usd` is -1: input should be greater"),
        (
            '"once"',
            '"twice"',
            "DIR/agent.toml:15: `tools[1].effect` is \"twice\": input should be 'read', 'idempotent'",
        ),
        (
            '"openai:gpt-4o"',
            '"gpt-4o"',
            'DIR/agent.toml:5: `model.name` is "gpt-4o": a model is named `provider:model`',
        ),
        ('"clerk"', '"the clerk"', 'agent.toml:2: `agent.name` is "the clerk": a name is at most 64 letters'),
        ('"b.py"', "5", "DIR/agent.toml:14: `tools[1].python` is 5: input should be a valid string."),
        (
            'python = "b.py"',
            'python = "b.py"\ninclude = "b"',
            'agent.toml:15: `tools[1].include` is "b": it must be a list, in square',
        ),
        ('python = "b.py"', "", "DIR/agent.toml:13: `tools[1]` needs either `python = "),
        ('python = "b.py"', 'python = "b.py"\nmcp = { command = ["x"] }', "DIR/agent.toml:13: `tools[1]` needs either"),
        (
            'python = "b.py"\neffect = "once"',
            'python = "b.py"\nbuiltin = "python"',
            "DIR/agent.toml:13: `tools[1]` needs either",
        ),
        (
            'python = "b.py"',
            'builtin = "ruby"',
            "DIR/agent.toml:14: `tools[1].builtin` is \"ruby\": input should be 'python'.",
        ),
        (
            'python = "b.py"',
            'builtin = "python"\negress = ["1.1.1.1:443"]',
            "toml:13: `tools[1]` is a built-in and has `egress`: code that a model wrote reaches nothing outside.",
        ),
        ('python = "b.py"', 'builtin = "python"\nenv = { A = "b" }', "`tools[1]` is a built-in and has `env`: code"),
        (
            'python = "b.py"',
            'builtin = "python"\nsecrets = [{ env = "K", from = "env:K", host = "a.example:443", header = "X" }]',
            "`tools[1]` is a built-in and has `secrets`: code",
        ),
        (
            'python = "b.py"',
            'builtin = "python"\nuntrusted = false',
            "`tools[1]` is a built-in and says `untrusted = false`: nobody vouches for what a model wrote.",
        ),
        (
            'python = "b.py"',
            'builtin = "python"\nlifetime = "run"',
            '`tools[1]` is a built-in and says `lifetime = "run"`: every call of it starts afresh.',
        ),
        (
            'python = "b.py"',
            "mcp = { command = [] }",
            "agent.toml:14: `tools[1].mcp.command` is []: list should have at",
        ),
        ('"b.py"', '"../b.py"', "DIR/agent.toml:14: `tools[1].python` is '../b.py': it must be a path inside"),
        (
            '"b.py"',
            '"x/../../b.py"',
            "DIR/agent.toml:14: `tools[1].python` is 'x/../../b.py': it must be a path inside",
        ),
        ('"prompt.md"', '"/etc/passwd"', "DIR/agent.toml:8: `prompt.file` is '/etc/passwd': it must be a path inside"),
        ('"prompt.md"', '"."', "DIR/agent.toml:8: `prompt.file` is '.': it must be a path inside"),
        (
            '"openai:gpt-4o"',
            '"scripted:../s"',
            "agent.toml:4: `model` has a name whose file is '../s': it must be a path",
        ),
        ('"openai:gpt-4o"', '"recorded:/s"', "agent.toml:4: `model` has a name whose file is '/s': it must be a path"),
        ('[prompt]\nfile = "prompt.md"', "", "DIR/agent.toml: the section `[prompt]` is missing. Add it, with `file"),
        ("[[tools]]", "[tools]", "not valid TOML"),
        (
            '[[tools]]\npython = "a.py"\n\n[[tools]]',
            "[tools]",
            "DIR/agent.toml:10: `[tools]` is one table. Write `[[tools]]`, with two brackets",
        ),
        (
            'effect = "once"',
            'code = "lib"',
            'DIR/agent.toml:15: `tools[1].code` is "lib": it must be a list, in square brackets, each text',
        ),
        (
            'python = "b.py"',
            'mcp = { command = ["/usr/bin/true"], prefix = "my server" }',
            '`tools[1].mcp.prefix` is "my server": a prefix is at most 32 letters, digits, - and _, a letter first',
        ),
        ("steps = 5", "steps =", "DIR/agent.toml:21: not valid TOML, column 8: Invalid value. Correct that line."),
        ("steps = 5", "steps = [", "DIR/agent.toml:21: not valid TOML: Invalid value. Correct that line."),
        ("steps = 5", "steps = 5\nsteps = 6", "DIR/agent.toml:22: not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_its_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in problem(tmp_path, WHOLE.replace(old, new))


KEY = 'secrets = [{ env = "KEY", from = "env:KEY", host = "api.example:443", header = "Authorization" }]'


def test_a_secret_is_read(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(WHOLE.replace('effect = "once"', KEY))
    (secret,) = load_spec(tmp_path).tools[1].secrets
    assert (secret.env, secret.source, secret.host, secret.header) == (
        *("KEY", "env:KEY", "api.example:443", "Authorization"),
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("env:KEY", "KEY", "`tools[1].secrets[0].from` is 'KEY': it must be env:NAME, file:PATH or command:PROGRAM"),
        ("env:KEY", "env:", "it must be env:NAME"),
        ("env:KEY", "env:A KEY", "it must be the name of a variable"),
        ("env:KEY", "vault:KEY", "it must be env:NAME"),
        ("env:KEY", "file:key.txt", "the path must begin with / or ~/"),
        ("env:KEY", "command:cat 'x", "cannot be split into words: No closing quotation"),
        ('"KEY"', '"1KEY"', "`tools[1].secrets[0].env` is '1KEY': it must be the name of a variable"),
        ("from", "source", "`tools[1].secrets[0].source` is not a known key. Known keys: env, from, host, header."),
        ("header", "heder", "`tools[1].secrets[0].heder` is not a known key. Did you mean `header`?"),
        (', host = "api.example:443"', "", "`tools[1].secrets[0].host` is missing. Add it."),
    ],
)
def test_a_mistake_in_a_secret_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in problem(tmp_path, WHOLE.replace('effect = "once"', KEY.replace(old, new)))


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    said = problem(tmp_path, WHOLE.replace("effect", "efect").replace("steps = 5", "steps = 0"))
    assert len(said.splitlines()) == 2


def test_a_key_missing_in_one_section_is_not_found_in_another(tmp_path: Path) -> None:
    said = problem(tmp_path, WHOLE.replace('name = "clerk"', 'description = "x"'))
    assert said == "DIR/agent.toml:1: `agent.name` is missing. Add it."


def test_values_nested_without_end_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    assert "agent.toml: its values are nested too deeply" in problem(tmp_path, WHOLE + "x = " + "[" * 100_000)


def test_a_directory_without_agent_toml_says_what_would_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.toml does not exist\. .*lockstep init NAME"):
        load_spec(tmp_path)


def test_a_file_in_place_of_the_directory_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(WHOLE)
    with pytest.raises(ConfigError, match=r"is a file\. Name the directory"):
        load_spec(tmp_path / "agent.toml")


def test_text_that_is_not_utf_8_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_bytes(b'[agent]\nname = "\xff"')
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 16\)\. Save it as UTF-8"):
        load_spec(tmp_path)


def test_a_built_in_is_untrusted_and_changes_nothing_when_its_entry_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(WHOLE.replace('python = "b.py"\neffect = "once"', 'builtin = "python"'))
    source = load_spec(tmp_path).tools[1]
    assert (source.builtin, source.untrusted, source.effect.value) == ("python", True, "read")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('output_trust = "maybe"', "`tools[1].output_trust`"),
        ('untrusted_fields = [""]', "it must be a JSON pointer"),
        ('untrusted_fields = ["/a~b"]', "is '/a~b': in a JSON pointer, ~ stands only in ~0 and ~1"),
    ],
    ids=["label", "empty", "escape"],
)
def test_a_mistake_in_what_is_said_about_results_is_named(tmp_path: Path, line: str, said: str) -> None:
    assert said in problem(tmp_path, WHOLE.replace('effect = "once"', line))
