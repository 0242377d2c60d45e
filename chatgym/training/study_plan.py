"""The `Plan` of a tuning study: which agent is trained how, and what its settings are chosen from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chatgym.agent import Range
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue
from chatgym.training.search_space import Space
from chatgym.training.trainer import DEFAULT_STEPS

METHODS = ("grid", "random", "tpe")


@dataclass(frozen=True)
class Plan:
    """What a study does; two processes that share one have the same.

    Attributes:
        agent: Name of an agent.
        task: What it is trained on.
        space: What each trial's settings are chosen from.
        method: ``"grid"``, ``"random"`` or ``"tpe"``.
        steps: Turns of each training.
        seeds: Seeds of a trial's trainings; its value is the mean over them.
        conversations: Conversations in an evaluation.
        settings: Fields of the agent's `Config` that are the same in all.
        seed: Of the choices.
    """

    agent: str
    space: Space
    task: Task = dataclasses.field(default_factory=Task)
    method: str = "tpe"
    steps: int = DEFAULT_STEPS
    seeds: tuple[int, ...] = (0,)
    conversations: int = 500
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidValue(f"the method is one of {', '.join(METHODS)}, not {self.method!r}")
        if self.steps < 1 or self.conversations < 1 or not self.seeds:
            raise InvalidValue("a tuning needs steps, conversations and seeds, each at least one")

    def to_json(self) -> dict[str, Any]:
        """Return what two processes must agree on, JSON-able."""
        space = {
            name: dataclasses.asdict(choices) if isinstance(choices, Range) else list(choices)
            for name, choices in self.space.items()
        }
        return {
            "agent": self.agent, "scenario": self.task.scenario, "arguments": dict(self.task.arguments),
            "identity": self.task.identity()["sha256"], "method": self.method, "space": space, "steps": self.steps,
            "seeds": list(self.seeds), "conversations": self.conversations, "settings": dict(self.settings),
            "seed": self.seed,
        }  # fmt: skip
