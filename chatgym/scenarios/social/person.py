"""The person: a simulated one with a problem, a feeling and its intensity, from the first word to the last."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from chatgym.dynamics.rng import draw, randint
from chatgym.dynamics.scenario import ABOUT, UNCLEAR_ACT
from chatgym.scenarios.social.belief import is_comfort, note_own_act, set_value, understand, value_of
from chatgym.scenarios.social.policy import *


@nb.njit
def start(key: np.uint64, hidden: Any, belief: Any, said: Any, error_rate: float) -> None:
    """Draw a person into `hidden` and let it open the conversation in `said`; `belief` is emptied. All are records."""
    hidden.problem = randint(key, 0, D_PROBLEM, SIZES[PROBLEM])
    hidden.feeling = randint(key, 0, D_FEELING, SIZES[FEELING])
    hidden.cause = randint(key, 0, D_CAUSE, SIZES[CAUSE])
    hidden.intensity = hidden.at_first = 5 + randint(key, 0, D_INTENSITY, 4)
    hidden.rapport = 4 + randint(key, 0, D_RAPPORT, 3)
    hidden.patience = 12 + randint(key, 0, D_PATIENCE, 7)
    hidden.wants_advice = int(draw(key, 0, D_ADVICE) < P_WANTS_ADVICE)
    hidden.likes_disclosure = int(draw(key, 0, D_DISCLOSURE) < P_LIKES_DISCLOSURE)
    hidden.likes_pictures = int(draw(key, 0, D_PICTURES) < P_LIKES_PICTURES)
    hidden.told = hidden.heard = hidden.advised = 0
    hidden.last_act = -1
    hidden.uses[:] = 0

    belief.problem = belief.feeling = belief.cause = 0
    belief.sure[:] = 0
    belief.turn = belief.tone = belief.wants = belief.advised = belief.better = belief.comforts = belief.worked = 0
    belief.act = belief.repeating = -1
    belief.uses[:] = 0
    belief.ended = 0

    say(said, U_GREET)
    if draw(key, 0, D_OPENING) < P_STATES_PROBLEM_FIRST:
        tell(key, 0, hidden, said, STATE_PROBLEM, PROBLEM)
    said.tone = tone(key, 0, hidden.intensity)
    understand(key, 0, belief, said, error_rate)


@nb.njit
def say(said: Any, act: int) -> None:
    """Make `said`, a record, an utterance of an act without facts."""
    said.act = act
    said.about = -1
    said.slots = said.tone = 0
    said.problem = said.feeling = said.cause = 0


@nb.njit
def name_fact(hidden: Any, said: Any, fact: int) -> None:
    """Add a fact of `hidden`, a record, to the utterance `said`, a record."""
    set_value(said, fact, value_of(hidden, fact))
    said.slots |= 1 << fact
    hidden.told |= 1 << fact


@nb.njit
def tell(key: np.uint64, turn: int, hidden: Any, said: Any, act: int, fact: int) -> None:
    """Tell a fact and, given enough rapport, the next untold one. `hidden` and `said` are records."""
    say(said, act)
    said.about = fact
    name_fact(hidden, said, fact)
    untold = next_untold(hidden)
    if act != CORRECT and untold >= 0 and draw(key, turn, D_VOLUNTEERS) < P_VOLUNTEERS * (hidden.rapport - 4):
        name_fact(hidden, said, untold)


@nb.njit
def count(facts: int) -> int:
    """Return how many facts are among `facts`, bits."""
    return (facts & 1) + ((facts >> 1) & 1) + ((facts >> 2) & 1)


@nb.njit
def next_untold(hidden: Any) -> int:
    """Return the first fact that wasn't told, or -1, from `hidden`, a record."""
    for fact in range(3):
        if not hidden.told & (1 << fact):
            return fact
    return -1


@nb.njit
def tone(key: np.uint64, turn: int, intensity: int) -> int:
    """Return how an intensity sounds: 0 calm, 1 tense, 2 upset, now and then a shade off."""
    sounds = 0 if intensity <= 4 else (1 if intensity <= 7 else 2)
    u = draw(key, turn, D_TONE)
    if u < P_TONE_SLIPS / 2:
        return max(sounds - 1, 0)
    return min(sounds + 1, 2) if u < P_TONE_SLIPS else sounds


