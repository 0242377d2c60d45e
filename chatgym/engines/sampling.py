"""How the next token is chosen: by temperature and nucleus, with a draw that is a function of (seed, position)."""

from __future__ import annotations

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
    draws = _column(rng.uniform(seeds, positions, SAMPLE), logits)
    tops = _column(top_ps, logits)
    probabilities, order = everything.topk(min(NUCLEUS, everything.shape[-1]))
    wide = (probabilities.sum(-1) < tops[:, 0]).nonzero()[:, 0]  # seldom: then sort all of them
    tokens, logprobs = _invert(probabilities, order, draws, tops)
    if len(wide) and probabilities.shape[-1] < everything.shape[-1]:
        probabilities, order = everything[wide].sort(dim=-1, descending=True)
        tokens[wide], logprobs[wide] = _invert(probabilities, order, draws[wide], tops[wide])
    return tokens, logprobs


def _column(values: npt.NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(like)[:, None]


def _invert(
    probabilities: torch.Tensor, order: torch.Tensor, draws: torch.Tensor, tops: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the first token whose cumulated probability is above the draw, and that can be drawn at all."""
    total = probabilities.cumsum(-1)
    probabilities = probabilities.where(total - probabilities < tops, 0.0)  # the first one always stays
    probabilities /= probabilities.sum(-1, keepdim=True)
    chosen = (probabilities.cumsum(-1) <= draws).sum(-1)
    chosen = torch.minimum(chosen, (probabilities > 0).sum(-1) - 1)[:, None]
    return order.gather(-1, chosen)[:, 0], probabilities.gather(-1, chosen)[:, 0].log()
