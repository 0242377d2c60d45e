"""The agent's belief: the error channel, the observations, and the scripted expert."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from chatgym.dynamics.rng import draw, randint
from chatgym.dynamics.scenario import ABOUT
from chatgym.scenarios.customer_service.policy import *

# -- What the agent understands ----------------------------------------------------------------------------------


@nb.njit
def least_sure(belief: Any) -> int:
    """Return the slot to confirm: the least certain one of `belief`, a record, not yet confirmed, or -1."""
    best, level = -1, 3
    for slot in range(5):
        if 0 < belief.sure[slot] < level:
            best, level = slot, belief.sure[slot]
    return best


@nb.njit
def note_own_act(belief: Any, act: int, turn: int) -> None:
    """Write the agent's own act into `belief`, a record."""
    belief.turn = turn
    belief.act = act
    belief.confirming = -1
    if ASK_TOPIC <= act <= ASK_PROOF:
        slot = act - ASK_TOPIC
        belief.asked[slot] = min(belief.asked[slot] + 1, 9)
    elif act == CONFIRM:
        belief.confirming = least_sure(belief)
        belief.confirms = min(belief.confirms + 1, 9)
    elif act == EXPLAIN:
        belief.question = 0
        belief.explained = belief.rejected
    elif act == APOLOGISE:
        belief.complaint = 0
        belief.apologies = min(belief.apologies + 1, 9)
    elif OFFER_REFUND <= act <= OFFER_CREDIT:
        belief.offered = act - OFFER_REFUND
        belief.rejected = 0


@nb.njit
def understand(key: np.uint64, turn: int, belief: Any, said: Any, error_rate: float) -> None:
    """Pass `said`, a record, through the error channel into `belief`, a record."""
    heard = said.act
    if draw(key, turn, D_ACT_ERROR) < error_rate:
        heard = UNCLEAR if draw(key, turn, D_ACT_CONFUSED) < 0.5 else CONFUSED[heard]
    if heard != UNCLEAR:
        for slot in range(5):
            if said.slots & (1 << slot):
                hear_slot(key, turn, belief, slot, value_of(said, slot), error_rate)
    take_in(belief, heard)
    belief.tone = said.tone


@nb.njit
def hear_slot(key: np.uint64, turn: int, belief: Any, slot: int, value: int, error_rate: float) -> None:
    """Write one slot's value and its confidence into `belief`, a record; the error channel may replace the value."""
    wrong = draw(key, turn, D_ERROR + slot) < error_rate
    if wrong:
        purpose = D_CONFUSED + slot
        shift = 1 + randint(key, turn, purpose, BINS[slot] - 1) if BINS[slot] > 1 else 0
        other = (case(slot, value) + shift) % BINS[slot]
        if slot == REFERENCE:
            value = 100_000 + (value - 100_000 + 1 + randint(key, turn, purpose, 899_999)) % 900_000
        elif slot == DATE:
            value = some_date(key, turn, purpose, other)
        elif slot == AMOUNT:
            value = some_amount(key, turn, purpose, other)
        else:
            value = other
    p_low = P_LOW_IF_WRONG if wrong else LOW_IF_RIGHT_PER_ERROR * error_rate
    sure = 1 if draw(key, turn, D_CONFIDENCE + slot) < p_low else 2
    if belief.sure[slot] > 0 and value_of(belief, slot) == value:
        sure = max(2, belief.sure[slot])  # heard twice
    set_value(belief, slot, value)
    belief.sure[slot] = sure


@nb.njit
def take_in(belief: Any, heard: int) -> None:
    """Update `belief`, a record, after the user act `heard`: question, complaint, acceptance, satisfaction."""
    belief.heard = heard
    if heard == AFFIRM and belief.confirming >= 0:
        belief.sure[belief.confirming] = 3
    elif heard == ASK_WHY or heard == ASK_MORE:
        belief.question = 1
    elif heard == COMPLAIN:
        belief.complaint = 1
    elif heard == ACCEPT and belief.offered >= 0:
        belief.accepted = 1
        belief.rejected = 0
    elif heard == REJECT and belief.offered >= 0 and not belief.accepted:
        belief.rejected = 1
        belief.explained = 0
    elif heard == THANK and belief.accepted:
        belief.satisfied = 1


