"""The student: knowledge, learning and affect (see the package), from what it came for to each of its answers."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from chatgym.dynamics.rng import draw, public_seed, randint
from chatgym.dynamics.scenario import UNCLEAR_ACT
from chatgym.scenarios.education.belief import note_own_act, understand
from chatgym.scenarios.education.policy import *
from chatgym.scenarios.education.problems import problem


@nb.njit
def start(key: np.uint64, hidden: Any, belief: Any, said: Any, error_rate: float) -> None:
    """Draw a student into `hidden` and let it open the conversation in `said`; `belief` is set. All are records."""
    hidden.goal = 1 + randint(key, 0, D_GOAL, N_SKILLS - 1)
    hidden.known = 0
    for skill in range(N_SKILLS):
        basis = BUILDS_ON[skill]
        p = CHANCE_KNOWN[skill] if basis < 0 or hidden.known & (1 << basis) else CHANCE_KNOWN_WITHOUT
        if skill != hidden.goal and CHANCE_KNOWN[skill] > 0 and draw(key, 0, D_KNOWN + skill) < p:
            hidden.known |= 1 << skill
        hidden.learns[skill] = LEARNS + LEARNS_SPREAD * (2.0 * draw(key, 0, D_LEARNS + skill) - 1.0)
        hidden.slips[skill] = SLIPS + SLIPS_SPREAD * (2.0 * draw(key, 0, D_SLIPS + skill) - 1.0)
        hidden.guesses[skill] = GUESSES + GUESSES_SPREAD * (2.0 * draw(key, 0, D_GUESSES + skill) - 1.0)
    hidden.known_first = hidden.known
    hidden.style = randint(key, 0, D_STYLE, 2)
    hidden.boredom = 1 + randint(key, 0, D_BOREDOM, 4)
    hidden.frustration = 1 + randint(key, 0, D_FRUSTRATION, 4)
    hidden.patience = 12 + randint(key, 0, D_PATIENCE, 6)
    hidden.told = hidden.taught = hidden.succeeded = hidden.breaks = hidden.planned = hidden.num = hidden.den = 0

    begin(key, belief)
    say(said, U_GREET)
    if draw(key, 0, D_OPENING) < P_STATES_GOAL_FIRST:
        state_goal(hidden, said)
    said.tone = tone(key, 0, hidden)
    understand(key, 0, belief, said, error_rate)


@nb.njit
def begin(key: np.uint64, belief: Any) -> None:
    """Write the tutor's prior into `belief`, a record, before the student has spoken."""
    belief.seed = public_seed(key, 0, D_SEED)
    for skill in range(N_SKILLS):
        basis, p = int(BUILDS_ON[skill]), CHANCE_KNOWN[skill]
        if basis >= 0 and p > 0:
            there = belief.known[basis]
            p = p * there + CHANCE_KNOWN_WITHOUT * (1.0 - there)
        belief.known[skill] = max(p, 0.02)
    belief.before = 0.0
    belief.goal = belief.skill = belief.question_skill = belief.difficulty = belief.act = -1
    belief.goal_sure = belief.asked = belief.hinted = belief.answered = belief.num = belief.den = belief.sure = 0
    belief.style = belief.feeling = belief.turn = belief.heard = belief.tone = belief.praised = belief.breaks = 0
    belief.plans = belief.taught = belief.ended = 0


@nb.njit
def say(said: Any, act: int) -> None:
    """Make `said`, a record, an utterance of an act without slots."""
    said.act = act
    said.goal = -1
    said.num = said.den = said.tone = said.about = 0


@nb.njit
def state_goal(hidden: Any, said: Any) -> None:
    """Say the goal of `hidden`, a record, in `said`, a record."""
    say(said, STATE_GOAL)
    said.goal = hidden.goal
    hidden.told = min(hidden.told + 1, 9)


@nb.njit
def tone(key: np.uint64, turn: int, hidden: Any) -> int:
    """Return the tone of the stronger feeling in `hidden`, a record: 0 calm, 1 annoyed, 2 angry; sometimes one off."""
    worse = max(hidden.boredom, hidden.frustration)
    sounds = 0 if worse < 5 else (1 if worse < 8 else 2)
    u = draw(key, turn, D_TONE)
    if u < P_TONE_SLIPS / 2:
        return max(sounds - 1, 0)
    return min(sounds + 1, 2) if u < P_TONE_SLIPS else sounds


@nb.njit
def feel(hidden: Any, boredom: int, frustration: int) -> None:
    """Add points to boredom and frustration in `hidden`, a record."""
    hidden.boredom = min(max(hidden.boredom + boredom, 0), AFFECT_MAX)
    hidden.frustration = min(max(hidden.frustration + frustration, 0), AFFECT_MAX)


