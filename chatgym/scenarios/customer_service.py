"""Customer service: find out what a customer wants, check it, and grant what the policy allows.

The customer is an agenda-based user simulator (Schatzmann et al. 2007, "Agenda-based user simulation for
bootstrapping a POMDP dialogue system"): a hidden goal and an agenda of things still to be said, and a mood
and a patience that decide how it takes what the agent does. What the agent understands passes through an
error channel (semantic error rate, as in Williams & Young 2007): every act and every slot value is
misunderstood with probability `error_rate`, and carries a confidence that is low more often when it is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np

from chatgym.rng import draw, randint
from chatgym.scenarios import TONES, Meaning, Scenario

# -- Dialogue acts -------------------------------------------------------------------------------------------

AGENT_ACTS = (
    "greet", "ask_topic", "ask_reference", "ask_date", "ask_amount", "ask_proof", "confirm", "explain",
    "apologise", "offer_refund", "offer_fix", "offer_credit", "check_satisfaction", "escalate", "close",
)  # fmt: skip
(GREET, ASK_TOPIC, ASK_REFERENCE, ASK_DATE, ASK_AMOUNT, ASK_PROOF, CONFIRM, EXPLAIN,
 APOLOGISE, OFFER_REFUND, OFFER_FIX, OFFER_CREDIT, CHECK, ESCALATE, CLOSE) = range(15)  # fmt: skip

USER_ACTS = (
    "greet", "state_problem", "inform", "affirm", "correct", "ask_why", "dont_know", "complain", "accept",
    "reject", "thank", "ask_more", "bye", "ask_repeat",
)  # fmt: skip
(U_GREET, STATE_PROBLEM, INFORM, AFFIRM, CORRECT, ASK_WHY, DONT_KNOW, COMPLAIN, ACCEPT,
 REJECT, THANK, ASK_MORE, BYE, ASK_REPEAT) = range(14)  # fmt: skip
UNCLEAR = 14
"""What the agent understood when it understood nothing; never said."""

OUTCOMES = (
    "", "resolved", "wrong_resolution", "policy_violation", "needless_escalation", "hung_up", "abandoned",
    "truncated",
)  # fmt: skip
(GOES_ON, RESOLVED, WRONG_RESOLUTION, POLICY_VIOLATION, NEEDLESS_ESCALATION, HUNG_UP, ABANDONED,
 TRUNCATED) = range(8)  # fmt: skip
OUTCOME_VALUE = np.array([0.0, 1.0, -0.5, -1.0, -0.5, -1.0, -1.0, 0.0])

REWARD_TERMS = {"outcome": 1.0, "time": 0.02, "mood": 0.05, "satisfaction": 0.2}
"""Term to weight. outcome: `OUTCOME_VALUE`; time: -1 a turn; mood: its change; satisfaction: mood/10 if resolved."""

# -- Slots, topics and the policy ------------------------------------------------------------------------------

TOPIC, REFERENCE, DATE, AMOUNT, PROOF = range(5)
SLOTS = ("topic", "reference", "date", "amount", "proof")
BINS = np.array([6, 1, 3, 2, 2])  # how many cases of each slot the policy tells apart

TOPICS = ("refund", "late_delivery", "broken_product", "billing", "account_access", "subscription")
REQUIRED = np.array([  # per topic, the slots beside the reference that the policy needs; -1: none
    [DATE, AMOUNT], [DATE, AMOUNT], [DATE, PROOF], [AMOUNT, PROOF], [PROOF, -1], [DATE, -1],
])  # fmt: skip

REFUND, FIX, CREDIT, SUPERVISOR = range(4)
RIGHT = np.array([  # the right resolution, by topic, case of the first and case of the second required slot
    # date: <= 14 days, <= 30 days, older; amount: <= 100 euros, more; proof: no, yes
    [[REFUND, REFUND], [REFUND, CREDIT], [CREDIT, SUPERVISOR]],  # wants to return an item
    [[CREDIT, CREDIT], [FIX, FIX], [REFUND, SUPERVISOR]],        # late delivery
    [[CREDIT, FIX], [CREDIT, FIX], [SUPERVISOR, CREDIT]],        # broken product
    [[CREDIT, FIX], [SUPERVISOR, REFUND], [0, 0]],               # billing
    [[SUPERVISOR, 0], [FIX, 0], [0, 0]],                         # account access
    [[REFUND, 0], [CREDIT, 0], [FIX, 0]],                        # subscription
])  # fmt: skip
GENEROSITY = np.array([  # what an offer is worth to the customer, by topic: refund, fix, credit, supervisor
    [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [1, 3, 1, 0], [3, 1, 2, 0],
])  # fmt: skip

# -- How the customer behaves (probabilities and mood points) ---------------------------------------------------

P_STATES_PROBLEM_FIRST = 0.5
P_RELUCTANT = 0.25  # asks why a number or a proof is needed
P_NOT_AT_HAND = 0.15  # must look a slot up first
P_MISREMEMBERS = 0.12  # a date or amount, at first
P_RECALLS = 0.12  # corrects itself unasked, a turn
P_RECALLS_ASKED = 0.75  # corrects itself when the agent confirms
P_HOPES_FOR_MORE = 0.3  # rejects the right offer until it is explained
P_FURTHER_QUESTION = 0.35
P_COMPLAINS = 0.35  # a turn, in a bad mood
P_TONE_SLIPS = 0.1  # sounds a shade better or worse than it feels
P_LOW_IF_WRONG = 0.7  # error channel: low confidence, given a misunderstood value
LOW_IF_RIGHT_PER_ERROR = 2.0  # and given a right one, times error_rate
MOOD_MAX = 10

# Purposes of the random draws (see chatgym.rng).
(D_TOPIC, D_DATE_BIN, D_DATE, D_AMOUNT_BIN, D_AMOUNT, D_PROOF, D_REFERENCE, D_MOOD, D_PATIENCE, D_TALK, D_HOPES,
 D_QUESTION, D_OPENING, D_COMPLAIN, D_RECALL, D_ACCEPT, D_TONE, D_VOLUNTEER, D_ACT_ERROR, D_ACT_CONFUSED,
 ) = range(20)  # fmt: skip
D_RELUCTANT, D_NOT_AT_HAND, D_MISREMEMBERS, D_WRONG_VALUE, D_ERROR, D_CONFUSED, D_CONFIDENCE = range(20, 90, 10)

# The confusion model of acts: what each is mistaken for when it is not lost altogether.
CONFUSED = np.array([
    THANK, COMPLAIN, CORRECT, ACCEPT, INFORM, ASK_REPEAT, REJECT, REJECT, REJECT, ASK_WHY, AFFIRM, ASK_WHY,
    THANK, ASK_WHY,
])  # fmt: skip

# -- State -----------------------------------------------------------------------------------------------------

HIDDEN = np.dtype((np.record, [
    ("reference", "i4"), ("date", "i4"), ("amount", "i4"), ("topic", "i1"), ("proof", "i1"),  # the goal
    ("wrong_date", "i4"), ("wrong_amount", "i4"), ("misremembers", "u1"),  # slots as bits, and what it believes
    ("mood", "i1"), ("patience", "i1"), ("talkative", "f4"), ("hopes", "i1"), ("question", "i1"),
    ("told", "u1"), ("reluctant", "u1"), ("not_at_hand", "u1"), ("waiting", "i1"),  # slot it holds back
    ("complained", "i1"), ("accepted", "i1"), ("verdict", "i1"),  # the outcome that its acceptance led to
]))  # fmt: skip

BELIEF = np.dtype((np.record, [
    ("reference", "i4"), ("date", "i4"), ("amount", "i4"), ("topic", "i1"), ("proof", "i1"),
    ("sure", "i1", (5,)),   # per slot: 0 unknown, 1 unsure, 2 sure, 3 confirmed
    ("asked", "i1", (5,)),  # per slot, how often
    ("turn", "i2"), ("act", "i1"), ("heard", "i1"), ("tone", "i1"), ("confirming", "i1"), ("confirms", "i1"),
    ("question", "i1"), ("complaint", "i1"), ("apologies", "i1"), ("explained", "i1"),
    ("offered", "i1"), ("rejected", "i1"), ("accepted", "i1"), ("satisfied", "i1"), ("ended", "i1"),
]))  # fmt: skip

SAID = np.dtype((np.record, [
    ("reference", "i4"), ("date", "i4"), ("amount", "i4"), ("topic", "i1"), ("proof", "i1"),
    ("act", "i1"), ("tone", "i1"), ("about", "i1"), ("slots", "u1"),  # the slot it is about; those it names, as bits
]))  # fmt: skip


@nb.njit
def case(slot: int, value: int) -> int:
    """Return the policy's case (bin) of a slot's value."""
    if slot == DATE:
        return (value > 14) + (value > 30)
    if slot == AMOUNT:
        return int(value > 100)
    if slot == REFERENCE:
        return 0
    return value


@nb.njit
def some_date(key: np.uint64, turn: int, purpose: int, bin_: int) -> int:
    """Draw a number of days of the given case."""
    if bin_ == 0:
        return 1 + randint(key, turn, purpose, 14)
    if bin_ == 1:
        return 15 + randint(key, turn, purpose, 16)
    return 31 + randint(key, turn, purpose, 60)


@nb.njit
def some_amount(key: np.uint64, turn: int, purpose: int, bin_: int) -> int:
    """Draw an amount in euros of the given case."""
    return 5 + randint(key, turn, purpose, 96) if bin_ == 0 else 101 + randint(key, turn, purpose, 300)


@nb.njit
def value_of(record: Any, slot: int) -> int:
    """Return a slot's value in any of the three records."""
    if slot == TOPIC:
        return record.topic
    if slot == REFERENCE:
        return record.reference
    if slot == DATE:
        return record.date
    if slot == AMOUNT:
        return record.amount
    return record.proof


