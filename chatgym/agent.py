"""What an agent is: the protocol that plugins fulfil, and the settings that make one."""

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
"""``callback(turns, metrics)``: turns trained for so far, and what the agent wants to be shown of itself."""

A = TypeVar("A", bound="Agent")


@dataclass(frozen=True)
class Interface:
    """The action and the observation interface that an agent needs, see `chatgym.envs.chat_env.ChatEnv`."""

    action: str = "act"
    observation: str = "discrete"


class MakeEnvs(Protocol):
    """Makes the environment to learn in; the caller knows scenario and interface, the agent how many and how."""

    def __call__(self, num_envs: int, **overrides: Any) -> VectorEnv[Any, Any, Any]:
        """Make `num_envs` conversations; `overrides` are arguments of `chatgym.envs.vector_env.ChatVectorEnv`."""


class Agent(Protocol):
    """An agent: learns from conversations and takes part in them.

    All randomness comes from `seed`: an agent seeds the environments that it makes (``envs.reset(seed=seed)``)
    and draws its own decisions by `chatgym.dynamics.rng`, a position instead of a state, so that a saved agent goes on
    where it was. `learn` may be called on a loaded agent and then does what is left of `total_steps`; all
    that this needs is in the folder that `save` writes, the state of the environments included
    (``envs.snapshot()``), so that an interrupted training ends in the same bytes as one that wasn't.

    A class may also have ``default_steps: ClassVar[int]``, the turns that a training takes when nobody says how
    many (0 says that the agent learns nothing), ``default_evaluations`` and ``default_conversations``, how many it is
    interrupted by and how long they are, and ``several_processes = True`` if they can train it together (see
    `chatgym.finetuning.distributed`). One that remembers what was said has ``begin(keys)``, called with the
    keys uint64[B] of conversations that are about to begin; where texts are observed, it is then shown ``""`` of a
    conversation that is over.
    """

    requires: ClassVar[Interface]
    Config: ClassVar[type]
    """A frozen dataclass of `setting` fields with defaults: the options of the command line."""

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """Make an untrained agent; `config` is a `Config`, or None for its defaults."""

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Train until `total_steps` turns are done, those before a `load` counted.

        `callback` is called after each iteration; the agent may be saved from within it, and an exception that
        it raises passes through.
        """

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Choose an action for each of B conversations.

        Args:
            observations: B observations of the interface that `requires` names.
            deterministic: Whether to take the best known action; else to act as in training.
            action_masks: bool[B, n], the actions that make sense.

        Returns:
            int64[B].
        """

    def save(self, folder: Path) -> None:
        """Write the agent into an existing, empty folder as safetensors, npz or JSON, never pickle."""

    @classmethod
    def load(cls: type[A], folder: Path) -> A:
        """Read back what `save` wrote.

        Raises:
            Corrupted: When a file isn't what it was.
        """


@dataclass(frozen=True)
class Range:
    """Where a tuning looks for a number.

    Attributes:
        low, high: The bounds, which belong to it.
        log: Whether it looks at orders of magnitude.
        points: How many values a grid has of it, equally far apart.
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
        default: Its value when none is given.
        help: What it does.
        low, high: The range that it may lie in.
        tune: Where `chatgym tune` looks for its best value: a `Range`, or the values to try. None: it is left alone.
    """
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "tune": tune})


def make_config(config_class: type, values: Mapping[str, Any] | None = None) -> Any:
    """Make an agent's `Config` from values by name, those of a command line or a file.

    Raises:
        InvalidValue: When a name is unknown, or a value of another type or out of its range.
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
