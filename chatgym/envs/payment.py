"""What a turn earns: the weighted sum of its reward terms, or the value of the user's function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.room import ChatRoom, Snapshot
from chatgym.dynamics.values import check_weights
from chatgym.errors import InvalidValue
from chatgym.rewards.function import CUSTOM, Function, RewardFunction, copy_of, make_step
from chatgym.rewards.term import NAME, WEIGHT, ModelTerm


class Payment:
    """The reward terms of B conversations and their weights.

    Attributes:
        function: The user's function that replaces the weighted sum; None without one.
        weights: Reward term to weight, the reward model's and the function's included.
    """

    weights: dict[str, float]

    def __init__(self, room: ChatRoom, judged: ModelTerm | None, function: RewardFunction | None) -> None:
        """Pay for the turns of a room, whose reward model's term is `judged`."""
        self.function, self._room, self._judged = function, room, judged
        self._before: npt.NDArray[Any] | None = None  # records[B]
        self._weigh()

    def begin_step(self) -> None:
        """Remember, before the room's step, what the function is told of that moment."""
        self._before = copy_of(self._room.belief)

    def settle(
        self, acts: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_] | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return rewards float64[B] and unweighted terms float64[B, T], in the order of `weights`, after a step.

        `acts` is int64[B]; `rows`, bool[B], took a turn (None: all).
        """
        rewards, terms = self._room.rewards, self._room.terms
        if self._judged is not None:
            rewards, terms = self._judged.rewards(rewards), self._judged.terms(terms)
        if self.function is None:
            return rewards, terms
        paid, room = np.zeros(len(rewards)), self._room
        if rows is None or rows.any():
            assert self._before is not None
            step = make_step(
                room.scenario, rows, tuple(self.weights)[:-1], acts=acts, user_acts=room.said["act"],
                belief_before=self._before, belief=room.belief, terms=terms, rewards=rewards, outcomes=room.outcomes,
                terminations=room.terminations, truncations=room.truncations, turns=room.turns,
            )  # fmt: skip
            paid[step.rows] = self.function(step)
        return paid, np.column_stack([terms, paid])

    def set_weights(self, reward_weights: Mapping[str, float] | None) -> None:
        """Set the weights of reward terms, from the next turn on; terms left out get their default weight.

        Raises:
            InvalidValue: A weight is not a finite number, or is that of an unknown term; or a function pays.
        """
        if self.function is not None:
            raise weightless()
        weights = check_weights(reward_weights)
        judged = WEIGHT if self._judged is None else weights.pop(NAME, WEIGHT)
        self._room.set_reward_weights(weights)
        if self._judged is not None:
            self._judged.weight = judged
        self._weigh()

    def dump(self) -> Snapshot:
        """Copy the room's settings and the reward model's weight: arrays with a leading axis B."""
        own = {} if self._judged is None else {NAME: np.full(self._room.size, self._judged.weight)}
        return {**self._room.dump_settings(), **own}

    def load(self, settings: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore what `dump` returned, arrays with a leading axis B; nothing, as old snapshots have, is left alone."""
        if not settings:
            return
        self._room.load_settings(settings)
        if self._judged is not None:
            self._judged.weight = float(settings[NAME][0])
        self._weigh()

    def identity(self) -> dict[str, Any]:
        """Return the weights, and what identifies the reward model and the function."""
        model = {} if self._judged is None else {"model": self._judged.identity()}
        function = {} if self.function is None else {"function": self.function.identity()}
        return {"weights": self.weights, **model, **function}

    def _weigh(self) -> None:
        """Set `weights`: those of the room and the reward model, or 0 for these and 1 for the function."""
        weights = dict(self._room.reward_weights)
        if self._judged is not None:
            weights[NAME] = self._judged.weight
        self.weights = weights if self.function is None else {**dict.fromkeys(weights, 0.0), CUSTOM: 1.0}


def make_function(reward: str | Function | None, reward_weights: Mapping[str, float] | None) -> RewardFunction | None:
    """Make the function of an environment's arguments; None: without one.

    Raises:
        InvalidValue: There are weights beside it; see also `RewardFunction`.
    """
    if reward is None:
        return None
    if reward_weights is not None:
        raise weightless()
    return RewardFunction(reward)


def weightless() -> InvalidValue:
    """Return the error for weights beside a function."""
    return InvalidValue(
        "reward= replaces the weighted sum of the reward terms, so reward_weights would have no effect; leave them "
        "out, and weigh RewardStep.terms in the function"
    )
