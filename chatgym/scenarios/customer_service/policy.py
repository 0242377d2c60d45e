"""Tables of customer service: acts, slots, topics, the resolution policy, customer behaviour, and the record dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

from chatgym.dynamics import nb
from chatgym.dynamics.rng import randint

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
OUTCOME_VALUES = {
    "resolved": 1.0,
    "wrong_resolution": -0.5,  # an honest mistake: the customer has something, and it can be put right
    "policy_violation": -1.0,  # granted what the policy forbids, or without asking: as much lost as a success gains
    "hung_up": -1.5,  # the customer is lost; more than a violation, or rudeness would be the cheapest failure
    "needless_escalation": -2.0,  # giving up: below what an honest attempt comes to that ends in anger, -1.7 on average
    "abandoned": -2.0,  # likewise
}
"""Worth of the outcomes; truncation has none, since the conversation could have gone on."""
LEAVING = ("hung_up",)
"""Outcomes in which the customer ends the conversation."""

MEASURED = ("outcome", "time", "mood", "satisfaction", "progress")
REWARD_TERMS = {"outcome": 1.0, "time": 0.02, "mood": 0.05, "satisfaction": 0.2, "progress": 0.5}
"""Term to weight. outcome: `OUTCOME_VALUES`; time: -1 a turn; mood: its change; satisfaction: mood/10 if resolved;
progress: rise in the share of what the policy needs that the customer has told."""

VERSION_1 = {
    "outcome_values": {
        "resolved": 1.0, "wrong_resolution": -0.5, "policy_violation": -1.0, "needless_escalation": -0.5,
        "hung_up": -1.0, "abandoned": -1.0,
    },
    "reward_terms": {"outcome": 1.0, "time": 0.02, "mood": 0.05, "satisfaction": 0.2},
}  # fmt: skip
"""Escalating at once was worth more than an honest attempt that fails."""

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

# Purposes of the random draws (see chatgym.dynamics.rng).
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
    ("max_turns", "i2"),
]))  # fmt: skip

SAID = np.dtype((np.record, [
    ("reference", "i4"), ("date", "i4"), ("amount", "i4"), ("topic", "i1"), ("proof", "i1"),
    ("act", "i1"), ("tone", "i1"), ("about", "i1"), ("slots", "u1"),  # the slot it is about; those it names, as bits
]))  # fmt: skip


@nb.njit
def case(slot: int, value: int) -> int:
    """Return the policy's case (a bin, from 0) of a slot's value."""
    if slot == DATE:
        return (value > 14) + (value > 30)
    if slot == AMOUNT:
        return int(value > 100)
    if slot == REFERENCE:
        return 0
    return value


@nb.njit
def some_date(key: np.uint64, turn: int, purpose: int, bin_: int) -> int:
    """Draw a date, in days ago, of the given case."""
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
    """Return a slot's value in `record`, a hidden, belief or said record."""
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
    """Set a slot's value in `record`, a hidden, belief or said record."""
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
    """Return the resolution that the policy grants for the values in `record`, a hidden or belief record."""
    topic = record.topic
    first, second = REQUIRED[topic, 0], REQUIRED[topic, 1]
    bin_ = 0 if second < 0 else case(second, value_of(record, second))
    return RIGHT[topic, case(first, value_of(record, first)), bin_]


@nb.njit
def believes_enough(belief: Any) -> bool:
    """Tell whether `belief`, a record, holds every slot that the policy needs for the believed topic."""
    if belief.sure[TOPIC] == 0:
        return False
    for slot in range(1, 5):
        if needs(belief.topic, slot) and belief.sure[slot] == 0:
            return False
    return True
