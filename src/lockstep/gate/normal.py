"""Normal forms of text: what two writings of the same thing have in common.

A text becomes *chunks*: words, and identifiers whole (`ada@example.org`, `SK-214`, an address on the web), so that a
part of an identifier never passes for it. Dates, times and numbers in it become *facts*: `n:350` stands for `350`,
`350.0`, `$350.00`; `d:2026-12-01` for `1 December 2026` and `Dec 1, 2026`. Pure, and linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import NamedTuple

_URL = r"[a-z][a-z0-9+.-]{1,15}://[^\s\"'<>`(){}\[\]|\\^,;]*[\w=&#%-]"
_AMOUNT = r"(?:(?<![\w.)])-)?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w.])%?"
_WORD = r"(?:(?<![\w.)])-(?=\d))?[^\W_]+(?:(?:[-_.@/+&%#~']|(?<=\d):(?=\d)){1,3}[^\W_]+)*(?:(?<=\d)%)?"
_CHUNK = re.compile(rf"{_URL}|{_AMOUNT}|{_WORD}")
_WEB = re.compile(r"https?://")
_FORGOTTEN_SPACE = re.compile(r"(\.[a-z]{2,6})\.(?=[A-Z][a-z]*\s)")
"""After an address that ends a sentence: `www.example.org.They`."""
PIECE = re.compile(r"[^\W_]+")
_DIGIT = re.compile(r"\d")
_LOOSE = re.compile(r"[^\W_]+(?:[-_' ]+[^\W_]+)*")
_BEYOND_ASCII = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]{1,256}")
"""Normalised in pieces: sorting a long run of combining marks takes quadratic time."""
_VARIANTS = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u2033", '"')
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", None)
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_FACT = re.compile(
    rf"""(?=[-$£€\djfmasond])(?:(?<![\w.])|(?<=\dt))(?:
      (?P<iso>(?P<iy>\d{{4}})[-/.](?P<im>\d{{1,2}})[-/.](?P<id>\d{{1,2}})(?!\d))
    | (?P<dmy>(?P<da>\d{{1,2}})(?P<ds>[-/.])(?P<db>\d{{1,2}})(?P=ds)(?P<dy>\d{{4}})(?!\d))
    | (?P<time>(?P<th>\d{{1,2}}):(?P<tm>\d\d)(?::(?P<ts>\d\d)(?:\.\d+)?)?
      (?:\s?(?P<tp>[ap])\.?m\b|[+-]\d\d:?\d\d)?(?!\d))
    | (?P<hour>(?P<hh>\d{{1,2}})\s?(?P<hp>[ap])\.?m\b)
    | (?P<dm>(?P<dd>\d{{1,2}})(?:st|nd|rd|th)?[\s-](?:of\s)?(?P<dn>{_MONTH})\b\.?(?:,?[\s-](?P<dny>\d{{4}})(?!\d))?)
    | (?P<md>(?P<mn>{_MONTH})\b\.?\s(?P<mdd>\d{{1,2}})(?:st|nd|rd|th)?(?!\w)(?:,?\s(?P<mny>\d{{4}})(?!\d))?)
    | (?P<num>(?P<minus>(?<![^\s(\[:=])-)?[$£€]?(?P<whole>\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?P<frac>\.\d+)?
      (?!\.?[a-z]{{0,8}}\d)(?P<pct>\s?%)?)
    )""",
    re.VERBOSE,
)
"""What it may begin with stands first, which halves the time that a text takes."""
_SPOKEN = frozenset(
    {"am", "pm", "a.m", "p.m", "may", "june", "july", "sept"}
    | {*_MONTHS, "january", "february", "march", "april", "august", "september", "october", "november", "december"}
)
"""Words with which a date or a time takes more than one chunk."""
_SAYS_NOTHING = re.compile(
    r"(?:[\W_]|(?<!\w)(?:t|z|utc|gmt|at|on|usd|eur|gbp|dollars?|euros?)(?!\w)|(?<=\d)[tz](?!\w))*"
)
_MAX_DIGITS = 40
_MAX_FACT = 64


def fold_text(text: str) -> str:
    """Without case, and with one writing for each letter, dash, quote and space."""
    text = _FORGOTTEN_SPACE.sub(r"\1. ", text)
    if text.isascii():
        return text.lower()
    return _BEYOND_ASCII.sub(_compatible, text).translate(_VARIANTS).casefold()


def _compatible(run: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", run[0])


class Word(NamedTuple):
    """What a folded text has between two spaces."""

    form: str
    """Its chunks, with a space between them; empty when it has none. A web address is without its scheme."""
    pieces: tuple[str, ...]
    """The runs of letters and digits in those, in order."""
    facts: tuple[str, ...]
    """The dates, times and numbers in any one of them."""
    spoken: bool
    """Whether it may be a part of a date or a time of several words."""


def words_of(folded: str) -> list[Word]:
    """The words of a folded text, in order."""
    return [word_of(word) for word in folded.split()]


def word_of(word: str) -> Word:
    """Read one word; what was read before is remembered unless it is long."""
    return _known_word(word) if len(word) <= _MAX_FACT else _word_anew(word)


@lru_cache(maxsize=16384)
def _known_word(word: str) -> Word:
    return _word_anew(word)


def _word_anew(word: str) -> Word:
    chunks = [word] if word.isalnum() else [_WEB.sub("", chunk) for chunk in _CHUNK.findall(word)]
    form = " ".join(chunks)
    facts = [fact for chunk in chunks for fact in _facts_in(chunk)]
    return Word(form, tuple(PIECE.findall(form)), tuple(facts), not _SPOKEN.isdisjoint(chunks))


def _facts_in(chunk: str) -> Sequence[str]:
    if chunk[0] not in "-0123456789" or len(chunk) > _MAX_FACT:
        return ()
    return (_number(chunk, ""),) if chunk.isdigit() else _chunk_facts(chunk)


@lru_cache(maxsize=4096)
def _chunk_facts(chunk: str) -> Sequence[str]:
    facts = [fact for match in _FACT.finditer(chunk) for fact in _facts_of(match)]
    if "," in chunk:  # as well a list without spaces
        facts += [_number(part, "") for part in chunk.rstrip("%").split(",") if part.isdecimal()]
    return facts


def spoken_facts(folded: str) -> Iterator[tuple[int, Sequence[str]]]:
    """The dates and times of several words in a folded text, by the line that they begin in."""
    line = counted = 0
    for match in _FACT.finditer(folded):
        if match.lastgroup in ("dm", "md", "hour", "time"):
            line += folded.count("\n", counted, match.start())
            counted = match.start()
            yield line, _facts_of(match)


def is_spoken(words: AbstractSet[str]) -> bool:
    """Whether any of these words is one with which a date or a time takes more than one chunk."""
    return not _SPOKEN.isdisjoint(words)


def is_loose(folded: str) -> bool:
    """Whether a dash, an underscore or an apostrophe in it may as well be a space: names may, addresses may not."""
    return _LOOSE.fullmatch(folded) is not None


def only_facts(folded: str) -> list[list[str]]:
    """The facts that a text consists of, each as its possible readings; empty when it says anything else.

    Midnight beside a date adds nothing to it and is left out.
    """
    if not _DIGIT.search(folded):
        return []
    readings: list[list[str]] = []
    end = 0
    for match in _FACT.finditer(folded):
        facts = _facts_of(match)
        if not facts or not _SAYS_NOTHING.fullmatch(folded, end, match.start()):
            return []
        if match.lastgroup != "num":
            facts = [fact for fact in facts if fact[0] != "n"]
        readings.append(facts)
        end = match.end()
    if not readings or not _SAYS_NOTHING.fullmatch(folded, end):
        return []
    dated = any(facts[0][0] == "d" for facts in readings)
    return [facts for facts in readings if not (dated and facts == ["t:00:00"])]


def number_fact(value: int | float) -> str:
    """The fact that a JSON number is."""
    if isinstance(value, float):
        text = repr(value)
        if "e" not in text and "n" not in text:  # no exponent, infinity or nan
            return f"n:{text.removesuffix('.0')}"
        whole, _, frac = format(Decimal(repr(value)), "f").partition(".")
        return _number(whole, frac)
    return _number(str(value), "") if abs(value) < 10**_MAX_DIGITS else "n:"


def _number(whole: str, frac: str) -> str:
    sign = "-" if whole[:1] == "-" else ""
    whole, frac = whole.lstrip("-").lstrip("0") or "0", frac.rstrip("0")
    return f"n:{sign}{whole}.{frac}" if frac else f"n:{sign}{whole}"


def _facts_of(match: re.Match[str]) -> list[str]:
    return _READERS[str(match.lastgroup)](match)


def _iso(match: re.Match[str]) -> list[str]:
    return _dates(match["iy"], match["im"], match["id"])


def _day_month_year(match: re.Match[str]) -> list[str]:
    """`12/01/2026` is the first of December or the twelfth of January: nobody but its writer knows."""
    a, b, year = match["da"], match["db"], match["dy"]
    return list(dict.fromkeys([*_dates(year, a, b), *_dates(year, b, a)]))


def _dates(year: str | None, month: str, day: str) -> list[str]:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return []
    date = f"d:{year or '-'}-{int(month):02}-{int(day):02}"
    return [date, f"n:{year}"] if year else [date]


def _named_day_first(match: re.Match[str]) -> list[str]:
    return _dates(match["dny"], str(_MONTHS.index(match["dn"][:3]) + 1), match["dd"])


def _named_month_first(match: re.Match[str]) -> list[str]:
    return _dates(match["mny"], str(_MONTHS.index(match["mn"][:3]) + 1), match["mdd"])


def _time(match: re.Match[str]) -> list[str]:
    return _clock(match["th"], match["tm"], match["ts"] or "00", match["tp"])


def _hour(match: re.Match[str]) -> list[str]:
    return _clock(match["hh"], "00", "00", match["hp"])


def _clock(hour: str, minute: str, second: str, half: str | None) -> list[str]:
    hours = int(hour)
    if half:
        hours = hours % 12 + (12 if half == "p" else 0)
    seconds = "" if second == "00" else f":{second}"
    return [f"t:{hours:02}:{minute}{seconds}"] if hours < 24 and int(minute) < 60 else []


def _amount(match: re.Match[str]) -> list[str]:
    whole, frac = match["whole"], (match["frac"] or "")[1:]
    if len(whole) + len(frac) > _MAX_DIGITS:
        return []
    joined = _number(("-" if match["minus"] else "") + whole.replace(",", ""), frac)
    if match["pct"]:
        return [joined, number_fact_of_percent(joined)]
    return [joined]


def number_fact_of_percent(fact: str) -> str:
    """`n:15` (percent) as the share it is: `n:0.15`."""
    try:
        whole, _, frac = format(Decimal(fact.removeprefix("n:")) / 100, "f").partition(".")
    except InvalidOperation:
        return fact
    return _number(whole, frac)


_READERS = {
    "iso": _iso,
    "dmy": _day_month_year,
    "time": _time,
    "hour": _hour,
    "dm": _named_day_first,
    "md": _named_month_first,
    "num": _amount,
}
