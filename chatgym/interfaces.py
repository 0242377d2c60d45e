"""Action and observation interfaces: which spaces there are, and what they hold for a scenario."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from chatgym.errors import InvalidValue, unknown
from chatgym.room import ChatRoom
from chatgym.scenarios import Scenario

ACTIONS = ("act",)
OBSERVATIONS = ("embedding", "discrete", "text", "belief")

MAX_CHARS = 2000
"""Longest text of an observation, in characters."""

CHARSET = frozenset(string.ascii_letters + string.digits + string.punctuation + " \n€£’‘“”…–—éèêëàâäáíìîïóòôöúùûüñç")
"""Characters of an observed text; NLG says nothing else."""


def action_space(scenario: Scenario, action: str) -> spaces.Discrete:
    """Return the action space of one conversation.

    Raises:
        InvalidValue: When there is no such action interface.
    """
    if action not in ACTIONS:
        raise unknown("action interface", action, ACTIONS)
    return spaces.Discrete(len(scenario.agent_acts))


def observation_space(scenario: Scenario, observation: str) -> spaces.Space[Any]:
    """Return the observation space of one conversation.

    ``"embedding"`` is float32[`Scenario.embedding_size`] in [-1, 1], ``"discrete"`` the number of the belief
    state, ``"text"`` the partner's last words. ``"belief"`` is the belief record itself as bytes, uint8[itemsize], for
    scripted experts: ``array.view(scenario.belief)``.

    Raises:
        InvalidValue: When there is no such observation interface.
    """
    if observation == "embedding":
        return spaces.Box(-1.0, 1.0, (scenario.embedding_size,), np.float32)
    if observation == "discrete":
        return spaces.Discrete(scenario.n_beliefs)
    if observation == "text":
        return spaces.Text(MAX_CHARS, min_length=0, charset=CHARSET)
    if observation == "belief":
        return spaces.Box(0, 255, (scenario.belief.itemsize,), np.uint8)
    raise unknown("observation interface", observation, OBSERVATIONS)


def observe(room: ChatRoom, observation: str, texts: list[str] | None) -> Any:
    """Return the batch's observations.

    Returns:
        float32[B, N] for ``"embedding"``, int64[B] for ``"discrete"``, uint8[B, itemsize] for
        ``"belief"``, a tuple of B strings for ``"text"``.
    """
    if observation == "discrete":
        return room.discrete()
    if observation == "embedding":
        return room.embedding()
    if observation == "belief":
        return room.belief.view(np.uint8).reshape(room.size, -1).copy()
    return tuple(texts or ())


def check_acts(actions: npt.ArrayLike, size: int, acts: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return a batch of act indices as int64[B].

    Raises:
        InvalidValue: When the shape is another, or an index is none of an agent act.
    """
    array = np.asarray(actions)
    if array.shape != (size,) or array.dtype.kind not in "iu":
        raise InvalidValue(
            f"expected {size} agent acts as an integer array of shape ({size},), got {array.dtype} {array.shape}"
        )
    if array.min() < 0 or array.max() >= len(acts):
        bad = array[(array < 0) | (array >= len(acts))][0]
        raise InvalidValue(f"there is no agent act {bad}; they are 0 to {len(acts) - 1}: {', '.join(acts)}")
    return array.astype(np.int64, copy=False)
