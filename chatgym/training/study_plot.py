"""A study as a picture: a heat map of a grid over two settings, else how it went and which settings mattered."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chatgym.evaluation.learning_curve import BLUE, GREEN, GREY
from chatgym.training.search_space import points
from chatgym.training.study_plan import Plan

if TYPE_CHECKING:
    import optuna


def draw_study(study: optuna.Study, plan: Plan, path: Path) -> None:
    """Draw a study into a PNG file.

    Args:
        study: Has at least one finished trial.
        plan: What it does.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    count = "one seed" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"
    figure.suptitle(f"{plan.agent} in {plan.task.scenario}, {plan.steps:,} turns, {count}")
    many = [name for name in plan.space if len(points(plan.space[name])) > 1]
    if plan.method == "grid" and len(many) == 2:
        _heat_map(figure, study, plan, many)
    else:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _history(left, study)
        _importances(right, study)
    figure.savefig(path, format="png")


def heat(study: optuna.Study, plan: Plan, names: list[str]) -> Any:
    """Return the mean value of the finished trials over two settings, float64[len of 2nd, len of 1st]; NaN: none."""
    across, up = (points(plan.space[name]) for name in names)
    values: dict[tuple[int, int], list[float]] = defaultdict(list)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "COMPLETE" and trial.value is not None:
            at = up.index(trial.params[names[1]]), across.index(trial.params[names[0]])
            values[at].append(trial.value)
    table = np.full((len(up), len(across)), np.nan)
    for at, found in values.items():
        table[at] = np.mean(found)
    return table


def _heat_map(figure: Any, study: optuna.Study, plan: Plan, names: list[str]) -> None:
    table, axes = heat(study, plan, names), figure.subplots()
    image = axes.imshow(table, origin="lower", cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=axes, label="mean return")
    low, high = np.nanmin(table), np.nanmax(table)
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = value < (low + high) / 2
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color="white" if dark else "black")
    for axis, name in ((axes.xaxis, names[0]), (axes.yaxis, names[1])):
        ticks = points(plan.space[name])
        axis.set_ticks(range(len(ticks)), [f"{tick:g}" if isinstance(tick, float) else str(tick) for tick in ticks])
        axis.set_label_text(name)


def _history(axes: Any, study: optuna.Study) -> None:
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]
    complete = [(trial.number, trial.value) for trial in trials if trial.state.name == "COMPLETE"]
    numbers, values = zip(*complete, strict=True)
    pruned = [
        (trial.number, trial.intermediate_values[max(trial.intermediate_values)])
        for trial in trials
        if trial.state.name == "PRUNED" and trial.intermediate_values
    ]
    if pruned:
        axes.scatter(*zip(*pruned, strict=True), color=GREY, marker="x", s=18, label="pruned")
    axes.scatter(numbers, values, color=BLUE, s=18, label="trial")
    axes.step(numbers, np.maximum.accumulate(values), color=GREEN, where="post", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("mean return")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, loc="lower right")


def _importances(axes: Any, study: optuna.Study) -> None:
    """Draw how much of the value each setting explains (PED-ANOVA, Watanabe, Bansal & Hutter 2023)."""
    import optuna

    axes.set_title("which settings mattered", fontsize=10)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials, or all the same
        found = {}
    if not found:
        axes.text(0.5, 0.5, "too few trials", ha="center", va="center", color=GREY)
        axes.set_axis_off()
        return
    names = list(found)[::-1]
    axes.barh(names, [found[name] for name in names], color=BLUE)
    axes.set_xlim(0, 1)