@nb.njit
def set_value(record: Any, slot: int, value: int) -> None:
    """Set a slot's value in any of the three records."""
    if slot == TOPIC:
        record.topic = value
    elif slot == REFERENCE:
        record.reference = value
    elif slot == DATE:
        record.date = value
    elif slot == AMOUNT:
        record.amount = value
    else:
        record.proof = value


@nb.njit
def needs(topic: int, slot: int) -> bool:
    """Tell whether the policy needs the slot for the topic."""
    return slot == TOPIC or slot == REFERENCE or REQUIRED[topic, 0] == slot or REQUIRED[topic, 1] == slot


@nb.njit(cache=True)  # also called by itself, from describe_goal
def right_resolution(record: Any) -> int:
    """Return what the policy says, given the values in a record (the goal's, or the agent's belief)."""
    topic = record.topic
    first, second = REQUIRED[topic, 0], REQUIRED[topic, 1]
    bin_ = 0 if second < 0 else case(second, value_of(record, second))
    return RIGHT[topic, case(first, value_of(record, first)), bin_]


@nb.njit
def believes_enough(belief: Any) -> bool:
    """Tell whether every slot that the policy needs for the believed topic was heard."""
    if belief.sure[TOPIC] == 0:
        return False
    for slot in range(1, 5):
        if needs(belief.topic, slot) and belief.sure[slot] == 0:
            return False
    return True


