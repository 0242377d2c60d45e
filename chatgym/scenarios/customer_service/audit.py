"""Find contradictions of a simulated customer by rules of their own, independent of the customer's code."""

from __future__ import annotations

from collections.abc import Iterator

from chatgym.dynamics.scenario import ABOUT, UNCLEAR_ACT
from chatgym.scenarios.contradictions import Conversation, Exchange, Finding, out_of_tone, repeats, unasked
from chatgym.scenarios.customer_service.policy import *

GOAL = (*SLOTS, "wrong_date", "wrong_amount")
OFFERS = (OFFER_REFUND, OFFER_FIX, OFFER_CREDIT)
CALM, ANNOYED = 6, 3  # mood from which a customer sounds so
BAD_MOOD = 4  # mood at which it may complain
PLEASES = {APOLOGISE: 3, EXPLAIN: 1, CHECK: 1, OFFER_REFUND: 1, OFFER_FIX: 1, OFFER_CREDIT: 1}
"""Greatest rise in mood by an act after the first turn; other acts never raise it."""


def audit(conversation: Conversation) -> Iterator[Finding]:
    """Find a customer's contradictions in a conversation."""
    stands_by: dict[int, int] = {}  # slot to the value that the customer said or affirmed last
    unfit: set[int] = set()
    explained = False  # what it asked further
    for exchange in conversation:
        for what in _denied(exchange, conversation[0], stands_by):
            yield Finding(exchange.turn, "denies", what)
        if explained and exchange.said["act"] == ASK_MORE:
            yield Finding(exchange.turn, "denies", "asks again what it gave thanks for")
        explained |= exchange.act == EXPLAIN and exchange.said["act"] == THANK
        if not _answers(exchange, stands_by):
            unfit.add(exchange.turn)
            if not _interrupts(exchange, stands_by):
                yield unasked(exchange)
        yield from _stay(exchange)
        _note(exchange, stands_by)
    yield from repeats(conversation, lambda exchange, _: exchange.turn not in unfit)


def _takes_for_true(exchange: Exchange, slot: int) -> int:
    """Return the value that the customer believes a slot to have."""
    goal, name = exchange.after, SLOTS[slot]
    return int(goal[f"wrong_{name}"] if goal["misremembers"] & (1 << slot) else goal[name])


def _confirmed(exchange: Exchange) -> int:
    """Return the slot that the agent confirmed, or -1."""
    if exchange.act % ABOUT != CONFIRM or exchange.act < 0:
        return -1
    if exchange.act >= ABOUT:  # its own words name it
        slot = exchange.act // ABOUT - 1
        return slot if exchange.belief["sure"][slot] else -1
    name = exchange.asked.parts[0].removeprefix("confirm/").removesuffix("_yes").removesuffix("_no")
    return SLOTS.index(name) if name in SLOTS else -1


def _denied(exchange: Exchange, opening: Exchange, stands_by: dict[int, int]) -> Iterator[str]:
    """Yield what the customer said against its goal, its mood or its earlier words."""
    said, before, after = exchange.said, exchange.before, exchange.after
    act, about = said["act"], said["about"]
    if any(after[name] != opening.after[name] for name in GOAL):
        yield "its goal changes"
    for slot, value in exchange.named(SLOTS).items():
        if value != _takes_for_true(exchange, slot):
            yield f"{SLOTS[slot]} {value}, and takes {_takes_for_true(exchange, slot)} for true"
        elif value != stands_by.get(slot, value) and act != CORRECT:
            yield f"{SLOTS[slot]} {value} after {stands_by[slot]}, and doesn't correct itself"
    slot = _confirmed(exchange)
    if slot >= 0 and act in (AFFIRM, CORRECT):
        right = int(exchange.belief[SLOTS[slot]]) == _takes_for_true(exchange, slot)
        if about != slot or right != (act == AFFIRM):
            yield f"{USER_ACTS[act]} of {SLOTS[about]}, asked whether {SLOTS[slot]} is {exchange.belief[SLOTS[slot]]}"
    if act == COMPLAIN and exchange.act != CHECK and before["mood"] > BAD_MOOD:
        yield f"complains in a good mood ({before['mood']})"
    if act == ACCEPT and after["accepted"] < 0:
        yield "accepts, and has accepted nothing"
    if act in (REJECT, COMPLAIN) and before["accepted"] >= 0:
        yield f"{USER_ACTS[act]}s after it accepted"
    if act in (THANK, ASK_MORE) and exchange.act == CHECK and (before["question"] > 0) != (act == ASK_MORE):
        yield f"{USER_ACTS[act]}, with {'a' if before['question'] else 'no'} question left"
    content = exchange.outcome == "resolved" and exchange.act in (CLOSE, ESCALATE)
    if act == BYE and (about < 0) != content:
        yield f"takes its leave {'content' if about < 0 else 'in anger'}, though it ended {exchange.outcome}"
    if wrong := out_of_tone(said["tone"], (after["mood"] < CALM) + (after["mood"] < ANNOYED)):
        yield f"{wrong} (mood {after['mood']})"


