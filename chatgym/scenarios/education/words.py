"""Convert between records and meanings in words: for NLG, NLU, and descriptions for people."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from fractions import Fraction
from typing import Any

from chatgym.dynamics.scenario import TONES, Meaning
from chatgym.scenarios.education.policy import *
from chatgym.scenarios.education.problems import TEXTS, question, surface
from chatgym.scenarios.education.student import say
from chatgym.scenarios.mentions import BOUND_AFTER, BOUND_BEFORE, Mention, meant, only_value
from chatgym.scenarios.numbers import Number, find_numbers, mask, plain, stands_before

SKILL_NAMES = tuple(name.replace("_", " ") for name in SKILLS)
EXAMPLES_FROM = 1000
"""First number of worked examples; questions that the tutor asks are numbered 1, 2, …"""

LESSONS = {
    ARITHMETIC: (
        "add the ones first and carry the ten.",
        "products come before sums and differences.",
        "multiply before you subtract.",
    ),
    FRACTIONS: (
        "with equal denominators, add the numerators and keep the denominator.",
        "bring both to a common denominator before you add.",
        "to divide by a fraction, multiply by its inverse.",
    ),
    PERCENTAGES: (
        "percent means hundredths, so multiply and divide by a hundred.",
        "first work out how much the percentage is, then take it off.",
        "what you have is more than the whole, so divide to get back.",
    ),
    RATIOS: (
        "find what one costs, then multiply.",
        "count the parts, find what one part is, then multiply.",
        "with more hands it takes less time: multiply first, then divide.",
    ),
    EQUATIONS: (
        "do the same on both sides until x stands alone.",
        "take the number away on both sides, then divide.",
        "bring everything with x to one side first.",
    ),
    WORD_PROBLEMS: (
        "write down what you know, then work in steps.",
        "work out each group by itself, then add them up.",
        "call the unknown number x and write an equation.",
    ),
}


def partner_meaning(said: Any) -> Meaning:
    """Return the `Meaning` of `said`, a record or a dict of its fields, for NLG."""
    act, again = int(said["act"]), bool(said["about"])
    name, part, slots = USER_ACTS[act], USER_ACTS[act], {}
    if act == STATE_GOAL:
        part = f"state_goal/{SKILLS[said['goal']]}"
    elif act == ANSWER:
        part = "answer/again" if again else "answer"
        slots = {"answer": surface(int(said["num"]), int(said["den"]))}
    elif act == BYE and again:
        part = "bye/left"
    return Meaning(name, (part,), slots, TONES[said["tone"]])


def heard_meaning(said: Any, belief: Any) -> Meaning:
    """Return what the tutor heard of `said`, both records or dicts of their fields, after `understand`."""
    act, heard = int(said["act"]), int(belief["heard"])
    if heard == UNCLEAR:
        return Meaning("unclear", (), {}, TONES[said["tone"]])
    out = {name: said[name] for name in SAID.names or ()}
    out |= {"act": heard, "about": said["about"] if heard == act else 0}
    doubtful = False
    if heard == ANSWER and said["den"] > 0:
        out |= {"num": belief["num"], "den": belief["den"]}
        doubtful = belief["sure"] == 1
    elif heard == STATE_GOAL:
        out["goal"] = belief["goal"]
        doubtful = belief["goal_sure"] == 1
    meaning = partner_meaning(out)
    return dataclasses.replace(meaning, unsure=meaning.parts if doubtful else ())


def agent_meaning(act: int, belief: Any) -> Meaning:
    """Return the `Meaning` of a tutor's act with its question and numbers, given `belief`, a record, before it."""
    name, skill, part = AGENT_ACTS[act], int(belief["skill"]), AGENT_ACTS[act]
    if skill < 0 and (EXPLAIN <= act <= NEXT or act == PLAN):
        return Meaning(name, ("ask_goal",))
    slots: dict[str, str] = {}
    if act == EXPLAIN:
        part = "explain/arithmetic" if skill == ARITHMETIC else part
        slots = {"skill": SKILL_NAMES[skill], "lesson": LESSONS[skill][(int(belief["turn"]) + 1) % 3]}
    elif act == EXAMPLE:
        shown, solved = question(int(belief["seed"]), EXAMPLES_FROM + int(belief["turn"]), skill, EASY)
        slots = {"skill": SKILL_NAMES[skill], "question": shown, "answer": solved}
    elif ASK_EASY <= act <= ASK_HARD:
        slots = {"question": question(int(belief["seed"]), int(belief["asked"]) + 1, skill, act - ASK_EASY)[0]}
    elif act == CHECK:
        if not belief["den"]:
            return Meaning(name, ("ask_feeling",))
        slots = {"answer": surface(int(belief["num"]), int(belief["den"]))}
    elif act == HINT:
        about, difficulty = (int(belief["question_skill"]), int(belief["difficulty"]))
        slots = {"lesson": LESSONS[about if about >= 0 else skill][max(difficulty, 0)]}
    elif act == REVIEW:
        slots = {"skill": SKILL_NAMES[BUILDS_ON[skill] if BUILDS_ON[skill] >= 0 else skill]}
    elif act == NEXT:
        slots = {"skill": SKILL_NAMES[above.py_func(int(belief["goal"]), skill)]}
    elif act == PLAN:
        slots = {"plan": _plan(int(belief["goal"]))}
    return Meaning(name, (part,), slots)


