"""Comparison: several agents over the same conversations, with intervals of their scores and differences.

Statistics and names are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (2021). Trainings that differ in their seed alone are the runs of one side; a scenario is a task. A resample
draws runs within each task (stratified), and conversations, the same for every run: two levels, for a run is measured
by a sample of conversations, too. So one run has an interval, and the difference of two agents has the narrower one of
a paired comparison.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.envs.task import Task
from chatgym.errors import InvalidValue
from chatgym.evaluation.competitors import Competitor, check_tasks, grouped, labels, task_label
from chatgym.evaluation.evaluation import EVALUATION_SEED, Evaluation, evaluate
from chatgym.evaluation.intervals import RESAMPLES, Interval, iqm, percentiles, resampled_means


@dataclass(frozen=True, eq=False)
class Side:
    """One agent of a comparison.

    Attributes:
        label: Stands for it in tables and pictures; no two have the same.
        names: Its entrants' names.
        runs: Its evaluations, R for each task.
    """

    label: str
    names: tuple[str, ...]
    runs: Mapping[str, Sequence[Evaluation]]

    @property
    def seeds(self) -> int:
        """R, its runs in each task."""
        return len(next(iter(self.runs.values())))

    def outcomes(self, task: str) -> dict[str, float]:
        """Return the share of each outcome over all runs in a task, the commonest first."""
        counts = Counter(outcome for run in self.runs[task] for outcome in run.outcomes.tolist())
        return {outcome: count / counts.total() for outcome, count in counts.most_common()}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Sides over the same tasks and the same N conversations in each; every interval is of 95 %.

    Attributes:
        sides: In the order in which they were named.
        tasks: By a label.
        conversations: N.
        seed: Seed of the first conversation, in every task.
    """

    sides: Sequence[Side]
    tasks: Mapping[str, Task]
    conversations: int
    seed: int

    @functools.cached_property
    def mean(self) -> list[Interval]:
        """The mean score of each side over tasks, runs and conversations: random is 0, the expert 100."""
        return [percentiles(scores) for scores in self._means]

    @functools.cached_property
    def iqm(self) -> list[Interval]:
        """The interquartile mean of each side's R scores in all tasks; of fewer than four scores it is their mean."""
        return [percentiles(iqm(np.concatenate(scores, 1))) for scores in self._drawn("score")]

    @functools.cached_property
    def success_rate(self) -> list[Interval]:
        """The share of successes of each side, averaged over tasks."""
        return [percentiles(np.mean([task.mean(1) for task in drawn], 0)) for drawn in self._drawn("success")]

    @functools.cached_property
    def difference(self) -> list[Interval]:
        """By how much the mean score of each side is above the first's in the same conversations."""
        return [percentiles(scores - self._means[0]) for scores in self._means]

    @functools.cached_property
    def improvement(self) -> list[list[Interval | None]]:
        """How probable it is that a run of one side (row) gets more in a conversation than one of another (column).

        Both hold the same conversation; a tie counts half (Agarwal et al.'s probability of improvement, where each
        conversation is a task). None on the diagonal.
        """
        table: list[list[Interval | None]] = [[None] * len(self.sides) for _ in self.sides]
        for one, other in itertools.combinations(range(len(self.sides)), 2):
            found = percentiles(np.mean([self._wins(number, one, other) for number in range(len(self.tasks))], 0))
            table[one][other] = found
            table[other][one] = Interval(1 - found.value, 1 - found.high, 1 - found.low)
        return table

    def to_json(self) -> dict[str, Any]:
        """Return the figures, JSON-able."""
        agents = [
            {
                "name": side.label, "runs": list(side.names), "score": {"mean": asdict(mean), "iqm": asdict(middle)},
                "success_rate": asdict(success), "difference": asdict(difference),
                "outcomes": {task: side.outcomes(task) for task in self.tasks},
            }
            for side, mean, middle, success, difference in zip(
                self.sides, self.mean, self.iqm, self.success_rate, self.difference, strict=True
            )
        ]  # fmt: skip
        table = [[cell and asdict(cell) for cell in row] for row in self.improvement]
        tasks = {task: dict(runs[0].identity) for task, runs in self.sides[0].runs.items()}
        return {
            "conversations": self.conversations, "seed": self.seed, "agents": agents,
            "probability_of_improvement": table, "tasks": tasks,
        }  # fmt: skip

    @functools.cached_property
    def _draws(self) -> list[list[npt.NDArray[np.int64]]]:
        """Which runs are drawn, int64[1 + RESAMPLES, R] by side and task; first the runs themselves."""
        generator = np.random.default_rng(0)
        return [
            [np.vstack([np.arange(n), generator.integers(0, n, (RESAMPLES, n))]) for n in [side.seeds] * len(side.runs)]
            for side in self.sides
        ]

    def _drawn(self, measure: str) -> list[list[npt.NDArray[np.float64]]]:
        """Return the measure of each run drawn over the conversations drawn, float64[1 + RESAMPLES, R] likewise."""
        drawn: list[list[npt.NDArray[np.float64]]] = [[] for _ in self.sides]
        for number, task in enumerate(self.tasks):
            columns = [np.stack([_measured(run, measure) for run in side.runs[task]], 1) for side in self.sides]
            means = np.split(resampled_means(np.hstack(columns), number), self._ends, 1)
            for k, values in enumerate(means):
                drawn[k].append(np.take_along_axis(values, self._draws[k][number], 1))
        return drawn

    @functools.cached_property
    def _means(self) -> list[npt.NDArray[np.float64]]:
        """Mean scores, float64[1 + RESAMPLES] by side."""
        return [np.mean([task.mean(1) for task in drawn], 0) for drawn in self._drawn("score")]

    @property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(side.seeds for side in self.sides))[:-1]

    def _wins(self, number: int, one: int, other: int) -> npt.NDArray[np.float64]:
        """Return how often one side's runs drawn do better in the conversations drawn, float64[1 + RESAMPLES]."""
        task = list(self.tasks)[number]
        pairs = itertools.product(self.sides[one].runs[task], self.sides[other].runs[task])
        better = np.stack([(np.sign((a.returns - b.returns).round(9)) + 1) / 2 for a, b in pairs], 1)  # sums: rounded
        first, second = self._draws[one][number][:, :, None], self._draws[other][number][:, None, :]
        drawn = np.take_along_axis(
            resampled_means(better, number)[:, None], first * self.sides[other].seeds + second, 2
        )
        return np.asarray(drawn.mean((1, 2)), np.float64)


