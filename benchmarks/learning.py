"""Draw learning curves of several agents over the same number of turns, with several seeds and 95 % bands.

`chatgym curve` draws such curves of any runs.

    python benchmarks/learning.py --steps 400000 --seeds 5

Each training is a run folder (`chatgym.training`), so an interrupted benchmark resumes.
Writes ``learning.png`` and ``learning.md`` into the folder ``--docs``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from chatgym import plugins
from chatgym.envs.task import Task
from chatgym.evaluation import Curve, TrainedRun, curves_of
from chatgym.evaluation.curves_plot import draw_curves
from chatgym.training import Run, resume, train

MEASURES = {"success_rate": (100.0, 1), "mean_return": (1.0, 3), "score": (1.0, 1)}
"""Columns of the page: factor, and digits after the point."""


def main() -> None:
    options = read_options()
    jobs = [
        (scenario, agent, seed)
        for scenario in options.scenarios
        for agent in options.agents
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(learn, *job, options): job for job in jobs}
        for number, done in enumerate(as_completed(waiting), 1):
            scenario, agent, seed = waiting[done]
            print(f"{number} of {len(jobs)}: {agent} in {scenario}, seed {seed}: {done.result()}", flush=True)
    curves = curves_of([read_run(options, *job) for job in jobs])
    options.docs.mkdir(parents=True, exist_ok=True)
    draw_curves(curves, options.docs / "learning.png")
    (options.docs / "learning.md").write_text(write_page(curves, options), encoding="utf-8")
    print(f"wrote {options.docs / 'learning.png'} and {options.docs / 'learning.md'}")


def read_options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400_000, help="turns of each training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--agents", nargs="+", default=["qlearning", "dqn"])
    parser.add_argument("--scenarios", nargs="+", default=sorted(plugins.load().scenarios))
    parser.add_argument(
        "--reward-model", default="", metavar="FOLDER", help="judges the turns, too; {scenario} stands for its name"
    )
    parser.add_argument("--points", type=int, default=20, help="evaluations along a curve")
    parser.add_argument("--conversations", type=int, default=500, help="in each evaluation")
    parser.add_argument("--jobs", type=int, default=max((os.cpu_count() or 2) // 2, 1), help="processes")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the trainings are")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where picture and table go")
    return parser.parse_args()


def run_folder(options: Any, scenario: str, agent: str, seed: int) -> Path:
    judged = "-judged" if options.reward_model else ""
    folder: Path = options.runs / f"{scenario}-{agent}-{options.steps}-{seed}{judged}"
    return folder


def learn(scenario: str, agent: str, seed: int, options: Any) -> str:
    """Train, or go on with a training, and return success rate and score in the end."""
    judge = options.reward_model.replace("{scenario}", scenario)
    task = Task(scenario, {"reward_model": judge} if judge else {})
    run = trained(
        agent, run_folder(options, scenario, agent, seed), task=task, total_steps=options.steps, seed=seed,
        evaluate_every=max(options.steps // options.points, 1), conversations=options.conversations,
    )  # fmt: skip
    last = run.metrics()[-1]
    return f"success {last['success_rate']['value']:.1%}, score {last['score']['value']:.1f}"


def trained(agent: str, folder: Path, **arguments: Any) -> Run:
    """Return a training to its end: a new one, the rest of one that broke off, or one that is there."""
    if not (folder / "config.json").exists():
        return train(agent, folder, **arguments)
    if not (folder / "transcripts.jsonl").exists():  # what a training writes last
        return resume(folder)
    return Run.open(folder)


def read_run(options: Any, scenario: str, agent: str, seed: int) -> TrainedRun:
    run = Run.open(run_folder(options, scenario, agent, seed))
    return TrainedRun(str(run.folder), run.task, run.config, run.metrics())


def write_page(curves: list[Curve], options: Any) -> str:
    seeds = f"{options.seeds} seeds" if options.seeds > 1 else "one seed"
    lines = [
        "# Learning curves", "",
        f"Interquartile mean over {seeds}, with 95 % intervals over the seeds (stratified bootstrap, Agarwal et al.",
        f"2021); an evaluation holds {options.conversations} conversations. The score is 0 for the random agent and",
        "100 for the expert. Seconds are the time of one training with its evaluations. Made by",
        f"`python benchmarks/learning.py --steps {options.steps} --seeds {options.seeds}`; `chatgym curve RUN...`",
        "draws such curves of your own runs.", "",
        "![Learning curves](learning.png)", "",
        "| scenario | agent | turns | success rate [%] | mean return | score | seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for curve in sorted(curves, key=lambda one: options.scenarios.index(one.runs[0].config["scenario"])):
        last = len(curve.turns) - 1
        seconds = sum(run.metrics[-1]["seconds"] for run in curve.runs) / len(curve.runs)
        for point in sorted({last // 4, last // 2, last}):
            cells = [curve.task, curve.runs[0].config["agent"], f"{curve.turns[point]:,.0f}"]
            cells += [cell(curve, measure, point) for measure in MEASURES]
            lines.append(f"| {' | '.join(cells)} | {f'{seconds:.0f} ' if point == last else ''}|")
    return "\n".join(lines) + "\n"


def cell(curve: Curve, measure: str, point: int) -> str:
    if measure not in curve.bands:
        return "n/a"
    unit, digits = MEASURES[measure]
    value, low, high = curve.bands[measure].at(point)
    ends = "" if low is None or high is None else f" ({unit * low:.{digits}f} to {unit * high:.{digits}f})"
    return f"{unit * value:.{digits}f}{ends}"


if __name__ == "__main__":
    main()
