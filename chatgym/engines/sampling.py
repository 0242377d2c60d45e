"""How the next token is chosen: by temperature and nucleus, with draws that are functions of (seed, position, token).

Each token that may be chosen gets a waiting time, exponential with its probability as rate; the first to come is
chosen, token i with probability p_i. Rounding, which differs from batch to batch, then tips the scales only where the
first two come within a millionth of each other, however many tokens there are. Inverting the cumulated probabilities
would let it shift the border of every token after, and swap those that are nearly equally likely.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np
import numpy.typing as npt
import torch

from chatgym import rng

SAMPLE = 0
"""Purpose of the draw that chooses a token, see `chatgym.rng`."""

NUCLEUS = 1024
"""How many of the likeliest tokens are looked at first; they hold nearly always all that top-p keeps."""

COLDEST = 1e-5
"""Below this temperature the likeliest token is taken: dividing by it would overflow."""


def choose(
    logits: torch.Tensor,
    *,
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int64],
    temperatures: npt.NDArray[np.float64],
    top_ps: npt.NDArray[np.float64],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token for each row.

    What a row gets depends on nothing of the other rows (Holtzman et al. 2020 for `top_ps`).

    Args:
        logits: float32[B, V].
        seeds: uint64[B].
        positions: int64[B], of the token in its continuation.
        temperatures: float64[B].
        top_ps: float64[B].

    Returns:
        Tokens int64[B], and their log-probabilities under what was sampled from, float32[B].
    """
    warm = np.flatnonzero(temperatures >= COLDEST)
    if len(warm) < len(logits):
        tokens = logits.argmax(-1)
        logprobs = torch.zeros(len(tokens), device=logits.device)
        if len(warm):
            rows = torch.from_numpy(warm).to(logits.device)
            tokens[rows], logprobs[rows] = _draw(
                logits[rows], seeds[warm], positions[warm], temperatures[warm], top_ps[warm]
            )
        return tokens, logprobs
    return _draw(logits, seeds, positions, temperatures, top_ps)


def _draw(
    logits: torch.Tensor,
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int64],
    temperatures: npt.NDArray[np.float64],
    top_ps: npt.NDArray[np.float64],
) -> tuple[torch.Tensor, torch.Tensor]:
    everything = (logits / _column(temperatures, logits)).softmax(-1)  # (B, V)
    tokens = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    chances = torch.zeros(len(logits), device=logits.device)
    every = torch.arange(everything.shape[-1])[None]
    full = top_ps >= 1.0
    for whole in (True, False):
        rows = np.flatnonzero(full == whole)
        if not len(rows):
            continue
        index = torch.from_numpy(rows).to(logits.device)
        mine = everything[index] if len(rows) < len(logits) else everything
        if whole:
            tokens[index], chances[index] = _first(mine, every, seeds[rows], positions[rows])
            continue
        tops = _column(top_ps[rows], logits)
        probabilities, order = mine.topk(min(NUCLEUS, mine.shape[-1]))
        wide = (probabilities.sum(-1) < tops[:, 0]).nonzero()[:, 0]  # seldom: then sort all of them
        chosen = _first(_nucleus(probabilities, tops), order, seeds[rows], positions[rows])
        if len(wide) and probabilities.shape[-1] < mine.shape[-1]:
            probabilities, order = mine[wide].sort(dim=-1, descending=True)
            some = rows[wide.cpu().numpy()]
            chosen[0][wide], chosen[1][wide] = _first(
                _nucleus(probabilities, tops[wide]), order, seeds[some], positions[some]
            )
        tokens[index], chances[index] = chosen
    return tokens, chances.log()


def _column(values: npt.NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(like)[:, None]


def _nucleus(probabilities: torch.Tensor, tops: torch.Tensor) -> torch.Tensor:
    """Return the probabilities of the likeliest tokens, 0 for those beyond top-p; float32[B, K], descending."""
    total = probabilities.cumsum(-1)
    probabilities = probabilities.where(total - probabilities < tops, 0.0)  # the first one always stays
    return probabilities / probabilities.sum(-1, keepdim=True)


def _first(
    probabilities: torch.Tensor, tokens: torch.Tensor, seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from float32[B, K] for tokens int64[B, K] or int64[1, K]; returns tokens and their probabilities, [B]."""
    columns = torch.from_numpy(
        _race(probabilities.cpu().numpy(), tokens.cpu().numpy(), seeds, positions.astype(np.int64))
    ).to(probabilities.device)[:, None]
    chosen = tokens.to(probabilities.device).expand(len(probabilities), -1).gather(-1, columns)[:, 0]
    return chosen, probabilities.gather(-1, columns)[:, 0]


@nb.njit(cache=True)
def _race(
    probabilities: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    winners = np.zeros(probabilities.shape[0], np.int64)
    for row in range(probabilities.shape[0]):
        key = rng.bits(seeds[row], positions[row], SAMPLE)
        best = np.inf
        of = tokens[row % tokens.shape[0]]
        for column in range(probabilities.shape[1]):
            p = np.float64(probabilities[row, column])
            if p > 0.0:
                u = rng.draw(key, of[column], SAMPLE)
                if u < best * p:  # the logarithm is at least u: most needn't be computed
                    time = -math.log1p(-u) / p
                    if time < best:
                        best, winners[row] = time, column
    return winners
