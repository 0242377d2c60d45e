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
from chatgym.scenarios.social.audit import audit
from chatgym.scenarios.social.belief import (
    EMBEDDING_SIZE,
    N_BELIEFS,
    embed,
    expert,
    hear,
    index,
    mask,
    note_own_act,
)
from chatgym.scenarios.social.llm_partner import LLM_PARTNER
from chatgym.scenarios.social.person import respond, start
from chatgym.scenarios.social.pictures import png
from chatgym.scenarios.social.policy import *
from chatgym.scenarios.social.words import (
    AGENT_CODES,
    CHOICES,
    EXAMPLES,
    agent_meaning,
    describe_belief,
    describe_goal,
    find_slots,
    instructions,
    parse,
    partner_meaning,
)

FOLDER = Path(__file__).parent

SCENARIO = Scenario(
    name="social",
    version=1,
    description="Find out what weighs on a person, show that it was understood, and give what it needs.",
    agent_acts=AGENT_ACTS,
    user_acts=USER_ACTS,
    outcomes=OUTCOMES,
    success="comforted",
    reward_terms=REWARD_TERMS,
    max_turns=20,
    hidden=HIDDEN,
    belief=BELIEF,
    said=SAID,
    n_beliefs=N_BELIEFS,
    embedding_size=EMBEDDING_SIZE,
    start=start,
    respond=respond,
    index=index,
    embed=embed,
    mask=mask,
    expert=expert,
    note=note_own_act,
    hear=hear,
    partner_meaning=partner_meaning,
    agent_meaning=agent_meaning,
    describe_belief=describe_belief,
    describe_goal=describe_goal,
    instructions=instructions,
    parse=parse,
    find_slots=find_slots,
    examples=EXAMPLES,
    choices=CHOICES,
    agent_codes=AGENT_CODES,
    audit=audit,
    llm_partner=LLM_PARTNER,
    picture=png,
    folder=FOLDER,
    code=tuple(FOLDER / name for name in ("policy.py", "belief.py", "person.py")),
    partner_role="person",
    agent_role="supporter",
)