@nb.njit
def hear(belief: Any, said: Any) -> None:
    """Update `belief` from `said`, both records, without the error channel (a person's words, understood by NLU)."""
    understand(np.uint64(0), belief.turn, belief, said, 0.0)


@nb.njit
def misled(act: int, belief: Any, clear: Any, hidden: Any, astray: int) -> bool:
    """Tell whether the agent ended a conversation wrongly because of what it had misheard, see `Scenario`.

    It misheard whether its offer was accepted; or it knew enough to choose and misheard the order's number, or what it
    chose is right for what it heard and not for what was said. `belief`, `clear` and `hidden` are records.
    """
    if belief.accepted != clear.accepted:
        return True
    chosen = SUPERVISOR if act % ABOUT == ESCALATE and not belief.accepted else int(belief.offered)
    if chosen < 0 or not believes_enough(belief):
        return False
    if belief.reference != hidden.reference and clear.reference == hidden.reference:
        return True
    if chosen == SUPERVISOR and belief.topic != hidden.topic and clear.topic == hidden.topic:
        return True
    return bool(right_resolution(belief) == chosen and right_resolution(clear) != chosen)


# -- What the agent sees -------------------------------------------------------------------------------------------

PHASES = 7  # open, complaint, question, unclear, rejected, rejected and explained, not begun by the agent


@nb.njit
def phase(belief: Any) -> int:
    """Number what the conversation waits for before an offer was accepted, from `belief`, a record."""
    if belief.turn == 0:
        return 6
    if belief.complaint:
        return 1
    if belief.question:
        return 2
    if belief.rejected:
        return 5 if belief.explained else 4
    return 3 if belief.heard == UNCLEAR or belief.heard == ASK_REPEAT else 0


def _slot_cases(slot: int) -> int:
    return 1 if slot < 0 else 1 + 2 * int(BINS[slot])


TOPIC_STATES = np.array([2 * 3 * PHASES * _slot_cases(a) * _slot_cases(b) for a, b in REQUIRED])
SETTLED_STATES = 4 * 2 * 4
TOPIC_OFFSET = 1 + SETTLED_STATES + 3 * PHASES + np.concatenate([[0], np.cumsum(TOPIC_STATES)])
N_BELIEFS = int(TOPIC_OFFSET[-1])


@nb.njit
def slot_case(belief: Any, slot: int) -> int:
    """Return 0 for a slot that `belief`, a record, doesn't hold, else 1 + 2 x case + (1 if sure)."""
    if belief.sure[slot] == 0:
        return 0
    return 1 + 2 * case(slot, value_of(belief, slot)) + int(belief.sure[slot] >= 2)


@nb.njit
def settled(belief: Any) -> int:
    """Number the states of `belief`, a record, after an acceptance, when all that matters is whether the offer fits.

    The number combines: 0 something needed was never heard, 1 below, 2 as, 3 above what the policy grants for the
    values heard; whether all of them are sure; what the conversation waits for.
    """
    fit, sure = 0, 1
    if believes_enough(belief):
        right = right_resolution(belief)
        difference = GENEROSITY[belief.topic, belief.offered] - GENEROSITY[belief.topic, right]
        fit = 2 if belief.offered == right else (1 if difference < 0 else 3)
        for slot in range(5):
            if needs(belief.topic, slot) and belief.sure[slot] < 2:
                sure = 0
    waits = 1 if belief.complaint else (2 if belief.question else (3 if belief.satisfied else 0))
    return (fit * 2 + sure) * 4 + waits


@nb.njit
def index(belief: Any) -> int:
    """Return the discrete observation of `belief`, a record; turn, tone and counts aren't part of it."""
    if belief.ended:
        return 0
    if belief.accepted:
        return 1 + settled(belief)
    code = min(belief.sure[REFERENCE], 2) * PHASES + phase(belief)
    if belief.sure[TOPIC] == 0:
        return 1 + SETTLED_STATES + code
    topic = belief.topic
    first, second = REQUIRED[topic, 0], REQUIRED[topic, 1]
    code = code * 2 + int(belief.sure[TOPIC] >= 2)
    code = code * (1 + 2 * BINS[first]) + slot_case(belief, first)
    if second >= 0:
        code = code * (1 + 2 * BINS[second]) + slot_case(belief, second)
    return TOPIC_OFFSET[topic] + code


