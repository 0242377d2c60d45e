"""Action and observation interfaces: which spaces there are, and what they hold for a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from chatgym.dynamics.room import ChatRoom
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.text_space import ChatText
from chatgym.envs.tokens import TokenHistory, token_space
from chatgym.errors import InvalidValue, unknown
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
        return ChatText(MAX_CHARS, min_length=0, charset=CHARSET)
    if observation == "token" and tokenizer is not None:
        return token_space(tokenizer)
    if observation == "belief":
        return spaces.Box(0, 255, (scenario.belief.itemsize,), np.uint8)
    raise unknown("observation interface", observation, OBSERVATIONS)


def observe(room: ChatRoom, observation: str, texts: Sequence[str] = (), history: TokenHistory | None = None) -> Any:
    """Return the batch's observations.

    Returns:
        float32[B, N] for ``"embedding"``, int64[B] for ``"discrete"``, uint8[B, itemsize] for
        ``"belief"``, a tuple of B strings for ``"text"``, a dict of ``ids`` and ``mask`` for ``"token"``.
    """
    if observation == "discrete":
        return room.discrete()
    if observation == "embedding":
        return room.embedding()
    if observation == "belief":
        return room.belief.view(np.uint8).reshape(room.size, -1).copy()
    if history is not None:
        return history.observe()
    return tuple(texts)


def row_of(observations: Any, i: int) -> Any:
    """Return one conversation's observation from a batch of them."""
    return (
        {name: array[i] for name, array in observations.items()} if isinstance(observations, dict) else observations[i]
    )


def draw_allowed(masks: npt.NDArray[np.bool_], draws: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Turn draws, float64[B] in [0, 1), into actions that masks, bool[B, n], allow, int64[B]; each equally likely."""
    chosen = (draws * masks.sum(1)).astype(np.int64)
    actions: npt.NDArray[np.int64] = (masks.cumsum(1) > chosen[:, None]).argmax(1)  # the chosen-th that is True
    return actions


def check_integers(actions: npt.ArrayLike, size: int, count: int, what: str) -> npt.NDArray[np.int64]:
    """Return a batch of actions as int64[B], each of them 0 … `count` - 1.

    Raises:
        InvalidValue: When the shape is another, or a number is out of range.
    """
    array = np.asarray(actions)
    if array.shape != (size,) or array.dtype.kind not in "iu":
        raise InvalidValue(
            f"expected {size} {what}s as an integer array of shape ({size},), got {array.dtype} {array.shape}"
        )
    array = array.astype(np.int64, copy=False)
    unsigned = array.view(np.uint64)  # where what is below 0 is large: one reduction, each as dear as a step
    if (unsigned[0] if size == 1 else unsigned.max()) >= count:
        bad = array[(array < 0) | (array >= count)][0]
        raise InvalidValue(f"there is no {what} {bad}; they are 0 to {count - 1}")
    return array


def check_acts(actions: npt.ArrayLike, size: int, acts: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return a batch of act indices as int64[B].

    Raises:
        InvalidValue: When the shape is another, or an index is none of an agent act.
    """
    try:
        return check_integers(actions, size, len(acts), "agent act")
    except InvalidValue as error:
        raise InvalidValue(f"{error}: {', '.join(acts)}") from None
