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

from chatgym.dynamics import rng

SAMPLE = 0
"""Purpose of the draw that chooses a token, see `chatgym.dynamics.rng`."""

NUCLEUS = 1024
"""How many of the likeliest tokens leave the GPU at first; they hold nearly always all that top-p keeps."""

FAR = ("cuda",)
"""Kinds of device from which a whole distribution is slow to fetch: there the likeliest tokens are picked first."""

BINS = 4096
"""A float's sign, exponent and first four digits: bins of probabilities, in their order."""

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


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the fewest of the likeliest tokens that have `top_p` together, bool[B, V], of float32[B, V]."""
    if top_p >= 1:
        return probabilities > 0
    chances = probabilities.cpu().contiguous().numpy()
    return torch.from_numpy(_nuclei(chances, chances.view(np.int32), top_p)).to(probabilities.device)


def _draw(
    logits: torch.Tensor,
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int64],
    temperatures: npt.NDArray[np.float64],
    top_ps: npt.NDArray[np.float64],
) -> tuple[torch.Tensor, torch.Tensor]:
    everything = (logits / torch.from_numpy(temperatures).to(logits)[:, None]).softmax(-1)  # (B, V)
    every = np.arange(everything.shape[-1])[None]
    if everything.device.type not in FAR:
        return _first(everything, every, top_ps, seeds, positions)
    likeliest, order = everything.topk(min(NUCLEUS, everything.shape[-1]))
    enough = (likeliest.sum(-1).cpu().numpy() >= top_ps) & (top_ps < 1.0)
    tokens = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    logprobs = torch.zeros(len(logits), device=logits.device)
    for rows in filter(len, (np.flatnonzero(enough), np.flatnonzero(~enough))):
        at = torch.from_numpy(rows).to(logits.device)
        chances, of = (likeliest[at], order[at].cpu().numpy()) if enough[rows[0]] else (everything[at], every)
        tokens[at], logprobs[at] = _first(chances, of, top_ps[rows], seeds[rows], positions[rows])
    return tokens, logprobs


def _first(
    probabilities: torch.Tensor, tokens: npt.NDArray[np.int64], top_ps: npt.NDArray[np.float64],
    seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Draw from float32[B, K] for tokens int64[B, K] or int64[1, K]; returns tokens and log-probabilities, [B]."""
    chances = probabilities.cpu().contiguous().numpy()
    bits = chances.view(np.int32)
    chosen, logprobs = _race(chances, bits, tokens, top_ps, seeds, positions.astype(np.int64))
    return torch.from_numpy(chosen).to(probabilities.device), torch.from_numpy(logprobs).to(probabilities.device)


@nb.njit(cache=True)
def _race(
    probabilities: npt.NDArray[np.float32],
    bits: npt.NDArray[np.int32],
    tokens: npt.NDArray[np.int64],
    top_ps: npt.NDArray[np.float64],
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    chosen = np.zeros(probabilities.shape[0], np.int64)
    logprobs = np.zeros(probabilities.shape[0], np.float32)
    for row in range(probabilities.shape[0]):
        least, ties, total = 0.0, 0, 1.0
        if top_ps[row] < 1.0:
            least, ties, total = _nucleus(probabilities[row], bits[row], top_ps[row])
        key = rng.bits(seeds[row], positions[row], SAMPLE)
        best, winner = np.inf, 0
        of = tokens[row % tokens.shape[0]]
        for column in range(probabilities.shape[1]):
            p = np.float64(probabilities[row, column])
            if p <= least:
                if p < least or ties == 0:
                    continue
                ties -= 1
            u = rng.draw(key, of[column], SAMPLE)
            if u < best * p:  # the logarithm is at least u: most needn't be computed
                time = -math.log1p(-u) / p
                if time < best:
                    best, winner = time, column
        chosen[row] = of[winner]
        logprobs[row] = math.log(np.float64(probabilities[row, winner]) / total)
    return chosen, logprobs


@nb.njit(cache=True)
def _nucleus(
    probabilities: npt.NDArray[np.float32], bits: npt.NDArray[np.int32], top_p: float
) -> tuple[float, int, float]:
    """Find the fewest of the likeliest tokens that have `top_p` together, with nothing sorted but those at the edge.

    Returns:
        The least probability among them, how many of those that have just it, and their probability together.
    """
    shift = 19  # leaves 12 bits: BINS
    mass = np.zeros(BINS)
    for column in range(len(bits)):
        mass[bits[column] >> shift] += probabilities[column]
    total, edge = 0.0, BINS - 1
    while edge > 0 and total + mass[edge] < top_p:
        total += mass[edge]
        edge -= 1
    at_edge = np.sort(probabilities[(bits >> shift) == edge])
    least, ties = 0.0, 0
    for p in at_edge[::-1]:
        if total >= top_p or p == 0.0:
            break
        ties = ties + 1 if p == least else 1
        least = np.float64(p)
        total += least
    return least, ties, total


@nb.njit(cache=True)
def _nuclei(probabilities: npt.NDArray[np.float32], bits: npt.NDArray[np.int32], top_p: float) -> npt.NDArray[np.bool_]:
    kept = np.zeros(probabilities.shape, np.bool_)
    for row in range(probabilities.shape[0]):
        least, ties, _ = _nucleus(probabilities[row], bits[row], top_p)
        for column in range(probabilities.shape[1]):
            p = np.float64(probabilities[row, column])
            if p > least:
                kept[row, column] = True
            elif p == least and ties > 0:
                kept[row, column] = True
                ties -= 1
    return kept
