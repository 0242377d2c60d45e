"""The settings of the agent `ppo`, each a command-line option; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chatgym.agent import Range, setting
from chatgym.errors import InvalidValue


@dataclass(frozen=True)
class Config:
    """Hyperparameters and how the training runs; docs/ppo.md says where the defaults come from."""

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

    @property
    def values_from(self) -> str:
        """Which value function is used, see `critic`; empty where the advantages need none."""
        return self.critic if self.advantage == "gae" else ""

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
    if config.rollout_llm and not config.lora:
        raise InvalidValue("a server takes adapters only, so rollout_llm needs lora: set it to 8 or so")
    if config.rollout_llm and (config.top_p < 1 or config.top_k):
        raise InvalidValue("a server doesn't tell which tokens top_p and top_k leave out: no rollout_llm with them")
    if config.rollout_llm and config.advantage == "gae" and config.critic == "shared":
        raise InvalidValue("a server knows no values: no rollout_llm with critic shared; use state or separate")
    if config.max_length <= config.max_new_tokens:
        raise InvalidValue("max_length leaves no room for max_new_tokens; raise it")