def chain(goal: int) -> list[int]:
    """Return a goal and its prerequisites, the most basic first."""
    steps = [goal]
    while BUILDS_ON[steps[0]] >= 0:
        steps.insert(0, int(BUILDS_ON[steps[0]]))
    return steps


def _plan(goal: int) -> str:
    """Return a goal's chain of skills in words."""
    return ", then ".join(SKILL_NAMES[skill] for skill in chain(goal))


EXAMPLES = {
    "answer": "12", "question": "What is 12 + 12?", "plan": "arithmetic, then fractions",
    "lesson": "bring both to a common denominator before you add.",
}  # fmt: skip
"""Words for a value of each slot. Models see only these, so their wordings fit every value."""

CHOICES = {"skill": SKILL_NAMES}

LARGEST = 10**6
"""Bound of an answer's numerator and denominator."""
_DIGITS = re.compile(r"(?<![\w./])\d{1,6}(?:\s?/\s?\d{1,6}|[.,]\d{1,4})?(?![\w/])")
_NO_ANSWER_AFTER = re.compile(
    r"\b(?:step|question|exercise|problem|part|page|task|chapter|lesson|line|point|attempt|try|level|section|rule|hint|"
    r"my (?:brother|sister|friend|cousin|son|daughter|dad|mom|mum|dog|cat) is|i'?m|i am|"
    r"example|grade|class|year|by|add|subtract|carry(?: the)?|root(?: of)?|sqrt|log|q)"
    r"(?: number| no\.?| nr\.?)? ?[#(]?$|-\($"
)
_NO_ANSWER_BEFORE = re.compile(
    r" ?(?:%|(?:[ap]\.?m|o'clock|per ?cent|more|times|questions?|steps?|tries|try|attempts?|exercises?|"
    r"(?:sec(?:ond)?|min(?:ute)?|h(?:ou)?r|week|month|hint|example|problem)s?|squared|cubed|factorial)\b)"
)
_BOUND_BEFORE = re.compile(rf"(?:{BOUND_BEFORE}) ?$")
_BOUND_AFTER = re.compile(rf"{BOUND_AFTER}| (?:repeating|recurring|below|remainder|r ?\d)")
_WORD_AFTER = re.compile(
    r"(?:(?:^|[.,!?:;=…]|\b(?:is it|but|is|it'?s|that'?s|be|are|get|got|gets|say|said|think|guess|makes?|equals?|so|"
    r"then|maybe|about|around|roughly|answer|yes|yeah|no|um+|h+m+|like|still)) ?)$"
)
_WORD_BEFORE = re.compile(r"\s*(?:$|[.,!?;)…]|(?:i|right|maybe|again|is (?:my|it|what)|euros?|days?|or am)\b)")
_WORDS_BEFORE = re.compile(r"(?! (?:of|is an?|are an?)\b)")
_ALONE = re.compile(r"[\s.!?…]*$")
_SURE = re.compile(
    r"(?:(?:answer|result|solution|total)(?: (?:would|should|must|has to|could) be| is| was|'s|:)?|"
    r"\b[xyz] is|=) ?(?:about |just |only |exactly )?$"
)
_LIKELY = re.compile(
    r"\b(?:is|it'?s|that'?s|be|gets?|got|makes?|gives?|equals?|so),? (?:about |just |only |exactly )?$"
)
_ANOTHER = re.compile(r"\b(?:or|maybe|perhaps|possibly|either|could be)\b[^.!?#]*$")
_REASON = re.compile(r"\b(?:because|since|'?cause|cuz|bc)\b")
"""What parts an answer from its reason ("8 because 7 times 8 is 56")."""
_SUMS = re.compile(
    r"-?(?:#~*|\bx\b|\bx[²³])(?:\s*(?:[-+*×x÷=]|times|plus|minus|divided by|(?:%|percent)? of)\s*-?(?:#~*|\bx\b))+"
)
_OPERATION = re.compile(r"[+*×÷-]|x.*x|#~* ?x|[a-z]{2}|%")


