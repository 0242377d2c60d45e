"""The `RewardModel` protocol: what judges conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Conversation: TypeAlias = Sequence[Mapping[str, str]]
"""ChatML messages, ``{"role": ..., "content": ...}`` each, as `chatgym.envs.wrappers.ChatMLMessages` gives them."""


class RewardModel(Protocol):
    """Says how good conversations are, each by itself.

    One that also has an ``identity`` (what JSON can hold) is named by it where runs are recorded.
    """

    def score(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        """Score B conversations, perhaps unfinished ones: float32[B], more is better."""
        ...


def identity_of(model: RewardModel) -> Any:
    """Return what names a reward model in records: its ``identity``, or its class."""
    return getattr(model, "identity", None) or {"name": f"{type(model).__module__}.{type(model).__qualname__}"}
