"""Turns a second of the environment, as ratios in one run: `python benchmarks/env_speed.py`.

Each figure is min / median / max over the runs; runs of the compared environments take turns, so that a machine
whose speed drifts doesn't favour one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import chatgym  # noqa: F401 (registers the environment)
from chatgym.vector import ChatVectorEnv

Step = Callable[[int], None]


def chat_vector(observation: str, batch: int) -> Step:
    envs = ChatVectorEnv(batch, observation=observation, llm="template")
    return stepper(envs, batch, 13)


def chat_sync(batch: int) -> Step:
    make = [lambda: gym.make("ChatEnv-v0", llm="template", observation="discrete")] * batch
    return stepper(gym.vector.SyncVectorEnv(make), batch, 13)


def cartpole(batch: int) -> Step:
    return stepper(gym.make_vec("CartPole-v1", batch, vectorization_mode="vector_entry_point"), batch, 2)


def stepper(envs: gym.vector.VectorEnv, batch: int, acts: int) -> Step:
    actions = np.random.default_rng(0).integers(0, acts, (64, batch))
    envs.reset(seed=0)
    return lambda i: envs.step(actions[i % 64])


def single() -> Step:
    env = gym.make("ChatEnv-v0", llm="template", observation="discrete")
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 13, 64).tolist()

    def step(i: int) -> None:
        if any(env.step(actions[i % 64])[2:4]):
            env.reset()

    return step


def rate(step: Step, batch: int, seconds: float) -> float:
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for i in range(20):
            step(done + i)
        done += 20
    return done * batch / passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 256, 1024, 8192])
    options = parser.parse_args()
    subjects: list[tuple[str, int, Step]] = [("single ChatEnv, gym.make", 1, single())]
    for batch in options.batches:
        subjects += [(f"ChatVectorEnv, {kind}", batch, chat_vector(kind, batch)) for kind in ("discrete", "embedding")]
        subjects.append(("CartPole-v1's vector env", batch, cartpole(batch)))
    subjects.append(("SyncVectorEnv over ChatEnv", 16, chat_sync(16)))
    rates: dict[tuple[str, int], list[float]] = {}
    for run in range(-1, options.runs):  # the first one warms up
        for name, batch, step in subjects:
            value = rate(step, batch, options.seconds)
            if run >= 0:
                rates.setdefault((name, batch), []).append(value)
    table = Table("environment", "B", "turns/s (min / median / max)", "of CartPole at this B")
    for (name, batch), values in rates.items():
        pole = rates.get(("CartPole-v1's vector env", batch))
        ratio = f"{statistics.median(a / b for a, b in zip(values, pole, strict=True)):.2f}" if pole else ""
        figures = " / ".join(f"{f(values):,.0f}" for f in (min, statistics.median, max))
        table.add_row(name, str(batch), figures, ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
