"""Whether a text gives orders to whoever reads it: a sign of an injection, never the proof of one.

Data says what is; an injection tells an agent what to do. So a sentence that begins with a verb of action in the
imperative is an order ("Send ...", "Please transfer ...", "TODO: visit ..."), and so is a text that speaks of a model
or of its instructions. English only, and easily written around: policies use it to withhold a relief, not to let a
call through that would otherwise be asked about. Linear in the text, which may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

_ACTIONS = """
    accept add allow append approve book buy call cancel change click collect concatenate confirm connect copy
    create deactivate delete deposit disable disclose disregard download edit email enable encode enter erase
    execute export extract fetch fill find follow forget forward gather get give go grant ignore include insert
    install invite join leak list log mail make message modify move navigate open overwrite pay perform place
    post print provide publish purchase put query read recommend redirect refund register remove rename replace
    reply report request reschedule reserve reset respond return reveal run save say schedule search sell send
    set share show sign store submit subscribe summarize switch tell text transfer transmit trigger unlock
    unsubscribe update upload use visit wire withdraw write
"""
_OPENINGS = """
    and also then next now first firstly finally instead so but kindly please just immediately always do don't
    never todo you agent assistant should must shall need have to be sure remember not important
"""
_VERBS, _BEFORE_VERBS = frozenset(_ACTIONS.split()), frozenset(_OPENINGS.split())
_CLAUSES = frozenset(["after", "as", "before", "if", "once", "to", "when", "while"])
"""What begins a sentence that gives its order after a comma."""
_NOT_AFTER_VERBS = frozenset(["was", "were", "is", "are", "has", "had", "of", "at", "for", "from", "by", "in", "on"])
"""After these the word before was a noun: `Purchase at the store`."""
_MODEL = re.compile(
    r"\b(?:(?:ignore|disregard|forget|override)(?: \w+){0,4} (?:instructions?|prompts?|rules|tasks?)"
    r"|(?:system|developer)[ _-]?(?:message|prompt|instructions?)"
    r"|language model|ai (?:assistant|agent|model)|llm|chatbot|chatgpt)\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?:;])[\s\"')]+")
_ITEM = re.compile(r"\s{0,8}(?:[-*•>#]|\d{1,3}[.)]|please\b|todo\b)")
_ASIDE = re.compile(r"[\W_]{0,8}\([^()]{0,40}\)")
_WORD = re.compile(r"[a-z']+")
_READ_CHARACTERS = 50_000
_SENTENCE_CHARACTERS = 200


@lru_cache(maxsize=2048)
def gives_orders(text: str) -> bool:
    """Whether this text tells its reader what to do; one too long to be read counts as if it did."""
    return len(text) > _READ_CHARACTERS or _MODEL.search(text.lower()) is not None or bool(orders_in(text))


@lru_cache(maxsize=2048)
def orders_in(text: str) -> str:
    """The sentences of a text that are orders, a line each, in lower case."""
    return "\n".join(filter(_is_order, _sentences(text[:_READ_CHARACTERS].lower())))


def _sentences(text: str) -> Iterator[str]:
    """What may be a sentence of its own. A line that goes on from the one before is none."""
    fresh = True
    for line in text.splitlines():
        first, *rest = _SENTENCE_END.split(line)
        if fresh or _ITEM.match(line):
            yield first
        yield from rest
        fresh = not line.strip() or line.rstrip()[-1] in ".!?:;,>)]"


def _is_order(sentence: str) -> bool:
    begins = sentence[:_SENTENCE_CHARACTERS]
    aside = _ASIDE.match(begins)
    words = _WORD.findall(begins[aside.end() :] if aside else begins)
    if words and words[0] in _CLAUSES and "," in begins:
        words = _WORD.findall(begins[begins.index(",") :])
    while words and words[0] in _BEFORE_VERBS:
        del words[0]
    return len(words) > 1 and words[0] in _VERBS and words[1] not in _NOT_AFTER_VERBS
