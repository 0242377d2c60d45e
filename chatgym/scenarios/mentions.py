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
        bare: Whether it is a number that counts only beside another value ("5 days ago, no, 8", "5 days ago, maybe 6").
    """

    start: int
    end: int
    value: T | None
    bare: bool = False


BOUND_BEFORE = (
    r"\b(?:(?:more|less|fewer|longer|later|earlier|other|bigger|greater|smaller|higher|lower) than|over|under|above|"
    r"below|within|at (?:least|most)|up to|almost|nearly|barely|m(?:ax|in)(?:imum)?(?: of)?|till|until|either)|[<>≤≥±]"
)
"""What stands before a value that is only a bound."""
BOUND_AFTER = r"\+| ?(?:or (?:more|less)|at (?:the )?(?:least|most|latest|earliest)|tops|max|maximum|minimum)\b"
"""What stands after it."""
_NOT = (
    r"\b(?:not\b(?! (?:certain|mistaken|wrong|sure\b(?! (?:if|it|whether|that)\b)))|"
    r"(?!(?:can'?t|don'?t|couldn'?t) (?:believe|know|remember|recall|forget)\b)"
    r"(?:\w+n't|(?:is|was|are|were|did|do|does|have|has|ca|wo)nt)\b|cannot\b(?! (?:believe|remember)\b)|"
    r"(?:never|neither|nor|without|(?<!n't )(?<!not )forget|ignore|instead of|rather than|wrong (?:\w+ )?(?:is|was))\b)"
)
_FILLS = (
    r"(?:(?:it|that)(?:'?s)?|is|was|be|been|ha(?:ve|s|d)|the|a|my|your|this|order(?:ed)?|number|ref|reference|no|nr|"
    r"account|[io]n|about|for|from|exactly|even|only|just|really|actually|as|of|say|said|mean|meant|think|i|you|amount|"
    r"date|price|more|like|around|should|must|would|rather|correct|right|real|full|new|so)"
)
"""Words that may stand between "not", "no" or "I meant" and the value that it is about."""
_GOVERNED = re.compile(rf"\bwrong: ?$|{_NOT}(?:[^\w.,;:!?]+{_FILLS})*[^\w.,;:!?]*$")
_CLAUSE = re.compile(
    r"[;:!?,]|\.(?!\d)|\b(?:and|but|because|since|when|which|who|while|though|although)\b|"
    r"(?<!think )(?<!believe )(?<!said )(?<!say )(?<!sure )(?<!that )(?<!if )(?<!whether )(?<!n't )(?<!not )"
    r"\b(?:i|we|you|it|it's|its|mine)\b"
)
_WRONG = r"(?:wrong|incorrect|false|a typo|a mistake|(?:the|a|my) (?:wrong|old|previous|former|other))\b"
_RIGHT = r"(?:the )?(?:right|correct|mine|ours|true|accurate|it)\b(?!\?)"
_OF_IT = r"(?:my|our|the|what|me)\b"
_DENIED = re.compile(
    rf"\s(?:is|was|are|were|seems|looks) (?:\w+ly |just )?(?:{_WRONG}|not (?:{_RIGHT}|{_OF_IT}))|"
    rf"\s?[,?]?\s?(?:that|this|which)(?: i|'?)s (?:{_WRONG}|not {_RIGHT})|"
    rf"\s(?:(?:is|was|are|were|does|ca|could)n'?t|cannot) (?:be |sound |look |seem )?(?:{_RIGHT}|{_OF_IT})|"
    r"(?:\s?[,?-]|\.\.+|…)?\s?(?:no|nope|nah|wrong|incorrect)\b"
    r"(?=\s?(?:$|[,.!?…-]|#|wait|way|sorry|it|that|i m|actually|make))"
)
_TAG = re.compile(r"\s(?:is|was)n'?t it\b")
_VERB = re.compile(r"\b(?:is|be|was|it'?s|that'?s|say|think|get|got)\b[^.,;:!?]*$")
_CORRECTS = re.compile(
    r"\b(?:no|nope|nah|sorry|wait|oops|ah|actually|rather|correction|meant?|make|scratch|instead|better|pardon|typo|now|"
    rf"but (?:it|that|not|i)(?:'?s)?)\b(?:\W+{_FILLS})*\W*$"
)
_OR = re.compile(
    rf"\b(?:or|says?|thinks?|maybe|perhaps|possibly|probably|even|(?:might|could|may) be)(?:\W+{_FILLS})*[^\w.!?]*$"
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
        corrects = i > 0 and bool(_CORRECTS.search(before))
        if (mention.bare and not corrects and not (i and _OR.search(before))) or _denied(
            before, text, mention.end, strict
        ):
            continue
        if i > 0 and _OR.search(before):
            mention = mention._replace(value=None)
        left = [mention] if corrects else [*left, mention]
    return left


def only_value(mentions: Sequence[Mention[T]]) -> T | None:
    """Return the value that mentions have in common; None if there are several or one can't be read."""
    values = {mention.value for mention in mentions}
    return values.pop() if len(values) == 1 else None


def _denied(before: str, text: str, end: int, strict: bool) -> bool:
    """Tell whether a value is denied by the words before it, or by those after it, which begin at `end` in `text`."""
    tag = _TAG.match(text, end) and _VERB.search(before)  # "that would be 12 isn't it"
    if _GOVERNED.search(before) or (_DENIED.match(text, end) and not tag):
        return True
    return strict and bool(re.search(_NOT, _CLAUSE.split(before)[-1]))
