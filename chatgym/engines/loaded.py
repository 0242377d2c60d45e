"""The `LoadedModel` protocol: a causal language model in memory, as the decode loop and the prompt cache use one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import DynamicCache


class LoadedModel(Protocol):
    """A model with its tokenizer on one device, such as `chatgym.engines.transformers.TransformersEngine`.

    Attributes:
        device: Where it computes.
        tokenizer: Its tokenizer, of the transformers library.
        ends: Token ids that end a text.
        context: The most tokens that a prompt and its continuation have together.
    """

    device: torch.device
    tokenizer: Any
    ends: frozenset[int]
    context: int

    def new_cache(self) -> DynamicCache:
        """Return an empty key-value cache."""
        ...

    def pad(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B sequences of token ids as ids and mask, int64[B, T], padded on the left; 0 in the mask is padding.

        Raises:
            InvalidValue: A sequence is longer than `context`.
        """
        ...

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, *, every: bool = False
    ) -> torch.Tensor:
        """Compute logits, and append the keys and values of the tokens to a cache.

        Args:
            ids: int64[B, N], the new tokens.
            mask: int64[B, T], 1 for each token and 0 for padding, the N new columns included.
            cache: Keys and values of the T - N tokens before, B rows.
            every: Return the logits after each new token instead of after the last one.

        Returns:
            float32[B, V], or float32[B, N, V] if `every`.
        """
        ...
