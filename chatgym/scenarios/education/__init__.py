"""Education: find out what a student wants to learn and lacks, and teach it before patience runs out.

The student learns by Bayesian knowledge tracing (Corbett & Anderson 1995, "Knowledge tracing: modeling the
acquisition of procedural knowledge"): each of six skills is known or not, is learned with p(T) at each opportunity
(hardly, if what it builds on isn't known), and shows in answers that slips and guesses blur. Boredom and
frustration follow from how difficult things are relative to what it knows (D'Mello & Graesser 2012, "Dynamics of
affective states during complex learning"). Questions and answers are real: see `problems`. What the tutor understands
passes through an error channel, as in `chatgym.scenarios.customer_service`.
"""

from __future__ import annotations

from pathlib import Path

from chatgym.dynamics.scenario import Scenario
from chatgym.scenarios.education.audit import audit
from chatgym.scenarios.education.belief import (
    EMBEDDING_SIZE,
    N_BELIEFS,
    embed,
    expert,
    hear,
    index,
    mask,
    note_own_act,
)
from chatgym.scenarios.education.llm_partner import LLM_PARTNER
from chatgym.scenarios.education.policy import *
from chatgym.scenarios.education.student import respond, start
from chatgym.scenarios.education.words import (
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
    name="education",
    version=1,
    description="Find out what a student lacks, teach it, and keep the student with you.",
    agent_acts=AGENT_ACTS,
    user_acts=USER_ACTS,
    outcomes=OUTCOMES,
    success="learned",
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
    audit=audit,
    llm_partner=LLM_PARTNER,
    folder=FOLDER,
    code=tuple(FOLDER / name for name in ("policy.py", "problems.py", "belief.py", "student.py")),
    partner_role="student",
    agent_role="tutor",
)
