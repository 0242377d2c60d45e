"""The student, played by a language model: what it is told, and what its words and its leaving do."""

from __future__ import annotations

from typing import Any

from chatgym.dynamics.scenario import LLMPartner
from chatgym.scenarios.education.belief import hear_goal
from chatgym.scenarios.education.policy import *
from chatgym.scenarios.education.words import SKILL_NAMES, chain

CALM = 5  # boredom or frustration below which a student doesn't show it


def brief(hidden: Any) -> str:
    """Return the goal of the lesson in the second person, from `hidden`, a record."""
    way = "a worked example" if hidden["style"] else "an explanation"
    return f"You write to a tutor because you want to learn {SKILL_NAMES[hidden['goal']]}. You learn best from {way}."


def now(hidden: Any, belief: Any) -> str:
    """Return what the student knows and feels by now, from `hidden` and `belief`, records."""
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
    """Mark the goal of `said` as sure in `belief`, if it is true; return whether it is. All arguments are records."""
    goal = int(said["goal"])
    if goal < 0:
        return True
    if goal == hidden["goal"]:
        hear_goal(belief, goal, 2)
        hidden["told"] = max(1, int(hidden["told"]))
    return bool(goal == hidden["goal"])


def leave(hidden: Any, belief: Any) -> tuple[int, dict[str, float]]:
    """End the conversation; return the outcome and the terms that change. `hidden` and `belief` are records.

    What was learned by now counts; a student that hasn't learned its goal gave up.
    """
    learned = bool(int(hidden["known"]) >> int(hidden["goal"]) & 1)
    belief["ended"] = 1
    terms = {"gain": gain(hidden) if learned else 0.0, "gave_up": 0.0 if learned else -1.0}
    return LEARNED if learned else GAVE_UP, terms


LLM_PARTNER = LLMPartner(brief, now, take, leave)
