"""Which rows a training step learns from: a permutation of all rows in each epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def rows_of_step(count: int, step: int, batch: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the indices of a step's rows, int64[batch]; a step can reach into the next epoch.

    Args:
        count: Number of rows; each epoch is a permutation of them.
        step: Number of the step, from 0.
        batch: Rows of a step.
        seed: Seed of the permutations, which never use its stream 0.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    picked = np.empty(batch, np.int64)
    for epoch in np.unique(places // count).tolist():
        key = np.array([seed, 1 + epoch], np.uint64)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(count)
        here = places // count == epoch
        picked[here] = order[places[here] % count]
    return picked
