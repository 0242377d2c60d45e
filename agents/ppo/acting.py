"""A trained policy that takes part in conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.engines.transformers import pick_device, pick_dtype
from chatgym.finetuning import models

from .policy import Coefficients, Policy
from .sampling import Sampling
from .turns import OwnTurns

if TYPE_CHECKING:
    from .agent import PPO

CHUNK = 128
"""Conversations whose next tokens are computed together at most."""


def sampling_of(config: Any) -> Sampling:
    """Return how the policy of some settings samples."""
    return Sampling(config.temperature, config.top_p, config.top_k)


def critic_of(config: Any) -> str:
    """Return where the values of some settings come from: a critic's name; nothing where advantages need none."""
    return str(config.critic) if config.advantage == "gae" else ""


def coefficients_of(config: Any) -> Coefficients:
    """Return what the loss of some settings is made of."""
    value = config.value_coefficient if critic_of(config) in ("shared", "separate") else 0.0
    return Coefficients(config.clip_ratio, config.clip_value, value, config.entropy_coefficient)


def load_policy(config: Any, source: Path) -> Policy:
    """Load the model in a folder, to act as the policy of some settings."""
    device = pick_device()
    model = models.load(source, pick_dtype(device) if config.bf16 else torch.float32)
    policy = Policy(model, sampling_of(config), coefficients_of(config), separate_critic=False)
    return policy.to(device).eval()


def make_turns(agent: PPO, size: int, deterministic: bool) -> list[tuple[int, OwnTurns]]:
    """Return B conversations that an agent takes part in, in chunks; with each the number of its first one."""
    policy, config, source = agent.policy(), agent.config, agent.tokenizer_folder()
    policy.eval()
    sampling = sampling_of(config)
    if deterministic:
        sampling = replace(sampling, temperature=0.0)
    device, tokenizer = next(policy.parameters()).device, ChatTokenizer(str(source))
    return [
        (at, OwnTurns(policy, tokenizer, min(CHUNK, size - at), sampling, config.max_new_tokens, device))
        for at in range(0, size, CHUNK)
    ]
