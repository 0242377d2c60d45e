"""Let common learners learn every scenario, and draw their curves.

    python benchmarks/learning.py --jobs 2

With default settings: PPO, A2C and DQN of Stable-Baselines3, MaskablePPO of sb3-contrib, textbook REINFORCE
(``examples/textbook_reinforce.py``) and the agent ``qlearning``; then PPO and MaskablePPO with the settings of
``examples/hyperparameters/ppo.yml``. At each tenth of a training its likeliest acts are evaluated, always in the same
validation conversations. Writes ``learning.png`` and ``learning.md`` into the folder ``--docs``, with as many seeds as
are in ``learning.jsonl`` there: a line for each training, so none is repeated while scenario, error model, reward and
settings stay what they are.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from chatgym.dynamics.content import source_digest
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.evaluation import Curve
from chatgym.evaluation.curves import TrainedRun
from chatgym.evaluation.curves_plot import draw_curves
from chatgym.evaluation.references import scale, scored_returns
from chatgym.integrations.sb3 import ChatVecEnv
from chatgym.training.trainer import VALIDATION_SEED

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / "examples" / "hyperparameters" / "ppo.yml"
SCENARIOS = ("customer_service", "education", "social")
LEARNERS = {
    "PPO": (8, 250_000), "MaskablePPO": (8, 250_000), "A2C": (8, 250_000), "DQN": (1, 250_000),
    "REINFORCE": (1, 250_000), "qlearning": (1024, 500_000),
}  # fmt: skip
"""Learner to the number of environments that it learns in, and turns; SB3's DQN is made for one environment."""
TUNED = {"PPO": 1_000_000, "MaskablePPO": 1_000_000}
RATES = {"education": 1e-3}
"""REINFORCE's learning rate, where it isn't its default: with that, it never ends a lesson within 500,000 turns."""
POINTS = 10
Job = tuple[str, str, str, int, int]
"""Settings (default or tuned), learner, scenario, seed, conversations of an evaluation."""


def main() -> None:
    options = read_options()
    there = read_results(options)
    waiting = [job for job in all_jobs(options) if job not in there]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(learn, job): job for job in waiting}
        for number, done in enumerate(as_completed(running), 1):
            job, points = running[done], done.result()
            keep(job, points, options)
            last, which = points[-1], " ".join(map(str, job[:4]))
            print(f"{number} of {len(waiting)}: {which}: {last['success']:.1%}, {last['seconds']:.0f} s", flush=True)
    write(options)


def read_options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", default=[*LEARNERS], choices=[*LEARNERS])
    parser.add_argument("--scenarios", nargs="+", default=[*SCENARIOS], choices=SCENARIOS)
    parser.add_argument("--seeds", type=int, default=5, help="of each training with default settings")
    parser.add_argument("--tuned-seeds", type=int, default=2, help="of each with the settings of ppo.yml")
    parser.add_argument("--conversations", type=int, default=1000, help="in each evaluation")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results, picture and table go")
    return parser.parse_args()


def all_jobs(options: Any) -> list[Job]:
    """Return the trainings, one seed of everything first."""
    made = [
        ("default", *job, options.conversations)
        for job in itertools.product(options.learners, options.scenarios, range(options.seeds))
    ]
    tuned = [name for name in TUNED if name in options.learners]
    made += [
        ("tuned", *job, options.conversations)
        for job in itertools.product(tuned, options.scenarios, range(options.tuned_seeds))
    ]
    return sorted(made, key=lambda job: job[3])


def made_with(job: Job) -> str:
    """Return a hash of what a training's results depend on, but for the learners' code: settings, and the scenario."""
    kind, name, scenario, *_ = job
    settings = SETTINGS.read_text(encoding="utf-8") if kind == "tuned" else [LEARNERS[name], RATES.get(scenario)]
    return hashlib.sha256(json.dumps([simulator(scenario), settings]).encode()).hexdigest()[:16]


@functools.cache
def simulator(scenario: str) -> str:
    """Return the hash of a scenario without its expert, which no learner sees."""
    return source_digest(
        {name: one for name, one in Task(scenario).find_scenario().content.items() if name != "expert"}
    )