EMBEDDING_SIZE = 15 + 15 + 3 + 6 + 5 * 4 + 5 + 3 + 2 + 2 + 3 + 11


@nb.njit
def embed(belief: Any, out: Any) -> None:
    """Write all of `belief`, a record, into `out`, float32[EMBEDDING_SIZE], as numbers in [-1, 1]."""
    out[:] = 0.0
    if belief.act >= 0:
        out[belief.act] = 1.0
    out[15 + belief.heard] = 1.0
    out[30 + belief.tone] = 1.0
    if belief.sure[TOPIC]:
        out[33 + belief.topic] = 1.0
    for slot in range(5):
        out[39 + 4 * slot + belief.sure[slot]] = 1.0
        out[59 + slot] = min(belief.asked[slot], 5) / 5
    if belief.sure[DATE]:
        out[64 + case(DATE, belief.date)] = 1.0
    if belief.sure[AMOUNT]:
        out[67 + case(AMOUNT, belief.amount)] = 1.0
    if belief.sure[PROOF]:
        out[69 + belief.proof] = 1.0
    if belief.offered >= 0:
        out[71 + belief.offered] = 1.0
    out[74] = min(belief.turn / 20.0, 1.0)
    out[75] = min(belief.confirms, 5) / 5
    out[76] = min(belief.apologies, 5) / 5
    out[77] = belief.question
    out[78] = belief.complaint
    out[79] = belief.explained
    out[80] = belief.rejected
    out[81] = belief.accepted
    out[82] = belief.satisfied
    out[83] = belief.ended
    if belief.confirming >= 0:
        out[84] = (1 + belief.confirming) / 5


@nb.njit
def mask(belief: Any, out: Any) -> None:
    """Mark in `out`, bool[15], the acts that make sense: confirm needs a slot, offers end with acceptance."""
    out[:] = True
    out[CONFIRM] = least_sure(belief) >= 0
    out[CHECK] = belief.accepted == 1
    if belief.accepted:
        out[OFFER_REFUND : OFFER_CREDIT + 1] = False


@nb.njit
def still_needed(belief: Any) -> int:
    """Return the fewest acts that lead from `belief`, a record, to a granted request: questions, offer, close."""
    if belief.accepted:
        return 1
    acts = 2 + int(belief.sure[TOPIC] == 0)
    for slot in range(1, 5):
        acts += int(belief.sure[slot] == 0 and (belief.sure[TOPIC] == 0 or needs(belief.topic, slot)))
    return acts


@nb.njit
def expert(belief: Any) -> int:
    """Return the scripted expert's act for `belief`, a record.

    In this order: greet, raise the mood, answer a question, confirm unsure values, ask for slots, confirm the others
    (which brings back what the customer misremembers), offer, check, close. Where the turns are only just enough to
    ask, offer and close, it leaves out the rest.
    """
    left = belief.max_turns - belief.turn
    hurry = 0 < left <= still_needed(belief)
    if belief.accepted and left == 1:
        return CLOSE
    if belief.turn == 0 and belief.sure[TOPIC] == 0 and not hurry:
        return GREET
    if belief.complaint and belief.apologies < 3 and not hurry:
        return APOLOGISE
    if belief.question:
        return EXPLAIN
    if belief.accepted:
        return CLOSE if belief.satisfied else CHECK
    if belief.sure[TOPIC] == 0:
        return ASK_TOPIC
    least = least_sure(belief)
    if least >= 0 and belief.sure[least] == 1 and belief.confirms < 4 and not hurry:
        return CONFIRM
    for slot in range(1, 5):
        if belief.sure[slot] == 0 and needs(belief.topic, slot):
            return ASK_TOPIC + slot
    right = right_resolution(belief)
    patient = belief.turn < 12 and belief.tone < 2 and left > still_needed(belief) + 3
    if least >= 0 and belief.confirms < (4 if right == SUPERVISOR else 3) and patient:
        return CONFIRM
    if belief.rejected and not belief.explained:
        return EXPLAIN
    return ESCALATE if right == SUPERVISOR else OFFER_REFUND + right
