"""The supporter's belief: the error channel, the observations, and the scripted expert."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from chatgym.dynamics.rng import draw, randint
from chatgym.scenarios.social.policy import *

# -- What the supporter understands ------------------------------------------------------------------------------


@nb.njit
def value_of(record: Any, fact: int) -> int:
    """Return a fact's value in `record`, a hidden, belief or said record."""
    if fact == PROBLEM:
        return record.problem
    return record.feeling if fact == FEELING else record.cause


@nb.njit
def set_value(record: Any, fact: int, value: int) -> None:
    """Set a fact's value in `record`, a hidden, belief or said record."""
    if fact == PROBLEM:
        record.problem = value
    elif fact == FEELING:
        record.feeling = value
    else:
        record.cause = value


@nb.njit
def to_restate(belief: Any) -> int:
    """Return the fact to restate: problem or cause, the less certain one in `belief`, a record, or -1."""
    problem, cause = belief.sure[PROBLEM], belief.sure[CAUSE]
    if cause > 0 and (problem == 0 or cause < problem):
        return CAUSE
    return PROBLEM if problem > 0 else -1


@nb.njit
def is_comfort(act: int) -> bool:
    """Tell whether an act is one of the `STRATEGIES`, which soothe without advice."""
    return act == DISCLOSE or act == REASSURE or act == GIVE_INFO or act == PICTURE


@nb.njit
def note_own_act(belief: Any, act: int, turn: int) -> None:
    """Write the supporter's own act into `belief`, a record."""
    belief.turn = turn
    belief.act = act
    belief.repeating = -1
    if act < 0:
        return
    belief.uses[act] = min(belief.uses[act] + 1, 9)
    if act == RESTATE:
        belief.repeating = to_restate(belief)
    elif act == REFLECT:
        belief.repeating = FEELING if belief.sure[FEELING] > 0 else -1
    elif is_comfort(act):
        belief.comforts = min(belief.comforts + 1, 9)
    if act != CLOSE:
        belief.better = 0 if act == CHECK else belief.better


@nb.njit
def understand(key: np.uint64, turn: int, belief: Any, said: Any, error_rate: float) -> None:
    """Pass `said`, a record, through the error channel into `belief`, a record."""
    heard = said.act
    if draw(key, turn, D_ACT_ERROR) < error_rate:
        heard = UNCLEAR if draw(key, turn, D_ACT_CONFUSED) < 0.5 else CONFUSED[heard]
    if heard != UNCLEAR:
        for fact in range(3):
            if said.slots & (1 << fact):
                hear_fact(key, turn, belief, fact, value_of(said, fact), error_rate)
    take_in(belief, heard)
    belief.tone = said.tone


@nb.njit
def hear_fact(key: np.uint64, turn: int, belief: Any, fact: int, value: int, error_rate: float) -> None:
    """Write one fact and its confidence into `belief`, a record; the error channel may replace the value."""
    wrong = draw(key, turn, D_ERROR + fact) < error_rate
    if wrong:
        value = (value + 1 + randint(key, turn, D_CONFUSED + fact, SIZES[fact] - 1)) % SIZES[fact]
    p_low = P_LOW_IF_WRONG if wrong else LOW_IF_RIGHT_PER_ERROR * error_rate
    sure = 1 if draw(key, turn, D_CONFIDENCE + fact) < p_low else 2
    if belief.sure[fact] > 0 and value_of(belief, fact) == value:
        sure = max(2, belief.sure[fact])  # heard twice
    set_value(belief, fact, value)
    belief.sure[fact] = sure


@nb.njit
def take_in(belief: Any, heard: int) -> None:
    """Update `belief`, a record, after the user act `heard`: confirmed facts, wishes, advice, relief."""
    belief.heard = heard
    if (heard == AFFIRM or heard == OPEN_UP) and belief.repeating >= 0:
        belief.sure[belief.repeating] = 3
    elif heard == WANT_ADVICE:
        belief.wants = 1
    elif heard == WANT_LISTENING:
        belief.wants = 2
    elif heard == TAKE_ADVICE:
        belief.advised = 1
    elif heard == REJECT_ADVICE and belief.advised != 1:
        belief.advised = 2
    elif heard == FEEL_BETTER and belief.act == CHECK:
        belief.better = 1
    belief.worked = 0
    if belief.act >= 0 and is_comfort(belief.act):
        belief.worked = 1 if heard == AFFIRM or heard == OPEN_UP or heard == FEEL_BETTER else 2


