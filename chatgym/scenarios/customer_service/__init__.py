"""Customer service: find out what a customer wants, check it, and grant what the policy allows.

The customer is an agenda-based user simulator (Schatzmann et al. 2007, "Agenda-based user simulation for
bootstrapping a POMDP dialogue system"): a hidden goal and an agenda of things to say determine its acts, a mood and a
patience its reaction to the agent's. An error channel (semantic error rate, as in Williams & Young 2007) stands
between its words and the agent's belief: every act and slot value is misunderstood with probability `error_rate`, and
has a confidence that is more often low when it is wrong.
"""

from __future__ import annotations

from pathlib import Path

from chatgym.dynamics.scenario import Scenario
from chatgym.scenarios.customer_service import audit, belief, customer, llm_partner, policy, words
from chatgym.scenarios.customer_service.policy import *

FOLDER = Path(__file__).parent

SCENARIO = Scenario.of_modules(
    policy, belief, customer, words, audit, llm_partner,
    name="customer_service",
    version=2,
    description="Find out what a customer wants, check it, and grant what the policy allows.",
    success="resolved",
    max_turns=20,
    note=belief.note_own_act,
    choices={"topic": words.TOPIC_NAMES},
    folder=FOLDER,
).with_earlier(version=1, **policy.VERSION_1)  # fmt: skip