# -- The customer ----------------------------------------------------------------------------------------------


@nb.njit
def start(key: np.uint64, hidden: Any, belief: Any, said: Any, error_rate: float) -> None:
    """Draw a customer with its goal, and let it open the conversation."""
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
    """Make `said` an utterance without slots."""
    said.act = act
    said.about = -1
    said.slots = said.tone = 0
    said.reference = said.date = said.amount = said.topic = said.proof = 0


@nb.njit
def thinks(hidden: Any, slot: int) -> int:
    """Return the value that the customer takes for true."""
    if slot == DATE and hidden.misremembers & (1 << DATE):
        return hidden.wrong_date
    if slot == AMOUNT and hidden.misremembers & (1 << AMOUNT):
        return hidden.wrong_amount
    return value_of(hidden, slot)


@nb.njit
def tell(key: np.uint64, turn: int, hidden: Any, said: Any, act: int, slot: int) -> None:
    """Say a slot's value and, if talkative, pop one more needed slot from the agenda."""
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
def tone(key: np.uint64, turn: int, mood: int) -> int:
    """Return how a mood sounds: 0 calm, 1 annoyed, 2 angry, now and then a shade off."""
    sounds = 0 if mood >= 6 else (1 if mood >= 3 else 2)
    u = draw(key, turn, D_TONE)
    if u < P_TONE_SLIPS / 2:
        return max(sounds - 1, 0)
    return min(sounds + 1, 2) if u < P_TONE_SLIPS else sounds


@nb.njit
def answer_question(key: np.uint64, turn: int, slot: int, hidden: Any, belief: Any, said: Any) -> int:
    """React to being asked for a slot; returns the change of mood."""
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
    """React to what the agent repeats; returns the change of mood."""
    slot = belief.confirming
    if slot < 0:
        say(said, ASK_REPEAT)
        return -1
    bit = 1 << slot
    if hidden.misremembers & bit and draw(key, turn, D_RECALL) < P_RECALLS_ASKED:
        hidden.misremembers &= ~bit
    if value_of(belief, slot) == thinks(hidden, slot):
        say(said, AFFIRM)
    else:
        tell(key, turn, hidden, said, CORRECT, slot)
    return -1 if belief.confirms > 3 else 0


