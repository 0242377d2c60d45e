"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatgym.evaluation.references import References

BLUE, GREY, GREEN = "#2563eb", "#6b7280", "#15803d"
WATCHED = {
    "mean_return": "return while training", "kl": "KL from the start [nats a token]",
    "entropy": "entropy [nats a token]",
    "clip_fraction": "clipped [share]", "explained_variance": "explained variance", "tokens_per_second": "tokens/s",
}  # fmt: skip
"""What an agent may say of its training that gets a panel of its own, if it says at least two of these."""


def draw(metrics: Sequence[Mapping[str, Any]], references: References, title: str, path: Path) -> None:
    """Draw success rate and normalised score over turns, with random and expert as lines; below, what is `WATCHED`.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        references: Random's and the expert's.
        title: Stands above.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    watched = [name for name in WATCHED if any(name in line.get("training", {}) for line in metrics)]
    below = -(-len(watched) // 3) if len(watched) > 1 else 0
    # Without pyplot: no global state, no display.
    whole = Figure(figsize=(9, 3.6 + 2 * below), dpi=120, layout="constrained")
    FigureCanvasAgg(whole)
    parts: Any = whole.subfigures(2, 1, height_ratios=(3.6, 2 * below)) if below else None
    figure = whole if parts is None else parts[0]
    whole.suptitle(title)
    turns = [line["turns"] for line in metrics]
    panels = (
        ("success_rate", "success rate [%]", 100.0, references.random_success * 100, references.expert_success * 100),
        ("score", "normalised score", 1.0, 0.0, 100.0),
    )
    for axes, (name, label, unit, random, expert) in zip(figure.subplots(1, 2), panels, strict=True):
        middle, low, high = ([unit * line[name][k] for line in metrics] for k in ("value", "low", "high"))
        axes.fill_between(turns, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(turns, middle, color=BLUE, marker="o" if len(turns) < 3 else None, label="trained")
        axes.axhline(expert, color=GREEN, linestyle="--", linewidth=1, label="expert")
        axes.axhline(random, color=GREY, linestyle=":", linewidth=1, label="random")
        axes.set_xlabel("turns of training")
        axes.set_ylabel(label)
        _format_turns(axes)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, loc="lower right")
    if parts is not None:
        _draw_watched(parts[1].subplots(below, 3, squeeze=False).ravel(), watched, metrics)
    whole.savefig(path, format="png")


def _draw_watched(panels: Any, names: Sequence[str], metrics: Sequence[Mapping[str, Any]]) -> None:
    for axes in panels:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        found = [(line["turns"], line["training"][name]) for line in metrics if name in line.get("training", {})]
        axes.set_visible(True)
        axes.plot(*zip(*found, strict=True), color=BLUE, linewidth=1)
        axes.set_title(WATCHED[name], fontsize=8)
        axes.tick_params(labelsize=7)
        _format_turns(axes)
        axes.grid(alpha=0.2)


def _format_turns(axes: Any) -> None:
    """Write the numbers of turns short (``2.5 M``), and so few of them that they don't run into each other."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter())
