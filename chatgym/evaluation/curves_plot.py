"""Draw learning curves over runs: a column for each scenario, success rate above score, with 95 % bands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.evaluation.curves import Curve, simulator_of
from chatgym.evaluation.learning_curve import PANELS, draw_references, format_turns, reference_values
from chatgym.evaluation.references import references
from chatgym.storage.figures import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe & Ito's palette (2008), which is safe for colour-blind readers."""
STYLES = ("-", "--", "-.", ":")
"""Further agents have the same colours and another line."""
STATISTIC = {"iqm": "interquartile mean", "mean": "mean"}


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw curves into a PNG, PDF or SVG file."""
    write_figure(curves_figure(curves), path)


def curves_figure(curves: Sequence[Curve]) -> Figure:
    """Return the picture of at least one curve as a matplotlib figure."""
    tasks, agents = (list(dict.fromkeys(names)) for names in zip(*((c.task, c.label) for c in curves), strict=True))
    figure = new_figure(max(3.6 * len(tasks), 5.0), 5.6)
    counts = sorted({len(curve.runs) for curve in curves})
    over = f"{counts[0]} runs" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} runs"
    bands = "; bands: 95 % stratified bootstrap" if counts[-1] > 1 else ""
    figure.suptitle("one run, without the variance of training" if counts == [1] else
                    f"{STATISTIC[curves[0].statistic]} over {over}{bands}", fontsize=10)  # fmt: skip
    grid = figure.subplots(2, len(tasks), squeeze=False, sharex="col")
    handles: dict[str, Any] = {}
    for column, task in enumerate(tasks):
        shown = [curve for curve in curves if curve.task == task]
        second = "score" if all("score" in curve.values for curve in shown) else "mean_return"
        ends = _references(shown[0])
        for row, measure in enumerate(("success_rate", second)):
            axes = grid[row][column]
            for curve in shown:
                handles[curve.label] = _draw(axes, curve, measure, agents.index(curve.label))
            if ends is not None:
                handles |= draw_references(axes, ends[measure], PANELS[measure][1])
            axes.set_ylabel(PANELS[measure][0] if column == 0 or measure == "mean_return" else "")
            axes.grid(alpha=0.2)
            format_turns(axes)
        grid[0][column].set_title(task, fontsize=10)
        grid[0][column].set_ylim(-2, 102)
        grid[1][column].set_xlabel("turns of training")
    names = [*agents, *(name for name in handles if name not in agents)]
    columns = int(figure.get_figwidth() / (0.075 * max(map(len, names)) + 0.6))  # that fit side by side
    figure.legend([handles[name] for name in names], names, loc="outside lower center", frameon=False, fontsize=9,
                  ncols=min(max(columns, 1), len(names)))  # fmt: skip
    return figure


def _draw(axes: Any, curve: Curve, measure: str, number: int) -> Any:
    """Draw a curve and its band, and return the line."""
    unit, found = PANELS[measure][1], curve.bands[measure]
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
    if found.low is not None and found.high is not None:
        low, high = unit * found.low, unit * found.high
        axes.fill_between(curve.turns, low, high, color=colour, alpha=0.2, linewidth=0)
    marker = "o" if len(curve.turns) < 3 else None
    return axes.plot(curve.turns, unit * found.value, color=colour, linestyle=style, marker=marker)[0]


def _references(curve: Curve) -> dict[str, dict[str, float]] | None:
    """Return the levels of the reference agents; None if the runs are of another simulator than this."""
    first = curve.runs[0]
    if simulator_of(first.config["identity"]) != simulator_of(first.task.identity()):
        return None
    return reference_values(references(first.task))
