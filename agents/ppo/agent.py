"""The agent `ppo`: learns, acts, saves and loads. Torch is imported when a model is first needed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from chatgym.agent import Callback, Interface, MakeEnvs, make_config
from chatgym.errors import Corrupted
from chatgym.rewards.term import NAME
from chatgym.scenarios import Scenario, find_scenario, versioned
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json

from .config import Config, check

if TYPE_CHECKING:
    from .policy import Policy
    from .training import Training
    from .turns import OwnTurns

CHUNK = 128
"""Conversations whose next tokens are computed together at most."""


class PPO:
    """A language model that learns by PPO, token by token, to hold better conversations.

    It starts from a model that can already talk, such as one of `chatgym sft`, and learns from whole conversations. The
    reward of a turn is the environment's, minus a penalty for the divergence from the starting model. The folder model/
    of a run holds a model in transformers' format: `chatgym serve --llm hf:RUN/model` serves it.
    """

    requires = Interface(action="text", observation="text")
    default_steps: ClassVar[int] = 50_000
    default_conversations: ClassVar[int] = 200
    default_evaluations: ClassVar[int] = 10
    log_iterations: ClassVar[bool] = True
    several_processes: ClassVar[bool] = True
    Config = Config

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """Make an untrained agent, see `chatgym.agent.Agent`; the model is loaded when it is first needed.

        Raises:
            InvalidValue: Settings don't go together.
        """
        self.scenario, self.seed = scenario, seed
        self.config: Config = config or Config()
        check(self.config)
        self.turns = 0
        self._folder: Path | None = None  # where it was loaded from
        self._training: Training | None = None
        self._loaded: Policy | None = None  # to act without a training
        self._keys: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._taken = 0  # turns since the conversations began
        self._chunks: list[tuple[int, OwnTurns]] = []

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Train, see `chatgym.agent.Agent`.

        Raises:
            LogprobsDiffer: See `iteration.Learner`.
            Unavailable: Out of memory, or DeepSpeed isn't installed.
        """
        if self.turns >= total_steps:
            return
        from .training import Training

        if self._training is None:
            self._training, self._loaded = Training(self.scenario, self.config, self.seed, self._folder), None
        training, config = self._training, self.config
        envs = make_envs(training.share, llm=config.partner, reward_model=config.reward_model or None)
        if config.judge_weight is not None:
            envs.reward_weights = {**envs.reward_weights, NAME: config.judge_weight}
        try:
            while self.turns < total_steps and not training.stopped:
                taken, metrics = training.iterate(envs)
                self.turns += taken
                if self.turns >= total_steps or training.stopped:
                    training.finish()  # first, so that the callback measures and saves what is kept
                callback(self.turns, metrics)
        finally:
            envs.close()

    def begin(self, keys: npt.NDArray[np.uint64]) -> None:
        """Begin B conversations with these keys, uint64[B], which decide the samples that are drawn."""
        self._keys, self._taken, self._chunks = keys, 0, []

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> list[str]:
        """Reply in B conversations.

        Args:
            observations: B texts, the partner's last words; ``""`` where a conversation is over.
            deterministic: Whether to take the most likely tokens; else they are sampled as in training.
            action_masks: None.

        Returns:
            B texts; ``""`` where a conversation is over or fills the model's context.
        """
        from .turns import speech_seeds

        heard = list(observations)
        if len(heard) != len(self._keys):
            self.begin(np.arange(len(heard), dtype=np.uint64))
        if not self._chunks:
            self._chunks = self._turns(len(heard), deterministic)
        said = [""] * len(heard)
        for start, turns in self._chunks:
            rows = [row for row in range(len(turns.history.ids)) if heard[start + row]]
            for row in rows:
                turns.hear(row, heard[start + row])
            rows = [row for row in rows if turns.fits(row)]
            if not rows:
                continue
            keys, taken = self._keys[[start + row for row in rows]], np.full(len(rows), self._taken)
            for row, turn in zip(rows, turns.speak(rows, speech_seeds(keys, taken, [0] * len(rows))), strict=True):
                said[start + row] = turns.text(turn)
            if len(heard) > CHUNK * 4:
                turns.forget()
        self._taken += 1
        return said

    def policy(self) -> Policy:
        """Return the network that acts."""
        if self._training is not None:
            return self._training.learner.systems.actor
        if self._loaded is None:
            from .systems import load_policy

            self._loaded = load_policy(self.config, self._source())
        return self._loaded

    def save(self, folder: Path) -> None:
        """Write the model in transformers' format, ``agent.json``, and ``training/``, from which training resumes."""
        folder = given(folder)
        scenario = versioned(self.scenario.name, self.scenario.version)
        about = {"agent": "ppo", "version": 1, "scenario": scenario, "seed": self.seed,
                 "turns": self.turns, "config": asdict(self.config)}  # fmt: skip
        if self._training is not None and not self._training.save(folder):
            return
        (folder / "agent.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if self._training is not None:
            return
        from chatgym.finetuning import models

        source = self._source()
        models.save(models.load(source), source, folder)
        if self._folder is not None and (self._folder / "training").is_dir():
            shutil.copytree(self._folder / "training", folder / "training")

    @classmethod
    def load(cls, folder: Path) -> PPO:
        """Read back what `save` wrote.

        Raises:
            Corrupted: ``agent.json`` can't be read.
        """
        folder = given(folder)
        try:
            about = read_json(folder / "agent.json")
            config = make_config(cls.Config, about["config"])
            agent = cls(find_scenario(about["scenario"]), config, seed=int(about["seed"]))
            agent.turns = int(about["turns"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Corrupted(f"the PPO agent in {folder} can't be read ({error}); train it again") from error
        agent._folder = folder
        return agent

    def _source(self) -> Path:
        """Return the folder of the model that it was loaded from or starts from."""
        from chatgym.finetuning import models

        return self._folder or models.folder_of(self.config.model)

    def _turns(self, size: int, deterministic: bool) -> list[tuple[int, OwnTurns]]:
        """Return B empty conversations in chunks, each with the number of its first conversation."""
        from chatgym.engines.tokenizer import ChatTokenizer

        from .turns import OwnTurns

        policy, tokenizer = self.policy().eval(), ChatTokenizer(str(self._source()))
        return [
            (at, OwnTurns(policy, tokenizer, min(CHUNK, size - at), greedy=deterministic))
            for at in range(0, size, CHUNK)
        ]
