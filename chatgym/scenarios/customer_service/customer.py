"""The customer, an agenda-based user simulator (see the package): its goal, mood, agenda and answers."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from chatgym.dynamics.rng import draw, randint
from chatgym.dynamics.scenario import ABOUT, UNCLEAR_ACT
from chatgym.scenarios.customer_service.belief import note_own_act, understand
from chatgym.scenarios.customer_service.policy import *


@nb.njit
def start(key: np.uint64, hidden: Any, belief: Any, said: Any, error_rate: float) -> None:
    """Draw a customer into `hidden` and its opening into `said`, and empty `belief`; all three are records."""
    hidden.topic = randint(key, 0, D_TOPIC, 6)
    date_bin, amount_bin = randint(key, 0, D_DATE_BIN, 3), randint(key, 0, D_AMOUNT_BIN, 2)
    hidden.date = some_date(key, 0, D_DATE, date_bin)
    hidden.amount = some_amount(key, 0, D_AMOUNT, amount_bin)
    hidden.wrong_date = some_date(key, 0, D_WRONG_VALUE, (date_bin + 1) % 3)
    hidden.wrong_amount = some_amount(key, 0, D_WRONG_VALUE + 1, 1 - amount_bin)
    hidden.proof = int(draw(key, 0, D_PROOF) < 0.6)
    hidden.reference = 100_000 + randint(key, 0, D_REFERENCE, 900_000)
    hidden.mood = 5 + randint(key, 0, D_MOOD, 5)
    hidden.patience = 7 + randint(key, 0, D_PATIENCE, 8)
    hidden.talkative = 0.6 * draw(key, 0, D_TALK)
    hidden.hopes = int(draw(key, 0, D_HOPES) < P_HOPES_FOR_MORE)
    hidden.question = int(draw(key, 0, D_QUESTION) < P_FURTHER_QUESTION)
    hidden.told = 0
    hidden.misremembers = hidden.reluctant = hidden.not_at_hand = 0
    for slot in range(1, 5):
        bit = 1 << slot
        if (slot == DATE or slot == AMOUNT) and draw(key, 0, D_MISREMEMBERS + slot) < P_MISREMEMBERS:
            hidden.misremembers |= bit
        if (slot == REFERENCE or slot == PROOF) and draw(key, 0, D_RELUCTANT + slot) < P_RELUCTANT:
            hidden.reluctant |= bit
        if slot != PROOF and draw(key, 0, D_NOT_AT_HAND + slot) < P_NOT_AT_HAND:
            hidden.not_at_hand |= bit
    hidden.waiting = hidden.accepted = -1
    hidden.complained = hidden.verdict = 0

    belief.reference = belief.date = belief.amount = belief.proof = 0
    belief.topic = belief.act = belief.confirming = belief.offered = -1
    belief.sure[:] = 0
    belief.asked[:] = 0
    belief.turn = belief.tone = belief.confirms = belief.question = belief.complaint = belief.apologies = 0
    belief.explained = belief.rejected = belief.accepted = belief.satisfied = belief.ended = 0

    say(said, U_GREET)
    if draw(key, 0, D_OPENING) < P_STATES_PROBLEM_FIRST:
        tell(key, 0, hidden, said, STATE_PROBLEM, TOPIC)
    said.tone = tone(key, 0, hidden.mood)
    understand(key, 0, belief, said, error_rate)


@nb.njit
def say(said: Any, act: int) -> None:
    """Make `said`, a record, an utterance of an act without slots."""
    said.act = act
    said.about = -1
    said.slots = said.tone = 0
    said.reference = said.date = said.amount = said.topic = said.proof = 0


@nb.njit
def thinks(hidden: Any, slot: int) -> int:
    """Return the value that the customer believes a slot to have, from `hidden`, a record."""
    if slot == DATE and hidden.misremembers & (1 << DATE):
        return hidden.wrong_date
    if slot == AMOUNT and hidden.misremembers & (1 << AMOUNT):
        return hidden.wrong_amount
    return value_of(hidden, slot)


@nb.njit
def tell(key: np.uint64, turn: int, hidden: Any, said: Any, act: int, slot: int) -> None:
    """Say a slot's value and, if talkative, one more needed slot; `hidden` and `said` are records."""
    say(said, act)
    said.about = slot
    set_value(said, slot, thinks(hidden, slot))
    said.slots = 1 << slot
    if act != CORRECT:
        for other in range(1, 5):
            bit = 1 << other
            kept_back = (hidden.told | hidden.reluctant | hidden.not_at_hand) & bit
            if other != slot and needs(hidden.topic, other) and not kept_back:
                if draw(key, turn, D_VOLUNTEER) < hidden.talkative:
                    set_value(said, other, thinks(hidden, other))
                    said.slots |= bit
                break
    hidden.told |= said.slots


