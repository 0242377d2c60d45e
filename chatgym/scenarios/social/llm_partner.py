"""The person, played by a language model: what it is told, and what its words and its leaving do."""

from __future__ import annotations

from typing import Any

from chatgym.dynamics.scenario import LLMPartner
from chatgym.scenarios.social.person import relieved, verdict
from chatgym.scenarios.social.policy import *
from chatgym.scenarios.social.words import CAUSE_NAMES, FEELING_NAMES, PROBLEM_NAMES

OPEN = 6  # rapport from which a person tells of its own accord


def brief(hidden: Any) -> str:
    """Return the person's problem, feeling and cause in the second person, from `hidden`, a record."""
    wants = "You want advice." if hidden["wants_advice"] else "You want no advice, just somebody who listens."
    return (
        f"You write to a supporter because of {PROBLEM_NAMES[hidden['problem']]}. You feel "
        f"{FEELING_NAMES[hidden['feeling']]}, and the cause is {CAUSE_NAMES[hidden['cause']]}. {wants} Of problem, "
        "feeling and cause you tell one at a time, when you are asked."
    )


def now(hidden: Any, belief: Any) -> str:
    """Return the strength of the feeling and the rapport by now, from `hidden` and `belief`, records."""
    better = "You feel clearly better by now." if relieved(hidden) else "You don't feel better yet."
    trust = "You trust the supporter and talk freely." if hidden["rapport"] >= OPEN else "You are reserved."
    return f"Your feeling is {hidden['intensity']} of 10 strong. {better} {trust}"


def take(hidden: Any, belief: Any, said: Any) -> bool:
    """Mark the true facts of `said` as sure in `belief`; return whether all are true. All arguments are records."""
    named = [fact for fact in range(3) if int(said["slots"]) & (1 << fact)]
    true = [fact for fact in named if said[FACTS[fact]] == hidden[FACTS[fact]]]
    for fact in true:
        belief[FACTS[fact]] = hidden[FACTS[fact]]
        belief["sure"][fact] = max(2, int(belief["sure"][fact]))
        hidden["told"] |= 1 << fact
    return true == named


def leave(hidden: Any, belief: Any) -> tuple[int, dict[str, float]]:
    """End the conversation; return the outcome and the terms that change. `hidden` and `belief` are records.

    A person that was comforted by now ends comforted; any other left.
    """
    outcome = COMFORTED if verdict(hidden) == COMFORTED else LEFT
    belief["ended"] = 1
    return outcome, {}


LLM_PARTNER = LLMPartner(brief, now, take, leave)
