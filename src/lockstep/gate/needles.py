"""A value to look for in texts, in every writing that it is looked for in. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from lockstep.gate.normal import fold_text, is_loose, number_fact, only_facts, words_of

_IDENTIFIER = 8
_MAX_FACTUAL = 64
_HOST = re.compile(r"[a-z0-9]\.[a-z]{2,}")


class Needle:
    """A value to look for, in the forms it is looked for in."""

    __slots__ = (
        "begins",
        "ends",
        "facts",
        "folded",
        "form",
        "loose_words",
        "number",
        "piece",
        "pieces",
        "raw",
        "said",
        "squashed",
        "words",
    )

    def __init__(self, value: str | int | float, *, piece: bool = False) -> None:
        self.piece = piece
        """Whether it is a word or two of a value, which is looked for without case."""
        self.number = not isinstance(value, str)
        self.raw = value if isinstance(value, str) else json.dumps(value)
        self.folded = fold_text(self.raw)
        words = [word for word in words_of(self.folded) if word.form]
        self.form = " ".join([word.form for word in words])
        pieces = [piece for word in words for piece in word.pieces]
        one_each = len(pieces) == self.form.count(" ") + 1
        self.words = f" {self.form} "
        self.loose_words = f" {' '.join(pieces)} " if one_each or is_loose(self.form) else ""
        """The same without what joins its words, where that may as well be left out."""
        self.squashed = _identifier(self.form, pieces)
        if isinstance(value, str):
            self.facts = only_facts(self.folded) if len(self.folded) <= _MAX_FACTUAL else []
        else:
            self.facts = [[number_fact(value)]]
        self.pieces = frozenset(pieces or [""])
        """A text that has it as words has all of these."""
        self.said = frozenset(with_any_year(self.facts[0]) if len(self.facts) == 1 else ())
        """A text that says the same has one of these facts."""
        lengths = range(1, len(self.squashed) + 1)
        self.begins = frozenset([self.squashed[:length] for length in lengths])
        self.ends = frozenset([self.squashed[-length:] for length in lengths])
        """A text that has it in groups has one of each as words: the first group, and the last."""

    def may_be_in(self, marks: AbstractSet[str]) -> bool:
        """Whether it is worth looking for it in a text with these words and facts."""
        if not self.form or self.pieces <= marks or not self.said.isdisjoint(marks):
            return True
        return not self.begins.isdisjoint(marks) and not self.ends.isdisjoint(marks)


def with_any_year(readings: Sequence[str]) -> list[str]:
    """These facts, and of each date the one without its year."""
    return [*readings, *(f"d:-{fact[6:]}" for fact in readings if fact[0] == "d")]


def _identifier(form: str, pieces: Sequence[str]) -> str:
    """The letters and digits of what may be written in groups, such as an account number; else empty."""
    squashed = "".join(pieces)
    if not _IDENTIFIER <= len(squashed) <= _MAX_FACTUAL or "@" in form or "://" in form or _HOST.search(form):
        return ""  # of an address no mark may be left out
    return squashed if any(character.isdigit() for character in squashed) else ""