@nb.njit
def found_out(topic: int, told: int) -> float:
    """Return the share of what the policy needs for the topic that is among the slots `told`, as bits."""
    known, needed = 0, 0
    for slot in range(5):
        if needs(topic, slot):
            needed += 1
            known += (told >> slot) & 1
    return known / needed


@nb.njit
def tone(key: np.uint64, turn: int, mood: int) -> int:
    """Return how a mood sounds: 0 calm, 1 annoyed, 2 angry, now and then a shade off."""
    sounds = 0 if mood >= 6 else (1 if mood >= 3 else 2)
    u = draw(key, turn, D_TONE)
    if u < P_TONE_SLIPS / 2:
        return max(sounds - 1, 0)
    return min(sounds + 1, 2) if u < P_TONE_SLIPS else sounds


@nb.njit
def answer_question(key: np.uint64, turn: int, slot: int, hidden: Any, belief: Any, said: Any) -> int:
    """React to the question for a slot; return the change of mood. `hidden`, `belief` and `said` are records."""
    bit = 1 << slot
    told = hidden.told & bit
    if slot == TOPIC:
        tell(key, turn, hidden, said, STATE_PROBLEM, TOPIC)
        return -1 if told and belief.asked[TOPIC] > 1 else 0
    if not hidden.told & (1 << TOPIC):
        tell(key, turn, hidden, said, STATE_PROBLEM, TOPIC)  # what it came for goes first
        return 0
    if hidden.reluctant & bit or not needs(hidden.topic, slot):
        say(said, ASK_WHY)
        hidden.waiting = slot
        return 0 if needs(hidden.topic, slot) else -1
    if hidden.not_at_hand & bit:
        hidden.not_at_hand &= ~bit
        say(said, DONT_KNOW)
        return 0
    tell(key, turn, hidden, said, INFORM, slot)
    return -1 if told else 0


@nb.njit
def answer_confirmation(key: np.uint64, turn: int, hidden: Any, belief: Any, said: Any) -> int:
    """React to a confirmed value; return the change of mood. `hidden`, `belief` and `said` are records."""
    slot = belief.confirming
    if slot < 0:
        say(said, ASK_REPEAT)
        return -1
    bit = 1 << slot
    if hidden.misremembers & bit and draw(key, turn, D_RECALL) < P_RECALLS_ASKED:
        hidden.misremembers &= ~bit
    if value_of(belief, slot) == thinks(hidden, slot):
        say(said, AFFIRM)
        said.about = slot
    else:
        tell(key, turn, hidden, said, CORRECT, slot)
    return -1 if belief.confirms > 3 else 0


@nb.njit
def take_explanation(key: np.uint64, turn: int, hidden: Any, said: Any) -> int:
    """React to an explanation; return the change of mood. `hidden` and `said` are records."""
    if hidden.waiting >= 0:
        hidden.reluctant &= ~(1 << hidden.waiting)
        tell(key, turn, hidden, said, INFORM, hidden.waiting)
        hidden.waiting = -1
        return 0
    if hidden.accepted >= 0 and hidden.question == 2:
        hidden.question = 0
        say(said, THANK)
        return 1
    say(said, AFFIRM)
    if hidden.hopes == 2:
        hidden.hopes = 0
        return 0
    return -1


@nb.njit
def take_offer(key: np.uint64, turn: int, offer: int, hidden: Any, belief: Any, said: Any) -> int:
    """React to an offer; return the change of mood. `hidden`, `belief` and `said` are records.

    An acceptance is final: it decides the outcome.
    """
    if not hidden.told & (1 << TOPIC):
        tell(key, turn, hidden, said, STATE_PROBLEM, TOPIC)
        return -1
    if hidden.accepted >= 0:
        say(said, ACCEPT)
        return -1
    right = right_resolution(hidden)
    worth, due = GENEROSITY[hidden.topic, offer], GENEROSITY[hidden.topic, right]
    mood = 0
    if offer == right:
        if hidden.hopes:
            p_accepts, mood = 0.0, -int(hidden.hopes == 2)
            hidden.hopes = 2
        else:
            p_accepts = 0.95 if hidden.mood >= 3 else 0.7
    elif worth > due:
        p_accepts = 0.9
    else:
        p_accepts, mood = 0.15, -2
    if draw(key, turn, D_ACCEPT) >= p_accepts:
        say(said, REJECT)
        return mood
    say(said, ACCEPT)
    hidden.accepted = offer
    if not believes_enough(belief):
        hidden.verdict = POLICY_VIOLATION
    elif belief.reference != hidden.reference:
        hidden.verdict = WRONG_RESOLUTION  # granted to somebody else's order
    elif offer == right:
        hidden.verdict = RESOLVED
    else:
        hidden.verdict = POLICY_VIOLATION if worth > due else WRONG_RESOLUTION
    return 1


