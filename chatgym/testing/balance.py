"""Check that a scenario needs a policy: the part of `check_scenario` that compares the expert with simpler policies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios import Scenario
from chatgym.testing.findings import Findings
from chatgym.testing.rollouts import expert, fixed, hold, random_policy, room_of

CONVERSATIONS = 10_000
TRIED = 1000
"""Conversations in which an order of acts is tried while the best one is looked for."""
CHANGES = 600
"""How many random changes of the best order so far are tried."""
SHORTEST, LONGEST = 3.0, 0.8
"""The expert's turns on average: at least so many, and at most this share of `max_turns`."""


def check_balance(findings: Findings, scenario: Scenario) -> None:
    """Check that random, giving up and fixed orders are below the expert, and conversations are long enough."""
    success = scenario.outcomes.index(scenario.success)
    room = room_of(scenario, CONVERSATIONS)
    best = hold(room, expert)
    chance = hold(room_of(scenario, CONVERSATIONS), random_policy(2))
    findings.expect(
        best.share(success) > 0.5 and chance.share(success) < best.share(success) / 2,
        f"the expert ends with {scenario.success!r} in {best.share(success):.0%} of conversations, random acts in "
        f"{chance.share(success):.0%}. There is nothing to learn unless the expert succeeds mostly, and random acts at "
        "most half as often.",
    )
    findings.expect(
        best.returns.mean() > chance.returns.mean() + 0.1 * best.returns.std(),
        f"the expert's mean return is {best.returns.mean():.3f}, that of random acts {chance.returns.mean():.3f}. "
        "The expert has to be far above: scores are measured between the two.",
    )
    mean = best.turns.mean()
    findings.expect(
        SHORTEST <= mean <= LONGEST * scenario.max_turns,
        f"the expert takes {mean:.1f} turns on average, with max_turns={scenario.max_turns}. Let it be at least "
        f"{SHORTEST:.0f} and at most {LONGEST:.0%} of them: long enough to need a policy, with room for worse ones.",
    )
    failed = best.returns[best.outcomes != success]
    quit_act, worth = _best_quit(scenario)
    findings.expect(
        not len(failed) or worth <= failed.mean(),
        f"{quit_act!r} at once has a mean return of {worth:.3f}, the expert's failed conversations "
        f"{failed.mean() if len(failed) else 0:.3f}. Let giving up be worth less than an honest attempt that fails "
        "(`outcome_values`), or learners give up.",
    )
    order = best_order(scenario)
    script = hold(room_of(scenario, CONVERSATIONS), fixed(order))
    margin = 3 * (best.returns - script.returns).std() / CONVERSATIONS**0.5
    findings.expect(
        best.returns.mean() > script.returns.mean() + margin,
        f"a fixed order of acts does as well as the expert, mean return {script.returns.mean():.3f} to "
        f"{best.returns.mean():.3f}: {', '.join(scenario.agent_acts[act] for act in order)}. Let the expert read its "
        "belief, and the partner differ enough for that to pay.",
    )


def _best_quit(scenario: Scenario) -> tuple[str, float]:
    """Return the act that ends every conversation at once with the highest mean return, and that; -inf without one."""
    worths = {"": -np.inf}
    for act, name in enumerate(scenario.agent_acts):
        held = hold(room_of(scenario, TRIED), fixed([act]))
        if (held.turns == 1).all():
            worths[name] = float(held.returns.mean())
    return max(worths.items(), key=lambda item: item[1])


def best_order(scenario: Scenario) -> list[int]:
    """Search the best fixed order of acts: start from the expert's most frequent ones, then change them at random."""
    room = room_of(scenario, TRIED, root=2**41)
    orders = _expert_orders(room_of(scenario, TRIED, root=2**42))
    generator, n = np.random.default_rng(3), len(scenario.agent_acts)

    def value(order: Any) -> float:
        """Return the mean return of an order."""
        room.episodes[:] = 0  # the same conversations every time
        return float(hold(room, fixed(order)).returns.mean())

    best, highest = orders[0], -np.inf
    for step in range(len(orders) + CHANGES):
        if step < len(orders):
            order = orders[step]
        else:
            order, place, act = list(best), int(generator.integers(len(best))), int(generator.integers(n))
            change = generator.integers(3)
            if change == 0:
                order[place] = act
            elif change == 1:
                order.insert(place, act)
            elif len(order) > 1:
                del order[place]
        reached = value(order)
        if reached > highest:
            best, highest = order, reached
    return best


def _expert_orders(room: ChatRoom) -> list[list[int]]:
    """Return the expert's most frequent act at each turn, and its ten most frequent act sequences."""
    room.begin()
    going = np.ones(room.size, bool)
    taken: list[Any] = []
    while going.any() and len(taken) < room.max_turns:
        acts = expert(room)
        taken.append(np.where(going, acts, -1))
        room.step(acts, going)
        going &= ~(room.terminations | room.truncations)
    columns = np.stack(taken, 1)  # (B, T)
    whole = Counter(tuple(act for act in row if act >= 0) for row in columns.tolist())
    usual = [int(np.bincount(column[column >= 0]).argmax()) for column in columns.T]
    return [usual, *(list(order) for order, _ in whole.most_common(10))]
