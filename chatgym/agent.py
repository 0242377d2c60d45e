"""The `Agent` protocol, and the settings that agents declare."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv

from chatgym.errors import InvalidValue, unknown
from chatgym.scenarios import Scenario

Callback = Callable[[int, Mapping[str, float]], None]
"""``callback(turns, metrics)``: turns trained for so far, and the agent's metrics by name."""

A = TypeVar("A", bound="Agent")


@dataclass(frozen=True)
class Interface:
    """The action and observation interface that an agent needs, see `chatgym.envs.chat_env.ChatEnv`."""

    action: str = "act"
    observation: str = "discrete"


class MakeEnvs(Protocol):
    """Makes environments for an agent to learn in; scenario and interface are fixed, the agent chooses the rest."""

    def __call__(self, num_envs: int, **overrides: Any) -> VectorEnv[Any, Any, Any]:
        """Make `num_envs` conversations; `overrides` are arguments of `chatgym.envs.vector_env.ChatVectorEnv`."""


class Agent(Protocol):
    """An agent: it learns from conversations and acts in them.

    All randomness comes from `seed`: an agent seeds its environments (``envs.reset(seed=seed)``, which gives it
    conversations of the split ``"train"`` only) and draws by `chatgym.dynamics.rng`, which needs a position instead of
    a state, so that a saved agent continues exactly. `learn` on a loaded agent does what remains of `total_steps`. The
    folder that `save` writes holds all that this needs, the environments' state (``envs.snapshot()``) included: an
    interrupted training ends in the same bytes as another.

    A class may define ``default_steps: ClassVar[int]``, the turns of a training by default (0: the agent doesn't
    learn); ``default_evaluations`` and ``default_conversations``, how many evaluations a training has and how many
    conversations each; ``packages``, the distributions it needs, such as ``("stable-baselines3",)``, whose versions a
    run records; ``log_iterations = True`` if every iteration is a line of ``metrics.jsonl``, not only every evaluation;
    and ``several_processes = True`` if processes can train it together (see `chatgym.finetuning.distributed`). An
    agent with memory has ``begin(keys)``, called with numbers, uint64[B], that
    stand for the conversations that are about to begin (hashed keys: from the keys everything hidden follows); if it
    observes texts, it then sees ``""`` for conversations that are over.
    """

    requires: ClassVar[Interface]
    Config: ClassVar[type]
    """A frozen dataclass of `setting` fields with defaults: the options of the command line."""

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """Make an untrained agent; `config` is a `Config`, None: its defaults."""

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Train until `total_steps` turns are done, including those before a `load`.

        `callback` is called after each iteration. It may save the agent; an exception that it raises passes through.
        """

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Choose an action for each of B conversations.

        Args:
            observations: B observations of the interface in `requires`.
            deterministic: Whether to take the best known action; else explore as in training.
            action_masks: int8[B, n] or bool[B, n], the actions that make sense.

        Returns:
            int64[B]; B texts for ``action="text"``.
        """

    def save(self, folder: Path) -> None:
        """Write the agent into an existing, empty folder as safetensors, npz or JSON, never pickle."""

    @classmethod
    def load(cls: type[A], folder: Path) -> A:
        """Return the agent that `save` wrote.

        Raises:
            Corrupted: A file was changed or cut off.
        """


@dataclass(frozen=True)
class Range:
    """Range of a number that `chatgym tune` searches.

    Attributes:
        low, high: Bounds, both included.
        log: Whether to search on a logarithmic scale.
        points: Number of values in a grid, equally spaced.
    """

    low: float
    high: float
    log: bool = False
    points: int = 4


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    tune: Range | tuple[Any, ...] | None = None,
) -> Any:
    """Declare a field of an agent's `Config`.

    Args:
        default: Default value.
        help: What the setting does.
        low, high: Bounds of allowed values.
        tune: What `chatgym tune` searches: a `Range`, or the values to try. None: nothing.
    """
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "tune": tune})


def make_config(config_class: type, values: Mapping[str, Any] | None = None) -> Any:
    """Make an agent's `Config` from values by name, from a command line or a file.

    Raises:
        InvalidValue: A name is unknown, or a value has another type or is out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    types = typing.get_type_hints(config_class)
    checked = {}
    for name, value in (values or {}).items():
        if name not in fields:
            raise unknown("setting", name, fields)
        wanted = types[name]
        if wanted is float and type(value) is int:
            value = float(value)
        if wanted in (bool, int, float, str) and type(value) is not wanted:
            raise InvalidValue(f"{name} is of type {wanted.__name__}, not {value!r}")
        low, high = fields[name].metadata.get("low"), fields[name].metadata.get("high")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise InvalidValue(f"{name} is {value}; allowed is {bounds}")
        checked[name] = value
    return config_class(**checked)
