"""Convert between records and meanings in words: for NLG, NLU, and descriptions for people."""

from __future__ import annotations

import dataclasses
import functools
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from chatgym.dynamics.scenario import ABOUT, TONES, Meaning
from chatgym.scenarios.customer_service.belief import least_sure
from chatgym.scenarios.customer_service.customer import say
from chatgym.scenarios.customer_service.policy import *
from chatgym.scenarios.mentions import BOUND_AFTER, BOUND_BEFORE, Mention, meant, only_value
from chatgym.scenarios.numbers import Number, find_numbers, mask, plain, stands_before


def surface(slot: int, value: int) -> str:
    """Return the words for a value of date, amount or reference."""
    if slot == DATE:
        if value == 1:
            return "yesterday"
        return f"{value // 7} weeks ago" if value % 7 == 0 and value > 7 else f"{value} days ago"
    return f"{value} euros" if slot == AMOUNT else str(value)


def _part(prefix: str, slot: int, value: int) -> str:
    """Return the key into the sentences for a slot: ``"inform/date"``, ``"confirm/proof_yes"``."""
    name = SLOTS[slot]
    if slot == PROOF:
        name = "proof_yes" if value else "proof_no"
    return f"{prefix}/{name}"


def _slot_parts(prefix: str, record: Any, slots: list[int]) -> tuple[list[str], dict[str, str]]:
    """Return the sentence keys of some slots of `record`, a belief or said record, and the words for their values."""
    parts, surfaces = [], {}
    for slot in slots:
        value = int(record[SLOTS[slot]])
        parts.append(_part(prefix, slot, value))
        if slot in (REFERENCE, DATE, AMOUNT):
            surfaces[SLOTS[slot]] = surface(slot, value)
    return parts, surfaces


def partner_meaning(said: Any) -> Meaning:
    """Return the `Meaning` of `said`, a record or a dict of its fields, for NLG."""
    act = int(said["act"])
    name, about = USER_ACTS[act], int(said["about"])
    named = [slot for slot in range(1, 5) if int(said["slots"]) & (1 << slot)]
    if act in (INFORM, CORRECT) and about > TOPIC:
        named.remove(about)
        parts, surfaces = _slot_parts(name, said, [about])
    elif act == STATE_PROBLEM:
        parts, surfaces = [f"state_problem/{TOPICS[said['topic']]}"], {}
    elif act == CORRECT:
        parts, surfaces = ["correct/topic", f"state_problem/{TOPICS[said['topic']]}"], {}
    elif act == BYE and about == TOPIC:
        parts, surfaces = ["bye/left"], {}
    elif act == AFFIRM and about < 0:
        parts, surfaces = ["affirm/understood"], {}
    else:
        parts, surfaces = [name], {}
    more, more_surfaces = _slot_parts("inform", said, named)
    return Meaning(name, (*parts, *more), {**surfaces, **more_surfaces}, TONES[said["tone"]])


def heard_meaning(said: Any, belief: Any) -> Meaning:
    """Return what the agent heard of `said`, both records or dicts of their fields, after `understand`."""
    act, heard, about = int(said["act"]), int(belief["heard"]), int(said["about"])
    if heard == UNCLEAR:
        return Meaning("unclear", (), {}, TONES[said["tone"]])
    slots = [slot for slot in range(5) if int(said["slots"]) & (1 << slot)]
    out = {name: said[name] for name in SAID.names or ()} | {SLOTS[slot]: belief[SLOTS[slot]] for slot in slots}
    if heard == INFORM and about == TOPIC:
        heard = STATE_PROBLEM  # how the topic is told
    if heard == AFFIRM != act:
        about = int(belief["confirming"])
    meaning = partner_meaning({**out, "act": heard, "about": about})
    parts = meaning.parts
    if TOPIC in slots and not any(part.startswith("state_problem") for part in parts):
        parts = (*parts, f"state_problem/{TOPICS[out['topic']]}")
    doubtful = {SLOTS[slot] for slot in slots if belief["sure"][slot] == 1}
    unsure = tuple(part for part in parts if _slot_of(part) in doubtful)
    return dataclasses.replace(meaning, parts=parts, unsure=unsure)


