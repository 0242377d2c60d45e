"""A reward model's term of the reward: what it makes of each agent turn of an environment.

The model reads the conversation up to the agent's words, the partner's answer not included. Its score is the term
``reward_model``, beside the scenario's own terms; its weight is small, so the outcome decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.room import check_weights
from chatgym.errors import InvalidValue
from chatgym.rewards.choose import make_reward_model
from chatgym.rewards.pairs import message
from chatgym.rewards.protocol import RewardModel, identity_of
from chatgym.scenarios import Scenario

NAME = "reward_model"
"""Of the term, in ``info["reward_terms"]`` and in ``reward_weights``."""
WEIGHT = 0.05
"""Of the term, unless ``reward_weights`` says otherwise."""


class ModelTerm:
    """B conversations as a reward model reads them; it is asked when the reward is looked at, and only then.

    Attributes:
        model: It.
        weight: Of the term.
    """

    def __init__(self, model: RewardModel, size: int, weight: float) -> None:
        """Begin with B conversations in which nothing was said."""
        self.model, self.weight = model, weight
        self._said: list[list[dict[str, str]]] = [[] for _ in range(size)]
        self._open: dict[int, list[dict[str, str]]] = {}  # row to what is to be judged
        self._scores = np.zeros(size)

    def begin(self, row: int, partner: str) -> None:
        """Begin a conversation that the partner opens."""
        self._said[row] = [message("user", partner)]

    def say(self, rows: Sequence[int], texts: Iterable[str]) -> None:
        """Append what the agents of some rows say: the turns that are to be judged."""
        for row, text in zip(rows, texts, strict=True):
            self._said[row].append(message("assistant", text))
        self._open = {row: list(self._said[row]) for row in rows}
        self._scores = np.zeros(len(self._said))

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """What the model makes of the last turns, float64[B]; 0 where none was taken.

        Raises:
            InvalidValue: When it gives something else than a finite number for each.
        """
        if self._open:
            rows = list(self._open)
            found = np.asarray(self.model.score(list(self._open.values())), np.float64)
            if found.shape != (len(rows),) or not np.isfinite(found).all():
                raise InvalidValue(
                    f"the reward model {type(self.model).__name__} gave {found} for {len(rows)} conversations, not a "
                    "number for each; chatgym.testing.check_reward_model finds out why"
                )
            self._scores[rows] = found
            self._open = {}
        return self._scores

    def hear(self, row: int, partner: str) -> None:
        """Append the partner's answer."""
        self._said[row].append(message("user", partner))

    def rewards(self, rewards: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return float64[B], the task's own rewards with the term's share."""
        return rewards + self.weight * self.scores

    def terms(self, terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return float64[B, T + 1], the task's own terms and the scores."""
        return np.column_stack([terms, self.scores])

    def identity(self) -> Any:
        """Name the model."""
        return identity_of(self.model)

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``said``, str[B]: the messages of each conversation as JSON."""
        return {"said": np.array([json.dumps(said) for said in self._said], np.str_)}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go back to what was said at `dump`; the scores of the last turn are 0."""
        self._said = [json.loads(said) for said in state["said"].tolist()]
        self._open, self._scores = {}, np.zeros(len(self._said))


def make_term(
    reward_model: str | RewardModel | None,
    reward_weights: Mapping[str, float] | None,
    scenario: Scenario,
    action: str,
    size: int,
) -> tuple[ModelTerm | None, dict[str, float]]:
    """Make the term of an environment, and return the weights of the scenario's own terms.

    ``"default"`` judges agents that choose words (`action` other than ``"act"``): there the words of an act are the
    scenario's own, and cost more than the turn. Any other reward model judges whatever the interface is.

    Raises:
        InvalidValue: A weight is given for the term, but no model judges; see also `make_reward_model`.
    """
    weights = check_weights(reward_weights)
    own = {name: one for name, one in weights.items() if name != NAME}
    off = reward_model is None or (isinstance(reward_model, str) and reward_model == "default" and action == "act")
    model = None if off else make_reward_model(reward_model, scenario)
    weight = weights.get(NAME, WEIGHT)
    if model is not None:
        return ModelTerm(model, size, weight), own
    if reward_model is not None and NAME in weights:
        raise InvalidValue(
            f"reward_weights weighs {NAME!r}, but no reward model judges here; name one (reward_model=...): with "
            'action="act" the default one is off'
        )
    return None, own
