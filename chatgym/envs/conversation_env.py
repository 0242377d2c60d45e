"""The public properties, copying and checks that `ChatEnv` and `ChatVectorEnv` share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding

from chatgym.dynamics import rng
from chatgym.dynamics.rng import SPLITS, in_split, split_of
from chatgym.dynamics.room import ChatRoom
from chatgym.dynamics.values import is_integer
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.conversations import Conversations
from chatgym.envs.llm_simulator import LLMSimulator
from chatgym.envs.state import CopiedByState
from chatgym.envs.tokens import TokenHistory
from chatgym.errors import InvalidValue, unknown
from chatgym.rewards import RewardModel
from chatgym.rewards.function import importable_name
from chatgym.scenarios import Scenario, ScenarioName
from chatgym.words.nlg import Speaker

SETTABLE = ("error_rate", "max_turns", "reward_weights")
"""The arguments that may be set while an environment is in use; they take effect from the next turn on."""


class _Weights(dict[str, float]):
    """Reward weights to read; unlike a mapping proxy, they can be sent to another process."""

    def __setitem__(self, term: str, weight: float) -> None:
        """Raise `InvalidValue`: it would have no effect."""
        raise InvalidValue(f"a weight can't be set alone; set env.reward_weights = {{{term!r}: {weight!r}}}")

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class ConversationEnv(CopiedByState):
    """Base of `ChatEnv` and `ChatVectorEnv`: access to the conversations, copying, and the specification."""

    only: str | None = None
    """The only split whose conversations may begin here, such as ``"train"`` while an agent learns; None: any."""

    _conversations: Conversations
    _spec: EnvSpec | None = None
    _sealed = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute.

        Raises:
            InvalidValue: It has no effect: there is none of that name, or it is an argument other than `SETTABLE`.
        """
        if name[0] != "_" and self._sealed and name not in SETTABLE:
            known = getattr(type(self), name, None)
            fixed = name in self._arguments or (isinstance(known, property) and known.fset is None)
            if (fixed and name != "render_mode") or not hasattr(self, name):
                raise self._unsettable(name, fixed)
        object.__setattr__(self, name, value)  # super() would take longer than the rest of it

    @property
    def error_rate(self) -> float:
        """Semantic error rate; set it at any time, it takes effect from the next turn on."""
        return self.room.error_rate

    @error_rate.setter
    def error_rate(self, error_rate: float) -> None:
        with self._setting():
            self._conversations.set_error_rate(error_rate)

    @property
    def max_turns(self) -> int:
        """Agent turns until truncation; set it at any time, it takes effect from the next turn on."""
        return self.room.max_turns

    @max_turns.setter
    def max_turns(self, max_turns: int | None) -> None:
        with self._setting():
            self.room.set_max_turns(max_turns)

    @property
    def reward_weights(self) -> Mapping[str, float]:
        """Reward term to weight, of all terms; set those to change at any time, the others get their default."""
        return _Weights(self._conversations.reward_weights)

    @reward_weights.setter
    def reward_weights(self, reward_weights: Mapping[str, float] | None) -> None:
        with self._setting():
            self._conversations.payment.set_weights(reward_weights)

    @property
    def info_names(self) -> tuple[str, ...]:
        """Names of what ``info`` has at each step."""
        return self._conversations.info_names

    def settings(self) -> dict[str, Any]:
        """Return the arguments that may be set at any time, as they are now: `SETTABLE` to values."""
        weights = None if self._conversations.payment.function else dict(self._conversations.reward_weights)
        return {"error_rate": self.error_rate, "max_turns": self.max_turns, "reward_weights": weights}

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute, for wrappers and for Gymnasium's vector environments: ``envs.set_attr("error_rate", 0.2)``.

        Raises:
            InvalidValue: It would have no effect.
        """
        setattr(self, name, value)
        return True

    @property
    def room(self) -> ChatRoom:
        """Dynamics of the conversations: their state as arrays."""
        return self._conversations.room

    @property
    def scenario(self) -> Scenario:
        """Scenario of the conversations."""
        return self._conversations.scenario

    @property
    def speaker(self) -> Speaker | None:
        """NLG of the partner's and the agent's words; None without words."""
        return self._conversations.speaker

    @property
    def tokenizer(self) -> ChatTokenizer | None:
        """The tokenizer of the token interfaces; None without tokens."""
        return self._conversations.tokenizer

    @property
    def history(self) -> TokenHistory | None:
        """Token ids of the conversations so far; None unless ``observation="token"``."""
        return self._conversations.history

    @property
    def llm_simulator(self) -> LLMSimulator | None:
        """The language model that plays the partner; None unless ``simulator="llm"``."""
        return self._conversations.llm_simulator

    @property
    def reward_model(self) -> RewardModel | None:
        """Reward model that scores the agent's words; None without one."""
        judged = self._conversations.judged
        return None if judged is None else judged.model

    @property
    def texts(self) -> list[str]:
        """The partners' last utterances, str[B]; empty without words."""
        return self._conversations.texts

    def agent_words(self, row: int, act: int) -> str:
        """Return the words that an act would have if the agent of a row took it now; empty without words."""
        room = self.room
        return self._conversations.word_agent(act, room.belief[row], room.keys[row], int(room.turns[row]) + 1)

    def identity(self) -> dict[str, Any]:
        """Return versions and hashes of all that determines a conversation, see `Conversations.identity`."""
        return self._conversations.identity()

    @property
    def spec(self) -> EnvSpec | None:
        """Specification that `gymnasium.make` used; scenarios and functions stand in it by name, for JSON."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None:
            kwargs = dict(spec.kwargs)
            if isinstance(kwargs.get("scenario"), Scenario):
                kwargs["scenario"] = ScenarioName(kwargs["scenario"])
            if callable(kwargs.get("reward")):
                kwargs["reward"] = importable_name(kwargs["reward"]) or kwargs["reward"]
            spec = dataclasses.replace(spec, kwargs=kwargs) if kwargs != spec.kwargs else spec
        self._spec = spec

    def _check_split(self, split: Any, keys: npt.NDArray[np.uint64] | None) -> None:
        """Check the split and the keys, uint64[n], that a reset asks for; None: none.

        Raises:
            InvalidValue: There is no such split, both are given, or they are of another split than `only`.
        """
        if split is None and keys is None:
            return
        if split is not None and not (isinstance(split, str) and split in SPLITS):
            raise unknown("split", split, SPLITS)
        if split is not None and keys is not None:
            raise InvalidValue("a key is of a split already (chatgym.dynamics.rng.split_of); leave out one of the two")
        asked: set[Any] = {split} if keys is None else set(split_of(keys).tolist())
        if self.only is not None and asked != {self.only}:
            raise InvalidValue(
                f"this environment is for conversations of the split {self.only!r} only, not "
                f"{', '.join(sorted(asked - {self.only}))}: leave out the option split, and take keys of roots of "
                f"that split (episode_key(in_split(root, {self.only!r}), number) of chatgym.dynamics.rng)"
            )

    def _enter_split(self, split: str, rows: npt.NDArray[np.bool_]) -> None:
        """Let all later conversations in `rows`, bool[B], be of a split."""
        self.room.roots[rows] = in_split(self.room.roots[rows], split)

    def _hold(self, arguments: dict[str, Any], conversations: Conversations) -> None:
        """Keep the conversations, and the constructor's arguments for copies."""
        if isinstance(arguments["scenario"], Scenario) and "@" not in (name := ScenarioName(arguments["scenario"])):
            arguments["scenario"] = str(name)  # what is registered under its name is found there by each process
        self._arguments, self._conversations = arguments, conversations

    @contextlib.contextmanager
    def _setting(self) -> Iterator[None]:
        """Write what the block sets into the specification, so that `gymnasium.make` makes the same environment."""
        before = self.settings()
        yield
        changed = {name: value for name, value in self.settings().items() if value != before[name]}
        if changed and self._spec is not None:
            self._spec = dataclasses.replace(self._spec, kwargs={**self._spec.kwargs, **changed})

    def _unsettable(self, name: str, fixed: bool) -> InvalidValue:
        """Return the error for an attribute that can't be set."""
        settable = ", ".join(SETTABLE)
        if fixed:
            return InvalidValue(
                f"{name} can't be set once the environment is made; make another with {name}=...; what can be set is "
                f"{settable}"
            )
        return unknown("attribute of the environment", name, SETTABLE, "Setting another one would have no effect.")

    def _take_words(self, other: ConversationEnv) -> None:
        """Use the wordings that another environment used, such as a trace's."""
        if self.speaker is not None and other.speaker is not None:
            self.speaker.preload(other.speaker.used)

    def _carried(self) -> dict[str, Any]:
        kept = {name: self.__dict__[name] for name in _CARRIED if name in self.__dict__}
        return {**kept, "used": {} if self.speaker is None else self.speaker.used}

    def _take(self, carried: dict[str, Any]) -> None:
        used = carried.pop("used")
        if self.speaker is not None:
            self.speaker.preload(used)
        self.__dict__.update(carried)