def _slot_of(part: str) -> str:
    """Return the slot whose value a part of the partner's sentences holds, or an empty text."""
    of, _, detail = part.partition("/")
    if of == "state_problem":
        return "topic"
    return detail.partition("_")[0] if of in ("inform", "correct") and detail != "topic" else ""


def agent_meaning(act: int, belief: Any) -> Meaning:
    """Return the `Meaning` of an agent act, given `belief`, a record, before the agent speaks."""
    name = AGENT_ACTS[act]
    if act == CONFIRM:
        slot = int(least_sure.py_func(belief))
        if slot < 0:
            return Meaning(name, ("ask_topic",))
        if slot == TOPIC:
            return Meaning(name, ("confirm/topic",), {"topic": TOPIC_NAMES[belief["topic"]]})
        parts, surfaces = _slot_parts("confirm", belief, [slot])
        return Meaning(name, tuple(parts), surfaces)
    if OFFER_REFUND <= act <= OFFER_CREDIT and belief["sure"][TOPIC]:
        name_of_topic = TOPICS[belief["topic"]]
        return Meaning(name, (f"{name}/{name_of_topic}",))
    return Meaning(name, (name,))


TOPIC_NAMES = (
    "returning an item", "a late delivery", "a broken product", "a wrong charge", "access to your account",
    "your subscription",
)  # fmt: skip


AGENT_CODES = {
    f"confirm/{detail}": CONFIRM + ABOUT * (slot + 1)
    for slot, details in enumerate((("topic",), ("reference",), ("date",), ("amount",), ("proof_yes", "proof_no")))
    for detail in details
}

EXAMPLES = {"reference": "482913", "date": "3 days ago", "amount": "40 euros"}
"""Words for a value of each slot. Models see only these, so their wordings fit every value."""

