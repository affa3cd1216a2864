"""Cedar text to policies: each with its name, place and what it reads.

cedarpy says what is wrong with a text but not where, and gives policies no lines. A `;` outside strings and comments
ends a policy and nothing else, so the text is cut there and each piece is parsed on its own.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lockstep.errors import ConfigError
from lockstep.gate.cedar_schema import Path
from lockstep.gate.cedar_values import paths_read

_MAX_NESTING = 50  # cedarpy 4.12 overflows the stack of the process at some hundreds of nested brackets
_MAX_OPERATORS = 200
_MAX_DOTS = 1000
_CHAINING = frozenset({"&&", "||", "+", "-", "*", "if"})
_APPROVERS = frozenset("123456789")
_TOKEN = re.compile(r'(?:\s|//[^\n\r]*)+|("(?:\\.|[^"\\])*"|\w+|::|&&|\|\||[=!<>]=|.)', re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """One policy. `name` is its `@id`, else `file:line`; `question` is the text of `@ask`, None without it."""

    name: str
    file: str
    line: int
    effect: Literal["permit", "forbid"]
    question: str | None
    approvers: int
    """How many people must approve what it asks about."""
    text: str = field(repr=False)
    reads: frozenset[Path] = field(repr=False)
    tools: frozenset[str] | None = field(repr=False)
    """The tools its scope names; None when it names none and so means all."""
    conditional: bool = field(repr=False)
    """Whether it has a `when` or `unless`."""

    @property
    def place(self) -> str:
        at = f"{self.file}:{self.line}"
        return at if self.name == at else f"{at}, policy `{self.name}`"


def read_policies(files: Mapping[str, str]) -> list[Policy]:
    """The policies of Cedar files (name -> text), in order.

    Raises:
        ConfigError: Cedar refuses a file (the message says where and why), a template, `@ask` on a permit, or two
            policies with one name.
    """
    return _with_unique_names([policy for file, text in files.items() for policy in _read_file(file, text)])


def is_unicode(text: str) -> bool:
    """Whether a text has UTF-8 bytes: lone surrogates have none, and cedarpy fails on them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """The tokens of one policy, up to its `;` (or the end of the file)."""

    file: str
    source: str
    tokens: Sequence[re.Match[str]]

    @property
    def text(self) -> str:
        return self.source[self.tokens[0].start(1) : self.tokens[-1].end()]

    def line(self) -> int:
        return self.source.count("\n", 0, self.tokens[0].start(1)) + 1

    def at(self, offset: int) -> str:
        line, before = self.source.count("\n", 0, offset) + 1, self.source.rfind("\n", 0, offset)
        return f"{self.file}, line {line}, column {offset - before}"


def _read_file(file: str, source: str) -> list[Policy]:
    if not is_unicode(source):
        raise ConfigError(f"{file}: is not Unicode text.", remedy="Save the file as UTF-8.")
    return [_read_policy(piece) for piece in _pieces(file, source)]


def _pieces(file: str, source: str) -> Iterator[_Piece]:
    tokens: list[re.Match[str]] = []
    for token in _TOKEN.finditer(source):
        if token[1] is None:
            continue
        tokens.append(token)
        if token[1] == ";":
            yield _Piece(file=file, source=source, tokens=tokens)
            tokens = []
    if tokens:
        yield _Piece(file=file, source=source, tokens=tokens)


