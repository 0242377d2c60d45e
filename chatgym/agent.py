"""The `Agent` protocol, and the settings that agents declare."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from chatgym.errors import InvalidValue, unknown
from chatgym.scenarios import Scenario

if TYPE_CHECKING:
    from chatgym.envs.vector_env import ChatVectorEnv

Callback = Callable[[int, Mapping[str, float]], None]
"""``callback(turns, metrics)``: turns trained for so far, and the agent's metrics by name, see `reported`."""

A = TypeVar("A", bound="Agent")


@dataclass(frozen=True)
class Interface:
    """The action and observation interface that an agent needs, see `chatgym.envs.chat_env.ChatEnv`."""

    action: str = "act"
    observation: str = "discrete"


class MakeEnvs(Protocol):
    """Makes environments for an agent to learn in; scenario and interface are fixed, the agent chooses the rest."""

    def __call__(self, num_envs: int, **overrides: Any) -> ChatVectorEnv:
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

    # Properties, so that type checkers accept a nested class, and a variable that isn't declared a ClassVar.
    @property
    def requires(self) -> Interface:
        """The interface that it acts through: ``requires = Interface(...)`` in the class."""

    @property
    def Config(self) -> type[Any]:
        """A frozen dataclass of `setting` fields with defaults, nested: the options of the command line."""

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """Make an untrained agent; `config` is a `Config`, None: its defaults."""

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Train until `total_steps` turns are done, including those before a `load`.

        `callback` is called after each iteration. It may save the agent; an exception that it raises passes through.
        """

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64] | list[str]:
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


def setting_type(hint: Any) -> Any:
    """Return the type of a setting without ``| None``: bool, int, float, str or a `Literal` of strings.

    Any other type gives None: a command line and a config.json can't express it.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        hint = inner[0] if len(inner) == 1 else None
    if typing.get_origin(hint) is typing.Literal:
        return hint if all(type(choice) is str for choice in typing.get_args(hint)) else None
    return hint if hint in (bool, int, float, str) else None


def setting_problems(config_class: Any) -> list[str]:
    """Return what keeps an agent's `Config` from becoming options of the command line, each with its remedy."""
    made = isinstance(config_class, type) and dataclasses.is_dataclass(config_class)
    if not made or not config_class.__dataclass_params__.frozen:
        return [
            "`Config` is no frozen dataclass. Write a class in the agent, decorated with @dataclass(frozen=True); it "
            "may be empty."
        ]
    try:
        hints = typing.get_type_hints(config_class)
    except Exception as error:  # whatever the names in a stranger's annotations do
        return [f"the types of `Config` can't be read ({error}). Define the names in its module, not in a function."]
    problems, options = [], dict[str, str]()
    for field in dataclasses.fields(config_class):
        kind, name = setting_type(hints[field.name]), field.name
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"the setting `{name}` has no default. Give it one: setting(DEFAULT, 'what it does').")
        if kind is None:
            problems.append(
                f"the setting `{name}` is of type {hints[name]}. An option of the command line is a bool, int, float "
                "or str, a Literal of strings, or one of these or None; write several values as one str and split it."
            )
        own = [f"agent_{name}", name]  # the command line writes --agent-NAME where a command has an option --NAME
        for option in [*own, *(f"no_{each}" for each in own if kind is bool)]:
            if (other := options.setdefault(option, name)) != name:
                problems.append(
                    f"the settings `{other}` and `{name}` would both be the option --{option.replace('_', '-')}. "
                    "Rename one of them."
                )
    return problems


def setting_hints(config_class: Any) -> dict[str, Any]:
    """Return the type hint of each setting of an agent's `Config`, in order.

    Raises:
        InvalidValue: It can't become options of the command line, see `setting_problems`.
    """
    if problems := setting_problems(config_class):
        name = getattr(config_class, "__qualname__", repr(config_class))
        raise InvalidValue(f"{name} in {getattr(config_class, '__module__', '?')} is wrong: {' '.join(problems)}")
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default value of a setting."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def make_config(config_class: type, values: Mapping[str, Any] | None = None) -> Any:
    """Make an agent's `Config` from values by name, from a command line or a file; numpy's numbers become Python's.

    Raises:
        InvalidValue: `config_class` is wrong (`setting_problems`), a name is unknown, or a value, also a default one,
            has another type or is out of range.
    """
    hints, given = setting_hints(config_class), dict(values or {})
    for name in given:
        if name not in hints:
            raise unknown("setting", name, hints)
    checked = {}
    for field in dataclasses.fields(config_class):
        value = given[field.name] if field.name in given else default_of(field)
        checked[field.name] = _checked(field, hints[field.name], plain(value))
    return config_class(**checked)


def _checked(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Return a setting's value in its type.

    Raises:
        InvalidValue: It is of another type or out of range.
    """
    name, wanted = field.name, setting_type(hint)
    if value is None and type(None) in typing.get_args(hint):
        return None
    if typing.get_origin(wanted) is typing.Literal:
        if value not in (choices := typing.get_args(wanted)):
            raise InvalidValue(f"{name} is one of {', '.join(choices)}, not {value!r}")
        return value
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise InvalidValue(f"{name} is of type {wanted.__name__}, not {value!r}")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
        raise InvalidValue(f"{name} is {value}; allowed is {bounds}")
    if wanted is float and not math.isfinite(value):
        raise InvalidValue(f"{name} is {value}; allowed is a finite number")
    return value


def reported(agent: str, turns: Any, metrics: Any) -> tuple[int, dict[str, float]]:
    """Return what an agent tells its callback in Python's numbers; numpy's and tensors of one number are converted.

    Args:
        agent: Its name, for the message.
        turns: All turns of training so far.
        metrics: Numbers by name; they may be NaN or infinite, which ``metrics.jsonl`` writes as null.

    Raises:
        InvalidValue: A value is no number.
    """
    done = _number(turns)
    if done is None or not math.isfinite(done) or done != int(done):
        raise InvalidValue(
            f"the agent {agent!r} tells its callback {turns!r} turns; tell it the whole number of all turns so far"
        )
    if not isinstance(metrics, Mapping):
        raise InvalidValue(f"the agent {agent!r} tells its callback {metrics!r}; tell it a dict of metrics by name")
    found = {name: _number(value) for name, value in metrics.items()}
    for name, number in found.items():
        if not isinstance(name, str) or number is None:
            raise InvalidValue(
                f"the agent {agent!r} tells its callback the metric {name!r} = {metrics[name]!r}; a metric is a number "
                "with a str for its name"
            )
    return int(done), typing.cast(dict[str, float], found)


def _number(value: Any) -> int | float | None:
    """Return a number, numpy's number or a tensor of one number as Python's number; None for anything else."""
    try:
        number = value.item() if hasattr(value, "item") else value
    except (TypeError, ValueError, RuntimeError):  # an array of several
        return None
    return number if isinstance(number, (int, float)) else None


def plain(value: Any) -> Any:
    """Return numpy's scalars as Python's, also in the values of a mapping or tuple; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return tuple(map(plain, value)) if type(value) is tuple else value
