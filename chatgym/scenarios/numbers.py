"""Read the numbers of an English text, in digits and in words, each one whole or not at all.

A run of words and digits that belong together is read by one grammar ("two hundred and fifty", "2 1/2", "1'250,50").
What the grammar doesn't cover, such as a range ("5 to 7"), is a number without a value, and never a part of it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

MAX_DIGITS = 15
"""Length of the longest number in digits, and of the longest row of decimals in words, that has a value."""
NEAR = 40
"""How many characters before a value are looked at."""

_TO_NINETEEN = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_PARTS = ("half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_KINDS: dict[str, tuple[str, Fraction]] = {
    **{word: ("O" if n == 1 else "U" if n < 10 else "T", Fraction(n)) for n, word in enumerate(_TO_NINETEEN, 1)},
    **{word: ("Y", Fraction(10 * n)) for n, word in enumerate(_TENS, 2)},
    **{word + s: ("F", Fraction(1, n)) for n, word in enumerate(_PARTS, 2) for s in ("", "s")},
    "zero": ("Z", Fraction(0)), "hundred": ("H", Fraction(100)), "dozen": ("H", Fraction(12)),
    "thousand": ("K", Fraction(1000)), "million": ("K", Fraction(10**6)), "billion": ("K", Fraction(10**9)),
    "half": ("L", Fraction(1, 2)), "halves": ("F", Fraction(1, 2)), "hundredths": ("F", Fraction(1, 100)),
    "fourth": ("F", Fraction(1, 4)), "fourths": ("F", Fraction(1, 4)),
    "a": ("A", Fraction(1)), "an": ("A", Fraction(1)), "and": ("N", Fraction(0)), "point": ("P", Fraction(0)),
    "/": ("S", Fraction(0)), **dict.fromkeys(("oh", "double", "triple", "nought"), ("X", Fraction(0))),
}  # fmt: skip
_MISSPELT = {
    "fourty": "forty", "fivety": "fifty", "ninty": "ninety", "fiveteen": "fifteen", "forteen": "fourteen",
    "eightteen": "eighteen", "ninteen": "nineteen", "twelf": "twelve", "hunderd": "hundred", "hundret": "hundred",
    "thousend": "thousand", "tousand": "thousand",
}  # fmt: skip
_KINDS |= {wrong: _KINDS[word] for wrong, word in _MISSPELT.items()}
"""Word to its kind, a letter of the grammar, and its value. D are digits, V is a sign such as ½, X fits nowhere."""

_TENS_AND_ONES = "(?:Y[OU]?|T|[OU])"
_HUNDREDS = f"(?:(?:{_TENS_AND_ONES}|A|D)H(?:N?{_TENS_AND_ONES})?|{_TENS_AND_ONES})"
_WHOLE = f"(?:(?:{_HUNDREDS}|A|D)K(?:N?{_HUNDREDS})?|{_HUNDREDS}|D|Z)"
_WORDY_PART = f"(?:(?:A|D|{_TENS_AND_ONES})F|[AO]?L)"
_GRAMMAR = re.compile(
    rf"(?P<part>{_WORDY_PART}|DSD|V)|(?P<whole>{_WHOLE})"
    rf"(?:P(?P<decimals>[OUZ]{{1,{MAX_DIGITS}}}|D)|(?P<more>N(?:{_WORDY_PART}|DSD)|DSD|V))?"
)

_VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_GLUED = r"(?=(?:euros?|eur|dollars?|pounds?|bucks|days?|weeks?|months?|years?)\b)"  # "25euros"
_DIGITS = (
    rf"(?:\d{{1,3}}(?: \d{{3}})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,']\d+)*)(?:{_GLUED}|[^\W{_VULGAR}]*)|(?<![\w.])\.\d+\b"
)
_AFTER_A = "|".join(word for word, (kind, _) in _KINDS.items() if kind in "HKLF")
_WORD = "|".join(word for word, (kind, _) in _KINDS.items() if kind not in "ANPS")
_ATOM = rf"(?:{_DIGITS}|[{_VULGAR}]|\b(?:{_WORD})\b)"
_A = rf"(?:\ban?\s(?=(?:{_AFTER_A})\b))?"
_LINK = r"(?:(?:and|to|or|by|over|till|until|point)\s)?"
_BETWEEN = rf"(?:\s?/\s?|\s?-\s?|:(?=\d)|(?<!\d{{6}})\s{{1,3}}{_LINK}{_A}|(?=[{_VULGAR}]))"
_RUN = re.compile(
    rf"(?:(?<![\w.,/^√±])|(?<=[a-z],)|(?<=\bn[or]\.)|(?<=\.\.))"
    r"(?P<sign>(?<![\dx)])(?<![\dx)] )(?:-\s?|\+|\b(?:minus|neg(?:ative)?)\s))?"
    rf"{_A}(?:\bpoint\s)?{_ATOM}(?:{_BETWEEN}{_ATOM})*"
)
_DIGIT, _LETTERS = re.compile(rf"[\d{_VULGAR}]"), re.compile("[a-z]{3,}")
_TOKEN = re.compile(rf"{_DIGITS}|[a-z]+|[/:{_VULGAR}-]")
_GROUPED = re.compile(r"([1-9]\d{0,2})((?:([.,' ])\d{3})(?:\3\d{3})*)((?!\3)[.,]\d+)?")
_BEFORE_A_SIGN = re.compile(
    r"(?:^|[^\w\s]|\b(?:is|it'?s|that'?s|be|was|to|say|said|gets?|got|equals?|makes?|about|think|guess|maybe|answer|"
    r"just|x))\s*$"
)
_NAMES_AN_ORDER = re.compile(r"\b(?:order|number|no|nr|ref|reference|id)-$")


class Number(NamedTuple):
    """A number in a text.

    Attributes:
        start: Where it begins.
        end: Where it ends.
        value: What it means; None if it can't be read as one value.
        code: Its digits if it can be read as a code, such as an order number ("482 913", "4-8-2-9-1-3"); else empty.
        words: How many words it is written in, "a" not counted; 0 if there are digits in it.
        fraction: Whether there is one in it, such as "3/4" or "a half".
    """

    start: int
    end: int
    value: Fraction | None
    code: str
    words: int
    fraction: bool


@functools.cache
def _plain(char: str) -> str:
    """Return a character in lower case and, if it is a form of an ASCII character, as that."""
    if char in "’‘`´":
        return "'"
    if unicodedata.category(char) == "Pd" or char == "−":
        return "-"
    if unicodedata.category(char) == "Nd":
        return str(unicodedata.decimal(char))
    form = unicodedata.normalize("NFKC", char).lower()
    return form if len(form) == 1 and form.isascii() and not char.isdigit() else char


def plain(text: str) -> str:
    """Return a text of the same length in lower case, with plain digits, spaces, dashes and apostrophes."""
    return text.lower() if text.isascii() else "".join(map(_plain, text))


def find_numbers(text: str, thousands: str = ",' ") -> list[Number]:
    """Find the numbers in a text that `plain` returned.

    Args:
        text: The text.
        thousands: The marks that part thousands where a number has only one mark, three digits from its end.
    """
    if not _DIGIT.search(text) and _KINDS.keys().isdisjoint(_LETTERS.findall(text)):
        return []  # most texts
    return [_number(text, found, thousands) for found in _RUN.finditer(text)]


def stands_before(pattern: re.Pattern[str], text: str, start: int) -> bool:
    """Tell whether a pattern that ends with ``$`` matches what stands before a place, at most `NEAR` characters."""
    return bool(pattern.search(text, max(start - NEAR, 0), start))


def mask(text: str, numbers: Sequence[Number]) -> str:
    """Return a plain text of the same length with each number as ``#``, followed by as many ``~`` as it has room."""
    masked, done = "", 0
    for number in numbers:
        masked += text[done : number.start].replace("#", " ").replace("~", " ")
        masked += "#" + "~" * (number.end - number.start - 1)
        done = number.end
    return masked + text[done:].replace("#", " ").replace("~", " ")