@nb.njit
def soften(hidden: Any, points: int) -> None:
    """Subtract points from the intensity of the feeling in `hidden`, a record; negative points add."""
    hidden.intensity = min(max(hidden.intensity - points, 0), 10)


@nb.njit
def answer_question(key: np.uint64, turn: int, fact: int, hidden: Any, said: Any) -> int:
    """React to the question for a fact; return the change of rapport. `hidden` and `said` are records."""
    if hidden.told & (1 << fact):
        say(said, STATE_PROBLEM + fact)
        said.about = fact
        name_fact(hidden, said, fact)
        return -1 if hidden.uses[ASK_PROBLEM + fact] > 1 or hidden.heard & (1 << fact) else 0
    p_tells = P_TELLS[fact] + TELLS_PER_RAPPORT * hidden.rapport
    if fact != PROBLEM and not hidden.told & (1 << PROBLEM):
        p_tells *= 0.3  # what it is about comes first
    if draw(key, turn, D_TELLS) < p_tells:
        tell(key, turn, hidden, said, STATE_PROBLEM + fact, fact)
        return 0
    say(said, DEFLECT)
    return -1 if hidden.uses[ASK_PROBLEM + fact] > 3 else 0


@nb.njit
def hear_back(key: np.uint64, turn: int, act: int, hidden: Any, belief: Any, said: Any) -> int:
    """React to restate or reflect_feeling; return the change of rapport. `hidden`, `belief` and `said` are records.

    To be understood lowers the intensity.
    """
    fact = belief.repeating
    if fact < 0:
        say(said, ASK_REPEAT)
        return -1
    bit = 1 << fact
    if value_of(belief, fact) != value_of(hidden, fact):
        tell(key, turn, hidden, said, CORRECT, fact)
        return -2 if act == REFLECT else -1
    again = hidden.heard & bit
    hidden.heard |= bit
    say(said, AFFIRM)
    if again:
        return -1
    if fact == FEELING or not hidden.wants_advice:
        soften(hidden, 1)
    untold = next_untold(hidden)
    if untold >= 0 and draw(key, turn, D_VOLUNTEERS) < P_VOLUNTEERS * hidden.rapport:
        say(said, OPEN_UP)
        said.about = untold
        name_fact(hidden, said, untold)
    return 2 if fact == FEELING else 1


@nb.njit
def take_comfort(key: np.uint64, turn: int, act: int, hidden: Any, said: Any) -> int:
    """React to a strategy without advice; return the change of rapport. `hidden` and `said` are records."""
    points = 0
    for i in range(4):
        if STRATEGIES[i] == act:
            points = SOOTHES[hidden.feeling, i]
    disliked = (act == DISCLOSE and not hidden.likes_disclosure) or (act == PICTURE and not hidden.likes_pictures)
    if hidden.told & UNDERSTOOD != UNDERSTOOD:
        say(said, DEFLECT)  # too early to soothe, though a kind word or a story of one's own may warm
        early = act == REASSURE or act == DISCLOSE
        return 1 if early and not disliked and hidden.uses[act] == 1 else -1
    if disliked or points < 0:
        say(said, DEFLECT)
        soften(hidden, min(points, 0))
        return -1
    if points > 0 and draw(key, turn, D_HELPS) < P_HELPS * WEARS_OFF ** (hidden.uses[act] - 1):
        say(said, AFFIRM)
        soften(hidden, points)
        return 1 if hidden.uses[act] == 1 else 0
    say(said, DEFLECT)
    return -1 if hidden.uses[act] > 1 else 0


@nb.njit
def take_advice(key: np.uint64, turn: int, act: int, hidden: Any, said: Any) -> int:
    """React to a suggestion; return the change of rapport. `hidden` and `said` are records.

    A suggestion made before all three facts are understood lowers rapport.
    """
    if hidden.told & UNDERSTOOD != UNDERSTOOD or not hidden.heard:
        say(said, REJECT_ADVICE)
        soften(hidden, -1)
        return -2
    fits = act - SUGGEST_TALK == hidden.cause
    if hidden.advised:
        say(said, REJECT_ADVICE)
        return -2
    if fits and hidden.wants_advice and draw(key, turn, D_TAKES) < P_TAKES:
        hidden.advised = 1
        say(said, TAKE_ADVICE)
        soften(hidden, 3)
        return 1
    say(said, REJECT_ADVICE)
    if not hidden.wants_advice:
        soften(hidden, -1)
    return -1 if fits and hidden.wants_advice else -2


