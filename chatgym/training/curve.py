"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatgym.training.references import References

BLUE, GREY, GREEN = "#2563eb", "#6b7280", "#15803d"


def draw(metrics: Sequence[Mapping[str, Any]], references: References, title: str, path: Path) -> None:
    """Draw success rate and normalised score over turns, with random and expert as lines.

    Args:
        metrics: Lines of ``metrics.jsonl``.
        references: Random's and the expert's.
        title: Stands above.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")  # without pyplot: no global state, no display
    FigureCanvasAgg(figure)
    figure.suptitle(title)
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
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, format="png")