def _number(text: str, found: re.Match[str], thousands: str) -> Number:
    """Return the number of a run, by its words and by what stands beside it."""
    start, end = found.span()
    sign = found["sign"] or ""
    value, code, words, fraction = _read(text[start + len(sign) : end], thousands)
    difference = sign[:1].isalpha() and not stands_before(_BEFORE_A_SIGN, text, start)  # "60 euros minus 20"
    if difference:
        start += len(sign)
    glued = start > 0 and text[start - 1] == "-"  # "AB-482913", "x-3"
    if difference or glued or sign == "- " or text[end : end + 1] in ("^", "/"):
        value = None
    elif value is not None and sign[:1] in ("-", "m", "n"):
        value = -value
    if sign not in ("", "- ") or (glued and not stands_before(_NAMES_AN_ORDER, text, start)):
        code = ""
    return Number(start, end, value, code, words, fraction)


@functools.lru_cache(maxsize=4096)
def _read(run: str, thousands: str) -> tuple[Fraction | None, str, int, bool]:
    """Return what `Number` says about a run without a sign: value, code, words, fraction."""
    tokens = _TOKEN.findall(run)
    words = 0 if any(map(str.isnumeric, run)) else sum(token not in ("a", "an", "-") for token in tokens)
    fraction = any(token in _VULGAR or _KINDS.get(token, "?")[0] in "FLS" for token in tokens)
    return _value(tokens, thousands), _code(tokens), words, fraction


