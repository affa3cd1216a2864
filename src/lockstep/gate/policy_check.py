"""Policies checked against the tools' schemas, in sentences.

Cedar's validator reports once per tool and keeps quiet about `has` on something no tool has; here each mistake is said
once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lockstep.gate.cedar_schema import ArgumentTypes, Record, has_path, render
from lockstep.gate.policy_text import Policy

_ABSENT = re.compile(r'attribute `(.+)` in context for Action::"(.+)" not found', re.DOTALL)
_OPTIONAL = re.compile(
    r'unable to guarantee safety of access to optional attribute `(.+)` in context for Action::"(.+)"', re.DOTALL
)
_UNKNOWN_ACTION = re.compile(r'unrecognized action `Action::"(.+)"`', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a validation found in one policy. `arguments` and `contexts` are by tool."""

    policy: Policy
    arguments: Mapping[str, ArgumentTypes]
    contexts: Mapping[str, Record]

    def sentences(self, errors: Sequence[str]) -> Iterator[str]:
        """What Cedar found in this policy, one sentence per mistake rather than per tool."""
        absent: dict[str, list[str]] = {}
        optional: dict[str, list[str]] = {}
        other: list[str] = []
        for error in errors:
            text = re.sub(r"^for policy `policy\d+`, ", "", error)
            if match := _ABSENT.fullmatch(text):
                absent.setdefault(match[1], []).append(match[2])
            elif match := _OPTIONAL.fullmatch(text):
                optional.setdefault(match[1], []).append(match[2])
            elif text not in other:
                other.append(text)
        place = self.policy.place
        for path, tools in absent.items():
            yield f"{place}: {self._absent(path, sorted(tools))}."
        for path, tools in optional.items():
            calls = f"a call of {_listed(sorted(tools))}"
            yield f"{place}: reads `context.{path}`, which {calls} may lack; test it with `has` first."
        for path, reason in self._never_there():
            if not any(path == known or path.startswith((f"{known}.", f"{known}[")) for known in absent):
                which = f"which no policy can read ({reason})" if reason else "which no tool it applies to has"
                yield f"{place}: asks for `context.{path}`, {which}, so the test never holds."
        for text in self._explained(other):
            yield f"{place}: {text}."

    def _absent(self, path: str, tools: Sequence[str]) -> str:
        where = f"reads `context.{path}`, which {_listed(tools)} {'does' if len(tools) == 1 else 'do'} not have"
        if reason := self._left_out(path, tools):
            return f"{where} as a Cedar value ({reason})"
        if self.policy.tools is None and len(tools) < len(self.contexts):
            return f"{where}; name the tools that have it in the policy's scope, or test it with `has` first"
        return where

    def _never_there(self) -> Iterator[tuple[str, str]]:
        """Paths that no tool in scope has, each with the reason if a tool has something there that is left out."""
        scope = self.contexts.keys() if self.policy.tools is None else self.contexts.keys() & self.policy.tools
        for path in sorted(self.policy.reads) if scope else ():
            if not any(has_path(self.contexts[tool], path) for tool in scope):
                yield render(path), self._left_out(render(path), sorted(scope))

    def _left_out(self, path: str, tools: Sequence[str]) -> str:
        argument = re.sub(r"^arguments\.?", "", path)
        reasons = (
            f"in `{tool}` it {self.arguments[tool].left_out[argument]}"
            for tool in tools
            if tool in self.arguments and argument in self.arguments[tool].left_out
        )
        return next(reasons, "")

    def _explained(self, messages: Sequence[str]) -> Iterator[str]:
        for text in messages:
            if match := _UNKNOWN_ACTION.fullmatch(text):
                close = difflib.get_close_matches(match[1], self.contexts, n=1)
                hint = f"; it has {_listed(sorted(self.contexts))}" if self.contexts else ""
                if close:
                    hint = f" (did you mean `{close[0]}`?)"
                yield f"names the tool `{match[1]}`, which the agent does not have{hint}"
            elif text.startswith("unable to find an applicable action"):
                if len(messages) == 1 and self.contexts:
                    yield "can never apply: a principal is a `User`, a resource an `Agent`, an action a tool"
            elif "Long" in text and "decimal" in text:
                yield f'{text}; a JSON `number` is a decimal, compared as `.lessThan(decimal("500.0"))`'
            else:
                yield text


def _listed(tools: Sequence[str]) -> str:
    named = [f"`{tool}`" for tool in tools[:3]] + ([f"{len(tools) - 3} more"] if len(tools) > 3 else [])
    return "the tool " + named[0] if len(named) == 1 else "the tools " + ", ".join(named[:-1]) + " and " + named[-1]
