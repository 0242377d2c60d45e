"""Draw learning curves of several agents over the same number of turns, with several seeds and 95 % bands.

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

import numpy as np
import numpy.typing as npt

from chatgym import plugins
from chatgym.envs.task import Task
from chatgym.evaluation import references
from chatgym.training import Run, resume, train

COLOURS = ("#2563eb", "#c2410c", "#7c3aed", "#0f766e")
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantile of Student's t with 1, 2, … degrees of freedom."""

Curve = dict[str, npt.NDArray[np.float64]]


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
            print(f"{number} of {len(jobs)}: {agent} in {scenario}, seed {seed}: score {done.result():.1f}", flush=True)
    curves = {
        (scenario, agent): read_curves(options, scenario, agent)
        for scenario in options.scenarios
        for agent in options.agents
    }
    options.docs.mkdir(parents=True, exist_ok=True)
    draw(curves, options)
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


def learn(scenario: str, agent: str, seed: int, options: Any) -> float:
    """Train, or go on with a training, and return the score in the end."""
    judge = options.reward_model.replace("{scenario}", scenario)
    task = Task(scenario, {"reward_model": judge} if judge else {})
    run = trained(
        agent, run_folder(options, scenario, agent, seed), task=task, total_steps=options.steps, seed=seed,
        evaluate_every=max(options.steps // options.points, 1), conversations=options.conversations,
    )  # fmt: skip
    return float(run.metrics()[-1]["score"]["value"])


def trained(agent: str, folder: Path, **arguments: Any) -> Run:
    """Return a training to its end: a new one, the rest of one that broke off, or one that is there."""
    if not (folder / "config.json").exists():
        return train(agent, folder, **arguments)
    if not (folder / "transcripts.jsonl").exists():  # what a training writes last
        return resume(folder)
    return Run.open(folder)


def read_curves(options: Any, scenario: str, agent: str) -> Curve:
    """Return turns [P], and success rate in percent, mean return and score, each [seeds, P], and seconds [seeds]."""
    lines = [Run.open(run_folder(options, scenario, agent, seed)).metrics() for seed in range(options.seeds)]
    shortest = min(map(len, lines))
    curve = {
        name: np.array([[unit * line[name]["value"] for line in run[:shortest]] for run in lines])
        for name, unit in (("success_rate", 100.0), ("mean_return", 1.0), ("score", 1.0))
    }
    turns = np.array([line["turns"] for line in lines[0][:shortest]], np.float64)
    return {**curve, "turns": turns, "seconds": np.array([run[shortest - 1]["seconds"] for run in lines])}


def half_width(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return half of the 95 % interval of the mean over the first axis (Student's t); 0 for a single seed."""
    count = len(values)
    if count < 2:
        return np.zeros(values.shape[1:])
    quantile = T_QUANTILES[count - 2] if count - 2 < len(T_QUANTILES) else 1.96 + 2.5 / (count - 1)
    spread: npt.NDArray[np.float64] = values.std(0, ddof=1)
    width: npt.NDArray[np.float64] = quantile * spread / np.sqrt(count)
    return width


def draw(curves: dict[tuple[str, str], Curve], options: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = len(options.scenarios)
    figure = Figure(figsize=(10, 3.4 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 2, squeeze=False)
    for row, scenario in enumerate(options.scenarios):
        found = references(Task(scenario))
        expert = {"success_rate": 100 * found.expert_success, "score": 100.0}
        random = {"success_rate": 100 * found.random_success, "score": 0.0}
        for axes, (name, label) in zip(
            grid[row], (("success_rate", "success rate [%]"), ("score", "score")), strict=True
        ):
            for agent, colour in zip(options.agents, COLOURS, strict=False):
                curve = curves[scenario, agent]
                mean, width = curve[name].mean(0), half_width(curve[name])
                axes.fill_between(curve["turns"], mean - width, mean + width, color=colour, alpha=0.2, linewidth=0)
                axes.plot(curve["turns"], mean, color=colour, label=agent)
            axes.axhline(expert[name], color="#15803d", linestyle="--", linewidth=1, label="expert")
            axes.axhline(random[name], color="#6b7280", linestyle=":", linewidth=1, label="random")
            axes.set(title=scenario, xlabel="turns of training", ylabel=label)
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.grid(alpha=0.2)
            lowest = min(curves[scenario, agent][name].mean(0)[1:].min(initial=0.0) for agent in options.agents)
            axes.set_ylim(max(lowest, -60.0) - 5.0, 108.0)
        grid[row][0].legend(frameon=False, loc="lower right")
    figure.savefig(options.docs / "learning.png", format="png")


def write_page(curves: dict[tuple[str, str], Curve], options: Any) -> str:
    seeds = f"{options.seeds} seeds" if options.seeds > 1 else "one seed"
    lines = [
        "# Learning curves", "",
        f"Mean over {seeds}, with 95 % intervals of the mean (Student's t); an evaluation holds",
        f"{options.conversations} conversations. The score is 0 for the random agent and 100 for the expert. Seconds",
        "are the time of one training with its evaluations. Made by",
        f"`python benchmarks/learning.py --steps {options.steps} --seeds {options.seeds}`.", "",
        "![Learning curves](learning.png)", "",
        "| scenario | agent | turns | success rate [%] | mean return | score | seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for (scenario, agent), curve in curves.items():
        for point in sorted({len(curve["turns"]) // 4, len(curve["turns"]) // 2, len(curve["turns"]) - 1}):
            cells = [scenario, agent, f"{curve['turns'][point]:,.0f}"]
            for name, digits in (("success_rate", 1), ("mean_return", 3), ("score", 1)):
                values = curve[name][:, point]
                cells.append(f"{values.mean():.{digits}f} ± {half_width(values):.{digits}f}")
            last = point == len(curve["turns"]) - 1
            lines.append(
                f"| {' | '.join(cells)} | {curve['seconds'].mean():.0f} |" if last else f"| {' | '.join(cells)} | |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
