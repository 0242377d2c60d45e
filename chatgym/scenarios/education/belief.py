"""The tutor's belief: the error channel, knowledge tracing, the observations, and the scripted expert.

The tutor traces knowledge (Corbett & Anderson 1995, equations 1 to 4) with the average student's p(T), p(S) and p(G):
it knows neither this student's own nor what the student knows.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from chatgym.dynamics.rng import draw, randint
from chatgym.scenarios.education.policy import *
from chatgym.scenarios.education.problems import problem

TRUST = np.array([0.5, 0.65, 0.97])  # how likely an answer was heard right, by confidence

# -- What the tutor does -----------------------------------------------------------------------------------------


@nb.njit
def expected_learning(belief: Any, skill: int) -> float:
    """Return p(T) of the average student for a skill, given the prerequisite's p(L) in `belief`, a record."""
    basis = int(BUILDS_ON[skill])
    there = 1.0 if basis < 0 else float(belief.known[basis])
    return LEARNS * (there + WITHOUT_BASIS * (1.0 - there))


@nb.njit
def trace(belief: Any, skill: int, share: float) -> None:
    """Update `belief`, a record, by an opportunity to learn: p(L) <- p(L) + (1 - p(L)) p(T) (equation 1)."""
    known = belief.known[skill]
    belief.known[skill] = known + (1.0 - known) * expected_learning(belief, skill) * share


@nb.njit
def weigh(belief: Any, skill: int, if_known: float, if_not: float) -> None:
    """Update `belief`, a record, by evidence of the given likelihoods, with Bayes' rule (equations 2 and 3)."""
    known = belief.known[skill]
    belief.known[skill] = known * if_known / (known * if_known + (1.0 - known) * if_not)


@nb.njit
def note_own_act(belief: Any, act: int, turn: int) -> None:
    """Write the tutor's own act into `belief`, a record."""
    belief.turn = turn
    belief.act = act
    if act == BREAK:
        belief.breaks = min(belief.breaks + 1, 9)
        belief.feeling = 0
    elif act == PRAISE:
        belief.praised = 1
    elif act == PLAN:
        belief.plans = min(belief.plans + 1, 9)
    if belief.skill < 0:
        return
    if ASK_EASY <= act <= ASK_HARD:
        belief.asked += 1
        belief.question_skill = belief.skill
        belief.difficulty = act - ASK_EASY
        belief.before = belief.known[belief.skill]
        belief.answered = belief.hinted = belief.praised = belief.sure = belief.num = belief.den = 0
    elif act == HINT and (belief.answered == WRONG or belief.answered == GIVEN_UP):
        belief.answered = belief.sure = 0
        belief.hinted = 1
        belief.before = belief.known[belief.question_skill]
    elif act == EXPLAIN or act == EXAMPLE:
        trace(belief, int(belief.skill), 0.5 * (LIKED + DISLIKED))
        belief.taught = 1 + act - EXPLAIN
        belief.answered = 0
    elif act == REVIEW and BUILDS_ON[belief.skill] >= 0:
        belief.skill = BUILDS_ON[belief.skill]
        belief.answered = belief.taught = 0
    elif act == NEXT and belief.skill != belief.goal:
        belief.skill = above(int(belief.goal), int(belief.skill))
        belief.answered = belief.taught = 0


# -- What the tutor understands ----------------------------------------------------------------------------------


@nb.njit
def understand(key: np.uint64, turn: int, belief: Any, said: Any, error_rate: float) -> None:
    """Pass `said`, a record, through the error channel into `belief`, a record."""
    heard = int(said.act)
    if draw(key, turn, D_ACT_ERROR) < error_rate:
        confused = draw(key, turn, D_ACT_CONFUSED)
        heard = UNCLEAR if heard == ANSWER or heard == STATE_GOAL or confused < 0.5 else int(MISTAKEN_FOR[heard])
    wrong = draw(key, turn, D_ERROR) < error_rate
    p_low = P_LOW_IF_WRONG if wrong else LOW_IF_RIGHT_PER_ERROR * error_rate
    sure = 1 if draw(key, turn, D_CONFIDENCE) < p_low else 2
    if heard == ANSWER and belief.asked > 0 and said.den > 0:
        hear_answer(key, turn, belief, int(said.num), int(said.den), wrong, sure)
    elif heard == STATE_GOAL and said.goal >= 0:
        goal = int(said.goal)
        if wrong:
            goal = 1 + (goal + randint(key, turn, D_CONFUSED, N_SKILLS - 2)) % (N_SKILLS - 1)
        hear_goal(belief, goal, sure)
    else:
        take_in(belief, heard)
    belief.heard = heard
    belief.tone = said.tone


