"""Agents that learn nothing: `Random`, `Constant` and `Expert`, the ends of the scale of scores."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from chatgym.agent import Callback, Interface, MakeEnvs, make_config
from chatgym.dynamics import rng
from chatgym.dynamics.room import Kernels, kernels
from chatgym.envs.interfaces import draw_allowed
from chatgym.errors import Corrupted, unknown
from chatgym.scenarios import Scenario, find_scenario, versioned
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json


class Scripted:
    """An agent that training does not change; a subclass defines how it acts."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    requires: Interface
    default_steps: ClassVar[int] = 0

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """See `chatgym.agent.Agent`."""
        self.scenario, self.seed = scenario, seed
        self.config: Any = config or self.Config()

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Do nothing: there is nothing to learn."""

    def save(self, folder: Path) -> None:
        """Write the scenario's name, the seed and the settings as JSON."""
        folder = given(folder)
        name = versioned(self.scenario.name, self.scenario.version)
        about = {"scenario": name, "seed": self.seed, "config": asdict(self.config)}
        (folder / "agent.json").write_text(json.dumps(about) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Any:
        """Read back what `save` wrote."""
        folder = given(folder)
        try:
            saved = read_json(folder / "agent.json")
            scenario, seed = str(saved["scenario"]), int(saved["seed"])
            config = make_config(cls.Config, saved.get("config"))  # agents without settings did not save any before
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupted(f"{folder / 'agent.json'} can't be read ({error}); save the agent again") from error
        return cls(find_scenario(scenario), config, seed=seed)


class Random(Scripted):
    """Takes one of the acts that the action mask allows, all with the same probability."""

    requires = Interface(action="act", observation="discrete")

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """See `chatgym.agent.Agent`."""
        super().__init__(scenario, config, seed=seed)
        self._calls = 0

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Draw acts int64[B] allowed by masks bool[B, A]; row i's at the t-th call is a function of (seed, i, t)."""
        if action_masks is None:
            action_masks = np.ones((len(observations), len(self.scenario.agent_acts)), bool)
        keys = (np.uint64(self.seed) << np.uint64(32)) + np.arange(len(observations), dtype=np.uint64)
        self._calls += 1
        return draw_allowed(action_masks, rng.uniform(keys, self._calls, 0))


class Constant(Scripted):
    """Always takes the same act, whatever it hears: what any agent should beat."""

    @dataclass(frozen=True)
    class Config:
        """The act; empty: the scenario's first one."""

        act: str = ""

    requires = Interface(action="act", observation="discrete")

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """See `chatgym.agent.Agent`.

        Raises:
            InvalidValue: The scenario has no such act.
        """
        super().__init__(scenario, config, seed=seed)
        act = self.config.act or scenario.agent_acts[0]
        if act not in scenario.agent_acts:
            raise unknown("act", act, scenario.agent_acts, "`--set act=NAME` names one.")
        self.constant_act = act
        self._act = scenario.agent_acts.index(act)

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the act, int64[B]."""
        return np.full(len(observations), self._act)


class Expert(Scripted):
    """Follows the scenario's scripted policy, a function of the belief state."""

    requires = Interface(action="act", observation="belief")

    @functools.cached_property
    def _loops(self) -> Kernels:
        return kernels(self.scenario)

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the script's acts int64[B] for belief states uint8[B, itemsize]."""
        beliefs = np.ascontiguousarray(observations).view(self.scenario.belief)[:, 0]
        acts = np.empty(len(beliefs), np.int64)
        self._loops.expert(beliefs, acts)
        return acts
