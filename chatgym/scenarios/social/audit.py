"""Find contradictions of a simulated person by rules of their own, independent of the person's code."""

from __future__ import annotations

from collections.abc import Iterator

from chatgym.dynamics.scenario import ABOUT, UNCLEAR_ACT
from chatgym.scenarios.contradictions import Conversation, Exchange, Finding, out_of_tone, repeats, unasked
from chatgym.scenarios.social.policy import *

GOAL = (*FACTS, "at_first", "wants_advice", "likes_disclosure", "likes_pictures", "patience")
ADVICE = (SUGGEST_TALK, SUGGEST_REST, SUGGEST_PLAN)
CALM, UPSET = 4, 8  # intensity up to which a person sounds calm, and from which upset
PLEASES = {RESTATE: 2, REFLECT: 2, DISCLOSE: 1, REASSURE: 1, GIVE_INFO: 1, PICTURE: 1} | dict.fromkeys(ADVICE, 1)
"""Greatest rise in rapport by an act after the first turn; other acts never raise it."""
ANSWERS = {
    GREET: (U_GREET,), ASK_PROBLEM: (STATE_PROBLEM, DEFLECT), ASK_FEELING: (STATE_FEELING, DEFLECT),
    ASK_CAUSE: (STATE_CAUSE, DEFLECT), RESTATE: (AFFIRM, CORRECT, OPEN_UP), REFLECT: (AFFIRM, CORRECT, OPEN_UP),
    ASK_ADVICE: (WANT_ADVICE, WANT_LISTENING, DEFLECT), CHECK: (FEEL_BETTER, STATE_FEELING), CLOSE: (THANK, BYE),
    UNCLEAR_ACT: (ASK_REPEAT,),
} | dict.fromkeys(STRATEGIES, (AFFIRM, DEFLECT)) | dict.fromkeys(ADVICE, (TAKE_ADVICE, REJECT_ADVICE))  # fmt: skip
"""Agent act to its fitting answers."""


def audit(conversation: Conversation) -> Iterator[Finding]:
    """Find a person's contradictions in a conversation."""
    told: set[int] = set()
    unfit: set[int] = set()
    for exchange in conversation:
        for what in (*_denied_facts(exchange, conversation[0]), *_denied_needs(exchange)):
            yield Finding(exchange.turn, "denies", what)
        if not _answers(exchange, told):
            unfit.add(exchange.turn)
            yield unasked(exchange)
        yield from _stay(exchange)
        told |= exchange.named(FACTS).keys()
    yield from repeats(conversation, lambda exchange, _: exchange.turn not in unfit)


def _said_back(exchange: Exchange) -> int:
    """Return the fact that the supporter restated or reflected, or -1."""
    if exchange.act < 0 or exchange.act % ABOUT not in (RESTATE, REFLECT):
        return -1
    if exchange.act >= ABOUT:  # its own words name it
        fact = exchange.act // ABOUT - 1
        return fact if exchange.belief["sure"][fact] else -1
    name = exchange.asked.parts[0].partition("/")[2]
    return FACTS.index(name) if name else -1


def _denied_facts(exchange: Exchange, opening: Exchange) -> Iterator[str]:
    """Yield what the person said against its problem, feeling or cause."""
    goal, said = exchange.after, exchange.said
    if any(goal[name] != opening.after[name] for name in GOAL):
        yield "what weighs on it changes"
    for fact, value in exchange.named(FACTS).items():
        if value != goal[FACTS[fact]]:
            yield f"{FACTS[fact]} {value}, and it is {goal[FACTS[fact]]}"
    fact = _said_back(exchange)
    if fact >= 0 and said["act"] in (AFFIRM, CORRECT, OPEN_UP):
        right = int(exchange.belief[FACTS[fact]]) == goal[FACTS[fact]]
        if right != (said["act"] != CORRECT) or (not right and said["about"] != fact):
            yield f"{USER_ACTS[said['act']]}, told that {FACTS[fact]} is {exchange.belief[FACTS[fact]]}"
    if said["act"] == OPEN_UP and exchange.before["told"] & (1 << said["about"]):
        yield f"opens up about its {FACTS[said['about']]}, which it told before"


