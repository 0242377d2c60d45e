"""Draw a comparison: success rates, scores and differences as forest plots, outcomes as stacked bars."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.evaluation.learning_curve import BLUE, GREEN, GREY
from chatgym.storage.figures import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from chatgym.evaluation.comparison import Comparison
    from chatgym.evaluation.intervals import Interval

SUCCESS = "#0072b2"
FAILURES = ("#e69f00", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#009e73")
"""Okabe & Ito's palette (2008), which is safe for colour-blind readers."""
TRUNCATED = "#bdbdbd"
DARK = {SUCCESS, "#d55e00", "#009e73"}
LABEL = 28
LINE = 0.17  # inches


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draw a comparison of any number of agents and tasks into a PNG, PDF or SVG file."""
    write_figure(comparison_figure(found), path)


def comparison_figure(found: Comparison) -> Figure:
    """Return the picture as a matplotlib figure."""
    labels = [textwrap.fill(agent.label.replace(" seeds)", "\u00a0seeds)"), LABEL) for agent in found.agents]
    rows = sum(max(label.count("\n") + 2, 2) * LINE for label in labels)
    above = 2 if len(found.agents) > 1 else 1
    heights = [*[rows + 0.3] * above, *[max(rows, 0.9)] * len(found.tasks)]
    figure = new_figure(9, sum(heights) + 0.9 + 0.7 * len(heights))
    title = f"{found.conversations:,} conversations of {' and '.join(found.tasks)}, the same for all; 95 % intervals"
    figure.suptitle(title)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    _success(figure.add_subplot(grid[0, 0]), found, labels)
    _scores(figure.add_subplot(grid[0, 1]), found)
    if above > 1:
        _differences(figure.add_subplot(grid[1, 0]), found.success_difference, "success rate", 0.01, labels)
        _differences(figure.add_subplot(grid[1, 1]), found.difference, "score", 1.0, [""] * len(labels))
    for row, task in enumerate(found.tasks, above):
        _outcomes(figure.add_subplot(grid[row, :]), found, task, labels)
    return figure


def _rows(axes: Any, labels: list[str]) -> None:
    """Label one row for each agent, the first on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params("y", length=0)


def _points(axes: Any, intervals: list[Interval], offset: float, **how: Any) -> None:
    """Draw an interval in each row, `offset` rows below its middle."""
    for row, interval in enumerate(intervals):
        axes.plot([interval.low, interval.high], [row + offset] * 2, color=how["color"], linewidth=2, alpha=0.6)
    axes.plot([one.value for one in intervals], [row + offset for row in range(len(intervals))], linestyle="", **how)


def _success(axes: Any, found: Comparison, labels: list[str]) -> None:
    """Draw success rates."""
    _points(axes, [rate.scaled(0.0, 0.01) for rate in found.success_rate], 0.0, color=BLUE, marker="o", clip_on=False)
    axes.set_xlim(0, 100)
    axes.set_xlabel("success rate [%]")
    axes.grid(axis="x", alpha=0.2)
    _rows(axes, labels)


def _scores(axes: Any, found: Comparison) -> None:
    """Draw mean scores, and interquartile means where they differ from them."""
    several = any(len(agent.names) > 3 for agent in found.agents)  # else the IQM is the mean
    _points(axes, found.mean, -0.15 if several else 0.0, color=BLUE, marker="o", label="mean")
    if several:
        _points(axes, found.iqm, 0.15, color="#d55e00", marker="D", markersize=5, label="IQM")
    axes.axvline(0, color=GREY, linestyle=":", linewidth=1, label="doesn't listen")
    axes.axvline(100, color=GREEN, linestyle="--", linewidth=1, label="expert")
    axes.set_xlabel("normalised score")
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, fontsize=8)
    axes.grid(axis="x", alpha=0.2)
    _rows(axes, [""] * len(found.agents))


def _differences(axes: Any, differences: list[Interval], what: str, unit: float, labels: list[str]) -> None:
    """Draw the differences to the first agent's success rate or score, in multiples of `unit`."""
    _points(axes, [one.scaled(0.0, unit) for one in differences], 0.0, color=BLUE, marker="o")
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xlabel(f"{what} minus the first's{' [points]' if unit != 1.0 else ''}")
    axes.grid(axis="x", alpha=0.2)
    _rows(axes, labels)


def _outcomes(axes: Any, found: Comparison, task: str, labels: list[str]) -> None:
    """Draw the share of each outcome in a task as a stacked bar for each agent."""
    shares = [agent.outcomes(task) for agent in found.agents]
    scenario = found.tasks[task].find_scenario()
    failures = [name for name in scenario.outcomes if name not in ("", scenario.success, "truncated")]
    colors = {
        scenario.success: SUCCESS,
        **{name: FAILURES[number % len(FAILURES)] for number, name in enumerate(failures)},
        "truncated": TRUNCATED,
    }
    ends = [0.0] * len(shares)
    for name, color in colors.items():
        widths = [100 * share.get(name, 0.0) for share in shares]
        if not any(widths):
            continue
        axes.barh(range(len(widths)), widths, left=ends, color=color, height=0.7, label=name.replace("_", " "))
        for row, (end, width) in enumerate(zip(ends, widths, strict=True)):
            if width >= 4:  # narrower ones have no room for a figure
                ink = "white" if color in DARK else "black"
                axes.text(end + width / 2, row, f"{width:.0f}", ha="center", va="center", color=ink, fontsize=8)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"how conversations of {task} ended [%]")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _rows(axes, labels)
