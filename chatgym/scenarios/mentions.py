"""Choose the value that a text means, of all that it mentions: not those that it denies, nor those that it corrects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Mention(NamedTuple, Generic[T]):
    """A value that a text mentions.

    Attributes:
        start: Where its words begin.
        end: Where they end.
        value: The value; None if it can't be read.
        bare: Whether it is a number that means the same kind of value only where it corrects one ("5 days ago, no, 8").
    """

    start: int
    end: int
    value: T | None
    bare: bool = False


_NOT = (
    r"\b(?:not\b(?! (?:certain|mistaken|wrong|sure\b(?! (?:if|it|whether|that)\b)))|"
    r"(?!(?:can'?t|don'?t|couldn'?t) (?:believe|know|remember|recall|forget)\b)"
    r"(?:\w+n't|(?:is|was|are|were|did|do|does|have|has|ca|wo)nt)\b|cannot\b(?! (?:believe|remember)\b)|"
    r"(?:never|neither|nor|without|forget|ignore|wrong|instead of|rather than)\b)"
)
_FILLS = (
    r"(?:(?:it|that)(?:'?s)?|is|was|be|been|ha(?:ve|s|d)|the|a|my|your|this|order(?:ed)?|number|ref|reference|no|nr|"
    r"account|[io]n|about|for|from|exactly|even|only|just|really|actually|as|of|say|said|mean|meant|think|i|you|amount|"
    r"date|price|more|like|around|should|must|would|rather|correct|right|real|full|new|so)"
)
"""Words that may stand between "not", "no" or "I meant" and the value that it is about."""
_GOVERNED = re.compile(rf"{_NOT}(?:[^\w.,;:!?]+{_FILLS})*[^\w.,;:!?]*$")
_CLAUSE = re.compile(
    r"[;:!?,]|\.(?!\d)|\b(?:and|but|because|since|when|which|who|while|though|although)\b|"
    r"(?<!think )(?<!believe )(?<!said )(?<!say )(?<!sure )(?<!that )(?<!if )(?<!whether )(?<!n't )(?<!not )"
    r"\b(?:i|we|you|it|it's|its|mine)\b"
)
_WRONG = r"(?:wrong|incorrect|false|a typo|a mistake|(?:the|a|my) (?:wrong|old|previous|former|other))\b"
_RIGHT = r"(?:the )?(?:right|correct|mine|ours|true|accurate|it)\b(?!\?)"
_DENIED = re.compile(
    rf"\s(?:is|was|are|were|seems|looks) (?:\w+ly |just )?(?:{_WRONG}|not (?:{_RIGHT}|my\b|our\b|the\b|what\b|me\b))|"
    rf"\s?,?\s?(?:that|this|which)(?: i|'?)s (?:{_WRONG}|not {_RIGHT})|"
    rf"\s(?:(?:is|was|are|were|does|ca|could)n'?t|cannot) (?:be |sound |look |seem )?(?:{_RIGHT}|my\b|our\b|the\b|what\b)|"
    r"(?:\s?[,?-]|\.\.+|…)?\s?(?:no|nope|nah|wrong|incorrect)\b(?=\s?(?:$|[,.!?…-]|#|wait|sorry|it|that|i m|actually|make))"
)
_CORRECTS = re.compile(
    rf"\b(?:no|nope|nah|sorry|wait|oops|ah|actually|rather|correction|meant?|make|scratch|instead|better|pardon|typo|now|"
    rf"but (?:it|that|not|i))\b(?:\W+{_FILLS})*\W*$"
)


def meant(text: str, mentions: Sequence[Mention[T]], strict: bool = True) -> list[Mention[T]]:
    """Return the mentions that a text doesn't deny or correct.

    Args:
        text: The text as `chatgym.scenarios.numbers.plain` returns it.
        mentions: What it mentions, in order.
        strict: Whether a denial anywhere in a clause counts ("it didn't come 5 days ago"), and not only one about the
            value itself ("I didn't get my order 482913").
    """
    left: list[Mention[T]] = []
    for i, mention in enumerate(mentions):
        before = text[mentions[i - 1].end if i else 0 : mention.start]
        corrects = bool(_CORRECTS.search(before)) and i > 0
        if (mention.bare and not corrects) or _denied(before, text, mention.end, strict):
            continue
        left = [mention] if corrects else [*left, mention]
    return left


def only_value(mentions: Sequence[Mention[T]]) -> T | None:
    """Return the value that mentions have in common; None if there are several or one can't be read."""
    values = {mention.value for mention in mentions}
    return values.pop() if len(values) == 1 else None


def _denied(before: str, text: str, end: int, strict: bool) -> bool:
    """Tell whether a value is denied by the words before it, or by those after it, which begin at `end` in `text`."""
    if _GOVERNED.search(before) or _DENIED.match(text, end):
        return True
    return strict and bool(re.search(_NOT, _CLAUSE.split(before)[-1]))
