"""Write matplotlib figures as PNG, PDF or SVG: the suffix of the file says which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": "ChatGym"},
    ".pdf": {"Creator": "ChatGym", "Producer": None, "CreationDate": None},
    ".svg": {"Creator": "ChatGym", "Date": None},
}
"""Suffix of each format to what its files say about themselves: no date and no version."""
STYLE: Any = {"pdf.fonttype": 42, "svg.hashsalt": "ChatGym", "svg.fonttype": "path", "text.usetex": False}
"""Fonts are embedded as TrueType (type 42), which journals accept and editors can change; ids of SVG don't vary."""
DPI = 120


def check_picture(path: Path) -> None:
    """Check that a picture can be written as the suffix of its file says.

    Raises:
        InvalidValue: It is the suffix of no format.
    """
    if path.suffix.lower() not in METADATA:
        *most, last = METADATA
        raise InvalidValue(f"{path} is no picture that can be drawn: end its name with {', '.join(most)} or {last}")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, without pyplot: no global state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's suffix; the same figure gives the same bytes.

    Raises:
        InvalidValue: It is the suffix of no format.
    """
    import matplotlib

    check_picture(path)
    suffix = path.suffix.lower()
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format=suffix[1:], metadata=METADATA[suffix])