def read_results(options: Any) -> dict[Job, list[dict[str, float]]]:
    """Return the evaluations of the trainings that are there; those made with something else don't count."""
    path, found = options.docs / "learning.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        one = json.loads(line)
        job = (*one["job"],)
        if one["made_with"] == made_with(job):
            found[job] = one["points"]
    return found


def keep(job: Job, points: list[dict[str, float]], options: Any) -> None:
    """Add a training's evaluations to the results."""
    line = json.dumps({"job": job, "made_with": made_with(job), "points": points})
    with (options.docs / "learning.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def learn(job: Job) -> list[dict[str, float]]:
    """Train one learner, and return its evaluations."""
    kind, name, scenario, seed, conversations = job
    turns = TUNED[name] if kind == "tuned" else LEARNERS[name][1]
    measure = Measure(scenario, conversations, turns)
    if name == "REINFORCE":
        learn_by_textbook(scenario, seed, measure)
    elif name == "qlearning":
        learn_by_table(scenario, seed, measure)
    else:
        learn_by_sb3(kind, name, scenario, seed, measure)
    return measure.points


def learn_by_textbook(scenario: str, seed: int, measure: Measure) -> None:
    import gymnasium as gym
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "examples"))
    from textbook_reinforce import Reinforce

    env = gym.make("ChatEnv-v0", scenario=scenario, llm="template", reward_model=None)
    agent = Reinforce(env, seed, learning_rate=RATES.get(scenario, 3e-4))
    measure.act = lambda observations, masks: agent.best(observations)
    measure(0)
    agent.learn(measure.turns, lambda taken, outcome: measure(taken))


def learn_by_table(scenario: str, seed: int, measure: Measure) -> None:
    from chatgym.training.run import find_agent

    made_by = find_agent("qlearning")
    agent = made_by(Task(scenario).find_scenario(), made_by.Config(num_envs=LEARNERS["qlearning"][0]), seed=seed)
    measure.act, measure.observation = lambda seen, masks: agent.act(seen, action_masks=masks), "discrete"
    measure(0)
    agent.learn(Task(scenario).maker(agent.requires), measure.turns, lambda taken, metrics: measure(taken))


def learn_by_sb3(kind: str, name: str, scenario: str, seed: int, measure: Measure) -> None:
    import sb3_contrib
    import stable_baselines3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "examples"))
    from sb3_ppo import settings as tuned

    settings = {**tuned()} if kind == "tuned" else {"n_envs": LEARNERS[name][0]}
    settings.pop("policy", None), settings.pop("n_timesteps", None)
    envs = ChatVecEnv.make(settings.pop("n_envs"), scenario=scenario, llm="template", reward_model=None)
    made_by = getattr(sb3_contrib if name == "MaskablePPO" else stable_baselines3, name)
    model = made_by("MlpPolicy", envs, seed=seed, device="cpu", **settings)

    def act(observations: Any, masks: Any) -> Any:
        more = {"action_masks": masks} if name == "MaskablePPO" else {}
        return model.predict(observations, deterministic=True, **more)[0]

    class Callback(BaseCallback):
        def _on_step(self) -> bool:
            measure(self.num_timesteps)
            return True

    measure.act = act
    measure(0)
    model.learn(measure.turns, callback=Callback())
    measure(measure.turns)


class Measure:
    """Evaluates a policy at each tenth of its training."""

    act: Any
    observation = "embedding"

    def __init__(self, scenario: str, conversations: int, turns: int) -> None:
        self.scenario, self.conversations, self.turns = scenario, conversations, turns
        self.points: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def __call__(self, taken: int) -> None:
        if taken < len(self.points) * self.turns / POINTS or len(self.points) > POINTS:
            return
        envs = ChatVectorEnv(
            self.conversations, scenario=self.scenario, observation=self.observation, llm="template", reward_model=None
        )
        observations, infos = envs.reset(seed=VALIDATION_SEED, options={"split": "validation"})
        going, returns = np.ones(self.conversations, bool), np.zeros(self.conversations)
        while going.any():
            actions = self.act(observations, infos["action_mask"])
            observations, rewards, terminated, truncated, infos = envs.step(actions, active=going)
            returns += rewards
            going &= ~(terminated | truncated)
        outcomes = np.array(envs.scenario.outcomes, object)[envs.room.outcomes]
        self.points.append({
            "turns": taken, "success": float((outcomes == envs.scenario.success).mean()),
            "return": float(returns.mean()),
            "scored": float(scored_returns(Task(self.scenario), returns, outcomes).mean()),
            "seconds": round(time.perf_counter() - self.began, 1),
        })  # fmt: skip


