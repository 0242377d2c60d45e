"""Who takes part in a comparison: which runs belong together, their label, and whether they can be compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatgym.agent import Agent
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue


@dataclass(frozen=True)
class Competitor:
    """What takes part: one run, or an agent that needs no training.

    Attributes:
        name: As the user calls it: its folder, or the agent's name.
        agent: The agent.
        task: What it is measured on.
        config: The run's configuration; of another agent ``{"agent": name}``.
    """

    name: str
    agent: Agent
    task: Task
    config: Mapping[str, Any]

    @property
    def training(self) -> dict[str, Any]:
        """What runs that differ in seed or scenario alone have in common."""
        kept = {key: self.config.get(key) for key in ("agent", "settings", "total_steps", "arguments")}
        versions = self.config.get("versions", {})
        return {**kept, "versions": [versions.get(name) for name in ("chatgym", "plugin")]}


Group = list[tuple[Competitor, str]]
"""Entrants of one side, each with the label of its task."""


def grouped(competitors: Group) -> list[Group]:
    """Put runs that differ in their seed alone together; a seed that is there already begins another group."""
    groups: dict[tuple[str, int], Group] = {}
    seen: Counter[tuple[str, str, Any]] = Counter()
    for competitor, task in competitors:
        key = json.dumps(competitor.training, sort_keys=True)
        run = key, task, competitor.config.get("seed")
        groups.setdefault((key, seen[run]), []).append((competitor, task))
        seen[run] += 1
    return list(groups.values())


def check_tasks(groups: Sequence[Group]) -> None:
    """Check that every group has as many runs in each task, and the same tasks as the others.

    Raises:
        InvalidValue: When it isn't so.
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


def labels(groups: Sequence[Group]) -> list[str]:
    """Name a single run by its folder, several by their agent and whatever tells it from the same agent's others."""
    labels: list[str] = []
    for group in groups:
        first = group[0][0]
        label = first.name
        if len(group) > 1:
            others = [
                other[0][0].training
                for other in groups
                if len(other) > 1 and other[0][0].config["agent"] == first.config["agent"]
            ]
            seeds = len(group) // len({task for _, task in group})
            label = ", ".join([first.config["agent"], *_telling(first.training, others)])
            label += f" ({seeds} seeds)" if seeds > 1 else ""
        labels.append(f"{label} [{first.name}]" if label in labels else label)
    return labels


def _telling(training: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the settings and the length of a training that aren't the same in all others."""

    def flat(one: Mapping[str, Any]) -> dict[str, Any]:
        return {**(one["settings"] or {}), "total_steps": one["total_steps"]}

    telling = [
        name for name, value in flat(training).items() if any(flat(other).get(name) != value for other in others)
    ]
    return [f"{name.replace('_', ' ')} {flat(training)[name]}" for name in telling]


def task_label(task: Task, taken: Mapping[str, Task]) -> str:
    """Name a task by its scenario, and its arguments where another has the same scenario."""
    if task.scenario not in taken:
        return task.scenario
    arguments = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in task.arguments.items())
    return f"{task.scenario}, {arguments or 'as it is'}"
