"""Let common learners learn every scenario, and draw their curves.

    python benchmarks/learners.py --jobs 2

PPO, A2C and DQN of Stable-Baselines3 and MaskablePPO of sb3-contrib with their default settings, and textbook REINFORCE
(``examples/textbook_reinforce.py``), each with several seeds; then PPO and MaskablePPO with the settings of
``examples/hyperparameters/ppo.yml``. At each tenth of a training the likeliest acts are evaluated in the same
validation conversations. A training that is there already (a file in ``--out``) isn't repeated. Writes
``learners.png`` and ``learners.md`` into the folder ``--docs``.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parent.parent
SCENARIOS = ("customer_service", "education", "social")
DEFAULTS = {"PPO": 8, "MaskablePPO": 8, "A2C": 8, "DQN": 1, "REINFORCE": 1}
"""Learner to the number of environments that it learns in; SB3's DQN is made for one."""
TUNED = ("PPO", "MaskablePPO")
POINTS = 10


def main() -> None:
    options = read_options()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        ("default", *job, options.turns, options.conversations)
        for job in itertools.product(DEFAULTS, SCENARIOS, range(options.seeds))
    ]
    jobs += [
        ("tuned", *job, 1_000_000, options.conversations)
        for job in itertools.product(TUNED, SCENARIOS, range(options.tuned_seeds))
    ]
    jobs = [job for job in jobs if not path_of(options.out, job).exists()]
    jobs.sort(key=lambda job: job[3])  # one seed of everything first
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(learn, job, options.out): job for job in jobs}
        for number, done in enumerate(as_completed(waiting), 1):
            last = done.result()[-1]
            which = " ".join(map(str, waiting[done][:4]))
            print(f"{number} of {len(jobs)}: {which}: {last['success']:.1%}, {last['seconds']:.0f} s", flush=True)


def read_options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=250_000, help="of each training with default settings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuned-seeds", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=1000, help="in each evaluation")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("runs/learners"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    return parser.parse_args()


def path_of(out: Path, job: Any) -> Path:
    kind, name, scenario, seed, _, _ = job
    return out / f"{kind}-{name}-{scenario}-{seed}.json"


def learn(job: Any, out: Path) -> list[dict[str, float]]:
    """Train one learner, and write its evaluations."""
    import torch

    torch.set_num_threads(1)
    kind, name, scenario, seed, turns, conversations = job
    if name == "REINFORCE":
        points = learn_by_textbook(scenario, seed, turns, conversations)
    else:
        points = learn_by_sb3(kind, name, scenario, seed, turns, conversations)
    path_of(out, job).write_text(json.dumps(points), encoding="utf-8")
    return points


def learn_by_textbook(scenario: str, seed: int, turns: int, conversations: int) -> list[dict[str, float]]:
    import gymnasium as gym

    import chatgym  # noqa: F401

    sys.path.insert(0, str(ROOT / "examples"))
    from textbook_reinforce import Reinforce

    env = gym.make("ChatEnv-v0", scenario=scenario, llm="template", reward_model=None)
    agent = Reinforce(env, seed)
    measure = Measure(scenario, conversations, turns, lambda observations, masks: agent.best(observations))
    measure(0)
    agent.learn(turns, lambda taken, outcome: measure(taken))
    return measure.points


def learn_by_sb3(
    kind: str, name: str, scenario: str, seed: int, turns: int, conversations: int
) -> list[dict[str, float]]:
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback

    from chatgym.integrations.sb3 import ChatVecEnv

    settings: dict[str, Any] = tuned_settings() if kind == "tuned" else {"n_envs": DEFAULTS[name]}
    envs = ChatVecEnv.make(settings.pop("n_envs"), scenario=scenario, llm="template", reward_model=None)
    made_by = getattr(sb3_contrib if name == "MaskablePPO" else stable_baselines3, name)
    model = made_by("MlpPolicy", envs, seed=seed, device="cpu", **settings)

    def act(observations: Any, masks: Any) -> Any:
        more = {"action_masks": masks} if name == "MaskablePPO" else {}
        return model.predict(observations, deterministic=True, **more)[0]

    measure = Measure(scenario, conversations, turns, act)

    class Callback(BaseCallback):
        def _on_step(self) -> bool:
            measure(self.num_timesteps)
            return True

    measure(0)
    model.learn(turns, callback=Callback())
    measure(turns)
    return measure.points


def tuned_settings() -> dict[str, Any]:
    text = (ROOT / "examples" / "hyperparameters" / "ppo.yml").read_text(encoding="utf-8")
    settings = dict(yaml.safe_load(text)["ChatEnv-v0"])
    del settings["policy"], settings["n_timesteps"]
    keywords = ast.parse(settings["policy_kwargs"], mode="eval").body.keywords
    return {**settings, "policy_kwargs": {one.arg: ast.literal_eval(one.value) for one in keywords}}


class Measure:
    """Evaluates a policy at each tenth of its training."""

    def __init__(self, scenario: str, conversations: int, turns: int, act: Any) -> None:
        self.scenario, self.conversations, self.turns, self.act = scenario, conversations, turns, act
        self.points: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def __call__(self, taken: int) -> None:
        if taken < len(self.points) * self.turns / POINTS or len(self.points) > POINTS:
            return
        from chatgym.envs.vector_env import ChatVectorEnv
        from chatgym.training.trainer import VALIDATION_SEED

        envs = ChatVectorEnv(self.conversations, scenario=self.scenario, llm="template", reward_model=None)
        observations, infos = envs.reset(seed=VALIDATION_SEED)
        going, returns = np.ones(self.conversations, bool), np.zeros(self.conversations)
        while going.any():
            actions = self.act(observations, infos["action_mask"])
            observations, rewards, terminated, truncated, infos = envs.step(actions, active=going)
            returns += rewards
            going &= ~(terminated | truncated)
        outcomes = np.array(envs.scenario.outcomes, object)[envs.room.outcomes]
        self.points.append({
            "turns": taken, "success": float((outcomes == envs.scenario.success).mean()),
            "return": float(returns.mean()), "seconds": time.perf_counter() - self.began,
        })  # fmt: skip


if __name__ == "__main__":
    main()
