"""The customer, played by a language model: what it is told, and what its words and its leaving do."""

from __future__ import annotations

from typing import Any

from chatgym.dynamics.scenario import LLMPartner
from chatgym.scenarios.customer_service.policy import *
from chatgym.scenarios.customer_service.words import surface

REASONS = (
    "you want to return an item and get your money back", "a delivery is late", "a product arrived broken",
    "you were charged wrongly", "you can't get into your account", "you want to cancel your subscription",
)  # fmt: skip
OFFERS = ("a refund", "a fix (a repair or another one)", "a credit")
CALM, ANNOYED = 6, 3  # mood from which a customer sounds so


def brief(hidden: Any) -> str:
    """Return the customer's case and facts in the second person, from `hidden`, a record."""
    proof = "have a receipt or a picture of it" if hidden["proof"] else "have neither a receipt nor a picture of it"
    return (
        f"You write to the customer service of a shop because {REASONS[hidden['topic']]}. Your order number is "
        f"{hidden['reference']}. It was {surface(DATE, int(hidden['date']))}, it is about "
        f"{surface(AMOUNT, int(hidden['amount']))}, and you {proof}. You want it put right."
    )


def now(hidden: Any, belief: Any) -> str:
    """Return the customer's mood and its view of the offer, from `hidden` and `belief`, records."""
    mood, accepted, offered = int(hidden["mood"]), int(hidden["accepted"]), int(belief["offered"])
    lines = [f"You feel {'calm' if mood >= CALM else 'annoyed' if mood >= ANNOYED else 'angry'}."]
    if accepted >= 0:
        lines.append(f"You accept {OFFERS[accepted]}.")
        if hidden["question"]:
            lines.append("Asked whether all is well, you have one more question.")
    elif offered >= 0:
        lines.append(f"You don't accept {OFFERS[offered]}; perhaps later, if they explain why.")
    if hidden["complained"]:
        lines.append("You complain: so far nobody has helped you.")
    return " ".join(lines)


def take(hidden: Any, belief: Any, said: Any) -> bool:
    """Mark the true facts of `said` as sure in `belief`; return whether all are true. All arguments are records."""
    named = [slot for slot in range(5) if int(said["slots"]) & (1 << slot)]
    true = [slot for slot in named if said[SLOTS[slot]] == hidden[SLOTS[slot]]]
    for slot in true:
        belief[SLOTS[slot]] = hidden[SLOTS[slot]]
        belief["sure"][slot] = max(2, int(belief["sure"][slot]))
        hidden["told"] |= 1 << slot
    return true == named


def leave(hidden: Any, belief: Any) -> tuple[int, dict[str, float]]:
    """End the conversation; return the outcome and the terms that change. `hidden` and `belief` are records.

    What the customer accepted before is what was done; without an acceptance it hung up.
    """
    outcome = int(hidden["verdict"]) if hidden["accepted"] >= 0 else HUNG_UP
    belief["ended"] = 1
    return outcome, {"satisfaction": hidden["mood"] / MOOD_MAX if outcome == RESOLVED else 0.0}


LLM_PARTNER = LLMPartner(brief, now, take, leave)