def compare(
    competitors: Sequence[Competitor],
    *,
    conversations: int = 1000,
    seed: int = EVALUATION_SEED,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Let agents hold the same conversations, and compare them.

    Args:
        entrants: Runs and agents. Trainings with the same settings and different seeds become one side.
        conversations: N, how many each entrant holds.
        seed: Of the first conversation.
        progress: Called with the number of conversations that have ended, over all entrants.

    Raises:
        InvalidValue: When the sides aren't in the same tasks, or a task has no scale, for random does as well as the
            expert there.
    """
    tasks: dict[str, Task] = {}
    identities: dict[str, str] = {}  # SHA-256 to label
    of: list[str] = []
    for competitor in competitors:
        identity = competitor.task.identity()["sha256"]
        if identity not in identities:
            identities[identity] = task_label(competitor.task, tasks)
            tasks[identities[identity]] = competitor.task
        of.append(identities[identity])
    groups = grouped(list(zip(competitors, of, strict=True)))
    check_tasks(groups)
    done = 0
    sides = []
    for label, group in zip(labels(groups), groups, strict=True):
        runs: dict[str, list[Evaluation]] = {task: [] for task in tasks}
        for competitor, task in group:
            show = None if progress is None else (lambda count, done=done: progress(done + count))
            runs[task].append(
                evaluate(competitor.agent, competitor.task, conversations=conversations, seed=seed, progress=show)
            )
            done += conversations
        _check_scales(runs)
        sides.append(Side(label, tuple(competitor.name for competitor, _ in group), runs))
    return Comparison(sides, tasks, conversations, seed)


def _check_scales(runs: Mapping[str, Sequence[Evaluation]]) -> None:
    for task, (first, *_) in runs.items():
        scale = first.references
        if scale is not None and not scale.expert_return > scale.random_return:
            raise InvalidValue(
                f"{task} has no scale: random gets {scale.random_return:.3f} there, the expert "
                f"{scale.expert_return:.3f}; allow more turns (--max-turns) or fewer errors (--error-rate)"
            )


def _measured(run: Evaluation, measure: str) -> npt.NDArray[np.float64]:
    """Return a measure of each conversation, float64[N]."""
    if measure == "success":
        return np.asarray(run.outcomes == run.success, np.float64)
    assert run.references is not None
    zero, hundred = run.references.random_return, run.references.expert_return
    return np.asarray(100 * (run.returns - zero) / (hundred - zero), np.float64)