def _read_policy(piece: _Piece) -> Policy:
    import cedarpy  # lazy: see `Policies`

    start = piece.at(piece.tokens[0].start(1))
    _refuse_deep(piece)
    try:
        form = json.loads(cedarpy.policies_to_json_str(piece.text))
    except ValueError as error:
        where = piece.at(_error_offset(piece, str(error)))
        remedy = "The policy syntax is at https://docs.cedarpolicy.com/policies/syntax-policy.html."
        raise ConfigError(f"{where}: not valid Cedar: {error}.", remedy=remedy) from error
    except RecursionError:
        raise _too_deep(start) from None
    if form["templates"] or len(form["staticPolicies"]) != 1:
        remedy = "Name the principal or resource instead of `?principal` or `?resource`."
        raise ConfigError(f"{start}: is a template, and nothing here links templates.", remedy=remedy)
    (policy,) = form["staticPolicies"].values()
    notes, line = policy.get("annotations", {}), piece.line()
    name = notes.get("id") or f"{piece.file}:{line}"
    if "ask" in notes and policy["effect"] == "permit":
        remedy = "Put `@ask` on a `forbid`: it turns that denial into a question."
        raise ConfigError(f"{start}: `@ask` has no meaning on a `permit`.", remedy=remedy)
    return Policy(
        name=name,
        file=piece.file,
        line=line,
        effect=policy["effect"],
        question=(notes["ask"] or f"Policy `{name}` wants a person to decide.") if "ask" in notes else None,
        approvers=_approvers(start, notes),
        text=piece.text,
        reads=paths_read(policy["conditions"]),
        tools=_tools_in_scope(policy["action"]),
        conditional=bool(policy["conditions"]),
    )


def _approvers(where: str, notes: Mapping[str, Any]) -> int:
    if "approvers" not in notes:
        return 1
    if "ask" not in notes:
        raise ConfigError(
            f"{where}: `@approvers` has no meaning without `@ask`.", remedy="It says how many people are asked."
        )
    said = notes["approvers"] or ""
    if said not in _APPROVERS:
        raise ConfigError(
            f"{where}: `@approvers` is {said!r}.", remedy='Write a number from 1 to 9: `@approvers("2")`.'
        )
    return int(said)


def _refuse_deep(piece: _Piece) -> None:
    depth = operators = dots = 0
    for token in piece.tokens:
        if token[1] in ("(", "[", "{"):
            depth += 1
        elif token[1] in (")", "]", "}"):
            depth -= 1
        elif token[1] in _CHAINING:
            operators += 1
        elif token[1] == ".":
            dots += 1
        if depth > _MAX_NESTING or operators > _MAX_OPERATORS or dots > _MAX_DOTS:
            raise _too_deep(piece.at(token.start(1)))


def _too_deep(where: str) -> ConfigError:
    limits = f"{_MAX_NESTING} nested brackets, {_MAX_OPERATORS} operators"
    remedy = 'Split the policy, or test membership in a set: `["a", "b"].contains(...)`.'
    return ConfigError(f"{where}: the policy is too large for one policy ({limits}).", remedy=remedy)


def _error_offset(piece: _Piece, error: str) -> int:
    """Where Cedar stopped: the last token of the shortest beginning that fails other than by being incomplete."""
    if error == "unexpected end of input":
        return piece.tokens[-1].start(1)
    if error.startswith(("unexpected token", "invalid token")):
        first = bisect.bisect_left(piece.tokens, True, key=lambda token: _stops(piece, token))
        return piece.tokens[min(first, len(piece.tokens) - 1)].start(1)
    quoted = re.search(r"`@?(\w+)", error)
    named = (token for token in piece.tokens if quoted and token[1] == quoted[1])
    return next(named, piece.tokens[0]).start(1)


def _stops(piece: _Piece, last: re.Match[str]) -> bool:
    import cedarpy  # lazy: see `Policies`

    try:
        cedarpy.policies_to_json_str(piece.source[piece.tokens[0].start(1) : last.end()])
    except ValueError as error:
        return str(error) != "unexpected end of input"
    return False


def _tools_in_scope(action: Mapping[str, Any]) -> frozenset[str] | None:
    named = action.get("entities") or ([action["entity"]] if "entity" in action else None)
    return None if named is None else frozenset(each["id"] for each in named)


def _with_unique_names(policies: list[Policy]) -> list[Policy]:
    seen: dict[str, Policy] = {}
    for policy in policies:
        other = seen.setdefault(policy.name, policy)
        if other is not policy:
            raise ConfigError(
                f"{policy.file}:{policy.line}: the name `{policy.name}` is taken by {other.file}:{other.line}.",
                remedy='Give each policy an `@id("...")` of its own.',
            )
    return policies
