"""Tables of education: acts, skills and their prerequisites, student behaviour, and the record dtypes.

Knowledge follows Bayesian knowledge tracing (Corbett & Anderson 1995, "Knowledge tracing: modeling the acquisition
of procedural knowledge"): a skill is known or not; an opportunity makes it known with p(T); an answer is right with
1 - p(S) when it is known, and with p(G) when it isn't.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chatgym.dynamics import nb

# -- Dialogue acts -----------------------------------------------------------------------------------------------

AGENT_ACTS = (
    "greet", "ask_goal", "explain", "worked_example", "ask_easy", "ask_medium", "ask_hard", "check_answer", "hint",
    "review", "next_skill", "praise", "study_plan", "suggest_break", "ask_feeling", "end",
)  # fmt: skip
(GREET, ASK_GOAL, EXPLAIN, EXAMPLE, ASK_EASY, ASK_MEDIUM, ASK_HARD, CHECK, HINT,
 REVIEW, NEXT, PRAISE, PLAN, BREAK, ASK_FEELING, END) = range(16)  # fmt: skip

USER_ACTS = (
    "greet", "state_goal", "answer", "dont_know", "ask_help", "understood", "confused", "bored", "frustrated", "fine",
    "agree", "thank", "bye", "ask_repeat",
)  # fmt: skip
(U_GREET, STATE_GOAL, ANSWER, DONT_KNOW, ASK_HELP, UNDERSTOOD, CONFUSED, BORED, FRUSTRATED, FINE,
 AGREE, THANK, BYE, ASK_REPEAT) = range(14)  # fmt: skip
UNCLEAR = 14
"""What the tutor understood when it understood nothing; never said."""

OUTCOMES = ("", "learned", "little_learned", "gave_up", "truncated")
GOES_ON, LEARNED, LITTLE_LEARNED, GAVE_UP, TRUNCATED = range(5)
LEAVING = ("gave_up",)

OUTCOME_VALUES = {
    "learned": 0.5,  # with the progress that led there, as much as a failure costs
    "gave_up": -0.5,  # the student left; what it learned is kept
    "little_learned": -1.0,  # the tutor ended it short of the goal: giving up
}
"""Worth of the outcomes; truncation has none, since the lesson could have gone on."""

MEASURED = ("outcome", "progress", "gain", "gave_up", "time", "affect")
REWARD_TERMS = {"outcome": 1.0, "progress": 1.0, "time": 0.02, "affect": 0.02}
"""Term to weight. outcome: `OUTCOME_VALUES`; progress: rise in the normalised learning gain; time: -1 a turn; affect:
by how much boredom and frustration fell, in points."""

VERSION_1 = {"outcome_values": {}, "reward_terms": {"gain": 1.0, "gave_up": 0.5, "time": 0.02, "affect": 0.02}}
"""gain: the learning gain if the tutor ends the lesson; gave_up: -1 if the student left. Ending at once was worth more
than an honest attempt that fails."""

# -- Skills ------------------------------------------------------------------------------------------------------

SKILLS = ("arithmetic", "fractions", "percentages", "ratios", "equations", "word_problems")
ARITHMETIC, FRACTIONS, PERCENTAGES, RATIOS, EQUATIONS, WORD_PROBLEMS = range(6)
N_SKILLS = len(SKILLS)
BUILDS_ON = np.array([-1, ARITHMETIC, FRACTIONS, FRACTIONS, ARITHMETIC, EQUATIONS])
CHANCE_KNOWN = np.array([0.65, 0.55, 0.0, 0.0, 0.52, 0.0])  # p(L0), for a student who knows what it builds on
CHANCE_KNOWN_WITHOUT = 0.10  # p(L0), for one who doesn't
EASY, MEDIUM, HARD = range(3)

# -- How students learn and answer -------------------------------------------------------------------------------

LEARNS, LEARNS_SPREAD = 0.57, 0.12  # p(T) of an explanation, by student and skill
SLIPS, SLIPS_SPREAD = 0.08, 0.04  # p(S)
GUESSES, GUESSES_SPREAD = 0.12, 0.05  # p(G)
SLIP_OF = np.array([0.5, 1.0, 1.8])  # times p(S), by difficulty: a hard question is easily failed …
GUESS_OF = np.array([1.8, 1.0, 0.4])  # times p(G): … and hardly guessed
LIKED, DISLIKED = 1.6, 0.12  # times p(T): the way of teaching that suits the student, and the other one
PRACTISED = 0.1  # times p(T): having answered a question
HINTED, P_HINTED_GUESS = 0.6, 0.5  # times p(T), and p(G) after a hint
WITHOUT_BASIS = 0.06  # times p(T), when what the skill builds on isn't known
SHAKY = 0.7  # times 1 - p(S), likewise

P_STATES_GOAL_FIRST = 0.6
P_UNDERSTOOD_IF_KNOWN, P_UNDERSTOOD_IF_NOT = 0.88, 0.2  # students believe that they understood (or not)
P_MISSES_BASIS = 0.75  # a confused student notices that the basis is what is missing
P_BLAMES_BASIS = 0.06  # or believes so when it isn't
P_DONT_KNOW = 0.35  # says so rather than a wrong number
P_CARELESS = 0.25  # a wrong answer is off by one rather than a typical mistake
P_SAYS_FEELING = 0.35  # a turn, when it is bad
P_TONE_SLIPS = 0.1  # sounds a shade better or worse than it feels
P_LOW_IF_WRONG = 0.7  # error channel: low confidence, given a misunderstood value
LOW_IF_RIGHT_PER_ERROR = 1.5  # and given a right one, times error_rate
AFFECT_MAX = 10  # boredom or frustration at which a student leaves
BAD = 6  # at which it says so

# Purposes of the random draws (see chatgym.dynamics.rng).
(D_GOAL, _, D_STYLE, D_BOREDOM, D_FRUSTRATION, D_PATIENCE, D_OPENING, D_SKILL_LEARNT, D_SAYS, D_BASIS, D_RIGHT,
 D_DONT_KNOW, D_CARELESS, D_PRACTICE, D_FEELING, D_TONE, D_ACT_ERROR, D_ACT_CONFUSED, D_ERROR, D_CONFUSED,
 D_CONFIDENCE) = range(21)  # fmt: skip
D_SEED = 25  # and the next one
D_KNOWN, D_LEARNS, D_SLIPS, D_GUESSES = range(30, 70, 10)

# The confusion model of acts: what each is mistaken for when it is not lost altogether.
MISTAKEN_FOR = np.array([
    AGREE, ASK_HELP, DONT_KNOW, CONFUSED, CONFUSED, AGREE, DONT_KNOW, FRUSTRATED, BORED, AGREE, UNDERSTOOD, BYE,
    THANK, CONFUSED,
])  # fmt: skip

# -- State -------------------------------------------------------------------------------------------------------

HIDDEN = np.dtype((np.record, [
    ("goal", "i1"), ("known", "u1"), ("known_first", "u1"),  # skills as bits
    ("learns", "f4", (N_SKILLS,)), ("slips", "f4", (N_SKILLS,)), ("guesses", "f4", (N_SKILLS,)),
    ("style", "i1"),  # 0 learns better from explanations, 1 from examples
    ("boredom", "i1"), ("frustration", "i1"), ("patience", "i1"), ("told", "i1"),
    ("taught", "i1"), ("succeeded", "i1"), ("breaks", "i1"), ("planned", "i1"),  # last way; a right answer unpraised
    ("num", "i4"), ("den", "i4"),  # its answer to the open question; den 0: none
]))  # fmt: skip

BELIEF = np.dtype((np.record, [
    ("seed", "u2"),  # of the questions' numbers; too few bits to lead back to the key
    ("known", "f4", (N_SKILLS,)),  # probability of each skill, by knowledge tracing
    ("before", "f4"),  # that of the skill asked about, before the answer
    ("goal", "i1"), ("goal_sure", "i1"),  # -1 unknown; 0 unknown, 1 unsure, 2 sure
    ("skill", "i1"),  # what the lesson is at, -1 before there is a goal
    ("question_skill", "i1"), ("difficulty", "i1"), ("asked", "i2"), ("hinted", "i1"),  # the last question
    ("answered", "i1"), ("num", "i4"), ("den", "i4"), ("sure", "i1"),  # as `NO_ANSWER` …; 1 unsure, 2 sure
    ("style", "i1"),  # -2 … 2: learns from explanations … from examples
    ("feeling", "i1"),  # 0 nothing bad heard, 1 bored, 2 frustrated
    ("turn", "i2"), ("act", "i1"), ("heard", "i1"), ("tone", "i1"), ("praised", "i1"), ("breaks", "i1"),
    ("plans", "i1"), ("taught", "i1"), ("ended", "i1"), ("max_turns", "i2"),
]))  # fmt: skip
NO_ANSWER, RIGHT, WRONG, GIVEN_UP = range(4)

SAID = np.dtype((np.record, [
    ("num", "i4"), ("den", "i4"), ("goal", "i1"), ("act", "i1"), ("tone", "i1"), ("about", "i1"),
]))  # fmt: skip
"""An answer num/den (den 0: none); the goal that is stated, or -1; about 1: an answer repeated, a goodbye in anger."""


@nb.njit
def in_chain(goal: int, skill: int) -> bool:
    """Tell whether a skill is the goal or one of its prerequisites."""
    while goal >= 0:
        if goal == skill:
            return True
        goal = BUILDS_ON[goal]
    return False


@nb.njit
def above(goal: int, skill: int) -> int:
    """Return the next skill on the way from its prerequisites up to the goal; the goal itself at the top."""
    step = goal
    while step >= 0 and BUILDS_ON[step] != skill:
        step = BUILDS_ON[step]
    return step if step >= 0 else goal


@nb.njit(cache=True)  # also called by itself, from the tests
def score(goal: int, known: int) -> float:
    """Return the mark in a test on the goal, 0 … 1, for the skills `known`, as bits.

    The goal counts half, its prerequisites the other half.
    """
    basis, count = 0, 0
    step = BUILDS_ON[goal]
    while step >= 0:
        basis += (known >> step) & 1
        count += 1
        step = BUILDS_ON[step]
    return 0.5 * ((known >> goal) & 1) + 0.5 * basis / count


@nb.njit
def gain(hidden: Any) -> float:
    """Return the normalised learning gain, from `hidden`, a record."""
    return gain_of(hidden, int(hidden.known))


@nb.njit
def gain_of(hidden: Any, known: int) -> float:
    """Return the normalised learning gain (post - pre) / (1 - pre) (Hake 1998) with the skills `known`, as bits.

    `hidden` is a record.
    """
    goal = int(hidden.goal)
    before, after = score(goal, int(hidden.known_first)), score(goal, known)
    return (after - before) / (1.0 - before) if before < 1.0 else 0.0