@nb.njit
def hear_goal(belief: Any, goal: int, sure: int) -> None:
    """Write the student's goal into `belief`, a record, and lead the lesson there."""
    if goal == belief.goal:
        belief.goal_sure = max(2, belief.goal_sure)  # heard twice
        return
    belief.goal = goal
    belief.goal_sure = sure
    belief.known[goal] = 0.02
    if not in_chain(goal, int(belief.skill)):
        belief.skill = goal
        belief.answered = belief.taught = 0


@nb.njit
def hear_answer(key: np.uint64, turn: int, belief: Any, num: int, den: int, wrong: bool, sure: int) -> None:
    """Write an answer into `belief`, a record, and mark it; the error channel may replace the number."""
    skill, difficulty = int(belief.question_skill), int(belief.difficulty)
    _, (right_num, right_den, wrong_num, wrong_den) = problem(
        np.uint64(belief.seed), int(belief.asked), skill, difficulty
    )
    if wrong:
        if num == right_num and den == right_den:
            num, den = wrong_num, wrong_den
        elif draw(key, turn, D_CONFUSED) < 0.5:
            num, den = right_num, right_den
        else:
            num += den if (num + den) * right_den != right_num * den else 2 * den
    if belief.den > 0 and num == belief.num and den == belief.den:
        sure = 2  # heard twice
    belief.num, belief.den, belief.sure = num, den, sure
    right = num * right_den == right_num * den
    belief.answered = RIGHT if right else WRONG
    slip = SLIPS * SLIP_OF[difficulty]
    guess = P_HINTED_GUESS if belief.hinted else GUESSES * GUESS_OF[difficulty]
    trust = TRUST[sure]
    if_known = trust * (1.0 - slip) + (1.0 - trust) * slip
    if_not = trust * guess + (1.0 - trust) * (1.0 - guess)
    belief.known[skill] = belief.before
    if right:
        weigh(belief, skill, if_known, if_not)
    else:
        weigh(belief, skill, 1.0 - if_known, 1.0 - if_not)
    trace(belief, skill, HINTED if belief.hinted else PRACTISED)


@nb.njit
def take_in(belief: Any, heard: int) -> None:
    """Update `belief`, a record, after an understood user act that is no answer."""
    if heard == BORED:
        belief.feeling = 1
    elif heard == FRUSTRATED:
        belief.feeling = 2
    elif heard == FINE or heard == THANK:
        belief.feeling = 0
    elif heard == AGREE and belief.act == PLAN and belief.goal >= 0:
        belief.goal_sure = 2  # the plan names it
    if belief.skill < 0:
        return
    skill = int(belief.skill)
    basis = int(BUILDS_ON[skill])
    teaching = belief.act == EXPLAIN or belief.act == EXAMPLE
    asking = ASK_EASY <= belief.act <= ASK_HARD or belief.act == HINT
    if teaching and (heard == UNDERSTOOD or heard == CONFUSED or heard == ASK_HELP):
        way = 1 if belief.act == EXAMPLE else -1
        if heard == UNDERSTOOD:
            weigh(belief, skill, P_UNDERSTOOD_IF_KNOWN, P_UNDERSTOOD_IF_NOT)
        else:
            weigh(belief, skill, 1.0 - P_UNDERSTOOD_IF_KNOWN, 1.0 - P_UNDERSTOOD_IF_NOT)
        if heard != ASK_HELP:
            belief.style = min(max(belief.style + (way if heard == UNDERSTOOD else -way), -2), 2)
    elif asking and (heard == DONT_KNOW or heard == ASK_HELP):
        belief.answered = GIVEN_UP
        weigh(belief, skill, 0.06, P_DONT_KNOW)
    if (teaching or asking) and heard == ASK_HELP and basis >= 0:
        weigh(belief, basis, P_BLAMES_BASIS, P_MISSES_BASIS)


