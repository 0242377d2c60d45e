"""Action and observation interfaces: their names and spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.text_space import ChatText
from chatgym.envs.tokens import token_space
from chatgym.errors import unknown
from chatgym.scenarios import Scenario
from chatgym.words.charset import CHARSET, MAX_CHARS

ACTIONS = ("act", "candidate", "text", "token")
OBSERVATIONS = ("embedding", "discrete", "text", "token", "belief")
WORDS = ("text", "token")
"""Observations of words: who reads words is judged by what they say, so by default no act or value is misheard."""
ERROR_RATE = 0.1
"""Semantic error rate where beliefs are observed."""


def default_error_rate(observation: str) -> float:
    """Return the semantic error rate, 0 to 1, that an environment has unless another is given."""
    return 0.0 if observation in WORDS else ERROR_RATE


def observation_space(scenario: Scenario, observation: str, tokenizer: ChatTokenizer | None) -> spaces.Space[Any]:
    """Return the observation space of one conversation.

    ``"embedding"`` is float32[`Scenario.embedding_size`] in [-1, 1], ``"discrete"`` the number of the belief state,
    ``"text"`` the partner's last utterance, ``"token"`` ids and mask of all words so far. ``"belief"`` is the belief
    record as bytes, uint8[itemsize], for scripted experts: ``array.view(scenario.belief)``.

    Raises:
        InvalidValue: There is no such observation interface.
    """
    if observation == "embedding":
        return spaces.Box(-1.0, 1.0, (scenario.embedding_size,), np.float32)
    if observation == "discrete":
        return spaces.Discrete(scenario.n_beliefs)
    if observation == "text":
        return ChatText(MAX_CHARS, min_length=0, charset=CHARSET)
    if observation == "token" and tokenizer is not None:
        return token_space(tokenizer)
    if observation == "belief":
        return spaces.Box(0, 255, (scenario.belief.itemsize,), np.uint8)
    raise unknown("observation interface", observation, OBSERVATIONS)


def draw_allowed(masks: npt.NDArray[np.bool_], draws: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Choose actions at random among the allowed ones, each equally likely.

    Args:
        masks: bool[B, n], the allowed actions.
        draws: float64[B] in [0, 1).

    Returns:
        int64[B].
    """
    chosen = (draws * masks.sum(1)).astype(np.int64)
    actions: npt.NDArray[np.int64] = (masks.cumsum(1) > chosen[:, None]).argmax(1)  # the chosen-th that is True
    return actions