@nb.njit
def answer_check(hidden: Any, said: Any) -> int:
    """React to check_feeling; return the change of rapport. `hidden` and `said` are records."""
    if relieved(hidden):
        say(said, FEEL_BETTER)
        return 0
    say(said, STATE_FEELING)
    said.about = FEELING
    name_fact(hidden, said, FEELING)
    return -1 if hidden.uses[CHECK] > 1 else 0


@nb.njit
def react(key: np.uint64, turn: int, act: int, hidden: Any, belief: Any, said: Any) -> int:
    """Choose the person's next act; return the change of rapport. `hidden`, `belief` and `said` are records."""
    if act == UNCLEAR_ACT:
        say(said, ASK_REPEAT)
        return -1
    if ASK_PROBLEM <= act <= ASK_CAUSE:
        return answer_question(key, turn, act - ASK_PROBLEM, hidden, said)
    if act == RESTATE or act == REFLECT:
        return hear_back(key, turn, act, hidden, belief, said)
    if is_comfort(act):
        return take_comfort(key, turn, act, hidden, said)
    if SUGGEST_TALK <= act <= SUGGEST_PLAN:
        return take_advice(key, turn, act, hidden, said)
    if act == CHECK:
        return answer_check(hidden, said)
    if act == GREET:
        say(said, U_GREET)
        return 1 if turn == 1 else -1
    if hidden.told & UNDERSTOOD != UNDERSTOOD:
        say(said, DEFLECT)  # it can't say yet what would help
        return -1
    say(said, WANT_ADVICE if hidden.wants_advice else WANT_LISTENING)
    return -1 if hidden.uses[ASK_ADVICE] > 2 else 0


@nb.njit
def relieved(hidden: Any) -> bool:
    """Tell whether `CLEAR_RELIEF` of the first intensity is gone, from `hidden`, a record."""
    return hidden.at_first - hidden.intensity >= CLEAR_RELIEF * hidden.at_first


@nb.njit
def verdict(hidden: Any) -> int:
    """Return the outcome if the supporter ends the conversation now, from `hidden`, a record."""
    if hidden.intensity > hidden.at_first:
        return WORSE
    return COMFORTED if relieved(hidden) and hidden.rapport >= COMES_BACK else UNCHANGED


@nb.njit
def respond(
    key: np.uint64, turn: int, act: int, hidden: Any, belief: Any, said: Any, terms: Any, error_rate: float,
    last: bool,
) -> int:  # fmt: skip
    """Advance one conversation by a supporter's act and return the outcome; see `Scenario`.

    `hidden`, `belief` and `said` are records; of `terms`, float64[5], all but the outcome's value are written.
    """
    about = -1
    if act >= ABOUT:
        act, about = act % ABOUT, act // ABOUT - 1
    note_own_act(belief, act, turn)
    if about >= 0:  # words name what they say back
        belief.repeating = about if belief.sure[about] > 0 else -1
    intensity, rapport, told = hidden.intensity, hidden.rapport, count(hidden.told)
    outcome = GOES_ON
    if act >= 0:
        hidden.uses[act] = min(hidden.uses[act] + 1, 9)
    if act == CLOSE:
        outcome = verdict(hidden)
        say(said, THANK if outcome == COMFORTED else BYE)
    else:
        change = react(key, turn, act, hidden, belief, said)
        change -= int(act == hidden.last_act and act >= DISCLOSE) + int(turn > hidden.patience)
        hidden.rapport = min(max(rapport + change, 0), RAPPORT_MAX)
        hidden.last_act = act
        if hidden.rapport == 0:
            outcome = LEFT
            say(said, BYE)
            said.about = PROBLEM
        elif last:
            outcome = TRUNCATED
    said.tone = tone(key, turn, hidden.intensity)
    if outcome == GOES_ON or outcome == TRUNCATED:
        understand(key, turn, belief, said, error_rate)
    else:
        belief.ended = 1
        belief.heard = said.act
        belief.tone = said.tone
    terms[1] = (intensity - hidden.intensity) / hidden.at_first
    terms[2] = (hidden.rapport - rapport) / RAPPORT_MAX
    terms[3] = -1.0
    terms[4] = (count(hidden.told) - told) / 3.0
    return outcome