def _denied_needs(exchange: Exchange) -> Iterator[str]:
    """Yield what the person said against its wishes, its relief or the outcome."""
    before, after, act = exchange.before, exchange.after, exchange.said["act"]
    if act in (WANT_ADVICE, WANT_LISTENING) and before["wants_advice"] != (act == WANT_ADVICE):
        yield f"{USER_ACTS[act]}, and wants the other"
    if act == TAKE_ADVICE and not (before["wants_advice"] and exchange.act - SUGGEST_TALK == before["cause"]):
        yield f"takes {AGENT_ACTS[exchange.act]}, which it doesn't want or which doesn't fit"
    if act == TAKE_ADVICE and before["advised"]:
        yield "takes advice twice"
    relieved = before["intensity"] <= (1 - CLEAR_RELIEF) * before["at_first"]
    if exchange.act == CHECK and act in (FEEL_BETTER, STATE_FEELING) and relieved != (act == FEEL_BETTER):
        yield f"{USER_ACTS[act]} at {before['intensity']} of {before['at_first']}"
    if exchange.act in STRATEGIES and act == AFFIRM:
        likes = {DISCLOSE: before["likes_disclosure"], PICTURE: before["likes_pictures"]}.get(exchange.act, 1)
        if SOOTHES[before["feeling"], STRATEGIES.index(exchange.act)] <= 0 or not likes:
            yield f"is soothed by {AGENT_ACTS[exchange.act]}, which doesn't help it"
    if exchange.outcome and (act == THANK) != (exchange.outcome == "comforted"):
        yield f"{USER_ACTS[act]}, though it ended {exchange.outcome}"
    if wrong := out_of_tone(exchange.said["tone"], (after["intensity"] > CALM) + (after["intensity"] >= UPSET)):
        yield f"{wrong} (intensity {after['intensity']})"


def _answers(exchange: Exchange, told: set[int]) -> bool:
    """Tell whether the person's act answers the supporter's."""
    act, reply = exchange.act, exchange.said["act"]
    act = act % ABOUT if act >= 0 else act
    if exchange.turn == 0:
        return reply in (U_GREET, STATE_PROBLEM)
    if reply == BYE:
        return exchange.outcome not in ("", "truncated")
    if act in (RESTATE, REFLECT) and _said_back(exchange) < 0:
        return bool(reply == ASK_REPEAT)
    if reply not in ANSWERS[act]:
        return False
    if ASK_PROBLEM <= act <= ASK_CAUSE:
        fact = act - ASK_PROBLEM
        return fact not in told if reply == DEFLECT else bool(exchange.said["about"] == fact)
    if act == ASK_ADVICE:
        return (reply == DEFLECT) == (len(told) < len(FACTS))
    return True


def _stay(exchange: Exchange) -> Iterator[Finding]:
    """Yield that the person left or stayed against its rapport and its patience."""
    before, rapport = exchange.before["rapport"], exchange.after["rapport"]
    turn, goes_on = exchange.turn, exchange.outcome in ("", "truncated")
    if turn == 0:
        return
    if exchange.act == CLOSE:
        if goes_on:
            yield Finding(turn, "stays", "goes on after close")
        return
    if rapport > 0 and (not goes_on or exchange.said["act"] == BYE):
        yield Finding(turn, "early", f"leaves at rapport {rapport}")
    if rapport == 0 and goes_on:
        yield Finding(turn, "stays", "goes on at rapport 0")
    pleased = PLEASES.get(exchange.act % ABOUT if exchange.act >= 0 else UNCLEAR_ACT, 0)
    if turn > exchange.before["patience"] and rapport > max(before + pleased - 1, 0):
        yield Finding(turn, "stays", f"is patient in turn {turn}, of {exchange.before['patience']}")
