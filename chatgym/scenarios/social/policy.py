"""Tables of emotional support: acts, facts, which strategy soothes which feeling, behaviour, and the record dtypes."""

from __future__ import annotations

import numpy as np

# -- Dialogue acts -------------------------------------------------------------------------------------------

AGENT_ACTS = (
    "greet", "ask_problem", "ask_feeling", "ask_cause", "restate", "reflect_feeling", "self_disclose", "affirm",
    "ask_advice", "suggest_talk", "suggest_rest", "suggest_plan", "inform", "share_picture", "check_feeling", "close",
)  # fmt: skip
(GREET, ASK_PROBLEM, ASK_FEELING, ASK_CAUSE, RESTATE, REFLECT, DISCLOSE, REASSURE,
 ASK_ADVICE, SUGGEST_TALK, SUGGEST_REST, SUGGEST_PLAN, GIVE_INFO, PICTURE, CHECK, CLOSE) = range(16)  # fmt: skip

USER_ACTS = (
    "greet", "state_problem", "state_feeling", "state_cause", "affirm", "correct", "open_up", "deflect", "want_advice",
    "want_listening", "feel_better", "reject_advice", "take_advice", "thank", "bye", "ask_repeat",
)  # fmt: skip
(U_GREET, STATE_PROBLEM, STATE_FEELING, STATE_CAUSE, AFFIRM, CORRECT, OPEN_UP, DEFLECT, WANT_ADVICE,
 WANT_LISTENING, FEEL_BETTER, REJECT_ADVICE, TAKE_ADVICE, THANK, BYE, ASK_REPEAT) = range(16)  # fmt: skip
UNCLEAR = 16
"""What the agent understood when it understood nothing; never said."""

OUTCOMES = ("", "comforted", "unchanged", "worse", "left", "truncated")
GOES_ON, COMFORTED, UNCHANGED, WORSE, LEFT, TRUNCATED = range(6)
OUTCOME_VALUES = {
    "comforted": 1.0,
    "left": -1.0,  # as much lost as a success gains, after an attempt that the person took part in
    "unchanged": -1.5,  # the supporter ended it with nobody helped: giving up
    "worse": -2.0,  # likewise, having done harm
}
"""Worth of the outcomes; truncation has none, since the conversation could have gone on."""
LEAVING = ("left",)
"""Outcomes in which the person ends the conversation."""

MEASURED = ("outcome", "relief", "rapport", "time", "progress")
REWARD_TERMS = {"outcome": 1.0, "relief": 0.3, "rapport": 0.2, "time": 0.02, "progress": 0.5}
"""Term to weight. outcome: `OUTCOME_VALUES`; relief: fall in intensity, as a share of what it was at first;
rapport: its change, as a share of `RAPPORT_MAX`; time: -1 a turn;
progress: rise in the share of the three facts that the person has told."""

VERSION_1 = {
    "outcome_values": {"comforted": 1.0, "unchanged": -0.5, "worse": -1.0, "left": -1.0},
    "reward_terms": {"outcome": 1.0, "relief": 0.3, "rapport": 0.2, "time": 0.02},
}
"""Closing at once was worth more than an honest attempt that fails."""

# -- What weighs on a person -------------------------------------------------------------------------------------

PROBLEM, FEELING, CAUSE = range(3)
FACTS = ("problem", "feeling", "cause")
PROBLEMS = ("job", "breakup", "exam", "friend", "loneliness", "loss", "money")
FEELINGS = ("anxiety", "anger", "sadness", "shame")
CAUSES = ("conflict", "overload", "uncertainty")
SIZES = np.array([7, 4, 3])  # how many values each fact has
ANXIETY, ANGER, SADNESS, SHAME = range(4)
UNDERSTOOD = 0b111
"""All three facts, as bits."""

# A conflict is to be talked over, overload wants rest, uncertainty a plan: SUGGEST_TALK + cause fits.