def find_slots(text: str) -> tuple[dict[str, str], str]:
    """Find the number that a text gives as the answer, and replace numbers by `EXAMPLES`.

    Questions, lessons, plans and sums are replaced, too: what remains is what the tutor does with them ("an easy
    one: ...", "watch how I do one: ..."). A number that isn't read whole or for sure isn't found: a range, one that
    is denied, or one of several of which none is said to be the answer.
    """
    answer, canonical = _found(text)
    return {} if answer is None else {"answer": str(answer)}, canonical


@functools.lru_cache(maxsize=4096)  # tutors and students repeat themselves
def _found(text: str) -> tuple[Fraction | None, str]:
    """Return what `find_slots` does."""
    numbers = find_numbers(low := plain(text))
    answer = _answer(low, numbers) if numbers else None
    canonical = text
    for number in reversed(numbers):
        if _counts(low, number):
            words = text[number.start : number.end]
            words = EXAMPLES["answer"] if number.value is not None else _DIGITS.sub(EXAMPLES["answer"], words)
            canonical = canonical[: number.start] + words + canonical[number.end :]
    for pattern, example in _HIDDEN if numbers else _HIDDEN[1:]:  # all questions have numbers
        canonical = pattern.sub(example, canonical)
    return answer, canonical


def _counts(text: str, number: Number) -> bool:
    """Tell whether a number is meant as one: words only where an answer stands ("one" may be a pronoun)."""
    if number.words:
        one = text[number.start : number.end] == "one"
        if one and text.endswith("no ", 0, number.start):
            return False
        after = _ALONE if one else _WORD_BEFORE if number.words == 1 else _WORDS_BEFORE
        return bool(stands_before(_WORD_AFTER, text, number.start) and after.match(text, number.end))
    return number.value is not None or any(char.isdecimal() for char in text[number.start : number.end])


def _answer(text: str, numbers: Sequence[Number]) -> Fraction | None:
    """Return the number that a plain text gives as the answer; None if there is none or it isn't sure."""
    masked = mask(text, numbers)
    unread = {number.start for number in numbers if number.value is None}
    terms = {at for found in _SUMS.finditer(masked) for at in _terms(found, text, unread)}
    candidates = [
        Mention(n.start, n.end, None if _bound(text, n) else n.value)
        for n in numbers
        if n.start not in terms
        and _counts(text, n)
        and not stands_before(_NO_ANSWER_AFTER, text, n.start)
        and not _NO_ANSWER_BEFORE.match(text, n.end)
    ]
    left = meant(masked, candidates)
    if left and (reason := _REASON.search(masked, left[0].end)):
        left = [mention for mention in left if mention.end <= reason.start()]
    if len({mention.value for mention in left}) > 1:
        if any(_ANOTHER.search(masked, one.end, other.start) for one, other in itertools.pairwise(left)):
            return None
        sure = [mention for mention in left if stands_before(_SURE, masked, mention.start)]
        likely = [mention for mention in left if stands_before(_LIKELY, masked, mention.start)]
        left = sure or (likely if left[-1:] == likely[-1:] else [])
    value = only_value(left)
    return value if value is not None and max(abs(value.numerator), value.denominator) <= LARGEST else None


def _bound(text: str, number: Number) -> bool:
    """Tell whether a number is a bound ("more than 7"), or goes on ("3.33...")."""
    if text.startswith(("..", "…"), number.end) and "." in text[number.start : number.end]:
        return True
    return stands_before(_BOUND_BEFORE, text, number.start) or bool(_BOUND_AFTER.match(text, number.end))


