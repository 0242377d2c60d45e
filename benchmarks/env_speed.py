"""Measure turns per second beside other environments: ``python benchmarks/env_speed.py``.

Every subject runs for a slice of time, one after the other, round after round, so that a machine whose speed drifts
favours none; the figures are medians over the rounds. Use one core (``taskset -c 0``). The peers GEM and TextArena are
there after ``pip install -c constraints/cpu.txt '.[bench]'``. ``--write`` puts the result into ``docs/speed.md``.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import itertools
import os
import platform
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from rich.progress import track

from chatgym import plugins
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.scenarios import fill, find_scenario

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
POLE = "CartPole-v1's vector environment"


@dataclass
class Subject:
    """Something whose steps are counted: `step` takes one, of `turns` turns."""

    name: str
    turns: int
    step: Callable[[], object]


def vector(envs: gym.vector.VectorEnv, actions: Iterator) -> Callable[[], object]:
    envs.reset(seed=0)
    return lambda: envs.step(next(actions))


def random_acts(count: int, batch: int) -> Iterator:
    return itertools.cycle(np.random.default_rng(0).integers(0, count, (64, batch)))


def single(env: gym.Env, actions: Iterator) -> Callable[[], object]:
    env.reset(seed=0)

    def step() -> None:
        if any(env.step(next(actions))[2:4]):
            env.reset()

    return step


def chat_subjects(scenario: str, batches: list[int]) -> Iterator[Subject]:
    acts = len(find_scenario(scenario).agent_acts) - 1  # without the last one, which ends the conversation
    for batch in batches:
        for observation in ("discrete", "embedding"):
            envs = ChatVectorEnv(batch, scenario=scenario, observation=observation, llm="template")
            yield Subject(f"{scenario}, {observation}, B = {batch}", batch, vector(envs, random_acts(acts, batch)))

    def make() -> gym.Env:
        return gym.make("ChatEnv-v0", scenario=scenario, observation="discrete", llm="template")

    scalars = itertools.cycle(np.random.default_rng(0).integers(0, acts, 64).tolist())
    yield Subject(f"{scenario}, gym.make, with words", 1, single(make(), scalars))
    sync = gym.vector.SyncVectorEnv([make] * 16)
    yield Subject(f"{scenario}, SyncVectorEnv, B = 16", 16, vector(sync, random_acts(acts, 16)))


def text_subjects(batch: int) -> Iterator[Subject]:
    """Text in and text out, and the encoder alone over the same number of sentences that are all new."""
    from chatgym.words.encoder import encoder

    scenario = find_scenario("customer_service")
    known = [fill(t, {"topic": "a late delivery", **scenario.examples}) for ts in scenario.sentences["agent"].values()
             for t in ts]  # fmt: skip
    chosen = np.random.default_rng(0).integers(0, len(known), (64, batch))
    texts = itertools.cycle([[known[i] for i in row] for row in chosen])
    envs = ChatVectorEnv(batch, action="text", observation="text", llm="template")
    yield Subject(f"customer_service, text in and out, B = {batch}", batch, vector(envs, texts))
    numbers = itertools.count()
    yield Subject("the sentence encoder alone, new sentences", 64,
                  lambda: encoder()._forward([f"{t} {next(numbers)}" for t in known[:64]]))  # fmt: skip


def gymnasium_subjects(batches: list[int]) -> Iterator[Subject]:
    for batch in batches:
        envs = gym.make_vec("CartPole-v1", batch, vectorization_mode="vector_entry_point")
        yield Subject(f"{POLE}, B = {batch}", batch, vector(envs, random_acts(2, batch)))
    yield Subject("CartPole-v1, gym.make", 1, single(gym.make("CartPole-v1"), itertools.cycle([0, 1])))
    sync = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 16)
    yield Subject("CartPole-v1, SyncVectorEnv, B = 16", 16, vector(sync, random_acts(2, 16)))


def async_subjects() -> Iterator[Subject]:
    def make() -> gym.Env:
        return gym.make("ChatEnv-v0", observation="discrete", llm="template")

    envs = gym.vector.AsyncVectorEnv([make] * 4)
    yield Subject("customer_service, AsyncVectorEnv, B = 4", 4, vector(envs, random_acts(14, 4)))


def peer_subjects() -> Iterator[Subject]:
    try:
        import gem
        import textarena
    except ImportError:
        print("GEM and TextArena aren't installed: pip install -c constraints/cpu.txt '.[bench]'")
        return
    guess = gem.make("game:GuessTheNumber-v0-easy")
    guess.reset()
    answers = itertools.cycle([f"\\boxed{{{n}}}" for n in range(1, 11)])

    def guess_step() -> None:
        if any(guess.step(next(answers))[2:4]):
            guess.reset()

    yield Subject("GEM, GuessTheNumber", 1, guess_step)
    table = textarena.make("SimpleNegotiation-v0")
    table.reset(num_players=2)
    offers = itertools.cycle(["[Offer: 1 Wood -> 1 Brick]", "[Deny] No."])

    def table_step() -> None:
        table.get_observation()
        if table.step(next(offers))[0]:
            table.reset(num_players=2)

    yield Subject("TextArena, SimpleNegotiation", 1, table_step)


def qlearning_subject(batch: int, steps: int = 300) -> Subject:
    """The Q-learning trainer's whole loop, evaluation left out; `steps` of all conversations are one of the subject."""
    from chatgym_agents.qlearning import QLearning

    scenario = find_scenario("customer_service")
    agent = QLearning(scenario, QLearning.Config(num_envs=batch))

    def make(num_envs: int, **more: object) -> ChatVectorEnv:
        return ChatVectorEnv(num_envs, observation="discrete", llm="template", **more)

    def step() -> None:
        agent.learn(make, agent.turns + steps * batch, lambda turns, metrics: None)

    return Subject(f"customer_service, Q-learning's training loop, B = {batch}", steps * batch, step)


