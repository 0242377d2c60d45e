"""Talk: a room with its interfaces and its words. What `ChatEnv` and `ChatVectorEnv` share.

Data takes one path: actions -> codec -> room -> NLG -> observation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym import interfaces
from chatgym.engines import Engine, make_engine
from chatgym.errors import unknown
from chatgym.nlg import Speaker
from chatgym.room import ChatRoom, loops_digest
from chatgym.scenarios import Scenario

DEFAULT_LLM = "smollm2-135m"
SIMULATORS = ("agenda",)


def find_scenario(scenario: str | Scenario) -> Scenario:
    """Return a scenario by name (built in or a plugin's), or the one given.

    Raises:
        InvalidValue: When no plugin registered that name.
    """
    if isinstance(scenario, Scenario):
        return scenario
    from chatgym import plugins

    found = plugins.load().scenarios
    if scenario not in found:
        raise unknown("scenario", scenario, found, "`chatgym scenarios` lists them.")
    resolved: Scenario = found[scenario]
    return resolved


class Talk:
    """B conversations as an environment sees them: interfaces on one side, words on the other.

    Attributes:
        room: The dynamics.
        speaker: NLG, or None until words are asked for the first time.
        texts: What the partner said last, B strings; empty without words.
        agent_texts: What the agent said last, likewise.
    """

    def __init__(
        self,
        size: int,
        *,
        scenario: str | Scenario = "customer_service",
        action: str = "act",
        observation: str = "embedding",
        llm: str | Engine = DEFAULT_LLM,
        simulator: str = "agenda",
        reward_model: str | None = "default",
        reward_weights: Mapping[str, float] | None = None,
        max_turns: int | None = None,
        error_rate: float = 0.1,
        texts: bool = False,
    ) -> None:
        """See `chatgym.env.ChatEnv` for the arguments; `texts` asks for words whatever the observation is."""
        if simulator not in SIMULATORS:
            raise unknown("simulator", simulator, SIMULATORS)
        if reward_model not in ("default", None):
            raise unknown("reward model", reward_model, ("default",), "Or None, for the task's own reward.")
        self.scenario = find_scenario(scenario)
        self.action, self.observation, self.simulator = action, observation, simulator
        self.single_action_space = interfaces.action_space(self.scenario, action)
        self.single_observation_space = interfaces.observation_space(self.scenario, observation)
        self.room = ChatRoom(
            self.scenario, size, error_rate=error_rate, max_turns=max_turns, reward_weights=reward_weights
        )
        self.worded = texts or observation == "text"
        self.engine = make_engine(llm) if self.worded else None
        self.speaker = Speaker(self.scenario, self.engine) if self.worded else None
        self.texts = [""] * size if self.worded else []
        self.agent_texts = [""] * size if self.worded else []

    def start(self, rows: npt.NDArray[np.bool_] | None = None, keys: npt.NDArray[np.uint64] | None = None) -> None:
        """Begin the next conversation in some rows (all, if None), or those of given keys, uint64[B]."""
        self.room.start(rows, keys)
        if self.worded:
            self._word_partner(rows)
            for i in self._indices(rows):
                self.agent_texts[i] = ""

    def step(self, acts: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_] | None = None) -> None:
        """Take one agent act, int64[B], in some rows (all, if None)."""
        if self.worded:
            self._word_agent(acts, rows)
        self.room.step(acts, rows)
        if self.worded:
            self._word_partner(rows)

    def observe(self) -> Any:
        """Return the observations, see `chatgym.interfaces.observe`."""
        return interfaces.observe(self.room, self.observation, self.texts)

    def identity(self) -> dict[str, Any]:
        """Name all that decides the course of a conversation, each with a version and a content hash.

        ``sha256`` covers what decides outcomes and rewards, not the words or the observation: two scores may be
        compared when it is the same.
        """
        scenario, room = self.scenario, self.room
        deciding: dict[str, Any] = {
            "scenario": {"name": scenario.name, "version": scenario.version, "sha256": scenario.digest},
            "simulator": {"name": self.simulator, "version": 1, "sha256": loops_digest()},
            "error_model": {
                "name": "semantic",
                "version": 1,
                "sha256": scenario.digest,
                "rate": room.error_rate,
            },
            "nlu": None,  # acts are given, not understood from text
            "reward": {
                "version": scenario.version,
                "sha256": scenario.digest,
                "weights": room.reward_weights,
            },
            "max_turns": room.max_turns,
        }
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
        words = self.speaker.identity() if self.speaker else None
        return {"env": "ChatEnv-v0", "sha256": digest, **deciding, "action": self.action,
                "observation": self.observation, "words": words}  # fmt: skip

    def close(self) -> None:
        """Free the model, if there is one."""
        if self.engine is not None:
            self.engine.close()

    def _indices(self, rows: npt.NDArray[np.bool_] | None) -> list[int]:
        indices: list[int] = (np.arange(self.room.size) if rows is None else np.flatnonzero(rows)).tolist()
        return indices

    def _word_partner(self, rows: npt.NDArray[np.bool_] | None) -> None:
        assert self.speaker is not None
        chosen, room = self._indices(rows), self.room
        meanings = [self.scenario.partner_meaning(room.said[i]) for i in chosen]
        for i, text in zip(chosen, self.speaker.say(meanings, room.keys[chosen], room.turns[chosen]), strict=True):
            self.texts[i] = text

    def _word_agent(self, acts: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_] | None) -> None:
        assert self.speaker is not None
        chosen, room = self._indices(rows), self.room
        meanings = [self.scenario.agent_meaning(int(acts[i]), room.belief[i]) for i in chosen]
        said = self.speaker.say(meanings, room.keys[chosen], room.turns[chosen] + 1, "agent")
        for i, text in zip(chosen, said, strict=True):
            self.agent_texts[i] = text


def root_of(generator: np.random.Generator) -> np.uint64:
    """Draw the root of a row's conversation keys, the one draw that is made from ``np_random``."""
    return generator.integers(2**64, dtype=np.uint64)