def _answers(exchange: Exchange, stands_by: dict[int, int]) -> bool:
    """Tell whether the customer's act answers the agent's."""
    act, reply, about, before = exchange.act, exchange.said["act"], exchange.said["about"], exchange.before
    act = act % ABOUT if act >= 0 else act
    if exchange.turn == 0:
        return reply in (U_GREET, STATE_PROBLEM)
    if reply == BYE:
        return exchange.outcome not in ("", "truncated")
    if act == UNCLEAR_ACT:
        return bool(reply == ASK_REPEAT)
    if TOPIC not in stands_by and (ASK_TOPIC <= act <= ASK_PROOF or act in OFFERS):
        return bool(reply == STATE_PROBLEM)  # what it came for goes first
    if ASK_TOPIC < act <= ASK_PROOF:
        slot, topic = act - ASK_TOPIC, before["topic"]
        if reply == ASK_WHY:
            return bool(before["reluctant"] & (1 << slot)) or slot not in (REFERENCE, *REQUIRED[topic])
        if reply == DONT_KNOW:
            return bool(before["not_at_hand"] & (1 << slot))
        return bool(reply == INFORM and about == slot and slot in exchange.named(SLOTS))
    if act == CONFIRM:
        return reply in (AFFIRM, CORRECT) if _confirmed(exchange) >= 0 else reply == ASK_REPEAT
    if act == EXPLAIN:
        if reply == INFORM:  # it had asked why
            return bool(about >= 0 and about == before["waiting"])
        return bool(reply == THANK) if before["question"] == 2 and before["waiting"] < 0 else bool(reply == AFFIRM)
    if act == CHECK:
        return reply in (THANK, ASK_MORE) if before["accepted"] >= 0 else reply == COMPLAIN
    fitting = {GREET: (U_GREET,), ASK_TOPIC: (STATE_PROBLEM,), APOLOGISE: (AFFIRM,)}
    return reply in fitting.get(act, (ACCEPT, REJECT) if act in OFFERS else ())


def _interrupts(exchange: Exchange, stands_by: dict[int, int]) -> bool:
    """Tell whether the customer may say this unasked: it corrects itself, or complains."""
    before, reply, about = exchange.before, exchange.said["act"], exchange.said["about"]
    if before["accepted"] >= 0:
        return False
    if reply == CORRECT:  # it recalls what it said wrongly
        return bool(about in stands_by and stands_by[about] != before[SLOTS[about]])
    return bool(reply == COMPLAIN and exchange.act != APOLOGISE and not before["complained"])


def _stay(exchange: Exchange) -> Iterator[Finding]:
    """Yield that the customer left or stayed against its mood and its patience."""
    before, mood, ended = exchange.before["mood"], exchange.after["mood"], exchange.act in (CLOSE, ESCALATE)
    turn, outcome = exchange.turn, exchange.outcome
    if ended or turn == 0:
        if ended and outcome in ("", "truncated"):
            yield Finding(turn, "stays", f"goes on after {AGENT_ACTS[exchange.act]}")
        return
    leaves = outcome not in ("", "truncated")
    if mood > 0 and (leaves or exchange.said["act"] == BYE):
        yield Finding(turn, "early", f"leaves in mood {mood}")
    if mood == 0 and not leaves:
        yield Finding(turn, "stays", "goes on in mood 0")
    pleased = PLEASES.get(exchange.act % ABOUT if exchange.act >= 0 else UNCLEAR_ACT, 0)
    if turn > exchange.before["patience"] and mood > max(before + pleased - 1, 0):
        yield Finding(turn, "stays", f"is patient in turn {turn}, of {exchange.before['patience']}")


def _note(exchange: Exchange, stands_by: dict[int, int]) -> None:
    """Update `stands_by` with the values that the customer named or affirmed."""
    stands_by.update(exchange.named(SLOTS))
    slot = _confirmed(exchange)
    if exchange.said["act"] == AFFIRM and slot >= 0:
        stands_by[slot] = int(exchange.belief[SLOTS[slot]])
