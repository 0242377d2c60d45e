"""A value function of the simulator's whole state, what the partner hides included: the agent never sees it.

Asymmetric actor-critic (Pinto et al. 2017): whatever doesn't depend on the action is a baseline that leaves the
gradient unbiased, so in a simulator the critic may know more than the actor. Here it knows the outcome that an offer
has led to long before the conversation ends, and that it makes no difference in which words a question was asked; a
value function of the words has to find out both from returns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.room import ChatRoom

Floats = npt.NDArray[np.float32]
CLASSES = 16
"""Small whole numbers up to this are told apart one by one."""
RIDGE = 100.0
"""What a squared weight costs: as much as that many squared errors of 1."""
MEMORY = 0.9
"""What an iteration's conversations still count in the next one."""


def features(room: ChatRoom) -> Floats:
    """Return what a value function may know of B conversations, float32[B, F].

    That is the belief state as the agent's observation has it, the share of turns taken, and each number of the hidden
    and of the belief record: a small one as one of `CLASSES`, any other by its logarithm.
    """
    columns: list[Floats] = [room.embedding(), (room.turns / room.max_turns).astype(np.float32)[:, None]]
    for record in (room.hidden, room.belief):
        for name in record.dtype.names or ():
            field = record[name].reshape(room.size, -1)
            if field.dtype.itemsize == 1:
                kinds = np.clip(field.astype(np.int64) + 1, 0, CLASSES - 1)
                columns.append((kinds[:, :, None] == np.arange(CLASSES)).reshape(room.size, -1).astype(np.float32))
            else:
                numbers = field.astype(np.float64)
                columns.append((np.sign(numbers) * np.log1p(np.abs(numbers)) / 10).astype(np.float32))
    return np.concatenate(columns, 1)


class StateValues:
    """A linear function of `features`, fitted to what came after them by ridge regression; old iterations fade.

    Attributes:
        gram: float64[F + 1, F + 1], sums of products of features, one that is always 1 among them.
        products: float64[F + 1], sums of features times returns.
    """

    def __init__(self) -> None:
        self.gram, self.products = np.zeros((0, 0)), np.zeros(0)
        self._weights: npt.NDArray[np.float64] = np.zeros(0)

    def predict(self, states: Floats) -> npt.NDArray[np.float64]:
        """Return V of states float32[K, F], float64[K]: 0 before anything was learned."""
        return np.zeros(len(states)) if not len(self._weights) else _with_one(states) @ self._weights

    def learn(self, states: Floats, returns: npt.NDArray[np.float64]) -> None:
        """Learn from an iteration: states float32[K, F], and the return after each, float64[K]."""
        known = _with_one(states)
        if not len(self.gram):
            self.gram, self.products = np.zeros((known.shape[1],) * 2), np.zeros(known.shape[1])
        self.set(MEMORY * self.gram + known.T @ known, MEMORY * self.products + known.T @ returns)

    def set(self, gram: npt.NDArray[np.float64], products: npt.NDArray[np.float64]) -> None:
        """Set what was learned."""
        self.gram, self.products = gram, products
        if len(gram):
            cost = np.full(len(gram), RIDGE)
            cost[-1] = 1e-3  # the mean is free
            self._weights = np.asarray(np.linalg.solve(gram + np.diag(cost), products), np.float64)


def _with_one(states: Floats) -> npt.NDArray[np.float64]:
    return np.concatenate([states, np.ones((len(states), 1))], 1, dtype=np.float64)