@nb.njit
def has(hidden: Any, skill: int) -> bool:
    """Tell whether the student knows a skill, from `hidden`, a record; True for -1, the missing prerequisite."""
    return skill < 0 or (hidden.known >> skill) & 1 == 1


@nb.njit
def learn(key: np.uint64, turn: int, purpose: int, hidden: Any, skill: int, share: float) -> None:
    """Draw whether the student learns a skill, with p(T), much less without its prerequisite. `hidden` is a record."""
    p = hidden.learns[skill] * share
    if not has(hidden, int(BUILDS_ON[skill])):
        p *= WITHOUT_BASIS
    if draw(key, turn, purpose) < p:
        hidden.known |= 1 << skill


@nb.njit
def be_taught(key: np.uint64, turn: int, way: int, skill: int, hidden: Any, said: Any) -> None:
    """Follow an explanation (way 0) or an example (1), and say whether it made sense. `hidden`, `said`: records."""
    knew, basis = has(hidden, skill), has(hidden, int(BUILDS_ON[skill]))
    if knew:
        feel(hidden, 6, 0)
    else:
        learn(key, turn, D_SKILL_LEARNT, hidden, skill, LIKED if way == hidden.style else DISLIKED)
        if has(hidden, skill):
            feel(hidden, -1, -2)
        else:
            feel(hidden, int(hidden.taught == way + 1), 1)
    hidden.taught = way + 1
    p = P_UNDERSTOOD_IF_KNOWN if has(hidden, skill) else P_UNDERSTOOD_IF_NOT
    if draw(key, turn, D_SAYS) < p:
        say(said, UNDERSTOOD)
    else:
        say(said, ASK_HELP if misses_basis(key, turn, basis) else CONFUSED)


@nb.njit
def misses_basis(key: np.uint64, turn: int, basis: bool) -> bool:
    """Tell whether the student believes that the basis is what it lacks."""
    return draw(key, turn, D_BASIS) < (P_BLAMES_BASIS if basis else P_MISSES_BASIS)


@nb.njit
def try_question(key: np.uint64, turn: int, skill: int, hidden: Any, belief: Any, said: Any) -> None:
    """Answer the tutor's question by knowledge, slip and guess; `hidden`, `belief` and `said` are records."""
    difficulty, hinted = int(belief.difficulty), belief.hinted == 1
    knows, basis = has(hidden, skill), has(hidden, int(BUILDS_ON[skill]))
    if knows:
        p = (1.0 - hidden.slips[skill] * SLIP_OF[difficulty]) * (1.0 if basis else SHAKY)
        feel(hidden, 1 - difficulty, 0)  # too easy bores, a challenge engages
    else:
        p = P_HINTED_GUESS if hinted else hidden.guesses[skill] * GUESS_OF[difficulty]
        feel(hidden, 0, difficulty + int(difficulty == HARD))
    _, (num, den, wrong_num, wrong_den) = problem(np.uint64(belief.seed), int(belief.asked), skill, difficulty)
    hidden.succeeded = hidden.num = hidden.den = 0
    if draw(key, turn, D_RIGHT) < p:
        hidden.succeeded = 1
        hidden.num, hidden.den = num, den
        feel(hidden, 0, -1)
    elif not knows and draw(key, turn, D_DONT_KNOW) < P_DONT_KNOW:
        say(said, ASK_HELP if misses_basis(key, turn, basis) else DONT_KNOW)
    elif draw(key, turn, D_CARELESS) < P_CARELESS:
        hidden.num, hidden.den = num + den, den
    else:
        hidden.num, hidden.den = wrong_num, wrong_den
    if hidden.den > 0:
        answer(hidden, said, 0)
    if not knows:
        learn(key, turn, D_PRACTICE, hidden, skill, HINTED if hinted else PRACTISED)


@nb.njit
def answer(hidden: Any, said: Any, again: int) -> None:
    """Say the answer in `hidden`, a record, (again) in `said`, a record."""
    say(said, ANSWER)
    said.num, said.den, said.about = hidden.num, hidden.den, again


@nb.njit
def take_lesson(key: np.uint64, turn: int, act: int, before: int, hidden: Any, belief: Any, said: Any) -> None:
    """React to teaching, questions and steps; `before` is the previous skill. `hidden`, `belief`, `said`: records."""
    skill = int(belief.skill)
    if skill < 0:
        state_goal(hidden, said)  # what it came for goes first
        feel(hidden, 0, 1)
    elif not in_chain(int(hidden.goal), skill):
        state_goal(hidden, said)  # that isn't what it came for
        feel(hidden, 1, 1)
    elif act == EXPLAIN or act == EXAMPLE:
        be_taught(key, turn, act - EXPLAIN, skill, hidden, said)
    elif act <= ASK_HARD:
        try_question(key, turn, skill, hidden, belief, said)
    elif act == CHECK:
        if hidden.den > 0:
            answer(hidden, said, 1)
            feel(hidden, int(belief.sure == 2), 0)
        else:
            say(said, ASK_REPEAT)
            feel(hidden, 0, 1)
    elif act == HINT:
        if belief.hinted and belief.answered == 0 and not hidden.succeeded:
            try_question(key, turn, int(belief.question_skill), hidden, belief, said)
        else:
            say(said, ASK_REPEAT)
            feel(hidden, 2, 1)
    else:
        say(said, AGREE if skill != before else ASK_REPEAT)
        feel(hidden, int(has(hidden, skill)) if skill != before else 1, int(skill == before))
        hidden.taught = 0


