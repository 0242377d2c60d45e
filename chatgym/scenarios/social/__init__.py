"""Emotional support: find out what weighs on a person, show that it was understood, and give what it needs.

The supporter's acts are the strategies of ESConv (Liu et al. 2021, "Towards emotional support dialog systems",
after Hill's helping skills: explore, comfort, act): questions, restatement, reflection of feelings, self-disclosure,
affirmation and reassurance, suggestions, information, and a picture to share as a small kindness. The person tells
more the more rapport there is; to be understood relieves it, to be misheard hurts, the same strategy wears off, and
advice before problem, feeling and cause are understood backfires. Some want advice, others want to be heard: it can
be asked. What the supporter understands passes through the same error channel as in `customer_service`.

This is a simulation for training agents, with everyday worries only: no counselling, no medical advice.
"""

from __future__ import annotations

from pathlib import Path

from chatgym.dynamics.scenario import Scenario
from chatgym.scenarios.social import audit, belief, llm_partner, person, pictures, policy, words

FOLDER = Path(__file__).parent

SCENARIO = Scenario.of_modules(
    policy, belief, person, words, audit, llm_partner,
    name="social",
    version=1,
    description="Find out what weighs on a person, show that it was understood, and give what it needs.",
    success="comforted",
    max_turns=20,
    note=belief.note_own_act,
    picture=pictures.png,
    folder=FOLDER,
    code=tuple(FOLDER / name for name in ("policy.py", "belief.py", "person.py")),
    partner_role="person",
    agent_role="supporter",
)  # fmt: skip
