"""What judges conversations: the `RewardModel` protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Conversation: TypeAlias = Sequence[Mapping[str, str]]
"""ChatML messages, ``{"role": ..., "content": ...}`` each, as `chatgym.wrappers.ChatMLMessages` gives them."""


class RewardModel(Protocol):
    """Says how good conversations are, each by itself."""

    def score(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        """Score B conversations, perhaps unfinished ones: float32[B], more is better."""
        ...
