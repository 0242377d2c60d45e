"""Emotional support: find out a person's worry, show that it was understood, and give what the person needs.

The supporter's acts are the strategies of ESConv (Liu et al. 2021, "Towards emotional support dialog systems", after
Hill's helping skills: explore, comfort, act): questions, restatement, reflection of feelings, self-disclosure,
affirmation and reassurance, suggestions, information, and sharing a picture. The person tells more with more rapport.
Being understood lowers the intensity of its feeling, being misunderstood lowers rapport; a repeated strategy works
less, and advice before problem, feeling and cause are understood lowers rapport. Some persons want advice, others want
to be heard: the supporter can ask. The error channel is that of `chatgym.scenarios.customer_service`.

This is a simulation for training agents, with everyday worries only. It is no counselling and no medical advice.
"""

from __future__ import annotations

from pathlib import Path

from chatgym.dynamics.scenario import Scenario
from chatgym.scenarios.social import audit, belief, llm_partner, person, pictures, policy, words
from chatgym.scenarios.social.policy import *

FOLDER = Path(__file__).parent

SCENARIO = Scenario.of_modules(
    policy, belief, person, words, audit, llm_partner,
    name="social",
    version=2,
    description="Find out what weighs on a person, show that it was understood, and give what it needs.",
    success="comforted",
    max_turns=20,
    note=belief.note_own_act,
    picture=pictures.png,
    folder=FOLDER,
    partner_role="person",
    agent_role="supporter",
).with_earlier(version=1, **policy.VERSION_1)  # fmt: skip
