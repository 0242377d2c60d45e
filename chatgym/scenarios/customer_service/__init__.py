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
from chatgym.scenarios.customer_service.audit import audit
from chatgym.scenarios.customer_service.belief import (
    EMBEDDING_SIZE,
    N_BELIEFS,
    embed,
    expert,
    hear,
    index,
    mask,
    note_own_act,
)
from chatgym.scenarios.customer_service.customer import respond, start
from chatgym.scenarios.customer_service.llm_partner import LLM_PARTNER
from chatgym.scenarios.customer_service.policy import *
from chatgym.scenarios.customer_service.words import (
    AGENT_CODES,
    EXAMPLES,
    TOPIC_NAMES,
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
    name="customer_service",
    version=1,
    description="Find out what a customer wants, check it, and grant what the policy allows.",
    agent_acts=AGENT_ACTS,
    user_acts=USER_ACTS,
    outcomes=OUTCOMES,
    success="resolved",
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
    choices={"topic": TOPIC_NAMES},
    agent_codes=AGENT_CODES,
    audit=audit,
    llm_partner=LLM_PARTNER,
    folder=FOLDER,
    code=tuple(FOLDER / name for name in ("policy.py", "belief.py", "customer.py")),
)