_CARRIED = ("only", "_np_random", "_np_random_seed", "action_space", "observation_space", "single_action_space",
            "single_observation_space", "_spec")  # fmt: skip


def check_options(options: Any, allowed: Sequence[str]) -> Mapping[str, Any]:
    """Return the options of a reset, by name; None gives an empty dict.

    Raises:
        InvalidValue: They are no mapping, or an option is unknown.
    """
    if options is not None and not isinstance(options, Mapping):
        known = ", ".join(map(repr, allowed))
        raise InvalidValue(f"the options of a reset are a dict with {known}, not {options!r}")
    for name in options or {}:
        if name not in allowed:
            raise unknown("reset option", name, allowed)
    return options or {}


def check_wrappers(wrappers: Iterable[Any]) -> None:
    """Check that no attribute of the environment was set on a wrapper of Gymnasium or Stable-Baselines3.

    Raises:
        InvalidValue: One was: it has no effect there.
    """
    for wrapper in wrappers:
        held = vars(wrapper)
        if held.keys().isdisjoint(SETTABLE):
            continue
        if type(wrapper).__module__.partition(".")[0] in ("gymnasium", "stable_baselines3"):
            name = next(name for name in SETTABLE if name in held)
            raise InvalidValue(
                f"{name} was set on the wrapper {type(wrapper).__name__}, where it has no effect; set it by "
                f"env.set_wrapper_attr({name!r}, {held[name]!r}), which finds env.unwrapped"
            )


