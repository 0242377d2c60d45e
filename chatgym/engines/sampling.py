"""Sample the next token with temperature, min-p, top-k and top-p; the draws are functions of (seed, position, token).

Each token gets a waiting time, exponentially distributed with its probability as the rate, and the token with the
shortest time is sampled: token i with probability p_i. Probabilities differ by rounding from batch to batch; this
changes a token only where the two shortest times are within a millionth of each other, however many tokens there are.
Inverting the cumulative distribution instead would let rounding shift the borders of all later tokens, and swap tokens
that are nearly equally likely.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from chatgym.dynamics import nb, rng

SAMPLE = 0
"""Purpose of the draw that chooses a token, see `chatgym.dynamics.rng`."""

NUCLEUS = 1024
"""How many of the likeliest tokens are first copied from the GPU; nearly always, top-p keeps none but these."""

FAR = ("cuda",)
"""Device types from which copying a whole distribution is slow: there the likeliest tokens are selected first."""

BINS = 4096
"""Bins of probabilities: the 12 highest bits of a float32 (sign, exponent, 3 bits of the fraction)."""

COLDEST = 1e-5
"""Below this temperature the likeliest token is taken: dividing logits by it would overflow."""


def choose(
    logits: torch.Tensor,
    *,
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int64],
    temperatures: npt.NDArray[np.float64],
    top_ps: npt.NDArray[np.float64],
    top_ks: npt.NDArray[np.int64] | None = None,
    min_ps: npt.NDArray[np.float64] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample a token for each row; a row's token doesn't depend on the other rows.

    Args:
        logits: float32[B, V].
        seeds: uint64[B], seeds of the rows.
        positions: int64[B], how many tokens each row has already.
        temperatures: float64[B]; 0 takes the likeliest token.
        top_ps: float64[B], see Holtzman et al. 2020.
        top_ks: int64[B]: sample among so many of the likeliest tokens; 0: all.
        min_ps: float64[B]: only tokens at least so likely, as a share of the likeliest one's probability (Nguyen et al.
            2024). As in vLLM, min-p and top-k come after the temperature, and top-p chooses among what they leave.

    Returns:
        Token ids, int64[B], and their log-probabilities under the distribution sampled from, float32[B].
    """
    logits = _narrowed(logits, temperatures, top_ks, min_ps)
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


def _narrowed(
    logits: torch.Tensor,
    temperatures: npt.NDArray[np.float64],
    top_ks: npt.NDArray[np.int64] | None,
    min_ps: npt.NDArray[np.float64] | None,
) -> torch.Tensor:
    """Return logits, float32[B, V], of minus infinity where min-p or top-k leave a token out; see `choose`.

    The likeliest token always stays. Rows that ask for neither are the same bit for bit.
    """
    size, every = logits.shape
    ks = np.zeros(size, np.int64) if top_ks is None else np.where(top_ks < every, top_ks, 0)
    shares = np.zeros(size) if min_ps is None else min_ps * (temperatures >= COLDEST)
    asking = np.flatnonzero((ks > 0) | (shares > 0))
    if not len(asking):
        return logits
    rows = torch.from_numpy(asking).to(logits.device)
    some, ks, shares = logits[rows], ks[asking], shares[asking]  # (A, V), [A], [A]
    # p / p_max >= share, written in logits: (l - l_max) / temperature >= log(share)
    below = np.where(shares > 0, np.log(np.where(shares > 0, shares, 1.0)) * temperatures[asking], -np.inf)
    least = some.max(-1, keepdim=True).values + torch.from_numpy(below).to(some)[:, None]
    if ks.any():
        likeliest = some.topk(int(ks.max())).values  # (A, K)
        last = torch.from_numpy(np.maximum(ks - 1, 0)).to(some.device)[:, None]
        kth = likeliest.gather(1, last).masked_fill(torch.from_numpy(ks == 0).to(some.device)[:, None], -torch.inf)
        least = torch.maximum(least, kth)
    logits = logits.clone()  # a prompt's are kept
    logits[rows] = some.masked_fill(some < least, -torch.inf)
    return logits


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return which tokens top-p keeps, bool[B, V]: the fewest of the likeliest whose probabilities reach `top_p`.

    Args:
        probabilities: float32[B, V].
        top_p: In (0, 1].
    """
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
    """Sample tokens at temperatures above 0; arguments and results as of `choose`, logits float32[B, V]."""
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
    """Sample from K candidates a row.

    Args:
        probabilities: float32[B, K].
        tokens: int64[B, K], ids of the candidates; int64[1, K] if all rows have the same.
        top_ps, seeds, positions: [B], see `choose`.

    Returns:
        Token ids, int64[B], and log-probabilities, float32[B].
    """
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
    """Sample as `_first`, int64[B] and float32[B]; `bits` are the bits of `probabilities`, int32[B, K]."""
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
    """Find the threshold of top-p in one row, sorting only the tokens of the bin that it lies in.

    Args:
        probabilities: float32[K].
        bits: int32[K], the probabilities' bits.
        top_p: Below 1.

    Returns:
        The least probability kept, how many of the tokens that have exactly this probability are kept, and the sum of
        the probabilities kept.
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
    """Return which tokens top-p keeps, bool[B, K], of float32[B, K] and its bits, int32[B, K]; see `nucleus`."""
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
