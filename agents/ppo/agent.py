"""The agent `ppo`: its settings, and what an agent does (learn, act, save, load) with a language model."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from chatgym.agent import Callback, Interface, MakeEnvs, Range, make_config, setting
from chatgym.errors import Corrupted, InvalidValue
from chatgym.scenarios import Scenario
from chatgym.words.charset import MAX_CHARS, clean

if TYPE_CHECKING:
    from .training import Training
    from .turns import OwnTurns


class PPO:
    """A language model that learns by PPO, token by token, to hold better conversations.

    It starts from a model that can already talk, best one of `chatgym sft`, and learns from whole conversations: the
    reward of each turn, less what it costs to drift away from the model it began as. The run's model/ is a model as
    transformers writes them: `chatgym serve --llm hf:RUN/model` serves it.
    """

    requires: ClassVar[Interface] = Interface(action="text", observation="text")
    default_steps: ClassVar[int] = 50_000
    default_conversations: ClassVar[int] = 200
    default_evaluations: ClassVar[int] = 10
    several_processes: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Config:
        """How it learns; docs/ppo.md says where the defaults come from."""

        model: str = setting("smollm2-135m", "what it starts from: smollm2-135m, or a folder, as of `chatgym sft`")
        advantage: Literal["gae", "rloo", "grpo"] = setting(
            "gae", "gae: by a value function; rloo, grpo: by comparing conversations that began alike"
        )
        batch: int = setting(128, "conversations of an iteration, over all processes", low=1)
        group: int = setting(1, "conversations of them that begin alike; rloo and grpo need 2 at least", low=1)
        epochs: int = setting(1, "how often an iteration's conversations are learned from", low=1, tune=(1, 2, 4))
        minibatches: int = setting(8, "steps of the optimizer in an epoch", low=1)
        micro_batch: int = setting(8, "conversations of a forward pass in one process, at most", low=1)
        learning_rate: float = setting(
            0.0, "step size; 0: 3e-4 below 10 million weights, 2e-4 with LoRA, else 1e-5", low=0.0, high=1.0,
            tune=Range(1e-5, 1e-3, log=True),
        )  # fmt: skip
        discount_factor: float = setting(1.0, "γ: the worth of a reward one token later", low=0.0, high=1.0)
        gae_lambda: float = setting(
            1.0, "λ of generalised advantage estimation, from token to token of a turn", low=0.0, high=1.0
        )
        turn_lambda: float = setting(0.95, "λ from a turn to the next", low=0.0, high=1.0, tune=Range(0.8, 1.0))
        value_warmup: int = setting(2, "first iterations, in which only values are learned", low=0)
        whiten: bool = setting(True, "advantages are shifted and scaled to mean 0, variance 1")
        clip_ratio: float = setting(0.2, "ε of the clipped policy loss", low=0.0)
        clip_value: float = setting(0.0, "how far a value may move in an iteration; 0: however far", low=0.0)
        value_coefficient: float = setting(0.1, "weight of the value loss", low=0.0)
        entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", low=0.0)
        critic: Literal["state", "shared", "separate"] = setting(
            "state", "where values come from: the simulator's state, the policy's trunk, or a trunk of their own"
        )
        kl_coefficient: float = setting(
            0.02, "β: what a nat of divergence from the starting model costs", low=0.0, tune=Range(0.01, 0.2, log=True)
        )
        kl_estimator: Literal["k1", "k3"] = setting("k1", "how the divergence is estimated, by the token sampled")
        kl_target: float = setting(0.0, "nats a token that the coefficient is steered to; 0: it is fixed", low=0.0)
        target_kl: float = setting(0.1, "nats a token moved at which an iteration's epochs stop; 0: never", low=0.0)
        clip_reward: float = setting(5.0, "a turn's reward is cut to ± this", low=0.0)
        max_grad_norm: float = setting(1.0, "gradients are cut to this norm", low=0.0)
        temperature: float = setting(1.0, "of the words while training; evaluation takes the likeliest", low=0.01)
        top_p: float = setting(1.0, "sample among the likeliest that have this share together", low=0.01, high=1.0)
        top_k: int = setting(0, "sample among this many of the likeliest; 0: all", low=0)
        max_new_tokens: int = setting(48, "most tokens of a turn", low=1)
        max_length: int = setting(1024, "tokens at which a conversation is broken off", low=64)
        lora: int = setting(0, "train LoRA's matrices of that rank only; 0: all weights", low=0)
        zero: int = setting(1, "ZeRO stage", low=0, high=3)
        bf16: bool = setting(False, "compute in bfloat16 (pays on GPUs)")
        gradient_checkpointing: bool = setting(False, "compute activations twice rather than keep them")
        deepspeed: str = setting("", "file of more settings in DeepSpeed's JSON form")
        partner: str = setting("template", "who words the partner while training: template, or a model")
        reward_model: str = setting(
            "", "what is learned from beside the task's reward: default, a folder of `chatgym reward train`, ..."
        )
        held_out: str = setting("", "reward model that isn't trained on, to watch; the task's outcome without one")
        stop_on_alarm: bool = setting(False, "stop where the trained reward rises and the held-out measure falls")
        rollout_llm: str = setting(
            "", "server that holds the conversations, openai:URL#NAME; it is given the adapter, so it needs lora"
        )
        rollout_folder: str = setting("runs/rollout", "where that server finds the adapter")

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """Begin with the model of the settings, see `chatgym.agent.Agent`; nothing is loaded before it is needed.

        Raises:
            InvalidValue: Settings that don't go together.
        """
        self.scenario, self.config, self.seed = scenario, config or self.Config(), seed
        _check(self.config)
        self.turns = 0
        self._folder: Path | None = None  # where it was loaded from
        self._training: Training | None = None
        self._policy: Any = None  # as loaded to act
        self._keys: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._taken: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._chunks: list[tuple[int, OwnTurns]] = []

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Train, see `chatgym.agent.Agent`.

        Raises:
            LogprobsDiffer: See `Learner.learn`.
            Unavailable: Out of memory, or DeepSpeed isn't installed.
        """
        if self.turns >= total_steps:
            return
        from .training import Training

        if self._training is None:
            self._training = Training(self, self._folder)
            self._policy = None
        self._training.run(make_envs, total_steps, callback)

    def begin(self, keys: npt.NDArray[np.uint64]) -> None:
        """Begin B conversations of these keys, uint64[B]: what it says in one follows from its key."""
        self._keys, self._taken, self._chunks = keys, np.zeros(len(keys), np.int64), []

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> Any:
        """Answer in B conversations.

        Args:
            observations: B texts, the partner's last words; ``""`` where nothing is to be answered.
            deterministic: Whether to say the likeliest; else words are sampled as in training.
            action_masks: None.

        Returns:
            B texts.
        """
        from .acting import CHUNK, make_turns
        from .rollout import speech_seeds

        heard = list(observations)
        if len(heard) != len(self._keys):
            self.begin(np.arange(len(heard), dtype=np.uint64))
        if not self._chunks:
            self._chunks = make_turns(self, len(heard), deterministic)
        said = [""] * len(heard)
        for start, turns in self._chunks:
            rows = [row for row in range(len(turns.history.ids)) if heard[start + row]]
            for row in rows:
                turns.hear(row, heard[start + row])
            rows = [row for row in rows if turns.fits(row)]  # who is past the model's context is silent
            if not rows:
                continue
            at = [start + row for row in rows]
            seeds = speech_seeds(self._keys[at], self._taken[at], [0] * len(rows))
            for row, turn in zip(rows, turns.speak(rows, seeds), strict=True):
                said[start + row] = clean(turns.text(turn))[:MAX_CHARS]
            if len(heard) > CHUNK * 4:
                turns.forget()
        self._taken += 1
        return said

    def policy(self) -> Any:
        """Return the network that acts."""
        if self._training is not None:
            return self._training.learner.actor
        if self._policy is None:
            from .acting import load_policy

            self._policy = load_policy(self.config, self.tokenizer_folder())
        return self._policy

    def tokenizer_folder(self) -> Path:
        """Return the folder of the model that it is or began as."""
        from chatgym.finetuning import models

        return self._folder or models.folder_of(self.config.model)

    def save(self, folder: Path) -> None:
        """Write the model as transformers does, ``agent.json``, and ``training/``: all that goes on training."""
        about = {"agent": "ppo", "version": 1, "scenario": self.scenario.name, "seed": self.seed,
                 "turns": self.turns, "config": asdict(self.config)}  # fmt: skip
        if self._training is not None and not self._training.save(folder):
            return
        (folder / "agent.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if self._training is not None:
            return
        from chatgym.finetuning import models

        source = self.tokenizer_folder()
        models.save(models.load(source), source, folder)
        if self._folder is not None and (self._folder / "training").is_dir():
            shutil.copytree(self._folder / "training", folder / "training")

    @classmethod
    def load(cls, folder: Path) -> PPO:
        """Read back what `save` wrote."""
        from chatgym.scenarios import find_scenario

        try:
            about = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
            config = make_config(cls.Config, about["config"])
            agent = cls(find_scenario(about["scenario"]), config, seed=int(about["seed"]))
            agent.turns = int(about["turns"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Corrupted(f"the PPO agent in {folder} can't be read ({error}); train it again") from error
        agent._folder = folder
        return agent


def _check(config: PPO.Config) -> None:
    if config.advantage != "gae" and config.group < 2:
        raise InvalidValue(
            f"advantage {config.advantage} compares conversations that began alike: set group to 2 or more"
        )
    if config.batch % config.group:
        raise InvalidValue(f"batch {config.batch} isn't a multiple of group {config.group}")
    if config.batch % config.minibatches:
        raise InvalidValue(f"batch {config.batch} isn't a multiple of minibatches {config.minibatches}")
    if config.rollout_llm and not config.lora:
        raise InvalidValue("a server takes adapters only, so rollout_llm needs lora: set it to 8 or so")
    if config.rollout_llm and (config.top_p < 1 or config.top_k):
        raise InvalidValue("a server doesn't tell which tokens top_p and top_k leave out: no rollout_llm with them")
    if config.rollout_llm and config.advantage == "gae" and config.critic == "shared":
        raise InvalidValue("a server knows no values: no rollout_llm with critic shared; use state or separate")
    if config.max_length <= config.max_new_tokens:
        raise InvalidValue("max_length leaves no room for max_new_tokens; raise it")