def measure(subjects: list[Subject], rounds: int, seconds: float) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for turn in track(range(rounds + 1), "rounds", transient=True):
        for subject in subjects:
            done, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < seconds:
                for _ in range(8):
                    subject.step()
                done += 8
            if turn:  # the first round warms up
                rates[subject.name].append(done * subject.turns / passed)
    return rates


def profile(batch: int) -> str:
    envs = ChatVectorEnv(batch, observation="discrete", llm="template")
    step = vector(envs, random_acts(14, batch))
    profiler = cProfile.Profile()
    for _ in range(50):
        step()
    profiler.enable()
    for _ in range(2000):
        step()
    profiler.disable()
    out = io.StringIO()
    pstats.Stats(profiler, stream=out).sort_stats("tottime").print_stats(8)
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    return "\n".join(line.replace(str(Path.cwd()) + os.sep, "") for line in lines[-9:])


def page(rates: dict[str, list[float]], reference: str, where: str) -> str:
    lines = [
        "# Speed of the environment", "",
        "Turns per second, all measured in one run on one core. B is the number of conversations (or poles) in a "
        f"batch. The ratio is to {reference}: the median over the rounds. Made by `taskset -c 0 python "
        "benchmarks/env_speed.py --write`.", "",
        "| environment | turns/s: median (lowest to highest) | ratio |", "|---|---:|---:|",
    ]  # fmt: skip
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[reference], strict=True))
        middle = f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
        lines.append(f"| {name} | {middle} | {ratio:.3g} |")
    return "\n".join([*lines, "", "Profile of 2,000 steps of 1,024 conversations:", "", "```", where, "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each subject in a round")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 256, 1024, 8192])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    subjects = list(gymnasium_subjects(options.batches))
    for scenario in plugins.load().scenarios:
        subjects += chat_subjects(scenario, options.batches)
    subjects += [*text_subjects(256), qlearning_subject(1024), *async_subjects(), *peer_subjects()]
    rates = measure(subjects, options.rounds, options.seconds)
    reference = f"{POLE}, B = {1024 if 1024 in options.batches else options.batches[-1]}"
    text = page(rates, reference, profile(1024))
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written to {PAGE.name}; {platform.python_version()}")


if __name__ == "__main__":
    main()