def _value(tokens: list[str], thousands: str) -> Fraction | None:
    """Return the value of a run's tokens by `_GRAMMAR`, or None."""
    kinds, values = "", []
    for i, token in enumerate(tokens):
        if token == "-" and not (tokens[i - 1].isalpha() and tokens[i + 1].isalpha()):
            return None  # a range; between words as in "twenty-one" it means nothing
        if token == "-":
            continue
        kind, value = _KINDS.get(token) or _digits(token, thousands)
        kinds += kind
        values.append(value)
    parsed = _GRAMMAR.fullmatch(kinds)
    if not parsed:
        return None
    if parsed["part"]:
        return _part(kinds, values)
    stop = parsed.end("whole")
    whole, rest = _whole(kinds[:stop], values[:stop]), values[stop:]
    if parsed["decimals"]:
        if any(value.denominator > 1 for value in (whole, *rest)):
            return None
        digits = "".join(str(value) for value in rest[1:])
        return whole + Fraction(int(digits), 10 ** len(digits))
    if parsed["more"]:
        skipped = kinds[stop] == "N"
        part = _part(kinds[stop + skipped :], rest[skipped:])
        return whole + part if part is not None and part < 1 and whole.denominator == 1 else None
    return whole


def _digits(token: str, thousands: str) -> tuple[str, Fraction]:
    """Return the kind and the value of a token that isn't a word of `_KINDS`."""
    if len(token) > MAX_DIGITS:
        return "X", Fraction(0)
    if token in _VULGAR:
        return "V", Fraction(unicodedata.numeric(token)).limit_denominator(8)
    grouped = _GROUPED.fullmatch(token)
    if grouped:
        first, groups, mark, decimals = grouped.groups()
        if len(groups) > 4 or decimals or mark in thousands:
            return "D", Fraction(re.sub(r"\D", "", first + groups) + (decimals or "").replace(",", "."))
        if token.endswith("0"):  # "1.000": 1 or a thousand
            return "X", Fraction(0)
    if re.fullmatch(r"(?:0|[1-9]\d*)?[.,]\d+|\d+", token):
        return "D", Fraction(token.replace(",", "."))
    return "X", Fraction(0)


def _whole(kinds: str, values: list[Fraction]) -> Fraction:
    """Return the value of cardinal words and digits."""
    total = part = Fraction(0)
    for kind, value in zip(kinds, values, strict=True):
        if kind == "H":
            part *= value
        elif kind == "K":
            total, part = total + part * value, Fraction(0)
        else:
            part += value
    return total + part


def _part(kinds: str, values: list[Fraction]) -> Fraction | None:
    """Return the value of a fraction; None for a denominator of 0 and for one of decimals."""
    if "S" in kinds:
        above, _, below = values
        readable = below and above.denominator == below.denominator == 1
        return above / below if readable else None
    return values[-1] * (sum(values[:-1]) or 1)


def _code(tokens: list[str]) -> str:
    """Return the digits of a code: of one token, or of several of the same length with spaces or hyphens between."""
    if all(kind in "OUZ" for kind, _ in (_KINDS.get(token, ("X", 0)) for token in tokens if token != "-")):
        return "".join(str(_KINDS[token][1]) for token in tokens if token != "-")
    pieces = [piece for token in tokens if token != "-" for piece in token.split(" ")]
    if not all(piece.isdecimal() for piece in pieces) or len({len(piece) for piece in pieces}) > 1:
        return ""
    if len(pieces) == 3 and len(pieces[0]) == 2 and any(1 <= int(piece) <= 12 for piece in pieces[:2]):
        return ""  # it may be a date
    return "".join(pieces)
