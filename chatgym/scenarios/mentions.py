"""Choose the value that a text means, of all that it mentions: not those that it denies, nor those that it corrects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple


class Mention(NamedTuple):
    """A value that a text mentions.

    Attributes:
        start: Where its words begin.
        end: Where they end.
        value: The value; None if it can't be read.
        bare: Whether it is a number that counts only beside another value ("5 days ago, no, 8", "5 days ago, maybe 6").
    """

    start: int
    end: int
    value: Any
    bare: bool = False


BOUND_BEFORE = (
    r"\b(?:(?:more|less|fewer|longer|later|earlier|other|bigger|greater|smaller|higher|lower) than|over|under|above|"
    r"below|within|at (?:least|most)|up to|almost|nearly|barely|hardly|starting (?:at|from)|"
    r"as (?:much|little|many|few|long) as|m(?:ax|in)(?:imum)?(?: of)?|till|until|either)|[<>≤≥±]"
)
"""What stands before a value that is only a bound."""
BOUND_AFTER = (
    r"\+|,? ?(?:almost|nearly|"
    r"or (?:more|less)|(?:and )?(?:up|upwards?|onwards?|above)|at (?:the )?(?:least|most|latest|earliest)|tops|"
    r"max|maximum|minimum)\b"
)
"""What stands after it."""
_NOT = (
    r"\b(?:not\b(?! (?:certain|mistaken|wrong|sure\b(?! (?:if|it|whether|that)\b)))|"
    r"(?!(?:can'?t|couldn'?t) (?:believe|remember|recall)\b|don'?t (?:know|remember|recall|forget)\b)"
    r"(?:\w+n't|(?:is|was|are|were|did|do|does|have|has|ca|wo)nt)\b|cannot\b(?! (?:believe|remember)\b)|"
    r"(?:never|neither|nor|nobody|nothing|without|(?<!n't )(?<!not )forget|ignore|doubt|deny|refuse|except|instead of|"
    r"rather than|apart from|far from|(?:any|every)thing but|no (?:way|means)|(?:wrong|false) that|"
    r"wrong (?:\w+ )?(?:is|was))\b)"
)
_DENIES = re.compile(
    r"n[o']?t|never|neither|no[rb ]|without|forget|ignore|doubt|deny|refuse|except|instead|rather|from|thing|wrong|"
    r"false"
)
"""What each `_NOT` has in it, for a quick look."""
_FILLS = (
    r"(?:(?:it|that)(?:'?s)?|is|was|be|been|ha(?:ve|s|d)|the|a|my|your|this|order(?:ed)?|number|ref|reference|no|nr|"
    r"account|[io]n|about|for|from|exactly|even|only|just|really|actually|as|of|say|said|mean|meant|think|i|you|amount|"
    r"date|price|more|like|around|should|must|would|rather|correct|right|real|full|new|so)"
)
"""Words that may stand between "not", "no" or "I meant" and the value that it is about."""
_GOVERNED = re.compile(rf"\bwrong: ?$|{_NOT}(?:[^\w.,;:!?]+{_FILLS})*[^\w.,;:!?]*$")
_CLAUSE = re.compile(
    r"[;:!?,]|\.(?!\d)|\b(?:and|but|because|since|when|which|who|while|though|although)\b|"
    r"(?<!think )(?<!believe )(?<!said )(?<!say )(?<!sure )(?<!that )(?<!if )(?<!whether )(?<!n't )(?<!not )(?<!way )"
    r"\b(?:(?:i|we|they|mine)\b|you (?:said|say|have|had|took|charged|wrote|noted|got|can|are)\b|"
    r"it(?:'?s| is| was| cost| came| happened| must| should| has)\b)"
)
_WRONG = r"(?:wrong|incorrect|false|impossible|a typo|a mistake|(?:the|a|my) (?:wrong|old|previous|former|other))\b"
_RIGHT = r"(?:the )?(?:right|correct|mine|ours|true|accurate|it)\b(?!\?)"
_OF_IT = r"(?:my|our|the|what|me)\b"
_DENIED = re.compile(
    rf",?\s(?:is|was|are|were|seems|looks) (?:\w+ly |just )?(?:{_WRONG}|not (?:{_RIGHT}|{_OF_IT}))|"
    rf"\s?[,?]?\s?(?:that|this|which)(?: i|'?)s (?:{_WRONG}|not {_RIGHT})|"
    rf"\s(?:(?:is|was|are|were|does|ca|could|ai)n'?t|cannot) (?:be |sound |look |seem )?(?:{_RIGHT}|{_OF_IT})|"
    r"\scan(?:'?t|not) be(?= ?[.,!?]|$)|\s?\? ?(?:hardly|never|not (?!#)|i don'?t)|\s?[,-]+ ?not th(?:at|is) #|"
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
    r"\b(?:or|says|thinks|maybe|perhaps|possibly|probably|even|well|uh+|um+|er|h+m+|(?:might|could|may) be)"
    rf"(?:\W+{_FILLS})*[^\w.!?]*$"
)


def meant(text: str, mentions: Sequence[Mention], strict: bool = True) -> list[Mention]:
    """Return the mentions that a text doesn't deny or correct.

    Args:
        text: The text as `chatgym.scenarios.numbers.mask` returns it.
        mentions: What it mentions, in order.
        strict: Whether a denial anywhere in a clause counts ("it didn't come 5 days ago"), and not only one about the
            value itself ("I didn't get my order 482913").
    """
    left: list[Mention] = []
    for i, mention in enumerate(mentions):
        before = text[mentions[i - 1].end if i else 0 : mention.start]
        corrects = i > 0 and bool(_CORRECTS.search(before))
        unsure = i > 0 and bool(_OR.search(before))
        if (mention.bare and not corrects and not unsure) or _denied(before, text, mention.end, strict):
            continue
        if unsure:
            mention = mention._replace(value=None)
        left = [mention] if corrects else [*left, mention]
    return left


def only_value(mentions: Sequence[Mention]) -> Any:
    """Return the value that mentions have in common; None if there are several or one can't be read."""
    values = {mention.value for mention in mentions}
    return values.pop() if len(values) == 1 else None


def _denied(before: str, text: str, end: int, strict: bool) -> bool:
    """Tell whether a value is denied by the words before it, or by those after it, which begin at `end` in `text`."""
    if _DENIED.match(text, end) and not (_TAG.match(text, end) and _VERB.search(before)):
        return True
    if not _DENIES.search(before):
        return False
    return bool(_GOVERNED.search(before) or (strict and re.search(_NOT, _CLAUSE.split(before)[-1])))