MAX_DAYS = 9999
_NUMBER = "#~*"
"""A number in a masked text, see `chatgym.scenarios.numbers.mask`."""
_DAYS = {"day": 1, "week": 7, "fortnight": 14, "month": 30, "year": 365}
_NAMED = {"yesterday": 1, "last week": 7, "last month": 30, "day before yesterday": 2, "week before last": 14}
_WORDS_OF_DATES = (" ago", "yesterday", "last")
_UNIT = "|".join(_DAYS)
_COUNT = rf"(?:{_NUMBER}(?: an?)?|\b(?:a )?couple(?: of)?|\ban?)"
_TIME = rf"{_COUNT} ?(?:{_UNIT})s?"
_DATE = re.compile(
    rf"{_TIME}(?:(?:,|,? and)? (?:{_TIME}|{_NUMBER}(?! an? ?(?:{_UNIT}))))* ago\b|"
    rf"\b(?:the (?=day|week))?(?P<named>{'|'.join(sorted(_NAMED, key=len, reverse=True))})\b"
)
_STEP = re.compile(rf"(?P<count>{_COUNT}) ?(?P<unit>{_UNIT})|{_NUMBER}")
_CURRENCY = r"(?:euros?\b|eur\b|dollars?\b|pounds?\b|bucks\b|[€$£](?!\w))"
_AMOUNT = re.compile(
    rf"(?:(?:[€$£]|\beur) ?(?P<before>{_NUMBER})|(?P<after>{_NUMBER}) ?{_CURRENCY})"
    rf"(?: (?:and )?(?P<cents>{_NUMBER}) cents?\b| (?P<more>#~{{0,4}})(?=[,.?!]|$))?"
)
_UNSURE_BEFORE = re.compile(
    rf"(?<![a-z])(?:{BOUND_BEFORE}|\b(?:minus|plus|every|each|or|by|before|after|half|early|late|mid|twice|was no|"
    r"and a half,?|days? \w+|(?:end|beginning|middle|start|half|third|most|some|part|rest) of(?: the)?|"
    r"(?:should(?:'?ve| have| of)|supposed to)(?: \w+){0,2})|[x*×/-]|"
    rf"(?:{_COUNT}|\b(?:few|several|some|many)) (?:hour|minute|{_UNIT})s?(?: or so)?,?(?: (?:and|to|from|[&+]|maybe))?|"
    rf"{_NUMBER} times|{_NUMBER} ?(?:%|percent) (?:off?|on|from)(?: the)?|{_NUMBER} off?|#~{{0,4}} \w+s of|"
    rf"{_NUMBER},? (?:maybe|perhaps|even)|"
    r"(?<!not )(?<!n't )#~{0,4} *[.,'?][.,'? ]*|\d[ .,'-]+) ?$"
)
_UNSURE_AFTER = re.compile(
    rf"[-/]|{BOUND_AFTER}|[ ,(]*\bor (?!so\b|something)|\s?(?:to|till|until) ?[€$£]?#|"
    r"(?: ?[,.?!…]+| and) ?#~{0,4}(?= ?(?:[,.?!)]|$|(?:actually|rather|maybe|sorry|i)\b))"
)
"""What stands before and after a value that is a bound, in a range, a share, or only a part of the value."""
_NOT_THE_DAY = re.compile(
    r"'s\b|,? (?:(?:before|from|last|next|yesterday|tomorrow|week|of)\b|on the #|"
    r"(?:on )?(?:mon|tues|wednes|thurs|fri|satur|sun)day\b)"
)
_NOT_THE_SUM = re.compile(
    r" ?[x*×+&] ?#| (?:plus|minus|each|apiece|(?:#~* )?times|twice|more|less|extra|off|cheaper|too|"
    r"(?:per|an?) (?:item|piece|unit|person|head|pair))\b"
)
_MEASURED = re.compile(rf" ?(?:{_CURRENCY}|%|percent|(?:{_UNIT}|hour|minute|cent|point|time|km|kg)s?\b)")
_NO_ORDER = re.compile(
    r"(?:\b(?:(?:tele)?phone|tel|mobile|fax|zip|pin|(?:post)?code|(?:end|start|begin)s? (?:in|with)|digits)\b"
    r"[^\d!?,]{0,12}|\d[ -]|\b(?:tracking|invoice|receipt|iban|serial|card|ticket|voucher|coupon|parcel|model)"
    r"(?: (?:number|no\.?|nr\.?|code|id))?(?: is|'s|:)? ?#?)$"
)
_CLAUSES = re.compile(r"\b(?:but|and|no|not|sorry|wait|rather)\b|[,.;:!?(]")
"""What parts a count from an amount that isn't for each ("3 vouchers at 40 euros")."""
_GLUED = re.compile(r"[-/]\w| ?[x*×] ?[\d#]")


def find_slots(text: str) -> tuple[dict[str, int], str]:
    """Find reference, date (in days ago) and amount (in whole euros) in a text, and replace them by `EXAMPLES`.

    A value that isn't read whole or for sure isn't found: if it is a range or a bound ("over 100 euros"), if it is
    denied, or if there are several of which none is corrected.
    """
    slots, canonical = _found(text)
    return dict(slots), canonical


