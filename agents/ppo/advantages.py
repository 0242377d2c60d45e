"""Rewards and advantages of the tokens that an agent sampled; all in float64, and of these tokens only.

What stands between two turns, the partner's words and the template, was not chosen by the agent: the token after the
last of a turn is the first of the next turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
EPSILON = 1e-8


def kl_estimates(logprobs: npt.ArrayLike, reference: npt.ArrayLike, estimator: str) -> Doubles:
    """Estimate the KL divergence of the policy from the reference at each token, by the token that was sampled.

    With r = reference(token) / policy(token): ``k1`` is -log r, unbiased; ``k3`` is (r - 1) - log r, unbiased, never
    negative and of less variance (Schulman 2020, "Approximating KL divergence").

    Args:
        logprobs: float[N], of the tokens under the policy that sampled them.
        reference: float[N], under the reference.
        estimator: ``"k1"`` or ``"k3"``.
    """
    log_ratio = np.asarray(reference, np.float64) - np.asarray(logprobs, np.float64)
    return np.expm1(log_ratio) - log_ratio if estimator == "k3" else -log_ratio


def token_rewards(turn_rewards: npt.ArrayLike, ends: Sequence[int], kl: Doubles, coefficient: float) -> Doubles:
    """Spread a conversation's rewards over its tokens (Ziegler et al. 2019, equation 2).

    Args:
        turn_rewards: float[K], of the agent's turns.
        ends: K numbers, the last token of each turn.
        kl: float64[N], see `kl_estimates`.
        coefficient: β, what a nat of it costs.

    Returns:
        float64[N].
    """
    rewards = -coefficient * kl
    rewards[list(ends)] += np.asarray(turn_rewards, np.float64)
    return rewards


def gae(rewards: Doubles, values: npt.ArrayLike, bootstrap: float, discount: float, decay: float | Doubles) -> Doubles:
    """Return generalised advantage estimates (Schulman et al. 2016, equation 16).

    Args:
        rewards: float64[N].
        values: float[N], V of the state in which each token was sampled.
        bootstrap: V of the state after the last one: 0 where the conversation ended, not where it was broken off.
        discount: γ, from a token to the next.
        decay: λ, or float64[N], the λ from each token to the next.

    Returns:
        float64[N]; with a λ of 1, added to the values, they are the returns that values learn.
    """
    before, decay = np.asarray(values, np.float64), np.broadcast_to(decay, len(rewards))
    advantages, after, last = np.empty(len(rewards)), bootstrap, 0.0
    for i in range(len(rewards) - 1, -1, -1):
        delta = rewards[i] + discount * after - before[i]
        last = delta + discount * decay[i] * last
        advantages[i], after = last, before[i]
    return advantages


def decays(ends: Sequence[int], within: float, between: float) -> Doubles:
    """Return the λ from each token to the next, float64[N]: one within a turn, one from a turn to the next.

    Args:
        ends: K numbers, the last token of each turn.
        within: λ from token to token of a turn.
        between: λ from the last token of a turn to the first of the next.
    """
    found = np.full(ends[-1] + 1, within)
    found[list(ends)] = between
    return found


def group_advantages(returns: Doubles, group: int, kind: str) -> Doubles:
    """Compare conversations with those that began alike; no value function is needed.

    Args:
        returns: float64[B], each conversation's; those of a group stand together.
        group: Conversations of a group, at least 2.
        kind: ``"rloo"``: less the mean of the others (Ahmadian et al. 2024, equation 8); ``"grpo"``: less the mean of
            all, in standard deviations (Shao et al. 2024).

    Returns:
        float64[B], the advantage of all tokens of each conversation.
    """
    grouped = returns.reshape(-1, group)
    centred = grouped - grouped.mean(1, keepdims=True)
    if kind == "rloo":
        return (centred * (group / (group - 1))).reshape(-1)
    return (centred / (grouped.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1)


def whiten(advantages: Doubles) -> Doubles:
    """Shift and scale to mean 0 and standard deviation 1, over all tokens of an iteration."""
    return (advantages - advantages.mean()) / (advantages.std() + EPSILON)