@nb.njit
def hear(belief: Any, said: Any) -> None:
    """Update `belief` from `said`, both records, without the error channel (a person's words, understood by NLU)."""
    understand(np.uint64(0), belief.turn, belief, said, 0.0)


@nb.njit
def misled(act: int, belief: Any, clear: Any, hidden: Any, astray: int) -> bool:
    """Tell whether the supporter failed because of what it had misheard, see `Scenario`.

    It believed that it understood the person; and it had misheard a fact, or whether the person wants advice, or it
    lost the person's trust by acts that it wouldn't have taken otherwise. `belief`, `clear` and `hidden` are records.
    """
    if not understood(belief):
        return False
    for fact in range(3):
        if value_of(belief, fact) != value_of(hidden, fact) and value_of(clear, fact) == value_of(hidden, fact):
            return True
    if belief.wants > 0 and clear.wants > 0 and belief.wants != clear.wants:
        return True
    return bool(astray > 0 and hidden.rapport < COMES_BACK)


# -- What the supporter sees -------------------------------------------------------------------------------------

PHASES = 6  # open, held back or turned down, unclear, affirmed or opened up, not better, better (or not begun)
EARLY = 3 * 3 * 3 * PHASES * 3
LATE = 4 * 3 * 3 * 3 * PHASES * 5 * 4
N_BELIEFS = 1 + EARLY + LATE


@nb.njit
def phase(belief: Any) -> int:
    """Number the person's reaction to the last act, 0 … `PHASES` - 1, from `belief`, a record."""
    heard = belief.heard
    if belief.turn == 0 or belief.better:
        return 5
    if heard == UNCLEAR or heard == ASK_REPEAT:
        return 2
    if belief.act == CHECK:
        return 4
    if heard == DEFLECT or heard == REJECT_ADVICE or heard == CORRECT:
        return 1
    return 3 if heard == AFFIRM or heard == OPEN_UP else 0


@nb.njit
def understood(belief: Any) -> bool:
    """Tell whether `belief`, a record, holds problem, feeling and cause, however unsure."""
    return belief.sure[PROBLEM] > 0 and belief.sure[FEELING] > 0 and belief.sure[CAUSE] > 0


@nb.njit
def index(belief: Any) -> int:
    """Return the discrete observation of `belief`, a record; turn, tone and problem aren't part of it."""
    if belief.ended:
        return 0
    if not understood(belief):
        code = 0
        for fact in range(3):
            code = code * 3 + min(belief.sure[fact], 2)
        code = code * PHASES + phase(belief)
        return 1 + code * 3 + min(belief.comforts, 2)
    content = min(belief.sure[PROBLEM], belief.sure[CAUSE])
    if content == 2 and max(belief.sure[PROBLEM], belief.sure[CAUSE]) == 3:
        content = 3
    advice = 3 if belief.advised == 1 else (4 if belief.advised == 2 else belief.wants)
    code = (belief.feeling * 3 + belief.cause) * 3 + belief.sure[FEELING] - 1
    code = ((code * 3 + content - 1) * PHASES + phase(belief)) * 5 + advice
    return 1 + EARLY + code * 4 + min(belief.comforts, 3)


EMBEDDING_SIZE = 95


@nb.njit
def embed(belief: Any, out: Any) -> None:
    """Write all of `belief`, a record, into `out`, float32[EMBEDDING_SIZE], as numbers in [-1, 1]."""
    out[:] = 0.0
    if belief.act >= 0:
        out[belief.act] = 1.0
    out[16 + belief.heard] = 1.0
    out[33 + belief.tone] = 1.0
    if belief.sure[PROBLEM]:
        out[36 + belief.problem] = 1.0
    if belief.sure[FEELING]:
        out[43 + belief.feeling] = 1.0
    if belief.sure[CAUSE]:
        out[47 + belief.cause] = 1.0
    for fact in range(3):
        out[50 + 4 * fact + belief.sure[fact]] = 1.0
    out[62 + belief.wants] = 1.0
    out[65 + belief.advised] = 1.0
    out[68 + belief.worked] = 1.0
    for act in range(16):
        out[71 + act] = min(belief.uses[act], 4) / 4
    out[87] = min(belief.turn / 20.0, 1.0)
    out[88] = belief.better
    out[89] = belief.ended
    out[90 + min(belief.comforts, 3)] = 1.0
    if belief.repeating >= 0:
        out[94] = (1 + belief.repeating) / 3