def _terms(found: re.Match[str], text: str, unread: Set[int]) -> Iterator[int]:
    """Yield the places in a sum whose numbers aren't its result: all of an equation in x, else what has operations.

    Args:
        found: The sum.
        text: The plain text.
        unread: Where numbers without a value begin.
    """
    start, end = found.span()
    if re.search(r"\bx(?:\b|[²³])|\dx", text[start:end]) and not re.fullmatch(r"x\s*=\s*-?#~*|-?#~*\s*=\s*x", found[0]):
        yield from range(start, end)
        return
    for side in re.finditer("[^=]+", found[0]):
        places = range(start + side.start(), start + side.end())
        if _OPERATION.search(side[0].strip(" -")) or not unread.isdisjoint(places):
            yield from places


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of some texts, ignoring case, with any numbers in the place of ``{0}``."""
    number = r"(?<!\d)\d+"  # a match can't begin within a number: else a long one would be tried at each digit
    return re.compile("|".join(re.sub(r"\\{\d\\}|\d+", lambda _: number, re.escape(text)) for text in texts), re.I)


_SKILL = "|".join(SKILL_NAMES)
_TERM = r"(?:\d+(?:[./]\d+)?x?|x)\b"
_SIGN = r"(?:[-−+*×x÷:=]|times|plus|minus|divided by|(?:%|percent) of)"
_SUM = re.compile(rf"(?<![\w./])-?{_TERM}(?:\s*{_SIGN}\s*{_TERM})+", re.I)
_UNKNOWN = re.compile(r"\dx\b|(?:^|[-−+*=])\s*x\b", re.I)
_ROOT = re.compile(r"x\s*=\s*\d+(?:[./]\d+)?", re.I)


def _without_terms(found: re.Match[str]) -> str:
    """Return the replacement of a sum; it keeps the result after ``=``, unless the sum is an equation in x."""
    text = found[0]
    if _ROOT.fullmatch(text):
        return text
    _, equals, result = ("", "", "") if _UNKNOWN.search(text) else text.partition("=")
    return f"12 + 12 {equals} {result.strip()}".strip()


_HIDDEN: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (_any_of(text for texts in TEXTS.values() for text in texts), EXAMPLES["question"]),
    (_any_of(lesson for lessons in LESSONS.values() for lesson in lessons), EXAMPLES["lesson"]),
    (re.compile(rf"\b(?:{_SKILL})(?:, then (?:{_SKILL}))+", re.I), EXAMPLES["plan"]),
    (_SUM, _without_terms),
)
"""Patterns of what `find_slots` replaces, and the replacements."""


def parse(act: str, part: str, slots: Mapping[str, Any], said: Any) -> None:
    """Write a student's utterance that NLU understood (`chatgym.words.nlu.Understanding`) into `said`, a record."""
    say.py_func(said, USER_ACTS.index(act) if act in USER_ACTS else UNCLEAR)
    of, _, detail = part.partition("/")
    if of == "state_goal":
        said["goal"] = SKILLS.index(detail)
    elif of == "answer" and "answer" in slots:
        value = Fraction(slots["answer"])
        said["num"], said["den"] = value.numerator, value.denominator
    said["about"] = int(detail in ("again", "left"))


def instructions() -> str:
    """Return the rules of a lesson in words, made from the skills' prerequisites."""
    lines = ["Find out what the student wants to learn, teach it, and end the lesson once it is learned."]
    lines += [f"- {SKILL_NAMES[goal]}: {_plan(goal)}" for goal in range(1, N_SKILLS)]
    lines += [
        "Nobody learns a skill without what it builds on: review that first, and next_skill leads back to the goal.",
        "Ask to see what is known; check_answer if you aren't sure of what you heard. Some learn from explain, others "
        "from worked_example.",
        "A bored or frustrated student needs a break, praise for a right answer, or a question that fits; at worst it "
        "leaves. Time counts.",
    ]
    return "\n".join(lines)


def describe_belief(belief: Any) -> str:
    """Describe what the tutor believes about the student, from `belief`, a record."""
    goal, skill = int(belief["goal"]), int(belief["skill"])
    if goal < 0:
        return "nothing yet"
    words = [f"wants {SKILL_NAMES[goal]}" + (" (unsure)" if belief["goal_sure"] == 1 else "")]
    words += [f"{SKILL_NAMES[step]} {belief['known'][step]:.0%} known" for step in chain(goal)]
    words.append(f"now at {SKILL_NAMES[skill]}")
    if belief["answered"] in (RIGHT, WRONG):
        unsure = " (unsure)" if belief["sure"] == 1 else ""
        words.append(f"answered {surface(int(belief['num']), int(belief['den']))}{unsure}")
        words[-1] += ", right" if belief["answered"] == RIGHT else ", wrong"
    if belief["feeling"]:
        words.append(("", "bored", "frustrated")[belief["feeling"]])
    return "; ".join(words)


def describe_goal(hidden: Any) -> str:
    """Describe the student's goal and knowledge, from `hidden`, a record."""
    goal = int(hidden["goal"])
    steps = chain(goal)

    def names(known: int) -> str:
        return ", ".join(SKILL_NAMES[step] for step in steps if known >> step & 1) or "none of it"

    way = "examples" if hidden["style"] else "explanations"
    return (
        f"{SKILL_NAMES[goal]} (of {_plan(goal)}; knew {names(int(hidden['known_first']))}, now knows "
        f"{names(int(hidden['known']))}; learns better from {way})"
    )
