"""Draw a study: heat maps of a grid over two settings, else the history of trials and the settings' importances."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chatgym.evaluation.learning_curve import BLUE, GREEN, GREY
from chatgym.storage.figures import new_figure, write_figure
from chatgym.training.search_space import points

if TYPE_CHECKING:
    import optuna

    from chatgym.training.study import Plan


MEASURES = {"success_rate": ("success rate [%]", ".1f"), "mean_return": ("mean return", ".3f")}
"""What is drawn, with its label and the form of its numbers. Trials are ranked by the mean return."""


def draw_study(study: optuna.Study, plan: Plan, path: Path) -> None:
    """Draw a study into a PNG, PDF or SVG file.

    Args:
        study: A study with at least one finished trial.
        plan: Its plan.
        path: The file to write; its suffix is the format.
    """
    figure = new_figure(11, 4)
    count = "one seed" if len(plan.seeds) == 1 else f"{len(plan.seeds)} seeds"
    figure.suptitle(f"{plan.agent} in {plan.task.scenario}, {plan.steps:,} turns, {count}")
    many = [name for name in plan.space if len(points(plan.space[name])) > 1]
    if plan.method == "grid" and len(many) == 2:
        for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
            _heat_map(axes, study, plan, many, measure)
    else:
        left, middle, right = figure.subplots(1, 3)
        for axes, measure in zip((left, middle), MEASURES, strict=True):
            _history(axes, study, measure)
        _importances(right, study)
    write_figure(figure, path)


def mean_values(study: optuna.Study, plan: Plan, names: list[str], measure: str = "mean_return") -> Any:
    """Return the mean of finished trials by two settings, float64[len(2nd), len(1st)]; NaN without trials."""
    across, up = (points(plan.space[name]) for name in names)
    values: dict[tuple[int, int], list[float]] = defaultdict(list)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "COMPLETE" and trial.value is not None:
            at = up.index(trial.params[names[1]]), across.index(trial.params[names[0]])
            values[at].append(_measured(trial, measure))
    table = np.full((len(up), len(across)), np.nan)
    for at, found in values.items():
        table[at] = np.mean(found)
    return table


def _measured(trial: optuna.trial.FrozenTrial, measure: str) -> float:
    """Return the success rate in percent, or the mean return, of a finished trial."""
    if measure == "success_rate":
        return 100.0 * float(trial.user_attrs["success_rate"])
    assert trial.value is not None
    return trial.value


def _heat_map(axes: Any, study: optuna.Study, plan: Plan, names: list[str], measure: str) -> None:
    """Draw the means of a grid over two settings."""
    table = mean_values(study, plan, names, measure)
    label, form = MEASURES[measure]
    image = axes.imshow(table, origin="lower", cmap="viridis", aspect="auto")
    axes.figure.colorbar(image, ax=axes, label=label)
    low, high = np.nanmin(table), np.nanmax(table)
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = value < (low + high) / 2
            axes.text(column, row, f"{value:{form}}", ha="center", va="center", color="white" if dark else "black")
    for axis, name in ((axes.xaxis, names[0]), (axes.yaxis, names[1])):
        ticks = points(plan.space[name])
        axis.set_ticks(range(len(ticks)), [f"{tick:g}" if isinstance(tick, float) else str(tick) for tick in ticks])
        axis.set_label_text(name)


def _history(axes: Any, study: optuna.Study, measure: str) -> None:
    """Draw the success rate or mean return of each trial; with the return, by which trials are ranked, the best."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]
    complete = [(trial.number, _measured(trial, measure)) for trial in trials if trial.state.name == "COMPLETE"]
    numbers, values = zip(*complete, strict=True)
    pruned = [
        (trial.number, trial.intermediate_values[max(trial.intermediate_values)])
        for trial in trials
        if trial.state.name == "PRUNED" and trial.intermediate_values
    ]
    ranked = measure == "mean_return"
    if pruned and ranked:
        axes.scatter(*zip(*pruned, strict=True), color=GREY, marker="x", s=18, label="pruned")
    axes.scatter(numbers, values, color=BLUE, s=18, label="trial")
    if ranked:
        axes.step(numbers, np.maximum.accumulate(values), color=GREEN, where="post", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(MEASURES[measure][0])
    axes.grid(alpha=0.2)
    if ranked:
        axes.legend(frameon=False, loc="lower right")


def _importances(axes: Any, study: optuna.Study) -> None:
    """Draw the share of the value's variance that each setting explains (PED-ANOVA, Watanabe et al. 2023)."""
    import optuna

    axes.set_title("importance of settings", fontsize=10)
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
