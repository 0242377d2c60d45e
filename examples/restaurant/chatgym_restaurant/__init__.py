"""A restaurant booking: ask for how many, which day and when, check what was badly heard, and book.

The smallest scenario that needs a policy. The guest has three values in mind and tells one at a time, or two; each
is misheard with probability `error_rate`, and then mostly with low confidence, so asking back is worth its turn.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np

from chatgym.dynamics.rng import draw, randint
from chatgym.scenarios import TONES, UNCLEAR_ACT, Meaning, Scenario

AGENT_ACTS = ("greet", "ask_people", "ask_day", "ask_time", "confirm", "book", "close")
GREET, ASK_PEOPLE, ASK_DAY, ASK_TIME, CONFIRM, BOOK, CLOSE = range(7)
USER_ACTS = ("greet", "request", "inform", "affirm", "correct", "thank", "bye", "ask_repeat")
U_GREET, REQUEST, INFORM, AFFIRM, CORRECT, THANK, BYE, ASK_REPEAT = range(8)
OUTCOMES = ("", "booked", "wrong_booking", "no_booking", "hung_up", "truncated")
GOES_ON, BOOKED, WRONG_BOOKING, NO_BOOKING, HUNG_UP, TRUNCATED = range(6)
OUTCOME_VALUES = {"booked": 1.0, "wrong_booking": -1.0, "no_booking": -1.5, "hung_up": -1.0}  # giving up: the lowest

SLOTS = ("people", "day", "time")
SIZES = np.array([8, 7, 5])  # values of each slot
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FIRST_HOUR = 17
LATE = 6  # turns after which only what is doubtful is still checked: guests leave after 8 to 12
D_GOAL, D_PATIENCE, D_MORE, D_ERROR, D_WRONG, D_SURE, D_TONE = (10 * k for k in range(7))

HIDDEN = np.dtype((np.record, [("goal", "i1", (3,)), ("patience", "i1")]))
BELIEF = np.dtype((np.record, [
    ("value", "i1", (3,)), ("sure", "i1", (3,)),  # per slot: 0 unknown, 1 unsure, 2 sure, 3 confirmed
    ("act", "i1"), ("heard", "i1"), ("confirming", "i1"), ("turn", "i2"), ("booked", "i1"), ("ended", "i1"),
    ("max_turns", "i2"),
]))  # fmt: skip
SAID = np.dtype((np.record, [("value", "i1", (3,)), ("slots", "u1"), ("act", "i1"), ("tone", "i1")]))


@nb.njit
def start(key: np.uint64, hidden: Any, belief: Any, said: Any, error_rate: float) -> None:
    """Draw a guest, who says hello and wants a table."""
    for slot in range(3):
        hidden.goal[slot] = randint(key, 0, D_GOAL + slot, SIZES[slot])
    hidden.patience = 8 + randint(key, 0, D_PATIENCE, 5)
    belief.value[:] = 0
    belief.sure[:] = 0
    belief.turn = belief.booked = belief.ended = 0
    belief.act = belief.confirming = -1
    say(said, REQUEST)
    take_in(key, 0, belief, said, error_rate)


@nb.njit
def say(said: Any, act: int) -> None:
    """Make `said` an utterance without values."""
    said.act = act
    said.slots = said.tone = 0
    said.value[:] = 0


@nb.njit
def tell(key: np.uint64, turn: int, hidden: Any, said: Any, act: int, slot: int) -> None:
    """Tell a value, and now and then the next one too."""
    say(said, act)
    for other in range(3):
        if other == slot or (act == INFORM and other == (slot + 1) % 3 and draw(key, turn, D_MORE) < 0.3):
            said.value[other] = hidden.goal[other]
            said.slots |= 1 << other


@nb.njit
def least_sure(belief: Any) -> int:
    """Return the slot that is least certain and not yet confirmed, or -1."""
    best, level = -1, 3
    for slot in range(3):
        if 0 < belief.sure[slot] < level:
            best, level = slot, belief.sure[slot]
    return best


@nb.njit
def note(belief: Any, act: int, turn: int) -> None:
    """Write the agent's own act into its belief."""
    belief.turn = turn
    belief.act = act
    belief.confirming = least_sure(belief) if act == CONFIRM else -1