# What soothes a feeling, in points of intensity: reassurance shows that anger is justified and that shame isn't;
# information takes fright away; somebody who knows it from their own life, or a picture, is company in sadness.
STRATEGIES = (DISCLOSE, REASSURE, GIVE_INFO, PICTURE)
SOOTHES = np.array([  # by feeling: self_disclose, affirm, inform, share_picture
    [0, 0, 2, 1], [1, 2, -1, 0], [1, 0, 0, 2], [2, 1, 0, -1],
])  # fmt: skip

# -- How people behave (probabilities and points) -----------------------------------------------------------------

P_STATES_PROBLEM_FIRST = 0.5
P_WANTS_ADVICE = 0.5
P_LIKES_DISCLOSURE = 0.7
P_LIKES_PICTURES = 0.7
P_TELLS = np.array([0.6, 0.45, 0.45])  # a fact that it is asked for, at rapport 0 ...
TELLS_PER_RAPPORT = 0.06  # ... and more for each point of rapport
P_VOLUNTEERS = 0.1  # per point of rapport above 4: one more fact, or one after a reflection
P_HELPS = 0.85  # a fitting strategy the first time ...
WEARS_OFF = 0.55  # ... and times this, each time it was used before
P_TAKES = 0.85  # fitting advice
P_TONE_SLIPS = 0.1
P_LOW_IF_WRONG = 0.7  # error channel: low confidence, given a misunderstood value
LOW_IF_RIGHT_PER_ERROR = 2.0  # and given a right one, times error_rate
RAPPORT_MAX = 10
COMES_BACK = 5  # rapport at which a person would come back
CLEAR_RELIEF = 0.5  # share of the intensity that has to be gone

# Purposes of the random draws (see chatgym.dynamics.rng).
(D_PROBLEM, D_FEELING, D_CAUSE, D_INTENSITY, D_RAPPORT, D_ADVICE, D_DISCLOSURE, D_PICTURES, D_PATIENCE, D_OPENING,
 D_TELLS, D_VOLUNTEERS, D_HELPS, D_TAKES, D_TONE, D_ACT_ERROR, D_ACT_CONFUSED) = range(17)  # fmt: skip
D_ERROR, D_CONFUSED, D_CONFIDENCE = range(20, 50, 10)

# The confusion model of acts: what each is mistaken for when it is not lost altogether.
CONFUSED = np.array([
    THANK, OPEN_UP, OPEN_UP, OPEN_UP, THANK, DEFLECT, DEFLECT, OPEN_UP, WANT_LISTENING, WANT_ADVICE, THANK, DEFLECT,
    AFFIRM, AFFIRM, DEFLECT, DEFLECT,
])  # fmt: skip

# -- State -----------------------------------------------------------------------------------------------------

HIDDEN = np.dtype((np.record, [
    ("problem", "i1"), ("feeling", "i1"), ("cause", "i1"),
    ("intensity", "i1"), ("at_first", "i1"), ("rapport", "i1"), ("patience", "i1"),
    ("wants_advice", "i1"), ("likes_disclosure", "i1"), ("likes_pictures", "i1"),
    ("told", "u1"), ("heard", "u1"),  # facts as bits: those it told, those it was shown to have been heard in
    ("advised", "i1"), ("last_act", "i1"), ("uses", "i1", (16,)),  # of each agent act
]))  # fmt: skip

BELIEF = np.dtype((np.record, [
    ("problem", "i1"), ("feeling", "i1"), ("cause", "i1"),
    ("sure", "i1", (3,)),  # per fact: 0 unknown, 1 unsure, 2 sure, 3 confirmed
    ("turn", "i2"), ("act", "i1"), ("heard", "i1"), ("tone", "i1"), ("repeating", "i1"),  # the fact it says back
    ("wants", "i1"), ("advised", "i1"),  # 0 unknown, 1 advice, 2 to be heard; 1 taken, 2 rejected
    ("better", "i1"), ("comforts", "i1"), ("worked", "i1"), ("uses", "i1", (16,)), ("ended", "i1"),
    ("max_turns", "i2"),
]))  # fmt: skip

SAID = np.dtype((np.record, [
    ("problem", "i1"), ("feeling", "i1"), ("cause", "i1"),
    ("act", "i1"), ("tone", "i1"), ("about", "i1"), ("slots", "u1"),  # the fact it is about; those it names, as bits
]))  # fmt: skip