@nb.njit
def take_care(act: int, hidden: Any, belief: Any, said: Any) -> int:
    """React to greet, apologise or check_satisfaction; return the change of mood.

    `hidden`, `belief` and `said` are records.
    """
    if act == GREET:
        say(said, U_GREET)
        return 1 if belief.turn == 1 else -1
    if act == APOLOGISE:
        say(said, AFFIRM)
        if hidden.complained:
            hidden.complained = 0
            return 3
        return 1 if hidden.mood <= 4 and belief.apologies == 1 else -1
    if hidden.accepted < 0:
        say(said, COMPLAIN)
        hidden.complained = 1
        return -1
    if hidden.question:
        hidden.question = 2
        say(said, ASK_MORE)
        return 0
    say(said, THANK)
    return 0 if belief.satisfied else 1


@nb.njit
def react(key: np.uint64, turn: int, act: int, hidden: Any, belief: Any, said: Any) -> int:
    """Choose the customer's next act; return the change of mood. `hidden`, `belief` and `said` are records."""
    if act == UNCLEAR_ACT:
        say(said, ASK_REPEAT)
        return -1
    if act != APOLOGISE and hidden.mood <= 4 and not hidden.complained and hidden.accepted < 0:
        if draw(key, turn, D_COMPLAIN) < P_COMPLAINS:
            hidden.complained = 1
            say(said, COMPLAIN)
            return 0
    wrong = hidden.misremembers & hidden.told
    if wrong and act != CONFIRM and hidden.accepted < 0 and draw(key, turn, D_RECALL) < P_RECALLS:
        slot = DATE if wrong & (1 << DATE) else AMOUNT
        hidden.misremembers &= ~(1 << slot)
        tell(key, turn, hidden, said, CORRECT, slot)
        return 0
    if ASK_TOPIC <= act <= ASK_PROOF:
        return answer_question(key, turn, act - ASK_TOPIC, hidden, belief, said)
    if act == CONFIRM:
        return answer_confirmation(key, turn, hidden, belief, said)
    if act == EXPLAIN:
        return take_explanation(key, turn, hidden, said)
    if OFFER_REFUND <= act <= OFFER_CREDIT:
        return take_offer(key, turn, act - OFFER_REFUND, hidden, belief, said)
    return take_care(act, hidden, belief, said)


@nb.njit
def ending(act: int, hidden: Any, belief: Any, said: Any) -> int:
    """Return the outcome if the act ends the conversation, else `GOES_ON`. `hidden`, `belief`, `said`: records."""
    outcome = GOES_ON
    if act == CLOSE:
        outcome = hidden.verdict if hidden.accepted >= 0 else ABANDONED
        if hidden.question:  # sent away with a question
            hidden.mood = max(hidden.mood - 2, 0)
    elif act == ESCALATE:
        if hidden.accepted >= 0 or right_resolution(hidden) != SUPERVISOR:
            outcome = NEEDLESS_ESCALATION
        elif believes_enough(belief) and belief.topic == hidden.topic and belief.reference == hidden.reference:
            outcome = RESOLVED
        else:
            outcome = WRONG_RESOLUTION  # the supervisor gets a case that can't be worked on
    if outcome != GOES_ON:
        say(said, BYE)
        said.about = -1 if outcome == RESOLVED else TOPIC
    return outcome


@nb.njit
def respond(
    key: np.uint64, turn: int, act: int, hidden: Any, belief: Any, said: Any, terms: Any, error_rate: float,
    last: bool,
) -> int:  # fmt: skip
    """Advance one conversation by an agent act and return the outcome; see `Scenario`.

    `hidden`, `belief` and `said` are records; of `terms`, float64[5], all but the outcome's value are written.
    """
    about = -1
    if act >= ABOUT:
        act, about = act % ABOUT, act // ABOUT - 1
    note_own_act(belief, act, turn)
    if act == CONFIRM and about >= 0:
        belief.confirming = about if belief.sure[about] > 0 else -1
    mood, told = hidden.mood, hidden.told
    outcome = ending(act, hidden, belief, said)
    if outcome == GOES_ON:
        change = react(key, turn, act, hidden, belief, said) - int(turn > hidden.patience)
        hidden.mood = min(max(mood + change, 0), MOOD_MAX)
        if hidden.mood == 0:
            outcome = hidden.verdict if hidden.accepted >= 0 else HUNG_UP
            say(said, BYE)
            said.about = TOPIC
        elif last:
            outcome = TRUNCATED
    said.tone = tone(key, turn, hidden.mood)
    if outcome == GOES_ON or outcome == TRUNCATED:
        understand(key, turn, belief, said, error_rate)
    else:
        belief.ended = 1
        belief.heard = said.act
        belief.tone = said.tone
    terms[1] = -1.0
    terms[2] = hidden.mood - mood
    terms[3] = hidden.mood / MOOD_MAX if outcome == RESOLVED else 0.0
    terms[4] = found_out(hidden.topic, hidden.told) - found_out(hidden.topic, told) if hidden.told != told else 0.0
    return outcome
