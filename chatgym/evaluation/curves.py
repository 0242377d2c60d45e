"""Learning curves over runs: runs that differ only in their seed make one curve, with a 95 % band over the runs.

The conventions are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(2021): the interquartile mean (or the mean) over runs, and a percentile bootstrap that draws runs within each task
(stratified). A single run has no band: nothing is known then about how another seed would have fared.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.identity import DECIDING, INTERFACE
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue, unknown
from chatgym.evaluation.comparison import SEEDS
from chatgym.evaluation.competitors import grouped, labels, task_label
from chatgym.evaluation.intervals import iqm
from chatgym.storage import atomic

MEASURES = ("success_rate", "score", "mean_return")
STATISTICS = ("iqm", "mean")
RESAMPLES = 20_000
"""More than for other intervals: a resample of few runs has few values, so its quantiles jump."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """What a curve needs of a run.

    Attributes:
        name: Its folder.
        task: The task that it was trained in.
        config: Its configuration, of ``config.json``.
        metrics: The lines of ``metrics.jsonl``, at least one.
    """

    name: str
    task: Task
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Band:
    """A statistic over runs at each of P points: float64[P]; `low` and `high` are None for a single run."""

    value: Floats
    low: Floats | None
    high: Floats | None

    def at(self, point: int) -> tuple[float, float | None, float | None]:
        """Return value and ends of the band at one point."""
        ends = (None if end is None else float(end[point]) for end in (self.low, self.high))
        return (float(self.value[point]), *ends)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Curve:
    """The curve of an agent in a task, over R runs.

    Attributes:
        label: The agent's name in tables and pictures.
        task: The task's label.
        runs: R runs.
        turns: float64[P], turns of training at each point; points lie within the turns of all runs.
        values: Measure to float64[R, P]; without ``"score"`` where the task has none.
        statistic: ``"iqm"`` or ``"mean"``.
    """

    label: str
    task: str
    runs: Sequence[TrainedRun]
    turns: Floats
    values: Mapping[str, Floats]
    statistic: str

    @property
    def lacks_variance(self) -> bool:
        """Whether it has too few runs for the variance of training."""
        return len(self.runs) < SEEDS

    @functools.cached_property
    def bands(self) -> dict[str, Band]:
        """Measure to its band; rates are of 0 to 1."""
        return {measure: band(values, self.statistic) for measure, values in self.values.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        figures = {
            measure: {name: None if ends is None else ends.tolist() for name, ends in vars(found).items()}
            for measure, found in self.bands.items()
        }
        names = [run.name for run in self.runs]
        turns = self.turns.astype(np.int64).tolist()
        return {"agent": self.label, "scenario": self.task, "runs": names, "turns": turns, **figures}


def band(values: Floats, statistic: str = "iqm", seed: int = 0) -> Band:
    """Return a statistic over R runs, float64[R, P], with its 95 % bootstrap band (percentiles) at each point."""
    of = iqm if statistic == "iqm" else lambda columns: columns.mean(-1)
    middle = np.asarray(of(values.T), np.float64)
    if len(values) < 2:
        return Band(middle, None, None)
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    resampled = np.stack([of(column[drawn]) for column in values.T], 1)  # (RESAMPLES, P)
    low, high = np.quantile(resampled, [0.025, 0.975], 0)
    return Band(middle, low, high)


def curves_of(runs: Sequence[TrainedRun], statistic: str = "iqm") -> list[Curve]:
    """Group runs into curves, in the order in which their agents and tasks were named.

    Raises:
        InvalidValue: The statistic is unknown, or runs of a task were trained in different simulators.
    """
    if statistic not in STATISTICS:
        raise unknown("statistic", statistic, STATISTICS)
    of = _tasks(runs)
    groups = grouped(list(zip(runs, of, strict=True)))
    curves = []
    for label, group in zip(labels(groups), groups, strict=True):
        for task in dict.fromkeys(task for _, task in group):
            curves.append(_curve(label, task, [run for run, where in group if where == task], statistic))
    return curves


def simulator_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that doesn't depend on the agent's interface."""
    return {name: identity.get(name) for name in DECIDING if name not in INTERFACE}


def _tasks(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the label of each run's task."""
    found: dict[str, TrainedRun] = {}  # label to the first run of the task
    where = []
    for run in runs:
        label = next((name for name, other in found.items() if other.task == run.task), None)
        if label is None:
            label = task_label(run.task, {name: other.task for name, other in found.items()})
            found[label] = run
        first = found[label]
        if simulator_of(first.config["identity"]) != simulator_of(run.config["identity"]):
            raise InvalidValue(
                f"{first.name} and {run.name} were trained in different simulators of {run.task.scenario}, so their "
                "scores don't go together; draw them apart"
            )
        where.append(label)
    return where


def _curve(label: str, task: str, runs: Sequence[TrainedRun], statistic: str) -> Curve:
    """Return the curve of runs in a task: values at the turns of the run with the fewest evaluations.

    Between its own evaluations, a run is interpolated linearly.
    """
    held = [np.array([line["turns"] for line in run.metrics], np.float64) for run in runs]
    first, last = max(turns[0] for turns in held), min(turns[-1] for turns in held)
    turns = min(held, key=len)
    turns = np.unique(np.clip(turns, first, last))
    measures = [name for name in MEASURES if all(line.get(name) for run in runs for line in run.metrics)]
    values = {
        name: np.stack([
            np.interp(turns, where, [line[name]["value"] for line in run.metrics])
            for run, where in zip(runs, held, strict=True)
        ])
        for name in measures
    }  # fmt: skip
    return Curve(label, task, runs, turns, values, statistic)


def write_csv(curves: Sequence[Curve], path: Path) -> None:
    """Write a line for each point of each curve: statistic over runs and ends of its 95 % band, of each measure."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    ends = [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
    table.writerow(["scenario", "agent", "statistic", "runs", "turns", *ends])
    for curve in curves:
        for point, turns in enumerate(curve.turns.tolist()):
            cells: list[Any] = []
            for measure in MEASURES:
                cells += curve.bands[measure].at(point) if measure in curve.bands else ("", "", "")
            table.writerow([curve.task, curve.label, curve.statistic, len(curve.runs), f"{turns:.0f}", *cells])
    atomic.write_text(path, text.getvalue())