@nb.njit
def take_care(act: int, hidden: Any, belief: Any, said: Any) -> None:
    """React to acts that are about the student, not the subject. `hidden`, `belief` and `said` are records."""
    if act == GREET:
        say(said, U_GREET)
        feel(hidden, int(belief.turn > 1), -int(belief.turn == 1))
    elif act == ASK_GOAL:
        feel(hidden, 0, int(hidden.told > 1))
        state_goal(hidden, said)
    elif act == PRAISE:
        say(said, THANK)
        feel(hidden, int(not hidden.succeeded), -2 if hidden.succeeded else 1)
        hidden.succeeded = 0
    elif act == PLAN:
        if belief.goal == hidden.goal:
            say(said, AGREE)
            feel(hidden, 2 if hidden.planned else -1, 0 if hidden.planned else -1)
            hidden.planned = 1
        else:
            state_goal(hidden, said)
    elif act == BREAK:
        say(said, AGREE)
        welcome = hidden.breaks < 2 and max(hidden.boredom, hidden.frustration) >= 5
        feel(hidden, -3 if welcome else 3, -3 if welcome else 0)
        hidden.breaks = min(hidden.breaks + 1, 9)
    elif hidden.boredom >= BAD or hidden.frustration >= BAD:
        say(said, BORED if hidden.boredom >= hidden.frustration else FRUSTRATED)
        feel(hidden, -1, -1)  # somebody cares
    else:
        say(said, FINE)
        feel(hidden, 1, 0)


@nb.njit
def react(key: np.uint64, turn: int, act: int, before: int, hidden: Any, belief: Any, said: Any) -> None:
    """Choose the student's next act. `hidden`, `belief` and `said` are records."""
    if act == UNCLEAR_ACT:
        say(said, ASK_REPEAT)
        return
    lesson = EXPLAIN <= act <= NEXT
    if lesson and act != CHECK and max(hidden.boredom, hidden.frustration) >= BAD:
        if draw(key, turn, D_FEELING) < P_SAYS_FEELING:  # and doesn't listen
            say(said, BORED if hidden.boredom >= hidden.frustration else FRUSTRATED)
            if act < CHECK or (act == HINT and belief.hinted and belief.answered == 0):  # a task put, or put again
                hidden.succeeded = hidden.den = 0
            return
    if lesson:
        take_lesson(key, turn, act, before, hidden, belief, said)
    else:
        take_care(act, hidden, belief, said)


@nb.njit
def respond(
    key: np.uint64, turn: int, act: int, hidden: Any, belief: Any, said: Any, terms: Any, error_rate: float,
    last: bool,
) -> int:  # fmt: skip
    """Advance one conversation by a tutor's act and return the outcome; see `Scenario`.

    `hidden`, `belief` and `said` are records; of `terms`, float64[6], all but the outcome's value are written.
    """
    before = int(belief.skill)
    note_own_act(belief, act, turn)
    affect, known = hidden.boredom + hidden.frustration, int(hidden.known)
    outcome = GOES_ON
    if act == END:
        outcome = LEARNED if has(hidden, int(hidden.goal)) else LITTLE_LEARNED
    else:
        react(key, turn, act, before, hidden, belief, said)
        feel(hidden, int(turn > hidden.patience), 0)
        if max(hidden.boredom, hidden.frustration) >= AFFECT_MAX:
            outcome = GAVE_UP
        elif last:
            outcome = TRUNCATED
    if outcome == GOES_ON or outcome == TRUNCATED:
        said.tone = tone(key, turn, hidden)
        understand(key, turn, belief, said, error_rate)
    else:
        say(said, BYE)
        said.about = int(outcome == GAVE_UP)
        said.tone = tone(key, turn, hidden)
        belief.ended = 1
        belief.heard = said.act
        belief.tone = said.tone
    terms[1] = gain(hidden) - gain_of(hidden, known) if hidden.known != known else 0.0
    terms[2] = gain(hidden) if act == END else 0.0
    terms[3] = -1.0 if outcome == GAVE_UP else 0.0
    terms[4] = -1.0
    terms[5] = affect - hidden.boredom - hidden.frustration
    return outcome
