"""A study: the plan of a tuning, and the files in which its folder keeps plan and result."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from chatgym.agent import Range, plain
from chatgym.dynamics.identity import same_simulator
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, InvalidValue
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json
from chatgym.training.run import read_object
from chatgym.training.search_space import Space
from chatgym.training.trainer import DEFAULT_STEPS

METHODS = ("grid", "random", "tpe")
FORMAT = "chatgym-study"


@dataclass(frozen=True)
class Plan:
    """What a study tunes, and how; equal in all processes that share the study.

    Attributes:
        agent: Name of an agent.
        space: The search space.
        task: Scenario and arguments of the environment.
        method: ``"grid"``, ``"random"`` or ``"tpe"``.
        steps: Turns of each training.
        seeds: Seeds of a trial's trainings; its value is the mean over them.
        conversations: Conversations in each evaluation.
        settings: Values for fields of the agent's `Config`, the same in all trials.
        seed: Seed of the sampler.
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
        for name in ("space", "steps", "seeds", "conversations", "settings", "seed"):
            value = getattr(self, name)
            object.__setattr__(self, name, plain(dict(value) if isinstance(value, Mapping) else value))
        if self.method not in METHODS:
            raise InvalidValue(f"the method is one of {', '.join(METHODS)}, not {self.method!r}")
        if self.steps < 1 or self.conversations < 1 or not self.seeds:
            raise InvalidValue("a tuning needs steps, conversations and seeds, each at least one")

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; processes that share a study must agree on it."""
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


def tuned_task(folder: str | Path) -> Task:
    """Return the task in which the study in a folder tunes.

    Warns where its scenario has changed since.

    Raises:
        InvalidValue: The folder holds no study, or the scenario isn't installed.
        Corrupted: ``study.json`` can't be read.
    """
    folder = given(folder)
    found = read_study(folder)
    try:
        task, before = Task(found["scenario"], dict(found["arguments"])), str(found["identity"])
    except (KeyError, ValueError, TypeError) as error:
        raise Corrupted(
            f"{folder / 'study.json'} lacks its task ({error}); the same `chatgym tune` writes it again"
        ) from error
    if not same_simulator(before, task.identity()):
        warnings.warn(
            f"{folder} was tuned in another version of {task.scenario}: its best settings may not be the best here",
            stacklevel=2,
        )
    return task


def best_settings(folder: str | Path, agent: str) -> dict[str, Any]:
    """Return the best settings of the study in a folder.

    Raises:
        InvalidValue: The folder holds no study, another agent's, or one without a finished trial.
        Corrupted: Its files can't be read.
    """
    folder = given(folder)
    found = read_study(folder)
    if found["agent"] != agent:
        raise InvalidValue(f"{folder} tuned {found['agent']}, not {agent}; `chatgym train {found['agent']}` can use it")
    path = folder / "best.json"
    if not path.exists():
        raise InvalidValue(f"no trial of {folder} has finished yet; go on with `chatgym tune {agent}`")
    try:
        settings = read_json(path)["settings"]
        return dict(settings)
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); the same `chatgym tune` writes it again") from error


def read_study(folder: Path) -> dict[str, Any]:
    """Return the content of ``study.json``.

    Raises:
        InvalidValue: There is no such file, or it is no study's.
        Corrupted: It can't be read.
    """
    path = folder / "study.json"
    found = read_object(path, "study", "`chatgym tune` makes one", "the same `chatgym tune` writes it again")
    if found.get("format") != FORMAT:
        raise InvalidValue(f"{folder} holds no study: {path} is something else's")
    return found


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that were neither pruned nor failed, the best first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: -(trial.value if trial.value is not None else 0.0))
