"""Draw the learning curve of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.storage.figures import new_figure, write_figure

if TYPE_CHECKING:
    from chatgym.evaluation.references import References

BLUE, GREY, GREEN = "#2563eb", "#6b7280", "#15803d"
WATCHED = {
    "mean_return": "return while training", "reference_kl": "KL from the start [nats a token]",
    "entropy": "entropy [nats a token]",
    "clip_fraction": "clipped [share]", "explained_variance": "explained variance", "tokens_per_second": "tokens/s",
}  # fmt: skip
"""Training metrics that get a panel each, with its title, if an agent reports at least two of them."""

PANELS = {
    "success_rate": ("success rate [%]", 100.0), "score": ("normalised score", 1.0), "mean_return": ("mean return", 1.0)
}  # fmt: skip
"""Measure to the label of its panel, and the factor from its value to what is drawn."""


def reference_values(references: References) -> dict[str, dict[str, float]]:
    """Return the level of each measure that a picture shows for each reference agent: measure to name to value."""
    zero, hundred = references.zero, "expert"
    return {
        "success_rate": {hundred: references.expert_success, zero: references.ignorant_success},
        "score": {hundred: 100.0, zero: 0.0},
        "mean_return": {hundred: references.expert_return, zero: references.ignorant_return},
    }


def draw_references(axes: Any, levels: Mapping[str, float], unit: float) -> dict[str, Any]:
    """Draw the levels of the reference agents, the expert's first, in multiples of 1 / `unit`; return lines by name."""
    looks = ({"color": GREEN, "linestyle": "--"}, {"color": GREY, "linestyle": ":"})
    return {
        name: axes.axhline(unit * level, linewidth=1, label=name, **look)
        for (name, level), look in zip(levels.items(), looks, strict=True)
    }


def draw(lines: Sequence[Mapping[str, Any]], references: References, title: str, path: Path) -> None:
    """Draw success rate and score over turns, with the references as lines; below, the panels of `WATCHED`.

    Args:
        lines: Lines of ``metrics.jsonl``, those of evaluations and those of iterations.
        references: Mean returns and success rates of the two agents that the score compares with.
        title: Title of the picture.
        path: File to write: PNG, PDF or SVG, by its suffix.
    """
    metrics = [line for line in lines if "success_rate" in line]
    watched = [name for name in WATCHED if any(name in line.get("training", {}) for line in lines)]
    below = -(-len(watched) // 3) if len(watched) > 1 else 0
    whole = new_figure(9, 3.6 + 2 * below)
    parts: Any = whole.subfigures(2, 1, height_ratios=(3.6, 2 * below)) if below else None
    figure = whole if parts is None else parts[0]
    whole.suptitle(title)
    turns = [line["turns"] for line in metrics]
    panels = ("success_rate", "score" if all(line["score"] for line in metrics) else "mean_return")
    for axes, name in zip(figure.subplots(1, 2), panels, strict=True):
        label, unit = PANELS[name]
        middle, low, high = ([unit * line[name][k] for line in metrics] for k in ("value", "low", "high"))
        axes.fill_between(turns, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(turns, middle, color=BLUE, marker="o" if len(turns) < 3 else None, label="trained")
        draw_references(axes, reference_values(references)[name], unit)
        axes.set_xlabel("turns of training")
        axes.set_ylabel(label)
        format_turns(axes)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, loc="lower right")
    if parts is not None:
        _draw_watched(parts[1].subplots(below, 3, squeeze=False).ravel(), watched, lines)
    write_figure(whole, path)


def _draw_watched(panels: Any, names: Sequence[str], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw each of the training metrics `names` over turns into a panel, and hide the other panels."""
    for axes in panels:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        found = [(line["turns"], line["training"][name]) for line in metrics if name in line.get("training", {})]
        axes.set_visible(True)
        axes.plot(*zip(*found, strict=True), color=BLUE, linewidth=1)
        axes.set_title(WATCHED[name], fontsize=8)
        axes.tick_params(labelsize=7)
        format_turns(axes)
        axes.grid(alpha=0.2)


def format_turns(axes: Any) -> None:
    """Write the numbers of turns short (``2.5 M``), and so few of them that they don't run into each other."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter())
