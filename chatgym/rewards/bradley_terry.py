"""The Bradley–Terry head: a linear score of features, fitted to preferences between two conversations.

Bradley & Terry 1952, "Rank analysis of incomplete block designs": P(a is preferred to b) = sigmoid(r(a) - r(b)). With
r linear in the features, that is a logistic regression on the differences of features, without an intercept. The loss
is convex and minimised in float64, so the same pairs give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chatgym.forks import one_thread
from chatgym.rewards.features import Doubles

DECAYS = (0.02, 0.1, 0.5, 2.0)
"""Strengths of the L2 penalty to choose from; features are first scaled to a standard deviation of 1."""
FOLDS = 4


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result of `fit`.

    Attributes:
        weights: float64[F], weights of the unscaled features.
        loss: Mean of -log P(chosen is preferred) over the training pairs, without the penalty.
    """

    weights: Doubles
    loss: float


def fit(differences: Doubles, counts: npt.NDArray[np.int64] | None = None, decay: float = DECAYS[0]) -> Fitted:
    """Fit the weights to N pairs.

    Args:
        differences: float64[N, F], features of the better conversation minus those of the worse one.
        counts: int64[N], how often each pair counts (a bootstrap sample); 1 each when None.
        decay: Strength of the L2 penalty.
    """
    import torch

    scale = differences.std(0)
    scale[scale < 1e-9] = np.inf  # a feature that never differs gets weight 0
    x = torch.from_numpy(differences / scale)
    share = np.ones(len(x)) if counts is None else counts.astype(np.float64)
    share_t = torch.from_numpy(share / share.sum())
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def negative_log_likelihood() -> torch.Tensor:
        """Return the mean loss of a pair, a float64 scalar."""
        return (torch.nn.functional.softplus(-(x @ weights)) * share_t).sum()  # -log sigmoid(r(chosen) - r(rejected))

    def closure() -> torch.Tensor:
        """Return the loss with the penalty, a float64 scalar, and compute its gradient."""
        optimiser.zero_grad()
        loss = negative_log_likelihood() + decay * weights.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with one_thread():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            loss = float(negative_log_likelihood())
    return Fitted(weights.detach().numpy() / scale, loss)


def choose_decay(differences: Doubles, groups: Sequence[str]) -> float:
    """Return the penalty of `DECAYS` with the least loss in cross-validation.

    Args:
        differences: float64[N, F], see `fit`.
        groups: N names; the pairs of a group are in the same fold.
    """
    places = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(places) < FOLDS:
        return DECAYS[0]
    fold = np.array([places[group] % FOLDS for group in groups])

    def loss(decay: float) -> float:
        """Return the mean loss of a pair under the weights of the other folds."""
        margins = np.zeros(len(differences))
        for k in range(FOLDS):
            margins[fold == k] = differences[fold == k] @ fit(differences[fold != k], decay=decay).weights
        return float(np.logaddexp(0.0, -margins).mean())

    return min(DECAYS, key=loss)


def bootstrap_counts(groups: list[str], seed: int) -> npt.NDArray[np.int64]:
    """Draw groups with replacement; returns how often each of the N pairs counts, int64[N]."""
    names = sorted(set(groups))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)))
    times = dict(zip(names, drawn.tolist(), strict=True))
    return np.array([times[group] for group in groups])


def probability(margins: Doubles) -> Doubles:
    """Return P(a is preferred to b), float64[N], for margins r(a) - r(b), float64[N]."""
    result: Doubles = 0.5 * (1 + np.tanh(margins / 2))
    return result
