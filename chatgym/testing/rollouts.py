"""Policies and rollouts for `check_scenario`: random, expert and mixed acts, with every turn recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios import UNCLEAR_ACT, Scenario

Acts = npt.NDArray[np.int64]
Policy = Callable[[ChatRoom], Acts]

ROOT = 10**9
"""Root of the first row; others follow."""


def room_of(scenario: Scenario, size: int, *, root: int = ROOT, **arguments: Any) -> ChatRoom:
    """Make a seeded room of B conversations, before `begin`."""
    room = ChatRoom(scenario, size, **arguments)
    room.seed(np.arange(root, root + size, dtype=np.uint64))
    return room


def random_policy(seed: int) -> Policy:
    """Return a policy that draws among the acts that make sense."""
    generator = np.random.default_rng(seed)

    def policy(room: ChatRoom) -> Acts:
        """Return int64[B]."""
        masks = room.action_masks()
        acts: Acts = (generator.random(masks.shape) * masks).argmax(1)
        return acts

    return policy


def mixed_policy(scenario: Scenario, seed: int) -> Policy:
    """Return a policy that mixes expert, random, senseless and unclear acts, and acts about a slot."""
    generator = np.random.default_rng(seed)
    sensible = random_policy(seed + 1)
    codes = np.array(
        [*range(len(scenario.agent_acts)), UNCLEAR_ACT, *scenario.agent_codes.values()], np.int64
    )  # whatever its mask

    def policy(room: ChatRoom) -> Acts:
        """Return int64[B]."""
        which = generator.random(room.size)
        acts = np.where(which < 0.5, expert(room), sensible(room))
        return np.where(which > 0.8, generator.choice(codes, room.size), acts)

    return policy


def expert(room: ChatRoom) -> Acts:
    """Return the scripted expert's acts, int64[B]; 0 in the place of invalid ones, which compiled code can't take."""
    acts = room.expert_acts()
    return np.where((acts >= 0) & (acts < len(room.scenario.agent_acts)), acts, 0)


def fixed(order: Any) -> Policy:
    """Return a policy that takes acts in a fixed order, int[T], and repeats the last one."""
    acts = np.asarray(order, np.int64)
    return lambda room: acts[np.minimum(room.turns, len(acts) - 1)]


@dataclass(frozen=True)
class Held:
    """Results of one conversation in each of B rows.

    Attributes:
        returns: float64[B], sums of rewards.
        outcomes: int64[B].
        turns: int64[B].
    """

    returns: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.int64]
    turns: npt.NDArray[np.int64]

    def share(self, outcome: int) -> float:
        """Return the share of conversations with an outcome."""
        return float((self.outcomes == outcome).mean())


def hold(room: ChatRoom, policy: Policy) -> Held:
    """Run one conversation in each row to its end, or for one turn more than `max_turns`."""
    room.begin()
    going, returns = np.ones(room.size, bool), np.zeros(room.size)
    for _ in range(room.max_turns + 1):
        room.step(policy(room), going)
        returns += room.rewards
        going &= ~(room.terminations | room.truncations)
        if not going.any():
            break
    return Held(returns, room.outcomes.copy(), room.turns.copy())


@dataclass(frozen=True)
class Turns:
    """T turns of `mixed_policy` in each of N rows; where a conversation ends, the next one begins.

    Attributes:
        acts: int64[T, N]; ``before`` and ``hidden``, records[T, N], are the state before the act, ``after`` and
            ``said`` after it.
        numbers: int64[T, N]; ``embeddings`` float32[T, N, E]; ``masks`` bool[T, N, A]; ``expert`` int64[T, N]: for
            the beliefs in ``after``.
        outcomes: int64[T, N]; ``terminations``, ``truncations`` bool[T, N]; ``rewards`` float64[T, N]; ``terms``
            float64[T, N, R].
        opening: records[N], the partner's first utterances.
    """

    acts: Acts
    before: Any
    hidden: Any
    after: Any
    said: Any
    numbers: Any
    embeddings: Any
    masks: Any
    expert: Any
    outcomes: Any
    terminations: Any
    truncations: Any
    rewards: Any
    terms: Any
    opening: Any

    @property
    def going(self) -> Any:
        """Where the conversation goes on after the turn, bool[T, N]."""
        return ~(self.terminations | self.truncations)


def play(scenario: Scenario, rows: int, turns: int) -> Turns:
    """Run `mixed_policy` for T turns in each of N rows, and record everything."""
    room, policy = room_of(scenario, rows), mixed_policy(scenario, 1)
    room.begin()
    opening = room.said.copy()
    kept: list[tuple[Any, ...]] = []
    for _ in range(turns):
        acts, before, hidden = policy(room), room.belief.copy(), room.hidden.copy()
        room.step(acts)
        kept.append((
            acts, before, hidden, room.belief.copy(), room.said.copy(), room.discrete(), room.embedding(),
            room.action_masks(), room.expert_acts(), room.outcomes.copy(), room.terminations, room.truncations,
            room.rewards, room.terms,
        ))  # fmt: skip
        room.begin(room.terminations | room.truncations)
    arrays: list[Any] = [*(np.stack(each) for each in zip(*kept, strict=True)), opening]
    return Turns(*arrays)


def raw(records: Any) -> npt.NDArray[np.void]:
    """Return records[...] as bytes, void[...], which can be compared after ``tolist()``."""
    return np.ascontiguousarray(records).view(f"V{records.dtype.itemsize}")
