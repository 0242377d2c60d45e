"""The equations of PPO as pure functions: rewards, advantages, values, distributions and losses.

Arrays of numpy are float64[N] and tensors float32[N], where N counts the tokens that the agent sampled. The partner's
words and the chat template between two turns are left out, because the agent did not choose them: the token after the
last one of a turn is the first one of the next turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Doubles = npt.NDArray[np.float64]
EPSILON = 1e-8
FADING = 0.9
"""Weight of the earlier iterations in the ridge regression of state values, once per iteration."""
RIDGE, RIDGE_BIAS = 100.0, 1e-3
"""Penalty on a squared weight in that regression, and on the bias, which is as good as free."""


# -- Rewards and advantages ------------------------------------------------------------------------------------------


def kl_estimates(logprobs: npt.ArrayLike, reference: npt.ArrayLike, estimator: str) -> Doubles:
    """Estimate the KL divergence of the policy from the reference at each token, from the token that was sampled.

    With r = reference(token) / policy(token): ``k1`` is -log r, unbiased; ``k3`` is (r - 1) - log r, unbiased, never
    negative and of lower variance (Schulman 2020, "Approximating KL divergence").

    Args:
        logprobs: float32[N], log-probabilities under the policy that sampled the tokens.
        reference: float32[N], log-probabilities under the reference.
        estimator: ``"k1"`` or ``"k3"``.

    Returns:
        float64[N].
    """
    log_ratio = np.asarray(reference, np.float64) - np.asarray(logprobs, np.float64)
    return np.expm1(log_ratio) - log_ratio if estimator == "k3" else -log_ratio


def token_rewards(turn_rewards: npt.ArrayLike, ends: Sequence[int], kl: Doubles, coefficient: float) -> Doubles:
    """Turn the rewards of a conversation's K turns into rewards of its N tokens (Ziegler et al. 2019, equation 2).

    Args:
        turn_rewards: float64[K].
        ends: K indices, the last token of each turn.
        kl: float64[N], see `kl_estimates`.
        coefficient: β, the cost of one nat of divergence.

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
        values: float32[N], V of the state in which each token was sampled.
        bootstrap: V of the state after the last token: 0 after a terminated conversation, not after a truncated one.
        discount: γ, from one token to the next.
        decay: λ, or float64[N], the λ from each token to the next.

    Returns:
        float64[N]. With λ = 1 their sum with `values` is the return, the target of the value function.
    """
    before, decay = np.asarray(values, np.float64), np.broadcast_to(decay, len(rewards))
    advantages, after, last = np.empty(len(rewards)), bootstrap, 0.0
    for i in range(len(rewards) - 1, -1, -1):
        delta = rewards[i] + discount * after - before[i]
        last = delta + discount * decay[i] * last
        advantages[i], after = last, before[i]
    return advantages


def decays(ends: Sequence[int], within: float, between: float) -> Doubles:
    """Return the λ from each token to the next, float64[N].

    Args:
        ends: K indices, the last token of each turn.
        within: λ from one token to the next of the same turn.
        between: λ from the last token of a turn to the first of the next turn.
    """
    found = np.full(ends[-1] + 1, within)
    found[list(ends)] = between
    return found


def group_advantages(returns: Doubles, group: int, kind: str) -> Doubles:
    """Return advantages that compare each conversation with those that began like it; no value function is needed.

    Args:
        returns: float64[B], the return of each conversation; the members of a group are neighbours.
        group: Conversations in a group, at least 2.
        kind: ``"rloo"`` subtracts the mean of the other members (Ahmadian et al. 2024, equation 8); ``"grpo"``
            subtracts the mean of all members and divides by their standard deviation (Shao et al. 2024).

    Returns:
        float64[B], the advantage of every token of a conversation.
    """
    grouped = returns.reshape(-1, group)
    centred = grouped - grouped.mean(1, keepdims=True)
    if kind == "rloo":
        return (centred * (group / (group - 1))).reshape(-1)
    return (centred / (grouped.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1)


def whiten(advantages: Doubles) -> Doubles:
    """Shift and scale the advantages of an iteration, float64[N], to mean 0 and standard deviation 1."""
    return (advantages - advantages.mean()) / (advantages.std() + EPSILON)


# -- Values of the simulator's state ---------------------------------------------------------------------------------


class StateValues:
    """A linear value function of the simulator's state, fitted to returns by ridge regression.

    Asymmetric actor-critic (Pinto et al. 2017): the critic may see what the actor does not, because a baseline that
    does not depend on the action leaves the policy gradient unbiased. This one reads what the partner hides, for
    example the outcome that an accepted offer has already led to; a value function of the words would have to infer it.

    Attributes:
        gram: float64[F + 1, F + 1], sums of products of the features and a constant 1.
        products: float64[F + 1], sums of features times returns.
    """

    def __init__(self) -> None:
        self.gram, self.products = np.zeros((0, 0)), np.zeros(0)
        self._weights: Doubles = np.zeros(0)

    def predict(self, states: npt.NDArray[np.float32]) -> Doubles:
        """Return the values float64[K] of states float32[K, F]; 0 before the first call of `learn`."""
        return np.zeros(len(states)) if not len(self._weights) else _with_one(states) @ self._weights

    def learn(self, states: npt.NDArray[np.float32], returns: Doubles) -> None:
        """Add the states float32[K, F] of an iteration and the return after each, float64[K]; older ones fade."""
        known = _with_one(states)
        if not len(self.gram):
            self.gram, self.products = np.zeros((known.shape[1],) * 2), np.zeros(known.shape[1])
        self.set(FADING * self.gram + known.T @ known, FADING * self.products + known.T @ returns)

    def set(self, gram: Doubles, products: Doubles) -> None:
        """Set what was learned, see the attributes, and solve for the weights."""
        self.gram, self.products = gram, products
        if len(gram):
            penalty = np.full(len(gram), RIDGE)
            penalty[-1] = RIDGE_BIAS
            self._weights = np.asarray(np.linalg.solve(gram + np.diag(penalty), products), np.float64)


def _with_one(states: npt.NDArray[np.float32]) -> Doubles:
    """Append a constant 1 to states float32[K, F]: float64[K, F + 1]."""
    return np.concatenate([states, np.ones((len(states), 1))], 1, dtype=np.float64)


# -- Distributions and losses ----------------------------------------------------------------------------------------


def log_probabilities(logits: torch.Tensor, temperature: float, supports: torch.Tensor | None) -> torch.Tensor:
    """Return the log-probabilities of all tokens, float32[N, V], in the distribution that was sampled from.

    Args:
        logits: float32[N, V].
        temperature: As it was when the tokens were sampled.
        supports: uint8[N, ceil(V / 8)], one bit for each token that top-k and top-p had left; the others get -inf and
            the rest is renormalised. None: they left all.
    """
    logits = logits / temperature
    if supports is not None:
        bits = torch.arange(7, -1, -1, device=supports.device, dtype=torch.uint8)
        left = ((supports[:, :, None] >> bits) & 1).flatten(1)[:, : logits.shape[1]].bool()
        logits = logits.masked_fill(~left, -torch.inf)
    return logits.log_softmax(-1)


def entropies(log_probs: torch.Tensor) -> torch.Tensor:
    """Return the entropies in nats, float32[N], of distributions given as log-probabilities float32[N, V]."""
    possible = log_probs.isfinite()
    plogp = log_probs.exp() * log_probs.masked_fill(~possible, 0.0)
    return -plogp.sum(-1)


def policy_loss(logprobs: torch.Tensor, before: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """Return the clipped surrogate loss of each token, float32[N] (Schulman et al. 2017, equation 7, negated).

    Args:
        logprobs: float32[N], log-probabilities under the current policy.
        before: float32[N], log-probabilities under the policy that sampled the tokens.
        advantages: float32[N].
        clip: ε.
    """
    ratio = (logprobs - before).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: torch.Tensor, before: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Return half the squared error of each value, float32[N], clipped so that one update moves a value little.

    Args:
        values: float32[N], current values.
        before: float32[N], values when the tokens were sampled.
        returns: float32[N], their targets.
        clip: How far a value may move from `before`; 0: however far.
    """
    if not clip:
        return 0.5 * (values - returns) ** 2
    moved = before + (values - before).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (moved - returns) ** 2)