@nb.njit
def hear(belief: Any, said: Any) -> None:
    """Update `belief` from `said`, both records, without the error channel (a person's words, understood by NLU)."""
    understand(np.uint64(0), int(belief.turn), belief, said, 0.0)


@nb.njit
def misled(act: int, belief: Any, clear: Any, hidden: Any, astray: int) -> bool:
    """Tell whether the tutor ended a lesson too early because of what it had misheard, see `Scenario`.

    By what it heard the goal is more likely known than not; and that isn't the student's goal, or by what was said the
    goal isn't. `belief`, `clear` and `hidden` are records.
    """
    goal = int(belief.goal)
    if goal < 0 or belief.known[goal] < 0.5:
        return False
    return bool((goal != hidden.goal and clear.goal == hidden.goal) or clear.known[goal] < 0.5)


# -- What the tutor sees -----------------------------------------------------------------------------------------

STATUSES, FEELINGS, STYLES = 4, 6, 3
GOAL_BINS, BASIS_BINS, GROUND_BINS = 5, 4, 2
N_BELIEFS = 1 + 3 + 3 * 2 * STATUSES * FEELINGS * STYLES * GOAL_BINS * BASIS_BINS * GROUND_BINS


@nb.njit
def status(belief: Any) -> int:
    """Return what the last question waits for: 0 nothing, 1 a check, 2 praise, 3 a hint. `belief` is a record."""
    if belief.answered == RIGHT or belief.answered == WRONG:
        if belief.sure == 1:
            return 1
        if belief.answered == RIGHT:
            return 0 if belief.praised else 2
        return 3
    return 3 if belief.answered == GIVEN_UP else 0


@nb.njit
def basis_known(belief: Any, skill: int) -> float:
    """Return p(L) of a skill's prerequisite in `belief`, a record; 1 if the skill has none."""
    return float(belief.known[BUILDS_ON[skill]]) if skill >= 0 and BUILDS_ON[skill] >= 0 else 1.0


@nb.njit
def depth(belief: Any) -> int:
    """Return how many steps the lesson is below its goal, 0 … 2, from `belief`, a record."""
    steps = 0
    step = int(belief.goal)
    while step >= 0 and step != belief.skill and steps < 2:
        step = int(BUILDS_ON[step])
        steps += 1
    return steps


@nb.njit
def index(belief: Any) -> int:
    """Return the discrete observation of `belief`, a record; turn, plan, breaks and skill names aren't part of it."""
    if belief.ended:
        return 0
    if belief.skill < 0:
        return 1 + min(belief.tone, 2)
    goal = belief.known[belief.goal]
    basis = basis_known(belief, int(belief.goal))
    ground = basis_known(belief, int(BUILDS_ON[belief.goal]))
    code = depth(belief) * 2 + int(belief.goal_sure >= 2)
    code = code * STATUSES + status(belief)
    code = code * FEELINGS + belief.feeling * 2 + int(belief.tone > 0)
    code = code * STYLES + int(belief.style >= 0) + int(belief.style > 0)
    code = code * GOAL_BINS + int(goal > 0.25) + int(goal > 0.55) + int(goal > 0.8) + int(goal > 0.93)
    code = code * BASIS_BINS + int(basis > 0.3) + int(basis > 0.65) + int(basis > 0.88)
    code = code * GROUND_BINS + int(ground > 0.6)
    return 4 + code


EMBEDDING_SIZE = 16 + 15 + 3 + 5 + 6 + 3 + 2 * N_SKILLS + 3 + 4 + 3 + 3 + 13


