"""The competitors of a comparison: group runs of the same agent, label them, check that they are comparable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from chatgym.agent import Agent
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue


@dataclass(frozen=True)
class Competitor:
    """A run, or an agent that needs no training, in one task.

    Attributes:
        name: The run's folder, or the agent's name.
        agent: The agent.
        task: The task that it is evaluated in.
        config: The run's configuration; ``{"agent": name}`` for an agent without a run.
    """

    name: str
    agent: Agent
    task: Task
    config: Mapping[str, Any]


class Configured(Protocol):
    """Something with a name and the configuration of a run, such as a `Competitor`."""

    @property
    def name(self) -> str:
        """The run's folder, or the agent's name."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's configuration."""


C = TypeVar("C", bound=Configured)
Group = list[tuple[C, str]]
"""The competitors that are runs of one agent, each with the label of its task."""


def training_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without seed and scenario: equal for all runs of one agent."""
    kept = {key: config.get(key) for key in ("agent", "settings", "total_steps", "arguments", "curriculum")}
    versions = config.get("versions", {})
    return {**kept, "versions": [versions.get(name) for name in ("chatgym", "plugin")]}


def grouped(competitors: Group[C]) -> list[Group[C]]:
    """Group runs that differ only in seed or scenario; a seed that occurs twice begins another group."""
    groups: dict[tuple[str, int], Group[C]] = {}
    seen: Counter[tuple[str, str, Any]] = Counter()
    for competitor, task in competitors:
        key = json.dumps(training_of(competitor.config), sort_keys=True)
        run = key, task, competitor.config.get("seed")
        groups.setdefault((key, seen[run]), []).append((competitor, task))
        seen[run] += 1
    return list(groups.values())


def check_tasks(groups: Sequence[Group[C]]) -> None:
    """Check that all groups have the same tasks, and each group the same number of runs in every task.

    Raises:
        InvalidValue: They haven't.
    """
    counts = [Counter(task for _, task in group) for group in groups]
    for group, count in zip(groups, counts, strict=True):
        if count.keys() != counts[0].keys():
            one, other = (
                f"{who[0][0].name} ({'; '.join(sorted({task for _, task in who}))})" for who in (groups[0], group)
            )
            raise InvalidValue(
                f"{one} and {other} aren't in the same tasks, so there is nothing to compare: name runs of the same "
                "scenarios for every agent, and set what differs for all of them (--error-rate, --max-turns)"
            )
        if len(set(count.values())) > 1:
            each = ", ".join(f"{number} in {task}" for task, number in count.items())
            raise InvalidValue(f"{group[0][0].name} and its other seeds: {each}; name as many runs for every task")


def labels(groups: Sequence[Group[C]]) -> list[str]:
    """Return a label for each group: a single run's name, else the agent and its distinguishing settings."""
    labels: list[str] = []
    for group in groups:
        first = group[0][0]
        label = first.name
        if len(group) > 1:
            others = [
                training_of(other[0][0].config)
                for other in groups
                if len(other) > 1 and other[0][0].config["agent"] == first.config["agent"]
            ]
            seeds = len(group) // len({task for _, task in group})
            label = ", ".join([first.config["agent"], *_distinguishing(training_of(first.config), others)])
            label += f" ({seeds} seeds)" if seeds > 1 else ""
        labels.append(f"{label} [{first.name}]" if label in labels else label)
    return labels


def _distinguishing(training: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings, and the steps, of a training that differ from any of the others'."""

    def flat(one: Mapping[str, Any]) -> dict[str, Any]:
        return {**(one["settings"] or {}), "total_steps": one["total_steps"]}

    names = [name for name, value in flat(training).items() if any(flat(other).get(name) != value for other in others)]
    return [f"{name.replace('_', ' ')} {flat(training)[name]}" for name in names]


def task_label(task: Task, taken: Mapping[str, Task]) -> str:
    """Return a task's scenario, with its arguments if `taken` has a task of the same scenario."""
    if task.scenario not in taken:
        return task.scenario
    arguments = ", ".join(task.describe_arguments())
    return f"{task.scenario}, {arguments or 'default arguments'}"