def check_key(key: Any) -> int:
    """Return a conversation's key as an int.

    Raises:
        InvalidValue: It is not an integer from 0 to 2**64 - 1.
    """
    if not is_integer(key) or not 0 <= key < 2**64:
        raise InvalidValue(f"the key of a conversation is an integer from 0 to 2**64 - 1, not {key!r}")
    return int(key)


def check_seed(seed: Any) -> int:
    """Return a seed as an int, which Gymnasium asks for.

    Raises:
        InvalidValue: It is not an integer of at least 0.
    """
    if isinstance(seed, np.ndarray) and seed.ndim == 0:
        seed = seed[()]
    if not is_integer(seed) or seed < 0:
        raise InvalidValue(f"a seed is an integer of at least 0, or None, not {seed!r}")
    return int(seed)


def check_steps(steps: int | None, action: str) -> None:
    """Check Gymnasium's ``max_episode_steps``, which limits the turns as `max_turns` does; None: it doesn't.

    Raises:
        InvalidValue: It is below 1, or would count tokens.
    """
    if steps is None:
        return
    if not is_integer(steps) or steps < 1:
        raise InvalidValue(f"max_episode_steps, like max_turns, is an integer of at least 1, not {steps!r}")
    if action == "token":
        raise InvalidValue(
            f"max_episode_steps={steps} would count tokens with action='token'; limit the turns by max_turns instead"
        )


def root_of(generator: np.random.Generator) -> np.uint64:
    """Draw the root of a row's conversation keys, uint64: the only draw from ``np_random``."""
    return generator.integers(2**64, dtype=np.uint64)


def key_of(seed: Any, split: str = "train") -> int:
    """Return the key of the conversation that ``reset(seed=seed, options={"split": split})`` begins."""
    root = in_split(root_of(seeding.np_random(check_seed(seed))[0]), split)
    return int(rng.episode_key(root[()], 0))
