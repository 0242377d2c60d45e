"""The agents of an audit: sensible policies, and policies that no sensible agent would follow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from chatgym.dynamics import rng
from chatgym.dynamics.room import ChatRoom
from chatgym.envs.interfaces import draw_allowed
from chatgym.scenarios import Scenario

Acts = npt.NDArray[np.int64]
Policy = Callable[[ChatRoom], Acts]

DISTURBED = 0.3
"""Probability that the perturbed expert takes a random act."""
EARLY_TURNS = 3
D_ACT, D_DISTURB, D_FIXED = (rng.WORDING + 300 + i for i in range(3))  # purposes that no conversation uses


AGENTS = {
    "random": "takes a random act that makes sense",
    "expert": "follows the scenario's script",
    "perturbed": f"is the expert with {DISTURBED:.0%} random acts",
    "senseless": "takes a random act, whether it makes sense or not",
    "repeating": "repeats one act",
    "hasty": f"ends the conversation within {EARLY_TURNS} turns",
    "clinging": "is *perturbed*, but never ends the conversation",
}
"""Name of a policy to what it does."""


def ending_acts(scenario: Scenario) -> npt.NDArray[np.bool_]:
    """Return which agent acts end a conversation, bool[acts]: those that end one that has just begun."""
    count = len(scenario.agent_acts)
    room = ChatRoom(scenario, count)
    room.begin(keys=np.zeros(count, np.uint64))
    room.step(np.arange(count))
    ends: npt.NDArray[np.bool_] = room.terminations.copy()
    return ends


def _draw(room: ChatRoom, purpose: int, allowed: npt.NDArray[np.bool_]) -> Acts:
    """Draw an act in each row among those `allowed`, bool[B, acts]; returns int64[B]."""
    return draw_allowed(allowed, rng.uniform(room.keys, room.turns, purpose))


def policies(scenario: Scenario) -> dict[str, Policy]:
    """Return the policies of `AGENTS`, room to int64[B]; their draws follow from the conversations' keys."""
    ends = ending_acts(scenario)
    close = int(np.flatnonzero(ends)[-1]) if ends.any() else None

    def random(room: ChatRoom) -> Acts:
        return _draw(room, D_ACT, room.action_masks())

    def senseless(room: ChatRoom) -> Acts:
        return _draw(room, D_ACT, np.ones((room.size, len(ends)), bool))

    def perturbed(room: ChatRoom) -> Acts:
        disturbed = rng.uniform(room.keys, room.turns, D_DISTURB) < DISTURBED
        return np.where(disturbed, random(room), room.expert_acts())

    def repeating(room: ChatRoom) -> Acts:
        others = np.flatnonzero(~ends)
        acts: Acts = others[(rng.uniform(room.keys, 0, D_FIXED) * len(others)).astype(np.int64)]
        return acts

    def hasty(room: ChatRoom) -> Acts:
        early = room.turns >= (rng.uniform(room.keys, 0, D_FIXED) * EARLY_TURNS).astype(np.int64)
        return room.expert_acts() if close is None else np.where(early, close, room.expert_acts())

    def clinging(room: ChatRoom) -> Acts:
        acts = perturbed(room)
        return np.where(ends[acts], _draw(room, D_FIXED, room.action_masks() & ~ends), acts)

    return {
        "random": random, "expert": ChatRoom.expert_acts, "perturbed": perturbed, "senseless": senseless,
        "repeating": repeating, "hasty": hasty, "clinging": clinging,
    }  # fmt: skip
