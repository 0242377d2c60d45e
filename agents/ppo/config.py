"""The settings of the agent `ppo`, each a command-line option; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chatgym.agent import Range, setting
from chatgym.errors import InvalidValue


@dataclass(frozen=True)
class Config:
    """Hyperparameters and how the training runs; docs/ppo.md says where the defaults come from."""

    model: str = setting("smollm2-135m", "starting model: smollm2-135m, or a folder, such as one of `chatgym sft`")
    advantage: Literal["gae", "rloo", "grpo"] = setting(
        "gae", "gae: from a value function; rloo, grpo: from a comparison of conversations with the same beginning"
    )
    batch: int = setting(128, "conversations in an iteration, over all processes", low=1)
    group: int = setting(1, "how many of them share a beginning; rloo and grpo need at least 2", low=1)
    epochs: int = setting(1, "passes over the conversations of an iteration", low=1, tune=(1, 2, 4))
    minibatches: int = setting(8, "optimizer steps in an epoch", low=1)
    micro_batch: int = setting(8, "most conversations in a forward pass of one process", low=1)
    learning_rate: float = setting(
        0.0, "step size; 0: 3e-4 below 10 million weights, 2e-4 with LoRA, else 1e-5", low=0.0, high=1.0,
        tune=Range(1e-5, 1e-3, log=True),
    )  # fmt: skip
    discount_factor: float = setting(1.0, "γ, from one token to the next", low=0.0, high=1.0)
    gae_lambda: float = setting(
        1.0, "λ of generalised advantage estimation, from token to token in a turn", low=0.0, high=1.0
    )
    turn_lambda: float = setting(0.95, "λ from one turn to the next", low=0.0, high=1.0, tune=Range(0.8, 1.0))
    value_warmup: int = setting(2, "iterations at the beginning that learn values only", low=0)
    whiten: bool = setting(True, "shift and scale advantages to mean 0, variance 1")
    clip_ratio: float = setting(0.2, "ε of the clipped policy loss", low=0.0)
    clip_value: float = setting(0.0, "how far a value may move in an iteration; 0: no limit", low=0.0)
    value_coefficient: float = setting(0.1, "weight of the value loss", low=0.0)
    entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", low=0.0)
    critic: Literal["state", "shared", "separate"] = setting(
        "state", "input of the value function: the simulator's state, the policy's trunk, or a separate trunk"
    )
    kl_coefficient: float = setting(
        0.02, "β: penalty on a nat of divergence from the starting model", low=0.0, tune=Range(0.01, 0.2, log=True)
    )
    kl_estimator: Literal["k1", "k3"] = setting("k1", "estimator of the divergence at a sampled token")
    kl_target: float = setting(0.0, "divergence in nats per token that β is adapted to; 0: β is fixed", low=0.0)
    target_kl: float = setting(
        0.1, "change of the policy in nats per token that ends an iteration's epochs; 0: none does", low=0.0
    )
    clip_reward: float = setting(5.0, "limit of a turn's reward, ±", low=0.0)
    max_grad_norm: float = setting(1.0, "limit of the gradient's norm", low=0.0)
    temperature: float = setting(
        1.0, "sampling temperature in training; evaluation takes the most likely tokens", low=0.01
    )
    top_p: float = setting(
        1.0, "sample among the most likely tokens that have this probability together", low=0.01, high=1.0
    )
    top_k: int = setting(0, "sample among this many of the most likely tokens; 0: all", low=0)
    max_new_tokens: int = setting(48, "most tokens in a turn", low=1)
    max_length: int = setting(1024, "tokens at which a conversation is truncated", low=64)
    lora: int = setting(0, "rank of LoRA's matrices, which alone are trained; 0: train all weights", low=0)
    zero: int = setting(1, "ZeRO stage", low=0, high=3)
    bf16: bool = setting(False, "compute in bfloat16 (faster on GPUs)")
    gradient_checkpointing: bool = setting(False, "recompute activations instead of storing them")
    deepspeed: str = setting("", "file with more settings in DeepSpeed's JSON format")
    partner: str = setting("template", "what generates the partner's words in training: template, or a model")
    reward_model: str = setting(
        "", "reward model added to the task's reward: default, a folder of `chatgym reward train`, ..."
    )
    reward_model_weight: float | None = setting(
        None, "weight of its score of a turn; if not given 0.05, or 1 with --no-task-reward", low=0.0
    )
    task_reward: bool = setting(True, "learn from the task's reward; without it, from the reward model alone")
    held_out: str = setting("", "reward model that is only watched, for the alarm; if empty, the task's outcome")
    stop_on_alarm: bool = setting(False, "stop when the trained reward rises while the held-out measure falls")
    rollout_llm: str = setting(
        "", "server that generates the agent's turns, openai:URL#NAME; it loads the adapter, so lora is needed"
    )
    rollout_folder: str = setting("runs/rollout", "folder in which that server finds the adapter")

    @property
    def values_from(self) -> str:
        """Which value function is used, see `critic`; empty where the advantages need none."""
        return self.critic if self.advantage == "gae" else ""

    @property
    def judge_weight(self) -> float | None:
        """Weight of the reward model's score; None where the environment's own stays."""
        return 1.0 if self.reward_model_weight is None and not self.task_reward else self.reward_model_weight

    @property
    def value_weight(self) -> float:
        """Weight of the value loss in the policy's loss; 0 where no gradient step learns values."""
        return self.value_coefficient if self.values_from in ("shared", "separate") else 0.0


def check(config: Config) -> None:
    """Check that settings go together.

    Raises:
        InvalidValue: They don't.
    """
    if config.advantage != "gae" and config.group < 2:
        raise InvalidValue(
            f"advantage {config.advantage} compares conversations that began alike: set group to 2 or more"
        )
    if config.batch % config.group:
        raise InvalidValue(f"batch {config.batch} isn't a multiple of group {config.group}")
    if config.batch % config.minibatches:
        raise InvalidValue(f"batch {config.batch} isn't a multiple of minibatches {config.minibatches}")
    if not config.reward_model and (not config.task_reward or config.reward_model_weight is not None):
        raise InvalidValue("there is no reward model to learn from; name one (--reward-model), such as default")
    if config.rollout_llm and not config.lora:
        raise InvalidValue("a server takes adapters only, so rollout_llm needs lora: set it to 8 or so")
    if config.rollout_llm and (config.top_p < 1 or config.top_k):
        raise InvalidValue("a server doesn't tell which tokens top_p and top_k leave out: no rollout_llm with them")
    if config.rollout_llm and config.advantage == "gae" and config.critic == "shared":
        raise InvalidValue("a server knows no values: no rollout_llm with critic shared; use state or separate")
    if config.max_length <= config.max_new_tokens:
        raise InvalidValue("max_length leaves no room for max_new_tokens; raise it")