@functools.lru_cache(maxsize=4096)  # agents and partners repeat themselves
def _found(text: str) -> tuple[Mapping[str, int], str]:
    """Return what `find_slots` does."""
    read = find_numbers(low := plain(text), thousands=".,' ")
    if not read and not any(word in low for word in _WORDS_OF_DATES):
        return {}, text
    masked, numbers = mask(low, read), {number.start: number for number in read}
    mentions = {"date": [*_dates(masked, numbers)], "amount": [*_amounts(masked, numbers)]}
    taken = {at for found in mentions.values() for one in found for at in range(one.start, one.end)}
    free = [n for n in read if n.start not in taken]
    mentions["reference"] = [*_references(masked, free)]
    orders = {mention.start for mention in mentions["reference"]}
    bare = [
        Mention(n.start, n.end, None, bare=True)
        for n in free
        if n.start not in orders and low[n.start : n.end] != "one" and not _MEASURED.match(masked, n.end)
    ]
    mentions["amount"] = [*_not_each(masked, mentions["amount"], bare)]
    slots: dict[str, int] = {}
    spans: list[tuple[int, int, str]] = []
    for slot, found in mentions.items():
        if not found:
            continue
        value = only_value(meant(masked, sorted(found + bare), strict=slot != "reference"))
        if value is not None:
            slots[slot] = value
        spans += [(mention.start, mention.end, EXAMPLES[slot]) for mention in found]
    for start, end, example in sorted(spans, reverse=True):
        text = text[:start] + example + text[end:]
    return slots, text


def _dates(masked: str, numbers: Mapping[int, Number]) -> Iterator[Mention]:
    """Yield the dates in a masked text."""
    for found in _DATE.finditer(masked) if any(word in masked for word in _WORDS_OF_DATES) else ():
        lasting = found[0].startswith("last") and masked.endswith("the ", 0, found.start())  # "the last month"
        unsure = lasting or _unsure(masked, *found.span(), _NOT_THE_DAY)
        yield Mention(*found.span(), None if unsure else _days(found, numbers))


def _days(found: re.Match[str], numbers: Mapping[int, Number]) -> int | None:
    """Return how many days ago a date is; None if they aren't whole days."""
    if found["named"]:
        return _NAMED[found["named"]]
    total, unit = Fraction(0), max(_DAYS.values()) + 1
    for step in _STEP.finditer(found.string, *found.span()):
        words, name = step["count"] or "#", step["unit"]
        count = numbers[step.start()].value if words[0] == "#" else Fraction(2 if "couple" in words else 1)
        part = not name or words.endswith("a")  # "a week and a half", "half a week"
        if count is None or (part and words[0] == "#" and count >= 1) or (name and _DAYS[name] >= unit):
            return None
        unit = _DAYS[name] if name else unit
        total += count * unit
    return int(total) if total.denominator == 1 and 1 <= total <= MAX_DAYS else None


def _amounts(masked: str, numbers: Mapping[int, Number]) -> Iterator[Mention]:
    """Yield the amounts in a masked text."""
    for found in _AMOUNT.finditer(masked) if numbers else ():
        unsure = _unsure(masked, *found.span(), _NOT_THE_SUM)
        yield Mention(*found.span(), None if unsure else _euros(found, numbers))


def _not_each(masked: str, amounts: Sequence[Mention], counts: Sequence[Mention]) -> Iterator[Mention]:
    """Yield amounts, without a value if a count stands before one in its clause: "3 vouchers at 40 euros"."""
    clauses = [found.start() for found in _CLAUSES.finditer(masked)]
    first: dict[int, int] = {}
    for count in counts:
        first.setdefault(bisect(clauses, count.start), count.end)
    for one in amounts:
        before = first.get(bisect(clauses, one.start), one.end)
        yield one._replace(value=None) if before <= one.start else one


def _euros(found: re.Match[str], numbers: Mapping[int, Number]) -> int | None:
    """Return the whole euros of an amount; None if the cents decide its case of the policy."""
    number = numbers[found.start("before" if found["before"] else "after")]
    at = max(found.start("cents"), found.start("more"))
    cents = numbers[at].value if at >= 0 else Fraction(0)
    if number.value is None or number.fraction or cents is None or not 0 <= cents < 100:
        return None
    euros = number.value + cents / 100
    same = case.py_func(AMOUNT, euros) == case.py_func(AMOUNT, int(euros))
    return int(euros) if same and 1 <= euros < 10**6 else None


