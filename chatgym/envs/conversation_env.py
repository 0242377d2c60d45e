"""What `ChatEnv` and `ChatVectorEnv` share: public properties, copying, and the checks of reset's options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from chatgym.dynamics.room import ChatRoom, is_integer
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.conversations import Conversations
from chatgym.envs.llm_simulator import LLMSimulator
from chatgym.envs.state import CopiedByState
from chatgym.envs.tokens import TokenHistory
from chatgym.errors import InvalidValue, unknown
from chatgym.rewards import RewardModel
from chatgym.scenarios import Scenario, ScenarioName
from chatgym.words.nlg import Speaker


class ConversationEnv(CopiedByState):
    """Mixin of both environments: what they show of the conversations that they hold."""

    _conversations: Conversations
    _spec: EnvSpec | None = None

    @property
    def room(self) -> ChatRoom:
        """The dynamics of the conversations."""
        return self._conversations.room

    @property
    def scenario(self) -> Scenario:
        """What the conversations are about."""
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
        """What was said as token ids; None unless ``observation="token"``."""
        return self._conversations.history

    @property
    def llm_simulator(self) -> LLMSimulator | None:
        """The language model that plays the partner; None unless ``simulator="llm"``."""
        return self._conversations.llm_simulator

    @property
    def reward_model(self) -> RewardModel | None:
        """The reward model that judges the conversations, or None."""
        judged = self._conversations.judged
        return None if judged is None else judged.model

    @property
    def texts(self) -> list[str]:
        """What each partner said last, B strings; empty without words."""
        return self._conversations.texts

    def agent_words(self, row: int, act: int) -> str:
        """Return the words of an act if the agent of a row took it now; empty without words."""
        room = self.room
        return self._conversations.word_agent(act, room.belief[row], room.keys[row], int(room.turns[row]) + 1)

    def identity(self) -> dict[str, Any]:
        """Name all that decides the conversations' course, see `Conversations.identity`."""
        return self._conversations.identity()

    @property
    def spec(self) -> EnvSpec | None:
        """The specification that `gymnasium.make` made this from; a `Scenario` object stands there by its name."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None and isinstance(spec.kwargs.get("scenario"), Scenario):
            spec = dataclasses.replace(spec, kwargs={**spec.kwargs, "scenario": ScenarioName(spec.kwargs["scenario"])})
        self._spec = spec

    def _hold(self, arguments: dict[str, Any], conversations: Conversations) -> None:
        """Remember the arguments of the constructor, and hold conversations made with them."""
        if isinstance(arguments["scenario"], Scenario) and "@" not in (name := ScenarioName(arguments["scenario"])):
            arguments["scenario"] = str(name)  # what is registered under its name is found there by each process
        self._arguments, self._conversations = arguments, conversations

    def _take_words(self, other: ConversationEnv) -> None:
        """Use the wordings that another environment used, such as those of a trace."""
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


_CARRIED = ("_np_random", "_np_random_seed", "action_space", "observation_space", "single_action_space",
            "single_observation_space", "_spec")  # fmt: skip


def check_options(options: Mapping[str, Any] | None, allowed: Sequence[str]) -> Mapping[str, Any]:
    """Return the options of a reset, an empty dict for None.

    Raises:
        InvalidValue: One isn't allowed.
    """
    for name in options or {}:
        if name not in allowed:
            raise unknown("reset option", name, allowed)
    return options or {}


def check_key(key: Any) -> int:
    """Return a conversation's key.

    Raises:
        InvalidValue: It is no integer from 0 to 2**64 - 1.
    """
    if not is_integer(key) or not 0 <= key < 2**64:
        raise InvalidValue(f"the key of a conversation is an integer from 0 to 2**64 - 1, not {key!r}")
    return int(key)


def root_of(generator: np.random.Generator) -> np.uint64:
    """Draw the root of a row's conversation keys, the one draw that is made from ``np_random``."""
    return generator.integers(2**64, dtype=np.uint64)