@nb.njit
def embed(belief: Any, out: Any) -> None:
    """Write all of `belief`, a record, into `out`, float32[EMBEDDING_SIZE], as numbers in [-1, 1]."""
    out[:] = 0.0
    if belief.act >= 0:
        out[belief.act] = 1.0
    out[16 + belief.heard] = 1.0
    out[31 + belief.tone] = 1.0
    if belief.goal >= 0:
        out[34 + belief.goal - 1] = 1.0
        out[39 + belief.skill] = 1.0
        out[45 + depth(belief)] = 1.0
        out[82] = basis_known(belief, int(belief.goal))
        out[83] = basis_known(belief, int(belief.skill))
        out[84] = belief.known[belief.goal]
        out[85] = belief.known[belief.skill]
    for skill in range(N_SKILLS):
        out[48 + skill] = belief.known[skill]
        out[54 + skill] = 2.0 * abs(belief.known[skill] - 0.5)
    out[60 + belief.goal_sure] = 1.0
    out[63 + status(belief)] = 1.0
    out[67 + belief.feeling] = 1.0
    if belief.difficulty >= 0:
        out[70 + belief.difficulty] = 1.0
    out[73] = min(belief.turn / 20.0, 1.0)
    out[74] = belief.style / 2.0
    out[75] = min(belief.asked, 10) / 10.0
    out[76] = min(belief.breaks, 4) / 4.0
    out[77] = min(belief.plans, 4) / 4.0
    out[78] = belief.hinted
    out[79] = belief.praised
    out[80] = belief.taught / 2.0
    out[81] = belief.ended


@nb.njit
def mask(belief: Any, out: Any) -> None:
    """Mark in `out`, bool[number of agent acts], the acts that make sense.

    Teaching needs a goal, check_answer an answer, a hint a failed question, a step another skill to go to.
    """
    led = belief.skill >= 0
    out[:] = True
    out[EXPLAIN : NEXT + 1] = led
    out[PLAN] = led
    if led:
        out[CHECK] = belief.answered == RIGHT or belief.answered == WRONG
        out[HINT] = belief.answered == WRONG or belief.answered == GIVEN_UP
        out[REVIEW] = BUILDS_ON[belief.skill] >= 0
        out[NEXT] = belief.skill != belief.goal


@nb.njit
def teach(belief: Any) -> int:
    """Return explain or worked_example, whichever suits the student by `belief`, a record, or wasn't used last."""
    if belief.style != 0:
        return EXAMPLE if belief.style > 0 else EXPLAIN
    return EXPLAIN if belief.taught == 2 else EXAMPLE


@nb.njit
def expert(belief: Any) -> int:
    """Return the scripted expert's act for `belief`, a record.

    In this order: find the goal, end once it is known, ease boredom or frustration, secure prerequisites, teach, test,
    go on. At the last turn it ends the lesson only if the goal is more likely known than not.
    """
    skill = int(belief.skill)
    if skill < 0:
        return ASK_GOAL
    known = belief.known[skill]
    left = belief.max_turns - belief.turn
    if skill == belief.goal and known > (0.55 if left == 1 else 0.95):
        return END
    if belief.plans < (2 if belief.goal_sure < 2 else int(belief.tone > 0)):
        return PLAN  # which makes the goal sure, and calms
    if belief.tone > 0 and status(belief) == 1:
        return CHECK  # which strains nobody; else another question tells as much
    if belief.tone > 0 and status(belief) == 2:
        return PRAISE
    if (belief.feeling > 0 or belief.tone > 0) and belief.breaks < 2 and belief.act != BREAK and belief.turn > 3:
        return BREAK
    if belief.tone == 2 and belief.breaks == 2 and belief.act != ASK_FEELING:
        return ASK_FEELING  # somebody cares
    if basis_known(belief, skill) < 0.33:
        return REVIEW
    if known < 0.33:
        return teach(belief)
    if known < 0.57 or skill == belief.goal:
        return ASK_HARD if known > 0.7 else (ASK_MEDIUM if known > 0.36 else ASK_EASY)
    return NEXT