@nb.njit
def take_in(key: np.uint64, turn: int, belief: Any, said: Any, error_rate: float) -> None:
    """Pass an utterance through the error channel into the agent's belief."""
    belief.heard = said.act
    if said.act == AFFIRM and belief.confirming >= 0:
        belief.sure[belief.confirming] = 3
    for slot in range(3):
        if said.slots & (1 << slot):
            value = said.value[slot]
            wrong = draw(key, turn, D_ERROR + slot) < error_rate
            if wrong:
                value = (value + 1 + randint(key, turn, D_WRONG + slot, SIZES[slot] - 1)) % SIZES[slot]
            low = draw(key, turn, D_SURE + slot) < (0.7 if wrong else 2 * error_rate)
            belief.sure[slot] = 1 if low else 2
            belief.value[slot] = value


@nb.njit
def react(key: np.uint64, turn: int, act: int, hidden: Any, belief: Any, said: Any) -> int:
    """Choose what the guest says next; returns the outcome."""
    if act == UNCLEAR_ACT:
        say(said, ASK_REPEAT)
    elif ASK_PEOPLE <= act <= ASK_TIME:
        tell(key, turn, hidden, said, INFORM, act - ASK_PEOPLE)
    elif act == CONFIRM:
        slot = belief.confirming
        if slot < 0:
            say(said, ASK_REPEAT)
        elif belief.value[slot] == hidden.goal[slot]:
            say(said, AFFIRM)
        else:
            tell(key, turn, hidden, said, CORRECT, slot)
    elif act == BOOK:
        belief.booked = 1
        say(said, THANK)
    elif act == CLOSE:
        right = belief.booked == 1
        for slot in range(3):
            right = right and belief.sure[slot] > 0 and belief.value[slot] == hidden.goal[slot]
        say(said, BYE)
        return BOOKED if right else (WRONG_BOOKING if belief.booked else NO_BOOKING)
    else:
        say(said, U_GREET)
    return GOES_ON


@nb.njit
def respond(
    key: np.uint64, turn: int, act: int, hidden: Any, belief: Any, said: Any, terms: Any, error_rate: float,
    last: bool,
) -> int:  # fmt: skip
    """Answer an agent act, see `chatgym.scenarios.Scenario`."""
    note(belief, act, turn)
    outcome: int = react(key, turn, act, hidden, belief, said)
    if outcome == GOES_ON and turn >= hidden.patience:
        say(said, BYE)
        outcome = HUNG_UP
    elif outcome == GOES_ON and last:
        outcome = TRUNCATED
    left = hidden.patience - turn
    said.tone = 0 if left > 4 else (1 if left > 2 else 2)
    if outcome == GOES_ON or outcome == TRUNCATED:
        take_in(key, turn, belief, said, error_rate)
    else:
        belief.ended = 1
    terms[1] = -1.0  # terms[0] is the outcome's value
    return outcome


@nb.njit
def hear(belief: Any, said: Any) -> None:
    """Take in an utterance exactly as it is."""
    take_in(np.uint64(0), belief.turn, belief, said, 0.0)


@nb.njit
def index(belief: Any) -> int:
    """Number the belief state: how sure each slot is, and whether a table was booked."""
    if belief.ended:
        return 0
    code = 0
    for slot in range(3):
        code = code * 4 + belief.sure[slot]
    number: int = 1 + code * 2 + belief.booked
    return number


@nb.njit
def embed(belief: Any, out: Any) -> None:
    """Write the belief as numbers in [0, 1]."""
    out[:] = 0.0
    if belief.act >= 0:
        out[belief.act] = 1.0
    out[7 + belief.heard] = 1.0
    for slot in range(3):
        out[15 + 4 * slot + belief.sure[slot]] = 1.0
    out[27] = min(belief.turn / 20.0, 1.0)
    out[28] = belief.booked


@nb.njit
def mask(belief: Any, out: Any) -> None:
    """Mark the acts that make sense."""
    out[:] = True
    out[CONFIRM] = least_sure(belief) >= 0
    out[BOOK] = belief.booked == 0


@nb.njit
def expert(belief: Any) -> int:
    """Ask for what is missing, confirm everything, in the end only what is unsure, book, close in time."""
    hurry = 0 < belief.max_turns - belief.turn <= 2
    for slot in range(3):
        if belief.sure[slot] == 0:
            return ASK_PEOPLE + slot
    least = least_sure(belief)
    if least >= 0 and not hurry and (belief.sure[least] == 1 or belief.turn < LATE):
        return CONFIRM
    return CLOSE if belief.booked else BOOK


def _surface(slot: int, value: int) -> str:
    if slot == 0:
        return f"{value + 1} people" if value else "1 person"
    return DAYS[value] if slot == 1 else f"{FIRST_HOUR + value}:00"


