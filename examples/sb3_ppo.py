"""Train Stable-Baselines3's PPO and sb3-contrib's MaskablePPO in conversations: ``python examples/sb3_ppo.py``.

`ChatVecEnv` is a VecEnv of SB3 with the masks that MaskablePPO needs. The settings are those of
``hyperparameters/ppo.yml``, with which PPO learns every scenario. Requires `pip install sb3-contrib`.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import PPO
from torch import nn

from chatgym.integrations.sb3 import ChatVecEnv

SETTINGS = Path(__file__).parent / "hyperparameters" / "ppo.yml"


def settings() -> dict[str, Any]:
    """Return the settings, which are in the form of RL Baselines3 Zoo.

    ``lin_0.001`` is a learning rate that falls linearly to 0; ``policy_kwargs`` is a text, ``dict(...)``.
    """
    found = dict(yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))["ChatEnv-v0"])
    first = float(found["learning_rate"].removeprefix("lin_"))
    keywords = ast.parse(found["policy_kwargs"], mode="eval").body.keywords  # type: ignore[attr-defined]
    values = {one.arg: one.value for one in keywords}
    activation = getattr(nn, values.pop("activation_fn").attr)
    policy = {name: ast.literal_eval(value) for name, value in values.items()}
    return {
        **found, "learning_rate": lambda left: first * left, "policy_kwargs": {**policy, "activation_fn": activation},
    }  # fmt: skip


def success_rate(model: PPO | MaskablePPO, scenario: str, conversations: int) -> float:
    """Return the share of successes in test conversations, which no training can contain."""
    envs = ChatVecEnv.make(conversations, scenario=scenario, llm="template")
    envs.seed(0)
    envs.set_options({"split": "test"})
    observations, first = envs.reset(), {}
    while len(first) < conversations:  # of each row its first conversation
        masks = {"action_masks": get_action_masks(envs)} if isinstance(model, MaskablePPO) else {}
        actions, _ = model.predict(observations, deterministic=True, **masks)
        observations, _, dones, infos = envs.step(actions)
        for row in np.flatnonzero(dones):
            first.setdefault(row, infos[row]["is_success"])
    return float(np.mean(list(first.values())))


def main() -> None:
    """Train both algorithms, and print their success rates before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="customer_service")
    parser.add_argument("--turns", type=int, default=300_000, help="of training, for each of the two")
    parser.add_argument("--conversations", type=int, default=500, help="in each evaluation")
    options = parser.parse_args()
    for algorithm in (PPO, MaskablePPO):
        arguments = settings()
        policy, _ = arguments.pop("policy"), arguments.pop("n_timesteps")
        envs = ChatVecEnv.make(arguments.pop("n_envs"), scenario=options.scenario, llm="template")
        model = algorithm(policy, envs, seed=0, device="cpu", **arguments)
        before = success_rate(model, options.scenario, options.conversations)
        model.learn(options.turns)
        after = success_rate(model, options.scenario, options.conversations)
        print(f"{algorithm.__name__:12} success rate {before:6.1%} before, {after:6.1%} after {options.turns:,} turns")


if __name__ == "__main__":
    main()