@nb.njit
def take_explanation(key: np.uint64, turn: int, hidden: Any, said: Any) -> int:
    """React to an explanation; returns the change of mood."""
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
    """React to an offer; returns the change of mood. An acceptance is final and fixes the verdict."""
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
    """React to a greeting, an apology or the question whether all is well; returns the change of mood."""
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
    """Choose what the customer says next; returns the change of mood."""
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
    """Return the outcome if the agent ended the conversation with this act, else `GOES_ON`."""
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
    """Answer an agent act: the customer's next utterance, what the agent understands of it, and the terms."""
    note_own_act(belief, act, turn)
    mood = hidden.mood
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
    terms[0] = OUTCOME_VALUE[outcome]
    terms[1] = -1.0
    terms[2] = hidden.mood - mood
    terms[3] = hidden.mood / MOOD_MAX if outcome == RESOLVED else 0.0
    return outcome


# -- What the agent understands ----------------------------------------------------------------------------------


@nb.njit
def least_sure(belief: Any) -> int:
    """Return the slot that a confirmation is about: the least certain one not yet confirmed, or -1."""
    best, level = -1, 3
    for slot in range(5):
        if 0 < belief.sure[slot] < level:
            best, level = slot, belief.sure[slot]
    return best


@nb.njit
def note_own_act(belief: Any, act: int, turn: int) -> None:
    """Write the agent's own act into its belief."""
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
    """Pass an utterance through the error channel into the agent's belief."""
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
    """Hear one slot value, perhaps another one in its place, with a confidence."""
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
    """Update what the agent takes the conversation's state to be after an understood user act."""
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
    """Take in an utterance exactly as it is (a person's, understood by NLU)."""
    understand(np.uint64(0), belief.turn, belief, said, 0.0)


# -- What the agent sees -------------------------------------------------------------------------------------------

PHASES = 7  # open, complaint, question, unclear, rejected, rejected and explained, not begun by the agent


@nb.njit
def phase(belief: Any) -> int:
    """Return what the conversation waits for, before an offer was accepted."""
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
    """Return 0 for a slot not heard, else 1 + 2 x case + (1 if sure)."""
    if belief.sure[slot] == 0:
        return 0
    return 1 + 2 * case(slot, value_of(belief, slot)) + int(belief.sure[slot] >= 2)


@nb.njit
def settled(belief: Any) -> int:
    """Number the states after an acceptance, as the agent sees them: what remains of the case is whether the offer fits.

    0 something needed was never heard, 1 below, 2 as, 3 above what the policy grants by what was understood; then
    whether all of that is sure; then what the conversation waits for.
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
    """Number the belief state: a table's view, blind to turn, tone and how often what was asked."""
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
    """Write the whole belief as numbers in [-1, 1]."""
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
    """Mark the acts that make sense: a confirmation needs something to confirm, an offer is made until accepted."""
    out[:] = True
    out[CONFIRM] = least_sure(belief) >= 0
    out[CHECK] = belief.accepted == 1
    if belief.accepted:
        out[OFFER_REFUND : OFFER_CREDIT + 1] = False


@nb.njit
def expert(belief: Any) -> int:
    """Return the scripted expert's act: mend the mood, answer, gather, confirm what is unsure, offer, check, close."""
    if belief.complaint and belief.apologies < 3:
        return APOLOGISE
    if belief.question:
        return EXPLAIN
    if belief.accepted:
        return CLOSE if belief.satisfied else CHECK
    if belief.sure[TOPIC] == 0:
        return ASK_TOPIC
    least = least_sure(belief)
    if least >= 0 and belief.sure[least] == 1 and belief.confirms < 4:
        return CONFIRM
    for slot in range(1, 5):
        if belief.sure[slot] == 0 and needs(belief.topic, slot):
            return ASK_TOPIC + slot
    if belief.rejected and not belief.explained:
        return EXPLAIN
    right = right_resolution(belief)
    return ESCALATE if right == SUPERVISOR else OFFER_REFUND + right


# -- Words ---------------------------------------------------------------------------------------------------------


