"""Compare several agents over the same conversations, with 95 % intervals of scores and differences.

Statistics and names are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (2021). Runs that differ only in their seed are runs of one agent; a scenario is a task. The bootstrap has
two levels: a resample draws runs within each task (stratified), and conversations, the same ones for every run. So a
single run has an interval, too, and the difference of two agents has the narrower interval of a paired comparison.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.identity import INTERFACE, interface_of
from chatgym.envs.interfaces import WORDS
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue
from chatgym.evaluation.competitors import Competitor, check_tasks, grouped, labels, task_label
from chatgym.evaluation.evaluation import EVALUATION_SEED, Evaluation, evaluate
from chatgym.evaluation.intervals import RESAMPLES, Interval, iqm, percentiles, resampled_means
from chatgym.evaluation.references import Scale

SEEDS = 3
"""Fewest runs that differ in their seed, for an interval to hold the variance of training."""


@dataclass(frozen=True, eq=False)
class ComparedAgent:
    """One agent of a comparison and the evaluations of its R runs.

    Attributes:
        label: Its name in tables and pictures; unique.
        names: The names of its runs.
        runs: Label of a task to R evaluations.
        tasks: The label of each run's task, in the order of `names`.
        trained: Whether it was trained, so that another seed would give another agent.
    """

    label: str
    names: tuple[str, ...]
    runs: Mapping[str, Sequence[Evaluation]]
    tasks: tuple[str, ...] = ()
    trained: bool = False

    @property
    def seeds(self) -> int:
        """R, the number of runs in each task."""
        return len(next(iter(self.runs.values())))

    @property
    def lacks_variance(self) -> bool:
        """Whether its intervals say nothing about the variance of training: fewer than `SEEDS` runs in a task."""
        return self.trained and self.seeds < SEEDS

    def evaluations(self) -> Iterator[tuple[str, str, Evaluation]]:
        """Yield name, label of the task, and evaluation of each run."""
        ordered = {task: iter(runs) for task, runs in self.runs.items()}
        for name, task in zip(self.names, self.tasks, strict=True):
            yield name, task, next(ordered[task])

    @property
    def interface(self) -> dict[str, Any]:
        """How its runs act and observe, see `chatgym.dynamics.identity.INTERFACE`; in the first task."""
        return interface_of(next(iter(self.runs.values()))[0].identity)

    @property
    def unclear(self) -> float | None:
        """Share of its turns whose words NLU didn't understand, mean over its runs; None if it doesn't write words."""
        shares = [one.unclear for _, _, one in self.evaluations() if one.unclear is not None]
        return sum(shares) / len(shares) if shares else None

    def outcomes(self, task: str) -> dict[str, float]:
        """Return the share of each outcome over all runs in a task, the most frequent first."""
        counts = Counter(outcome for run in self.runs[task] for outcome in run.outcomes.tolist())
        return {outcome: count / counts.total() for outcome, count in counts.most_common()}

    def failures(self, task: str) -> dict[str, float]:
        """Return the share of conversations that failed by each cause, over all runs in a task."""
        runs, counts = self.runs[task], Counter[str]()
        for run in runs:
            counts.update(run.failures)
        return {cause: count / sum(len(run.outcomes) for run in runs) for cause, count in counts.items()}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Agents over the same tasks and the same N conversations in each; every interval is of 95 %.

    Attributes:
        agents: In the order in which they were named.
        tasks: Label to task.
        conversations: N.
        seed: Seed of the first conversation, in every task; they are of the split ``"test"``.
    """

    agents: Sequence[ComparedAgent]
    tasks: Mapping[str, Task]
    conversations: int
    seed: int

    @functools.cached_property
    def mean(self) -> list[Interval]:
        """Mean score of each agent over tasks, runs and conversations, see `Scale`."""
        return [percentiles(scores) for scores in self._means]

    @functools.cached_property
    def iqm(self) -> list[Interval]:
        """Interquartile mean of each agent's scores, R in each task; the mean if there are fewer than four."""
        return [percentiles(iqm(np.concatenate(scores, 1))) for scores in self._drawn("score")]

    @functools.cached_property
    def success_rate(self) -> list[Interval]:
        """Success rate of each agent, 0 to 1, averaged over tasks."""
        return [percentiles(rates) for rates in self._success]

    @functools.cached_property
    def success_difference(self) -> list[Interval]:
        """Difference of each agent's success rate to the first agent's, -1 to 1, in the same conversations."""
        return [percentiles(rates - self._success[0]) for rates in self._success]

    @functools.cached_property
    def difference(self) -> list[Interval]:
        """Difference of each agent's mean score to the first agent's, in the same conversations."""
        return [percentiles(scores - self._means[0]) for scores in self._means]

    @functools.cached_property
    def improvement(self) -> list[list[Interval | None]]:
        """Probability that a run of one agent (row) gets a higher return than a run of another (column).

        Both hold the same conversation and a tie counts half: Agarwal et al.'s probability of improvement, with each
        conversation as a task. None on the diagonal.
        """
        table: list[list[Interval | None]] = [[None] * len(self.agents) for _ in self.agents]
        for one, other in itertools.combinations(range(len(self.agents)), 2):
            found = percentiles(np.mean([self._wins(number, one, other) for number in range(len(self.tasks))], 0))
            table[one][other] = found
            table[other][one] = Interval(1 - found.value, 1 - found.high, 1 - found.low)
        return table

    @property
    def without_variance(self) -> list[str]:
        """Labels of the agents whose intervals lack the variance of training, see `ComparedAgent.lacks_variance`."""
        return [agent.label for agent in self.agents if agent.lacks_variance]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        agents = [
            {
                "name": agent.label, "runs": list(agent.names), "interface": agent.interface,
                "success_rate": asdict(success), "success_difference": asdict(gain),
                "score": {"mean": asdict(mean), "iqm": asdict(middle)},
                "difference": asdict(difference),
                "unclear": agent.unclear,
                "outcomes": {task: agent.outcomes(task) for task in self.tasks},
                "failures": {task: agent.failures(task) for task in self.tasks},
            }
            for agent, success, gain, mean, middle, difference in zip(
                self.agents, self.success_rate, self.success_difference, self.mean, self.iqm, self.difference,
                strict=True,
            )
        ]  # fmt: skip
        table = [[cell and asdict(cell) for cell in row] for row in self.improvement]
        tasks = {
            label: {key: value for key, value in task.identity().items() if key not in INTERFACE}
            for label, task in self.tasks.items()
        }
        return {
            "conversations": self.conversations, "split": "test", "seed": self.seed, "agents": agents,
            "probability_of_improvement": table, "tasks": tasks, "without_training_variance": self.without_variance,
        }  # fmt: skip

    @functools.cached_property
    def _draws(self) -> list[list[npt.NDArray[np.int64]]]:
        """The runs of each resample, int64[1 + RESAMPLES, R] by agent and task; row 0 is the runs themselves."""
        generator = np.random.default_rng(0)
        return [
            [np.vstack([np.arange(n), generator.integers(0, n, (RESAMPLES, n))]) for n in [one.seeds] * len(one.runs)]
            for one in self.agents
        ]

    def _drawn(self, measure: str) -> list[list[npt.NDArray[np.float64]]]:
        """Return ``"score"`` or ``"success"`` of the drawn runs, float64[1 + RESAMPLES, R] by agent and task."""
        drawn: list[list[npt.NDArray[np.float64]]] = [[] for _ in self.agents]
        for number, task in enumerate(self.tasks):
            runs = [run for agent in self.agents for run in agent.runs[task]]
            if measure == "success":
                means = resampled_means(np.stack([run.outcomes == run.success for run in runs], 1) * 1.0, number)
            else:
                scale = _scale(runs[0])
                columns = [*(run.scored for run in runs), scale.ignorant, scale.expert]
                means = scale.scores(resampled_means(np.stack(columns, 1), number))
            for k, values in enumerate(np.split(means, self._ends, 1)):
                drawn[k].append(np.take_along_axis(values, self._draws[k][number], 1))
        return drawn

    @functools.cached_property
    def _success(self) -> list[npt.NDArray[np.float64]]:
        """Success rates of the resamples, float64[1 + RESAMPLES] by agent."""
        return [np.mean([task.mean(1) for task in drawn], 0) for drawn in self._drawn("success")]

    @functools.cached_property
    def _means(self) -> list[npt.NDArray[np.float64]]:
        """Mean scores of the resamples, float64[1 + RESAMPLES] by agent."""
        return [np.mean([task.mean(1) for task in drawn], 0) for drawn in self._drawn("score")]

    @property
    def _ends(self) -> list[int]:
        """Where to split the columns of all runs into those of each agent."""
        return list(itertools.accumulate(agent.seeds for agent in self.agents))[:-1]

    def _wins(self, number: int, one: int, other: int) -> npt.NDArray[np.float64]:
        """Return how often agent `one` beats agent `other` in task `number`, float64[1 + RESAMPLES]."""
        task = list(self.tasks)[number]
        pairs = itertools.product(self.agents[one].runs[task], self.agents[other].runs[task])
        better = np.stack([(np.sign((a.scored - b.scored).round(9)) + 1) / 2 for a, b in pairs], 1)  # sums: rounded
        first, second = self._draws[one][number][:, :, None], self._draws[other][number][:, None, :]
        drawn = np.take_along_axis(
            resampled_means(better, number)[:, None], first * self.agents[other].seeds + second, 2
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
        competitors: Runs and agents. Runs with the same settings and different seeds are taken as one agent. If one of
            them observes words, all of them mishear nothing where their tasks don't state an error rate.
        conversations: N, the conversations of each competitor.
        seed: Seed of the first conversation.
        progress: Called with the number of conversations that have ended, over all competitors.

    Raises:
        InvalidValue: The agents aren't in the same tasks, or the score of a task is undefined.
    """
    tasks: dict[str, Task] = {}
    identities: dict[str, str] = {}  # SHA-256 to label
    of: list[str] = []
    readers = [one.agent.requires for one in competitors if one.agent.requires.observation in WORDS]
    if readers:  # all mishear as much as they do
        competitors = [replace(one, task=one.task.heard_by(readers[0])) for one in competitors]
    for competitor in competitors:
        identity = competitor.task.identity()["sha256"]
        if identity not in identities:
            identities[identity] = task_label(competitor.task, tasks)
            tasks[identities[identity]] = competitor.task
        of.append(identities[identity])
    groups = grouped(list(zip(competitors, of, strict=True)))
    check_tasks(groups)
    done = 0
    agents = []
    for label, group in zip(labels(groups), groups, strict=True):
        runs: dict[str, list[Evaluation]] = {task: [] for task in tasks}
        for competitor, task in group:
            show = None if progress is None else (lambda count, done=done: progress(done + count))
            runs[task].append(
                evaluate(competitor.agent, competitor.task, conversations=conversations, seed=seed, progress=show)
            )
            done += conversations
        _check_scores(runs)
        names, where = tuple(one.name for one, _ in group), tuple(task for _, task in group)
        agents.append(ComparedAgent(label, names, runs, where, trained="seed" in group[0][0].config))
    return Comparison(agents, tasks, conversations, seed)


def _check_scores(runs: Mapping[str, Sequence[Evaluation]]) -> None:
    """Check that the score of every task is defined."""
    for task, (first, *_) in runs.items():
        if reason := _scale(first).why_no_score:
            raise InvalidValue(f"{task} has no score: {reason}")


def _scale(run: Evaluation) -> Scale:
    """Return the scale of an evaluation that has one."""
    assert run.scale is not None
    return run.scale
