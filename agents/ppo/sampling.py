"""What tokens are sampled from, and the same distribution when they are learned from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from chatgym.engines.sampling import choose, nucleus

Supports = npt.NDArray[np.uint8]
"""uint8[N, ceil(V / 8)]: which tokens might have been sampled, eight to a byte."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled.

    The tokens that top-k and top-p leave are remembered, and later log-probabilities are renormalised over the same
    ones: those of the distribution that was really sampled from, with a ratio of 1 as long as the policy is the same.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Sample among the likeliest that have this probability together.
        top_k: Sample among this many; 0: all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def limited(self) -> bool:
        """Whether some tokens can't be sampled."""
        return self.top_p < 1 or self.top_k > 0

    def draw(
        self, logits: torch.Tensor, seeds: npt.NDArray[np.uint64], position: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], Supports | None]:
        """Draw a token for each row.

        Args:
            logits: float32[B, V].
            seeds: uint64[B]; the token is a function of (seed, position).
            position: Of the token in its turn.

        Returns:
            Tokens int64[B], their log-probabilities float32[B], and `Supports`.
        """
        size, supports = len(logits), None
        if self.temperature > 0:
            logits = logits / self.temperature
            if self.limited:
                kept = self._kept(logits)
                supports = np.packbits(kept.cpu().numpy(), axis=1)
                logits = logits.masked_fill(~kept, -torch.inf)
        ones = np.ones(size)
        tokens, logprobs = choose(
            logits, seeds=seeds, positions=np.full(size, position), temperatures=ones * (self.temperature > 0),
            top_ps=ones,
        )  # fmt: skip
        return tokens.cpu().numpy(), logprobs.cpu().numpy(), supports

    def log_probabilities(self, logits: torch.Tensor, supports: torch.Tensor | None) -> torch.Tensor:
        """Return the log-probabilities of all tokens, float32[N, V], -inf for what couldn't be sampled.

        Args:
            logits: float32[N, V].
            supports: uint8[N, ceil(V / 8)], those of `draw`.
        """
        logits = logits / self.temperature
        if supports is not None:
            logits = logits.masked_fill(~_unpack(supports, logits.shape[1]), -torch.inf)
        return logits.log_softmax(-1)

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, supports: torch.Tensor | None) -> torch.Tensor:
        """Return the log-probabilities of one token each, int64[N], as float32[N]; see `log_probabilities`."""
        return self.log_probabilities(logits, supports).gather(1, tokens[:, None])[:, 0]

    def _kept(self, logits: torch.Tensor) -> torch.Tensor:
        """Return which tokens may be sampled, bool[B, V]: top-k first, then the nucleus of what it leaves."""
        if 0 < self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return nucleus(logits.softmax(-1), self.top_p)


def _unpack(supports: torch.Tensor, size: int) -> torch.Tensor:
    bits = torch.arange(7, -1, -1, device=supports.device, dtype=torch.uint8)
    return ((supports[:, :, None] >> bits) & 1).flatten(1)[:, :size].bool()