def _surface(slot: int, value: int) -> str:
    if slot == DATE:
        if value == 1:
            return "yesterday"
        return f"{value // 7} weeks ago" if value % 7 == 0 and value > 7 else f"{value} days ago"
    return f"{value} euros" if slot == AMOUNT else str(value)


def _part(prefix: str, slot: int, value: int) -> str:
    name = SLOTS[slot]
    if slot == PROOF:
        name = "proof_yes" if value else "proof_no"
    return f"{prefix}/{name}"


def _slot_parts(prefix: str, record: Any, slots: list[int]) -> tuple[list[str], dict[str, str]]:
    parts, surfaces = [], {}
    for slot in slots:
        value = int(record[SLOTS[slot]])
        parts.append(_part(prefix, slot, value))
        if slot in (REFERENCE, DATE, AMOUNT):
            surfaces[SLOTS[slot]] = _surface(slot, value)
    return parts, surfaces


def partner_meaning(said: Any) -> Meaning:
    """Return what the customer's utterance means, for NLG."""
    act = int(said["act"])
    name, about = USER_ACTS[act], int(said["about"])
    named = [slot for slot in range(1, 5) if int(said["slots"]) & (1 << slot)]
    if act in (INFORM, CORRECT) and about > TOPIC:
        named.remove(about)
        parts, surfaces = _slot_parts(name, said, [about])
    elif act == STATE_PROBLEM:
        parts, surfaces = [f"state_problem/{TOPICS[said['topic']]}"], {}
    elif act == CORRECT:
        parts, surfaces = ["correct/topic", f"state_problem/{TOPICS[said['topic']]}"], {}
    else:
        parts, surfaces = ["bye/left" if act == BYE and about == TOPIC else name], {}
    more, more_surfaces = _slot_parts("inform", said, named)
    return Meaning(name, (*parts, *more), {**surfaces, **more_surfaces}, TONES[said["tone"]])


def agent_meaning(act: int, belief: Any) -> Meaning:
    """Return what the agent's act means, given its belief before it speaks."""
    name = AGENT_ACTS[act]
    if act == CONFIRM:
        slot = int(least_sure.py_func(belief))
        if slot < 0:
            return Meaning(name, ("ask_topic",))
        if slot == TOPIC:
            return Meaning(name, ("confirm/topic",), {"topic": TOPIC_NAMES[belief["topic"]]})
        parts, surfaces = _slot_parts("confirm", belief, [slot])
        return Meaning(name, tuple(parts), surfaces)
    if OFFER_REFUND <= act <= OFFER_CREDIT and belief["sure"][TOPIC]:
        name_of_topic = TOPICS[belief["topic"]]
        return Meaning(name, (f"{name}/{name_of_topic}",))
    return Meaning(name, (name,))


TOPIC_NAMES = (
    "returning an item", "a late delivery", "a broken product", "a wrong charge", "access to your account",
    "your subscription",
)  # fmt: skip


def parse(act: str, part: str, slots: Mapping[str, Any], said: Any) -> None:
    """Write an understood customer utterance (see `chatgym.nlu.Understanding`) into ``said``."""
    say.py_func(said, USER_ACTS.index(act) if act in USER_ACTS else ASK_REPEAT)
    for slot, name in enumerate(SLOTS):
        if name in slots:
            value = TOPICS.index(slots[name]) if slot == TOPIC else int(slots[name])
            said[name] = value
            said["slots"] |= 1 << slot
            if said["about"] < 0 or part.rpartition("/")[2].startswith(name):
                said["about"] = slot
    if part == "bye/left":
        said["about"] = TOPIC


def describe_goal(hidden: Any) -> str:
    """Return the customer's hidden goal in words, for people."""
    topic = int(hidden["topic"])
    right = ("a refund", "a fix", "a credit", "the supervisor")[int(right_resolution(hidden))]
    facts = [f"number {hidden['reference']}", _surface(DATE, int(hidden["date"]))]
    facts += [_surface(AMOUNT, int(hidden["amount"])), "has proof" if hidden["proof"] else "has no proof"]
    return f"{TOPICS[topic].replace('_', ' ')} ({', '.join(facts)}); right: {right}"


SCENARIO = Scenario(
    name="customer_service",
    version=1,
    description="Find out what a customer wants, check it, and grant what the policy allows.",
    agent_acts=AGENT_ACTS,
    user_acts=USER_ACTS,
    outcomes=OUTCOMES,
    success="resolved",
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
    describe_goal=describe_goal,
    parse=parse,
    source=Path(__file__),
)
