"""The student, played by a language model: what it is told, and what its words and its leaving do."""

from __future__ import annotations

from typing import Any

from chatgym.dynamics.scenario import LLMPartner
from chatgym.scenarios.education.belief import hear_goal
from chatgym.scenarios.education.policy import *
from chatgym.scenarios.education.words import SKILL_NAMES, chain

CALM = 5  # boredom or frustration below which a student doesn't show it


def brief(hidden: Any) -> str:
    """Return what the lesson should be about, in the second person."""
    way = "a worked example" if hidden["style"] else "an explanation"
    return f"You write to a tutor because you want to learn {SKILL_NAMES[hidden['goal']]}. You learn best from {way}."


def now(hidden: Any, belief: Any) -> str:
    """Return what the student can do by now, and how it feels."""
    steps = chain(int(hidden["goal"]))
    known = [SKILL_NAMES[step] for step in steps if int(hidden["known"]) >> step & 1]
    unknown = [SKILL_NAMES[step] for step in steps if not int(hidden["known"]) >> step & 1]
    lines = []
    if known:
        lines.append(f"You can do {' and '.join(known)}: questions about that you answer rightly.")
    if unknown:
        lines.append(f"You can't do {' and '.join(unknown)} yet: such questions you get wrong, or don't know.")
    bored, frustrated = int(hidden["boredom"]), int(hidden["frustration"])
    feeling = "fine" if max(bored, frustrated) < CALM else "bored" if bored >= frustrated else "frustrated"
    return " ".join([*lines, f"You feel {feeling}."])


def take(hidden: Any, belief: Any, said: Any) -> bool:
    """Take down what the student wants to learn, if it is so; whether it is."""
    goal = int(said["goal"])
    if goal < 0:
        return True
    if goal == hidden["goal"]:
        hear_goal(belief, goal, 2)
        hidden["told"] = max(1, int(hidden["told"]))
    return bool(goal == hidden["goal"])


def leave(hidden: Any, belief: Any, terms: Any) -> int:
    """End it: what was learned by now was learned; else the student gave up."""
    learned = bool(int(hidden["known"]) >> int(hidden["goal"]) & 1)
    belief["ended"] = 1
    terms[0] = gain(hidden) if learned else 0.0
    terms[1] = 0.0 if learned else -1.0
    return LEARNED if learned else GAVE_UP


LLM_PARTNER = LLMPartner(brief, now, take, leave)
