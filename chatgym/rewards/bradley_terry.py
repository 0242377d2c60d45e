"""The Bradley–Terry head: from features to a score that says which of two conversations is preferred.

Bradley & Terry 1952, "Rank analysis of incomplete block designs": P(a is preferred to b) = sigmoid(r(a) - r(b)). With
r linear in the features that is a logistic regression on the features' difference, without a constant. The loss is
convex and is minimised in float64, so the same pairs give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chatgym.rewards.features import Doubles, one_thread

DECAYS = (0.02, 0.1, 0.5, 2.0)
"""Strengths of the L2 penalty to choose from, of weights of features that are scaled to a standard deviation of 1."""
FOLDS = 4


@dataclass(frozen=True, eq=False)
class Fitted:
    """Weights of a fit.

    Attributes:
        weights: float64[F], of the features as they are.
        loss: Mean of -log P(chosen is preferred) over the pairs learned from, without the decay.
    """

    weights: Doubles
    loss: float


def fit(differences: Doubles, counts: npt.NDArray[np.int64] | None = None, decay: float = DECAYS[0]) -> Fitted:
    """Fit the weights to pairs.

    Args:
        differences: float64[N, F], the features of the better conversation less those of the worse one.
        counts: int64[N], how often each pair counts (a bootstrap sample); once each when None.
        decay: Strength of the L2 penalty.
    """
    import torch

    scale = differences.std(0)
    scale[scale < 1e-9] = np.inf  # what never differs has no weight
    x = torch.from_numpy(differences / scale)
    share = np.ones(len(x)) if counts is None else counts.astype(np.float64)
    share_t = torch.from_numpy(share / share.sum())
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def negative_log_likelihood() -> torch.Tensor:
        return (torch.nn.functional.softplus(-(x @ weights)) * share_t).sum()  # -log sigmoid(r(chosen) - r(rejected))

    def closure() -> torch.Tensor:
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
    """Return the penalty whose fits say best what they haven't seen, by cross-validation over groups.

    Args:
        differences: As of `fit`.
        groups: N names; a group is in one fold whole.
    """
    places = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(places) < FOLDS:
        return DECAYS[0]
    fold = np.array([places[group] % FOLDS for group in groups])

    def loss(decay: float) -> float:
        margins = np.zeros(len(differences))
        for k in range(FOLDS):
            margins[fold == k] = differences[fold == k] @ fit(differences[fold != k], decay=decay).weights
        return float(np.logaddexp(0.0, -margins).mean())

    return min(DECAYS, key=loss)


def bootstrap_counts(groups: list[str], seed: int) -> npt.NDArray[np.int64]:
    """Draw groups with replacement; return how often each pair counts, int64[N]."""
    names = sorted(set(groups))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)))
    times = dict(zip(names, drawn.tolist(), strict=True))
    return np.array([times[group] for group in groups])


def probability(margins: Doubles) -> Doubles:
    """Return P(a is preferred to b) for margins r(a) - r(b), float64[N]."""
    result: Doubles = 0.5 * (1 + np.tanh(margins / 2))
    return result