def _references(masked: str, free: Sequence[Number]) -> Iterator[Mention]:
    """Yield the order numbers among numbers that are no part of a date or an amount."""
    starts, ends = {number.start for number in free}, {number.end for number in free}
    for number in free:
        if len(number.code) != 6 or _MEASURED.match(masked, number.end):
            continue
        row = (number.start - 1 in ends and masked[number.start - 1] in " -") or (
            number.end + 1 in starts and masked[number.end] in " -"
        )
        part = row or _GLUED.match(masked, number.end) or stands_before(_NO_ORDER, masked, number.start)
        sure = number.code[0] != "0" and not part
        yield Mention(number.start, number.end, int(number.code) if sure else None)


def _unsure(masked: str, start: int, end: int, after: re.Pattern[str]) -> bool:
    """Tell whether the words around a value make it another value, or one of several."""
    before = stands_before(_UNSURE_BEFORE, masked, start)
    return bool(before or _UNSURE_AFTER.match(masked, end) or after.match(masked, end))


def parse(act: str, part: str, slots: Mapping[str, int], said: Any) -> None:
    """Write a customer's utterance that NLU understood (`chatgym.words.nlu.Understanding`) into `said`, a record."""
    say.py_func(said, USER_ACTS.index(act) if act in USER_ACTS else UNCLEAR)
    of, _, detail = part.partition("/")
    values = dict(slots)
    if of == "state_problem":
        values["topic"] = TOPICS.index(detail)
    elif detail.startswith("proof"):
        values["proof"] = int(detail == "proof_yes")
    for slot, name in enumerate(SLOTS):
        if name in values:
            said[name] = values[name]
            said["slots"] |= 1 << slot
            if said["about"] < 0 or detail.startswith(name):
                said["about"] = slot
    if part == "bye/left":
        said["about"] = TOPIC


CASES = {
    DATE: ("14 days or less ago", "15 to 30 days ago", "longer ago"),
    AMOUNT: ("up to 100 euros", "over 100 euros"),
    PROOF: ("no proof", "proof"),
}
RESOLUTIONS = ("offer_refund", "offer_fix", "offer_credit", "escalate")


def instructions() -> str:
    """Return the resolution policy in words, made from its table."""
    lines = ["Ask for the order number and for what the case needs, then grant what the policy says, once it is clear:"]
    for topic, name in enumerate(TOPIC_NAMES):
        first, second = (int(slot) for slot in REQUIRED[topic])
        for case_1, words in enumerate(CASES[first]):
            granted = [RESOLUTIONS[resolution] for resolution in RIGHT[topic, case_1]]
            if second < 0:
                what = granted[0]
            elif granted[0] == granted[1]:
                what = f"{granted[0]} (ask for {SLOTS[second]} all the same)"
            else:
                what = ", ".join(f"{word}: {act}" for word, act in zip(CASES[second], granted, strict=False))
            lines.append(f"- {name}, {words}: {what}")
    lines.append("After an accepted offer, check_satisfaction, answer what is asked (explain), and close.")
    return "\n".join(lines)


def describe_belief(belief: Any) -> str:
    """Describe what the agent understood so far, from `belief`, a record."""
    noted = []
    for slot, name in enumerate(SLOTS):
        sure, value = int(belief["sure"][slot]), int(belief[name])
        if sure:
            words = (
                TOPIC_NAMES[value] if slot == TOPIC else CASES[PROOF][value] if slot == PROOF else surface(slot, value)
            )
            noted.append(words + ("", " (unsure)", "", " (confirmed)")[sure])
    return ", ".join(noted) or "nothing yet"


def describe_goal(hidden: Any) -> str:
    """Describe the customer's goal and the right resolution, from `hidden`, a record."""
    topic = int(hidden["topic"])
    right = ("a refund", "a fix", "a credit", "the supervisor")[int(right_resolution(hidden))]
    facts = [f"number {hidden['reference']}", surface(DATE, int(hidden["date"]))]
    facts += [surface(AMOUNT, int(hidden["amount"])), "has proof" if hidden["proof"] else "has no proof"]
    return f"{TOPICS[topic].replace('_', ' ')} ({', '.join(facts)}); right: {right}"
