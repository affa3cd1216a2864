"""Reasoning that a model writes into its text, between `<think>` and `</think>`: cut out, however it was split.

Providers' libraries cut it where the tags arrive whole; a tag split over two pieces of a stream passes them as text.
"""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<think>", "</think>"
_WHOLE = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_HEADLESS = re.compile(r"\A.*?</think>", re.DOTALL)


def without_thinking(text: str) -> str:
    """The text without what stands between the tags; a closing tag alone ends reasoning that began before the text."""
    cut = _WHOLE.sub("", text)
    return _HEADLESS.sub("", cut).lstrip() if cut != text or _CLOSE in cut else text


class ThinkingFilter:
    """The same for text that comes in pieces: `feed` gives what may be shown so far, `end` what was held back."""

    def __init__(self) -> None:
        self._held = ""
        self._thinking = False

    def feed(self, piece: str) -> str:
        text, shown = self._held + piece, ""
        while text:
            tag = _CLOSE if self._thinking else _OPEN
            before, found, after = text.partition(tag)
            if found:
                shown += "" if self._thinking else before
                self._thinking, text = not self._thinking, after
                continue
            kept = _beginning_of(tag, text)
            shown += "" if self._thinking else text[: len(text) - kept]
            text = text[len(text) - kept :]
            break
        self._held = text
        return shown

    def end(self) -> str:
        held, self._held = self._held, ""
        return "" if self._thinking else held


def _beginning_of(tag: str, text: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
