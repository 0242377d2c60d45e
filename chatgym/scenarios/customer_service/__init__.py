"""Customer service: find out what a customer wants, check it, and grant what the policy allows.

The customer is an agenda-based user simulator (Schatzmann et al. 2007, "Agenda-based user simulation for
bootstrapping a POMDP dialogue system"): a hidden goal and an agenda of things still to be said, and a mood
and a patience that decide how it takes what the agent does. What the agent understands passes through an
error channel (semantic error rate, as in Williams & Young 2007): every act and every slot value is
misunderstood with probability `error_rate`, and carries a confidence that is low more often when it is wrong.
"""

from __future__ import annotations

from pathlib import Path

from chatgym.dynamics.scenario import Scenario
from chatgym.scenarios.customer_service import audit, belief, customer, llm_partner, policy, words

FOLDER = Path(__file__).parent

SCENARIO = Scenario.of_modules(
    policy, belief, customer, words, audit, llm_partner,
    name="customer_service",
    version=1,
    description="Find out what a customer wants, check it, and grant what the policy allows.",
    success="resolved",
    max_turns=20,
    note=belief.note_own_act,
    choices={"topic": words.TOPIC_NAMES},
    folder=FOLDER,
    code=tuple(FOLDER / name for name in ("policy.py", "belief.py", "customer.py")),
)  # fmt: skip
