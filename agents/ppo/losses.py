"""The losses of PPO, summed over tokens (Schulman et al. 2017, "Proximal policy optimization algorithms")."""

from __future__ import annotations

import torch


def policy_loss(logprobs: torch.Tensor, before: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """Return the clipped surrogate loss of each token (equation 7, negated).

    Args:
        logprobs: float32[N], of the tokens under the policy as it is now.
        before: float32[N], under the policy that sampled them.
        advantages: float32[N].
        clip: ε.
    """
    ratio = (logprobs - before).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: torch.Tensor, before: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Return half the squared error of each value, clipped so that one update moves a value little.

    Args:
        values: float32[N], as they are now.
        before: float32[N], as they were when the tokens were sampled.
        returns: float32[N], what they should be.
        clip: How far a value may move; 0: however far.
    """
    if not clip:
        return 0.5 * (values - returns) ** 2
    moved = before + (values - before).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (moved - returns) ** 2)


def entropies(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats of each distribution, float32[N], of log-probabilities float32[N, V]."""
    possible = log_probabilities.isfinite()
    plogp = log_probabilities.exp() * log_probabilities.masked_fill(~possible, 0.0)
    return -plogp.sum(-1)