@nb.njit
def mask(belief: Any, out: Any) -> None:
    """Mark in `out`, bool[16], the acts that make sense: restate and reflect_feeling need a fact that was heard."""
    out[:] = True
    out[RESTATE] = to_restate(belief) >= 0
    out[REFLECT] = belief.sure[FEELING] > 0


@nb.njit
def next_comfort(belief: Any) -> int:
    """Return the strategy that soothes the feeling in `belief`, a record, most, less for each earlier use."""
    best, highest = REASSURE, -9.0
    for i in range(4):
        act = STRATEGIES[i]
        worth = SOOTHES[belief.feeling, i] - 0.9 * belief.uses[act]
        if act == belief.act:
            worth -= 1.0
            if belief.worked == 2:
                worth -= 1.0
        if worth > highest:
            best, highest = act, worth
    return best


@nb.njit
def relief_given(belief: Any) -> int:
    """Return by how much the intensity has fallen, in points, as far as `belief`, a record, tells.

    Being understood counts one point, advice taken three, and the last strategy what it soothes, if it worked.
    """
    points = int(belief.sure[FEELING] == 3) + 3 * int(belief.advised == 1)
    if belief.wants == 2:
        points += int(belief.sure[PROBLEM] == 3) + int(belief.sure[CAUSE] == 3)
    for i in range(4):
        if belief.worked == 1 and belief.act == STRATEGIES[i]:
            points += SOOTHES[belief.feeling, i]
    return points


@nb.njit
def expert(belief: Any) -> int:
    """Return the scripted expert's act for `belief`, a record.

    In this order: greet, say back what was heard, which warms and brings out more, ask for the other facts, comfort,
    advise who wants it, check in doubt, close; close at the last turn in any case.
    """
    left = belief.max_turns - belief.turn
    if belief.better or left == 1:
        return CLOSE
    if belief.turn == 0:
        return GREET
    if 0 < belief.sure[FEELING] < 3 and belief.uses[REFLECT] < 3:
        return REFLECT
    if belief.sure[FEELING] == 0 and belief.uses[CHECK] == 0:
        return CHECK  # who isn't better says how it feels
    back = to_restate(belief)
    if back >= 0 and belief.sure[back] < (2 if understood(belief) or back == CAUSE else 3):
        if belief.uses[RESTATE] < (4 if belief.sure[back] == 1 else 2):
            return RESTATE
    for fact in range(3):
        if belief.sure[fact] == 0:
            return ASK_PROBLEM + fact
    if belief.sure[back] < 3 and belief.uses[RESTATE] < (3 if back == CAUSE else 5):
        return RESTATE
    return relieve(belief)


@nb.njit
def relieve(belief: Any) -> int:
    """Return the act that relieves, or ends the conversation, in `belief`, a record that holds all three facts."""
    calm, tried = belief.tone == 0, belief.comforts + int(belief.advised == 1)
    relief = relief_given(belief)
    if belief.wants == 0:
        comfort = next_comfort(belief)
        if tried < 2 and belief.uses[comfort] == 0:
            return comfort
        if calm and relief >= 2 and belief.act != CHECK and belief.uses[CHECK] < 2:
            return CHECK
        if belief.advised == 0 and belief.uses[ASK_ADVICE] < 2:
            return ASK_ADVICE
    if belief.wants == 1 and belief.advised != 1 and belief.uses[SUGGEST_TALK + belief.cause] < 2:
        return SUGGEST_TALK + belief.cause
    if calm and relief >= 4:
        return CLOSE
    in_time = belief.max_turns - belief.turn != 2 and belief.act != CHECK
    if tried >= 1 and in_time and (calm or tried >= 2) and (belief.worked != 2 or belief.heard == UNCLEAR):
        return CLOSE if calm and tried >= 2 else CHECK
    return next_comfort(belief)
