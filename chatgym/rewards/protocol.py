"""The `RewardModel` protocol: a model that scores conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Conversation: TypeAlias = Sequence[Mapping[str, str]]
"""ChatML messages, ``{"role": ..., "content": ...}`` each, as `chatgym.envs.wrappers.ChatMLMessages` gives them."""


class RewardModel(Protocol):
    """Scores conversations, each independently.

    If it has an attribute ``identity`` (a JSON value), records of runs name it by that.
    """

    def score(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        """Return the scores of B conversations, finished or not: float32[B], higher is better."""
        ...


def identity_of(model: RewardModel) -> Any:
    """Return what identifies a reward model in records: its ``identity``, or the name of its class."""
    return getattr(model, "identity", None) or {"name": f"{type(model).__module__}.{type(model).__qualname__}"}
