"""Education: find out what a student wants to learn and lacks, and teach it before the student's patience ends.

The student learns by Bayesian knowledge tracing (Corbett & Anderson 1995, "Knowledge tracing: modeling the
acquisition of procedural knowledge"): each of six skills is known or not, is learned with p(T) at each opportunity
(much less without its prerequisite), and shows in answers, with slips and guesses. Boredom and frustration follow from
how difficult a task is for the student (D'Mello & Graesser 2012, "Dynamics of affective states during complex
learning"). Questions and answers are real, see `problems`. The error channel is that of
`chatgym.scenarios.customer_service`.
"""

from __future__ import annotations

from pathlib import Path

from chatgym.dynamics.scenario import Scenario
from chatgym.scenarios.education import audit, belief, llm_partner, policy, student, words
from chatgym.scenarios.education.policy import *

FOLDER = Path(__file__).parent

SCENARIO = Scenario.of_modules(
    policy, belief, student, words, audit, llm_partner,
    name="education",
    version=2,
    description="Find out what a student lacks, teach it, and keep the student with you.",
    success="learned",
    max_turns=20,
    note=belief.note_own_act,
    folder=FOLDER,
    partner_role="student",
    agent_role="tutor",
).with_earlier(version=1, **policy.VERSION_1)  # fmt: skip