def write(options: Any) -> None:
    """Write picture and page of the trainings whose results are there."""
    results = read_results(options)
    curves = {kind: list(curves_of(results, options, kind)) for kind in ("default", "tuned")}
    draw_curves(curves["default"], options.docs / "learning.png")
    (options.docs / "learning.md").write_text(page(curves), encoding="utf-8")
    print(f"wrote {options.docs / 'learning.png'} and {options.docs / 'learning.md'}")


def curves_of(results: Mapping[Job, Sequence[Mapping[str, float]]], options: Any, kind: str) -> Iterator[Curve]:
    for scenario in options.scenarios:
        task = Task(scenario)
        for name in options.learners:
            wanted = kind, name, scenario
            jobs = sorted(job for job in results if job[:3] == wanted and job[4] == options.conversations)
            points = [results[job] for job in jobs]
            if not points:
                continue
            turns = np.mean([[point["turns"] for point in run] for run in points], 0)
            success, mean, scored = (
                np.array([[point[name] for point in run] for run in points]) for name in ("success", "return", "scored")
            )
            ends = scale(task, VALIDATION_SEED, options.conversations, "validation")
            score = 100 * (scored - ends.ignorant.mean()) / (ends.expert.mean() - ends.ignorant.mean())
            values = {"success_rate": success, "score": score, "mean_return": mean}
            config = {"identity": task.identity()}
            runs = [TrainedRun(f"seed {job[3]}", task, config, run) for job, run in zip(jobs, points, strict=True)]
            yield Curve(name, scenario, runs, turns, values, "mean")


def page(curves: dict[str, list[Curve]]) -> str:
    lines = [
        "# Learning curves", "",
        "What common learners reach, by their likeliest acts in 1,000 validation conversations: mean over the seeds,",
        "with its 95 % interval (stratified bootstrap, Agarwal et al. 2021). The score is 0 for the best agent that",
        "doesn't listen and 100 for the expert. Made by `python benchmarks/learning.py`.", "",
        "## With default settings", "",
        "PPO, A2C and DQN of Stable-Baselines3, MaskablePPO of sb3-contrib, all by their default settings; textbook",
        "REINFORCE with a baseline (`examples/textbook_reinforce.py`, in education with a learning rate of 1e-3); the",
        "agent `qlearning`. Giving up pays for none of them: see *What outcomes are worth* in",
        "[the environment](environment.md). Before they succeed, some gather what is needed and then stall until the",
        "turns run out, which a score counts as given up. Where an interval of the last success rate begins at 0, a",
        "seed was still there at the end.", "",
        "![Learning curves](learning.png)", "", *table(curves["default"], (2, 5, 10)), "",
        "## With good settings", "",
        "PPO and MaskablePPO with the settings of `examples/hyperparameters/ppo.yml`, which are in the form of",
        "RL Baselines3 Zoo:", "",
        "| setting | value |", "|---|---|",
        *(f"| {name} | {value} |" for name, value in yaml.safe_load(SETTINGS.read_text())["ChatEnv-v0"].items()), "",
        *table(curves["tuned"], (2, 5, 10)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def table(curves: list[Curve], points: tuple[int, ...]) -> Iterator[str]:
    yield "| scenario | learner | seeds | turns | success rate [%] | mean return | score |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for curve in curves:
        for point in points:
            cells = [curve.task, curve.label, str(len(curve.runs)), f"{curve.turns[point]:,.0f}"]
            cells += [cell(curve, measure, point) for measure in ("success_rate", "mean_return", "score")]
            yield f"| {' | '.join(cells)} |"


def cell(curve: Curve, measure: str, point: int) -> str:
    unit, digits = {"success_rate": (100, 1), "mean_return": (1, 3), "score": (1, 1)}[measure]
    value, low, high = curve.bands[measure].at(point)
    ends = "" if low is None or high is None else f" ({unit * low:.{digits}f} to {unit * high:.{digits}f})"
    return f"{unit * value:.{digits}f}{ends}"


if __name__ == "__main__":
    main()