def partner_meaning(said: Any) -> Meaning:
    """Return what the guest's utterance means."""
    name = USER_ACTS[int(said["act"])]
    named = [slot for slot in range(3) if said["slots"] & (1 << slot)]
    parts = tuple(f"{name}/{SLOTS[slot]}" for slot in named) or (name,)
    slots = {SLOTS[slot]: _surface(slot, int(said["value"][slot])) for slot in named}
    return Meaning(name, parts, slots, TONES[int(said["tone"])])


def heard_meaning(said: Any, belief: Any) -> Meaning:
    """Return what the agent heard of the guest's utterance."""
    heard, named = said.copy(), [slot for slot in range(3) if said["slots"] & (1 << slot)]
    for slot in named:
        heard["value"][slot] = belief["value"][slot]
    meaning = partner_meaning(heard)
    unsure = (f"{meaning.act}/{SLOTS[slot]}" for slot in named if belief["sure"][slot] == 1)
    return dataclasses.replace(meaning, unsure=tuple(unsure))


def agent_meaning(act: int, belief: Any) -> Meaning:
    """Return what the agent's act means."""
    name = AGENT_ACTS[act]
    slot = int(least_sure.py_func(belief)) if act == CONFIRM else -1
    if slot < 0:
        return Meaning(name, (f"{name}/nothing",) if act == CONFIRM else (name,))
    return Meaning(name, (f"{name}/{SLOTS[slot]}",), {SLOTS[slot]: _surface(slot, int(belief["value"][slot]))})


EXAMPLES = {"people": "4 people", "day": "Friday", "time": "19:00"}
_PATTERNS = {
    "people": re.compile(r"\b([1-8]) (?:people|persons?|of us|guests)\b", re.I),
    "day": re.compile(rf"\b({'|'.join(DAYS)})\b", re.I),
    "time": re.compile(rf"\b({'|'.join(str(FIRST_HOUR + k) for k in range(5))}):00\b"),
}


def find_slots(text: str) -> tuple[dict[str, int], str]:
    """Find the values that a text names, and put `EXAMPLES` in their place."""
    slots: dict[str, int] = {}
    for slot, pattern in _PATTERNS.items():
        if found := pattern.search(text):
            value = found[1]
            slots[slot] = (
                int(value) - 1 if slot == "people"
                else DAYS.index(value.capitalize()) if slot == "day" else int(value) - FIRST_HOUR
            )  # fmt: skip
            text = pattern.sub(EXAMPLES[slot], text)
    return slots, text


def parse(act: str, part: str, slots: Mapping[str, int], said: Any) -> None:
    """Write an understood utterance into ``said``."""
    say.py_func(said, USER_ACTS.index(act) if act in USER_ACTS else ASK_REPEAT)
    for slot, name in enumerate(SLOTS):
        if name in slots:
            said["value"][slot] = slots[name]
            said["slots"] |= 1 << slot


def describe_belief(belief: Any) -> str:
    """Return what the agent took down so far."""
    sure = ("", " (unsure)", "", " (confirmed)")
    noted = [_surface(s, int(belief["value"][s])) + sure[int(belief["sure"][s])] for s in range(3) if belief["sure"][s]]
    return ", ".join(noted) or "nothing yet"


def describe_goal(hidden: Any) -> str:
    """Return what the guest had in mind."""
    return ", ".join(_surface(slot, int(hidden["goal"][slot])) for slot in range(3))


def instructions() -> str:
    """Return what an agent has to know."""
    return "Ask for how many people, which day and what time; confirm what you doubt; book, then close."


FOLDER = Path(__file__).parent

SCENARIO = Scenario(
    name="restaurant",
    version=1,
    description="Take a booking: how many, which day, what time.",
    agent_acts=AGENT_ACTS,
    user_acts=USER_ACTS,
    outcomes=OUTCOMES,
    success="booked",
    leaving=("hung_up",),
    reward_terms={"outcome": 1.0, "time": 0.02},
    outcome_values=OUTCOME_VALUES,
    max_turns=20,
    hidden=HIDDEN,
    belief=BELIEF,
    said=SAID,
    n_beliefs=1 + 4**3 * 2,
    embedding_size=29,
    start=start,
    respond=respond,
    index=index,
    embed=embed,
    mask=mask,
    expert=expert,
    note=note,
    hear=hear,
    partner_meaning=partner_meaning,
    heard_meaning=heard_meaning,
    agent_meaning=agent_meaning,
    describe_belief=describe_belief,
    describe_goal=describe_goal,
    instructions=instructions,
    parse=parse,
    find_slots=find_slots,
    examples=EXAMPLES,
    folder=FOLDER,
    partner_role="guest",
    agent_role="host",
)
