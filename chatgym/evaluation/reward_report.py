"""Measure a reward model on held-out preference pairs: accuracy, calibration, length bias; draw its training."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from chatgym.evaluation.intervals import Interval, wilson
from chatgym.rewards import Conversation
from chatgym.rewards.bradley_terry import probability
from chatgym.rewards.pairs import Pair
from chatgym.storage.figures import new_figure, write_figure

LOOKS: Mapping[str, Mapping[str, Any]] = {
    "loss": {"color": "#9ca3af", "linewidth": 1}, "held_out_loss": {"color": "#2563eb", "marker": "o"},
    "held_out_accuracy": {"color": "#2563eb", "marker": "o"},
}  # fmt: skip
"""How each metric of the training is drawn."""
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


class Judge(Protocol):
    """A reward model that returns scores as log-odds."""

    def margins(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float64]:
        """Return float64[B]; the difference of two is the log-odds that the first is preferred."""
        ...


@dataclass(frozen=True)
class Share:
    """A share of `pairs` pairs, with Wilson's 95 % interval."""

    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Bin:
    """The pairs whose predicted probability lies in one range.

    Attributes:
        low, high: Ends of the range, 0.5 to 1.
        pairs: Number of pairs.
        confidence: Mean predicted probability.
        accuracy: Share of pairs that the model ranks correctly.
    """

    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Report:
    """A reward model's results on pairs.

    Attributes:
        accuracy: Share of pairs whose better conversation scores higher; a tie counts half.
        by_kind: Kind of badness to that share.
        loss: Mean of -log P(the better one is preferred).
        calibration: Accuracy by predicted probability.
        calibration_error: Mean distance of accuracy from predicted probability, weighted by pairs (ECE, Naeini et al.
            2015).
        length_correlation: Pearson correlation of a conversation's margin with the mean characters of its replies.
        chosen_shorter, chosen_longer: Accuracy where the better conversation is the shorter, or the longer one.
        disagreement: Mean disagreement of an ensemble on correctly and on wrongly ranked pairs; None without one.
    """

    accuracy: Share
    by_kind: Mapping[str, Share]
    loss: float
    calibration: Sequence[Bin]
    calibration_error: float
    length_correlation: float
    chosen_shorter: Share | None
    chosen_longer: Share | None
    disagreement: tuple[float, float] | None = None

    def save(self, path: Path) -> None:
        """Write the report as a JSON file."""
        from chatgym.storage import atomic

        atomic.write_text(path, json.dumps(asdict(self), indent=2) + "\n")


def measure(model: Judge, pairs: Sequence[Pair]) -> Report:
    """Return the report of a model on at least one held-out pair."""
    better = model.margins([pair.better for pair in pairs])
    worse = model.margins([pair.worse for pair in pairs])
    odds = better - worse
    right = (odds > 0) + 0.5 * (odds == 0)  # float64[N]
    chosen, rejected = (_lengths([getattr(pair, side) for pair in pairs]) for side in ("chosen", "rejected"))
    sure = probability(np.abs(odds))
    bins = _bins(sure, right)
    kinds = np.array([pair.kind for pair in pairs])
    lengths, margins = np.concatenate([chosen, rejected]), np.concatenate([better, worse])
    spread = lengths.std() * margins.std()
    covariance = ((lengths - lengths.mean()) * (margins - margins.mean())).mean()
    disagreement = None
    judge: Any = model
    if getattr(judge, "members", 1) > 1 and 0 < (right > 0.5).sum() < len(pairs):
        differ = judge.disagreement([pair.better for pair in pairs]) + judge.disagreement([p.worse for p in pairs])
        disagreement = (float(differ[right > 0.5].mean() / 2), float(differ[right <= 0.5].mean() / 2))
    return Report(
        accuracy=_share(right), by_kind={kind: _share(right[kinds == kind]) for kind in sorted(set(kinds.tolist()))},
        loss=float(-np.log(np.maximum(probability(odds), 1e-300)).mean()), calibration=bins,
        calibration_error=sum(one.pairs * abs(one.confidence - one.accuracy) for one in bins) / len(pairs),
        length_correlation=float(covariance / spread) if spread else 0.0,
        chosen_shorter=_share_if(right[chosen < rejected]), chosen_longer=_share_if(right[chosen > rejected]),
        disagreement=disagreement,
    )  # fmt: skip


def draw_training(metrics: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw how a reward model of kind llm learned: its loss, and its accuracy on held-out pairs.

    Args:
        metrics: Lines of ``metrics.jsonl``, see `chatgym.finetuning.reward_model.train`.
        title: Title of the picture.
        path: File to write: PNG, PDF or SVG, by its suffix.
    """
    figure = new_figure(9, 3.6)
    figure.suptitle(title, fontsize=11)
    losses, shares = figure.subplots(1, 2)
    for axes, names, label, chance in (
        (losses, {"loss": "training pairs", "held_out_loss": "held-out pairs"}, "loss", math.log(2)),
        (shares, {"held_out_accuracy": "held-out pairs"}, "accuracy [%]", 50.0),
    ):
        for name, of in names.items():
            points = [(line["step"], line[name]) for line in metrics if name in line]
            steps, values = zip(*points, strict=True) if points else ((), ())
            unit = 100.0 if axes is shares else 1.0
            axes.plot(steps, [unit * value for value in values], label=of, **LOOKS[name])
        axes.axhline(chance, color="#6b7280", linestyle=":", linewidth=1, label="a coin")
        axes.set_xlabel("steps of training")
        axes.set_ylabel(label)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize=9)
    shares.set_ylim(-2, 102)
    write_figure(figure, path)


def _bins(sure: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> list[Bin]:
    """Group pairs by predicted probability `sure`, float64[N]; `right`, float64[N], is 1, 0.5 or 0."""
    bins = []
    for low, high in itertools.pairwise(BINS):
        here = (sure >= low) & ((sure < high) | (high == 1.0))
        if here.any():
            bins.append(Bin(low, high, int(here.sum()), float(sure[here].mean()), float(right[here].mean())))
    return bins


def _lengths(conversations: Sequence[Conversation]) -> npt.NDArray[np.float64]:
    """Return the mean characters of the agent's replies in each conversation, float64[N]."""
    said = [[len(one["content"]) for one in messages if one["role"] == "assistant"] for messages in conversations]
    return np.array([np.mean(lengths) for lengths in said])


def _share(right: npt.NDArray[np.float64]) -> Share:
    """Return the mean of `right`, float64[N] of 0, 0.5 and 1, with its interval."""
    found: Interval = wilson(right.sum(), len(right))
    return Share(float(found.value), float(found.low), float(found.high), len(right))


def _share_if(right: npt.NDArray[np.float64]) -> Share | None:
    """Return `_share`, or None if there are no pairs, float64[0]."""
    return _share(right) if len(right) else None
