"""Action and observation interfaces: which spaces there are, and what they hold for a scenario."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.tokens import token_space
from chatgym.errors import unknown
from chatgym.scenarios import Scenario
from chatgym.words.charset import CHARSET, MAX_CHARS

ACTIONS = ("act", "candidate", "text", "token")
OBSERVATIONS = ("embedding", "discrete", "text", "token", "belief")


def observation_space(scenario: Scenario, observation: str, tokenizer: ChatTokenizer | None) -> spaces.Space[Any]:
    """Return the observation space of one conversation.

    ``"embedding"`` is float32[`Scenario.embedding_size`] in [-1, 1], ``"discrete"`` the number of the belief state,
    ``"text"`` the partner's last words, ``"token"`` all words as ids and mask of `tokenizer`. ``"belief"`` is the
    belief record itself as bytes, uint8[itemsize], for scripted experts: ``array.view(scenario.belief)``.

    Raises:
        InvalidValue: When there is no such observation interface.
    """
    if observation == "embedding":
        return spaces.Box(-1.0, 1.0, (scenario.embedding_size,), np.float32)
    if observation == "discrete":
        return spaces.Discrete(scenario.n_beliefs)
    if observation == "text":
        return spaces.Text(MAX_CHARS, min_length=0, charset=CHARSET)
    if observation == "token" and tokenizer is not None:
        return token_space(tokenizer)
    if observation == "belief":
        return spaces.Box(0, 255, (scenario.belief.itemsize,), np.uint8)
    raise unknown("observation interface", observation, OBSERVATIONS)


def draw_allowed(masks: npt.NDArray[np.bool_], draws: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Turn draws, float64[B] in [0, 1), into actions that masks, bool[B, n], allow, int64[B]; each equally likely."""
    chosen = (draws * masks.sum(1)).astype(np.int64)
    actions: npt.NDArray[np.int64] = (masks.cumsum(1) > chosen[:, None]).argmax(1)  # the chosen-th that is True
    return actions
