"""Convert between records and meanings in words: for NLG, NLU, and descriptions for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chatgym.dynamics.scenario import ABOUT, TONES, Meaning
from chatgym.scenarios.customer_service.belief import least_sure
from chatgym.scenarios.customer_service.customer import say
from chatgym.scenarios.customer_service.policy import *


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

_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBERS = {word: n for n, word in enumerate(_WORDS, 1)}
_NUMBERS["a couple of"] = 2
_COUNT = rf"(?P<count>\d{{1,3}}|{'|'.join(_NUMBERS)}|an?)"
_SUM = r"\d{1,3}(?:[.,]\d{3})+|\d{1,6}"
_PATTERNS = {
    "date": re.compile(
        rf"\b(?:(?P<yesterday>yesterday)|last (?P<last>week|month)|{_COUNT} (?P<unit>day|week|month)s? ago)\b", re.I
    ),
    "amount": re.compile(
        rf"(?:[€$£]\s?|\bEUR\s?)(?P<before>{_SUM})(?:[.,]\d\d)?\b|"
        rf"\b(?P<after>{_SUM})(?:[.,]\d\d)?\s?(?:euros?\b|eur\b|dollars?\b|pounds?\b|bucks\b|[€$£])", re.I),
    "reference": re.compile(r"(?<![\w.,])\d{6}(?![\w€$£])"),
}  # fmt: skip
_DENIED = re.compile(r"\b(?:not|isn't|wasn't) $", re.I)
_DAYS = {"day": 1, "week": 7, "month": 30}


def _read(slot: str, found: re.Match[str]) -> int:
    """Return the number that a match of a slot's pattern means: days, euros or the reference."""
    if slot == "reference":
        return int(found[0])
    if slot == "amount":
        return int(re.sub(r"\D", "", found["before"] or found["after"]))
    if found["yesterday"]:
        return 1
    if found["last"]:
        return _DAYS[found["last"].lower()]
    count = found["count"].lower()
    return _DAYS[found["unit"].lower()] * (int(count) if count.isdigit() else _NUMBERS.get(count, 1))


def find_slots(text: str) -> tuple[dict[str, int], str]:
    """Find reference, date (in days ago) and amount (in euros) in a text, and replace them by `EXAMPLES`.

    Of several values the first that isn't negated counts ("not 5 days ago, 8 days ago").
    """
    slots: dict[str, int] = {}
    for slot, pattern in _PATTERNS.items():
        if found := list(pattern.finditer(text)):
            meant = [match for match in found if not _DENIED.search(text, 0, match.start())]
            slots[slot] = _read(slot, (meant or found)[0])
            text = pattern.sub(EXAMPLES[slot], text)
    return slots, text


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
