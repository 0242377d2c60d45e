"""A training of the agent `ppo`: iterations, the reward-hacking alarm, and checkpoints that resume exactly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.rewards import make_reward_model
from chatgym.scenarios import Scenario

from .config import Config
from .iteration import Learner, mean_reward
from .rollout import Conversation
from .systems import Systems, explained

BEST, VALUES = "best.safetensors", "values.safetensors"
MEMORY = 0.9
"""Weight of the past in the running means that are compared."""
NOISE = 3.0
"""Standard errors of an iteration's mean by which the held-out measure has to fall."""


@dataclass
class Alarm:
    """The reward-hacking alarm: rings when the trained reward rises while a measure that isn't trained on falls.

    Attributes:
        trained: Running mean of the trained reward; None before the first iteration.
        held_out: Running mean of the held-out measure; None before the first iteration.
        best: The highest running mean of the held-out measure so far.
        trained_at_best: The trained reward's running mean at that time.
        ringing: Whether the two have parted.
    """

    trained: float | None = None
    held_out: float | None = None
    best: float = float("-inf")
    trained_at_best: float = 0.0
    ringing: bool = False

    def note(self, trained: float, held_out: float, error: float) -> bool:
        """Add an iteration; returns whether the held-out measure's running mean is the best so far.

        Args:
            trained: Mean of the reward that is trained on.
            held_out: Mean of the measure that isn't.
            error: Standard error of that mean.
        """
        self.trained = trained if self.trained is None else MEMORY * self.trained + (1 - MEMORY) * trained
        self.held_out = held_out if self.held_out is None else MEMORY * self.held_out + (1 - MEMORY) * held_out
        if self.held_out > self.best:
            self.best, self.trained_at_best, self.ringing = self.held_out, self.trained, False
            return True
        # A running mean has that share of an iteration's error.
        noise = NOISE * error * ((1 - MEMORY) / (1 + MEMORY)) ** 0.5
        self.ringing = self.held_out < self.best - noise and self.trained > self.trained_at_best
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the state, JSON-able."""
        return {**asdict(self), "best": None if self.best == float("-inf") else self.best}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Alarm:
        """Return an alarm in the state that `to_json` gave."""
        best = float("-inf") if state["best"] is None else state["best"]
        return cls(**{**state, "best": best})


class Training:
    """Runs the iterations of an agent.

    Attributes:
        learner: The algorithm with its networks.
        alarm: Compares the trained reward with the held-out measure.
    """

    def __init__(self, scenario: Scenario, config: Config, seed: int, folder: Path | None = None) -> None:
        """Begin, or resume if `folder`, that of a saved agent, has a checkpoint.

        Raises:
            InvalidValue: See `Systems`.
            Corrupted: See `Systems`.
        """
        self.config, self._scenario = config, scenario
        saved = None if folder is None else folder / "training"
        with explained():
            systems = Systems(config, seed, saved)
        self.learner, self.alarm = Learner(config, systems, seed), Alarm()
        self._best: dict[str, torch.Tensor] = {}
        if state := systems.state:
            assert saved is not None
            self.alarm = Alarm.from_json(state["alarm"])
            self.learner.iteration, self.learner.kl_coefficient = state["iteration"], state["kl_coefficient"]
            self._best = load_file(saved / BEST)
            values = load_file(saved / VALUES)
            self.learner.values.set(values["gram"].numpy(), values["products"].numpy())
        self._held_out = make_reward_model(config.held_out or None, scenario)

    @property
    def share(self) -> int:
        """How many conversations of an iteration this process holds."""
        return self.config.batch // self.learner.systems.loop.world

    @property
    def stopped(self) -> bool:
        """Whether the alarm ends the training."""
        return self.alarm.ringing and self.config.stop_on_alarm

    def iterate(self, envs: ChatVectorEnv) -> tuple[int, dict[str, float]]:
        """Run an iteration in an environment of `share` rows; returns the number of turns taken, and metrics."""
        with explained():
            conversations, metrics = self.learner.iterate(envs, self._watch)
        return sum(len(one.ends) for one in conversations), metrics

    def finish(self) -> None:
        """End the training: restore the best weights if the alarm rings."""
        if self.alarm.ringing:
            self.learner.systems.loop.set_weights(self._best)
            self.learner.systems.refresh_actor()

    def save(self, folder: Path) -> bool:
        """Write the model and ``training/``; every process has to call it. Returns whether this one has written."""
        learner = self.learner
        state = {"iteration": learner.iteration, "kl_coefficient": learner.kl_coefficient,
                 "alarm": self.alarm.to_json()}  # fmt: skip
        values = {name: torch.from_numpy(getattr(learner.values, name)) for name in ("gram", "products")}
        return learner.systems.save(folder, state, {BEST: self._best, VALUES: values})

    def _watch(self, conversations: Sequence[Conversation]) -> dict[str, float]:
        """Compare the mean of the trained reward with the held-out measure, and keep the best weights by the latter."""
        trained = mean_reward(conversations)
        success = np.array([one.outcome == self._scenario.success for one in conversations], np.float64)
        measured = success  # float64[B]
        if self._held_out is not None:
            measured = self._held_out.score([one.messages for one in conversations]).astype(np.float64)
        loop, was = self.learner.systems.loop, self.alarm.ringing
        if self.alarm.note(trained, float(measured.mean()), float(measured.std() / math.sqrt(len(measured)))):
            self._best = loop.weights()
        if self.alarm.ringing and not was and loop.rank == 0:
            warnings.warn(
                f"the reward rises while the held-out measure falls (running mean {self.alarm.held_out:.3f}, best "
                f"{self.alarm.best:.3f}): it may be won without better conversations; the best weights are kept",
                stacklevel=2,
            )
        return {"success_rate": float(success.mean()), "held_out": float(measured.mean()),
                "alarm": float(self.alarm.ringing)}  # fmt: skip
