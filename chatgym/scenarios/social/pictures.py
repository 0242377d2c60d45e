"""Nine pictures that the supporter can share, drawn with matplotlib by the functions below.

Each has a caption, which stands in the transcript, and a mood. ``draw("boat", "boat.png")`` renders one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatgym.errors import unknown
from chatgym.storage.figures import write_figure

WIDTH, HEIGHT = 8.0, 6.0
"""Size of the canvas; the origin is at the lower left."""


@dataclass(frozen=True)
class Picture:
    """A picture: caption, mood (calming, hopeful or funny) and the function that draws it on matplotlib axes."""

    caption: str
    mood: str
    paint: Callable[[Any], None]


def png(caption: str) -> bytes | None:
    """Return the picture with a caption as PNG, 640 x 480; None if there is none."""
    for name, picture in PICTURES.items():
        if picture.caption == caption:
            file = io.BytesIO()
            about = {"Software": "ChatGym", "Title": PICTURES[name].caption}
            _figure(name).savefig(file, format="png", metadata=about)
            return file.getvalue()
    return None


def draw(name: str, path: Path | str) -> Path:
    """Render a picture as a PNG (640 x 480 pixels), PDF or SVG file, the same at every call, and return its path.

    Raises:
        InvalidValue: There is no picture of that name, or the file has the suffix of no such format.
    """
    if name not in PICTURES:
        raise unknown("picture", name, PICTURES)
    write_figure(_figure(name), Path(path))
    return Path(path)


def _figure(name: str) -> Any:
    """Return a picture as a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=80)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, HEIGHT)
    axes.set_axis_off()
    PICTURES[name].paint(axes)
    return figure


def picture_for(feeling: str, number: int) -> str:
    """Return the name of a picture that suits a feeling; `number` (the turn) selects among several."""
    fitting = [name for name, picture in PICTURES.items() if picture.mood == MOODS[feeling]]
    return fitting[number % len(fitting)]


MOODS = {"anxiety": "calming", "anger": "calming", "sadness": "hopeful", "shame": "funny"}
"""Feeling to the mood of a picture that suits it."""


def _sky(axes: Any, top: str, bottom: str, low: float = 0.0) -> None:
    """Fill the canvas above `low` with a gradient."""
    from matplotlib.colors import to_rgb

    share = np.linspace(0, 1, 256)[:, None, None]
    colours = np.array(to_rgb(bottom)) * (1 - share) + np.array(to_rgb(top)) * share
    axes.imshow(colours, extent=(0, WIDTH, low, HEIGHT), origin="lower", aspect="auto", zorder=0)


def _shape(axes: Any, points: Any, colour: str, zorder: float = 2, **more: Any) -> None:
    from matplotlib.patches import Polygon

    axes.add_patch(Polygon(np.asarray(points, float), closed=True, facecolor=colour, zorder=zorder, **more))


def _oval(axes: Any, x: float, y: float, w: float, h: float, colour: str, zorder: float = 2, **more: Any) -> None:
    from matplotlib.patches import Ellipse

    axes.add_patch(Ellipse((x, y), w, h, facecolor=colour, zorder=zorder, **more))


def _hills(axes: Any, height: float, swing: float, phase: float, colour: str, zorder: float) -> None:
    x = np.linspace(0, WIDTH, 200)
    y = height + swing * np.sin(0.9 * x + phase) + 0.3 * swing * np.sin(2.3 * x + 2 * phase)
    axes.fill_between(x, 0, y, color=colour, zorder=zorder, linewidth=0)


def _sunrise(axes: Any) -> None:
    _sky(axes, "#6fa8dc", "#ffd9a0")
    for size, alpha in ((3.4, 0.15), (2.7, 0.25), (2.1, 0.4)):
        _oval(axes, 4, 2.6, size, size, "#fff2b3", 1, alpha=alpha)
    _oval(axes, 4, 2.6, 1.6, 1.6, "#ffd23f", 1.5)
    _hills(axes, 2.3, 0.35, 0.4, "#7f9f7a", 2)
    _hills(axes, 1.6, 0.4, 2.0, "#5d8560", 3)
    _hills(axes, 0.8, 0.3, 4.2, "#3e6649", 4)
    for x, y in ((1.6, 4.6), (2.1, 4.9), (6.2, 4.4)):
        t = np.linspace(0, np.pi, 30)
        for side in (-1, 1):
            axes.plot(x + side * 0.2 - 0.2 * np.cos(t), y + 0.12 * np.sin(t), color="#40506a", lw=2, zorder=5)


def _boat(axes: Any) -> None:
    _sky(axes, "#8fc1e3", "#fdf1dc", 2.4)
    _hills(axes, 3.0, 0.25, 1.0, "#8aa7a0", 1)
    axes.fill_between([0, WIDTH], 0, 2.6, color="#5b9bbf", zorder=1.5, linewidth=0)
    for i in range(14):
        x, y = (i * 2.9) % 7.6, 0.25 + (i * 0.53) % 2.1
        axes.plot([x, x + 0.7], [y, y], color="#8cc0da", lw=3, zorder=2, solid_capstyle="round")
    _shape(axes, [(2.9, 1.9), (5.5, 1.9), (5.0, 1.3), (3.4, 1.3)], "#8c4a2f", 4)
    axes.plot([4.15, 4.15], [1.9, 4.5], color="#5a3a28", lw=5, zorder=3)
    _shape(axes, [(4.25, 4.4), (4.25, 2.15), (5.7, 2.15)], "#ffffff", 3)
    _shape(axes, [(4.05, 4.0), (4.05, 2.15), (3.0, 2.15)], "#f4d9c6", 3)
    _shape(axes, [(3.4, 1.25), (5.0, 1.25), (4.7, 0.75), (3.7, 0.75)], "#47809f", 2.5, alpha=0.8)


def _tea(axes: Any) -> None:
    _sky(axes, "#f7e3cf", "#fbf3e8", 1.5)
    axes.fill_between([0, WIDTH], 0, 1.9, color="#b98557", zorder=1, linewidth=0)
    axes.plot([0, WIDTH], [1.9, 1.9], color="#98683f", lw=4, zorder=1)
    _oval(axes, 4, 1.35, 4.6, 0.8, "#e9f0f2", 2)
    _oval(axes, 4, 1.42, 3.6, 0.5, "#cfdde1", 2.1)
    axes.add_patch(_ring(5.35, 2.6, 0.55, 0.18, "#6fa3a8"))
    _shape(axes, [(2.7, 3.4), (5.3, 3.4), (5.0, 2.0), (4.5, 1.45), (3.5, 1.45), (3.0, 2.0)], "#7fb5ba", 3)
    _oval(axes, 4, 3.4, 2.6, 0.55, "#a5cfd3", 3.1)
    _oval(axes, 4, 3.38, 2.3, 0.42, "#b5652b", 3.2)
    y = np.linspace(0, 1.5, 60)
    for x, shift in ((3.4, 0.0), (4.0, 1.5), (4.6, 3.0)):
        axes.plot(x + 0.14 * np.sin(4 * y + shift), 3.9 + y, color="#d3bca8", lw=5, zorder=2, alpha=0.9,
                  solid_capstyle="round")  # fmt: skip


def _ring(x: float, y: float, radius: float, width: float, colour: str) -> Any:
    from matplotlib.patches import Annulus

    return Annulus((x, y), radius, width, facecolor=colour, zorder=2.5)


def _tree(axes: Any) -> None:
    _sky(axes, "#a9d3ee", "#f2f8ee")
    _hills(axes, 1.2, 0.15, 1.2, "#8dbb6e", 1)
    for x, colours in zip((1.1, 3.0, 4.9, 6.9), _SEASONS, strict=True):
        _shape(axes, [(x - 0.13, 1.0), (x + 0.13, 1.0), (x + 0.08, 2.7), (x - 0.08, 2.7)], "#6b4a33", 2)
        for side, y in ((-1, 2.2), (1, 2.4)):
            axes.plot([x, x + side * 0.5], [y, y + 0.7], color="#6b4a33", lw=4, zorder=2, solid_capstyle="round")
        for i in range(46):
            angle, reach = i * 2.399963, 0.78 * np.sqrt((i + 0.5) / 46)  # the golden angle spreads evenly
            leaf = colours[(i * i // 3) % len(colours)] if colours else ""
            if leaf:
                _oval(axes, x + reach * np.cos(angle), 3.25 + 1.05 * reach * np.sin(angle), 0.34, 0.34, leaf, 3)
        for lean in () if colours else (-0.75, -0.4, 0.0, 0.4, 0.75):  # bare in winter, with snow on the twigs
            end = (x + 0.9 * lean, 4.1 - 0.6 * abs(lean))
            axes.plot([x, end[0]], [2.5, end[1]], color="#6b4a33", lw=4, zorder=2, solid_capstyle="round")
            _oval(axes, end[0], end[1] + 0.05, 0.4, 0.22, "#ffffff", 3)


_SEASONS = (
    ("#f7bfd0", "#fbdbe4", "#f3a6bd", "#bcd98a"), ("#4f8f4a", "#66a85b", "#3f7a40"),
    ("#d9772b", "#e8a53a", "#b94e2c"), (),
)  # fmt: skip


def _stars(axes: Any) -> None:
    _sky(axes, "#0c1638", "#3d4f88")
    generator = np.random.default_rng(12)
    x, y, size = generator.uniform(0, WIDTH, 130), generator.uniform(2.2, HEIGHT, 130), generator.uniform(1, 22, 130)
    axes.scatter(x, y, s=size, color="#fdf6d8", zorder=1, linewidths=0)
    t = np.linspace(np.pi / 2, 1.5 * np.pi, 60)
    crescent = np.array([(np.cos(a), np.sin(a)) for a in t] + [(0.45 * np.cos(a), np.sin(a)) for a in t[::-1]])
    _shape(axes, (6.6, 4.7) + 0.6 * crescent @ [[0.9, -0.42], [0.42, 0.9]], "#fbf0c0", 2)
    _hills(axes, 1.9, 0.4, 0.2, "#24315e", 3)
    _hills(axes, 1.1, 0.35, 3.0, "#151f42", 4)
    _shape(axes, [(2.0, 1.0), (2.8, 1.0), (2.8, 1.5), (2.0, 1.5)], "#0b1230", 5)
    _shape(axes, [(1.85, 1.5), (2.95, 1.5), (2.4, 1.95)], "#0b1230", 5)
    _shape(axes, [(2.3, 1.12), (2.5, 1.12), (2.5, 1.36), (2.3, 1.36)], "#ffd977", 6)


def _cat(axes: Any) -> None:
    axes.fill_between([0, WIDTH], 0, HEIGHT, color="#e7cdb0", zorder=0, linewidth=0)
    _shape(axes, [(1, 1.5), (7, 1.5), (7, 5.6), (1, 5.6)], "#ffffff", 1)
    _shape(axes, [(1.2, 1.5), (6.8, 1.5), (6.8, 5.4), (1.2, 5.4)], "#a8d5ee", 1.1)
    for x, y in ((2.2, 4.6), (2.7, 4.75), (3.2, 4.6)):
        _oval(axes, x, y, 0.9, 0.5, "#ffffff", 1.2)
    axes.plot([4.0, 4.0], [1.5, 5.4], color="#ffffff", lw=8, zorder=1.3)
    _shape(axes, [(0.5, 1.05), (7.5, 1.05), (7.5, 1.5), (0.5, 1.5)], "#f6efe4", 2)
    fur, dark = "#e0954a", "#b86f2c"
    t = np.linspace(0, 1, 60)
    axes.plot(5.6 + 1.0 * np.sin(2.6 * t), 1.6 - 1.3 * t, color=fur, lw=14, zorder=3, solid_capstyle="round")
    _oval(axes, 5.0, 2.3, 1.7, 1.9, fur, 3)
    for y in (2.1, 2.4, 2.7):
        axes.plot([5.5, 5.8], [y, y + 0.06], color=dark, lw=5, zorder=3.2, solid_capstyle="round")
    for x in (4.62, 5.2):
        _oval(axes, x, 1.58, 0.55, 0.3, "#f3c28d", 3.3)
    for side in (-1, 1):
        x = 4.9 + side * 0.42
        _shape(axes, [(x - 0.25, 3.75), (x + 0.25, 3.75), (x + side * 0.18, 4.4)], fur, 3.3)
    _oval(axes, 4.9, 3.45, 1.45, 1.2, fur, 3.4)
    for side in (-1, 1):
        _oval(axes, 4.9 + side * 0.32, 3.55, 0.2, 0.26, "#2f2a1f", 3.6)
        _oval(axes, 4.9 + side * 0.32 + 0.03, 3.61, 0.06, 0.08, "#ffffff", 3.7)
        for slope in (-0.08, 0.06):
            axes.plot([4.9 + side * 0.2, 4.9 + side * 0.95], [3.22, 3.22 + slope], color="#fff6e8", lw=1.5, zorder=3.6)
    _shape(axes, [(4.82, 3.32), (4.98, 3.32), (4.9, 3.22)], "#c4605a", 3.6)


def _sprout(axes: Any) -> None:
    _sky(axes, "#cfe9f5", "#fdf8e4", 1.5)
    _oval(axes, 6.6, 4.6, 1.2, 1.2, "#ffd45e", 1)
    for angle in np.arange(0, 2 * np.pi, np.pi / 6):
        start, end = 0.78, 1.05
        axes.plot(6.6 + np.cos(angle) * np.array([start, end]), 4.6 + np.sin(angle) * np.array([start, end]),
                  color="#ffd45e", lw=4, zorder=1, solid_capstyle="round")  # fmt: skip
    axes.fill_between([0, WIDTH], 0, 1.7, color="#9c8f86", zorder=2, linewidth=0)
    axes.plot([0, 2.2, 3.1, 4.0, 5.0, 6.1, 8], [0.8, 1.0, 0.7, 1.7, 0.8, 1.1, 0.7], color="#6f645c", lw=4, zorder=2.1)
    y = np.linspace(1.6, 3.9, 40)
    axes.plot(4.0 + 0.12 * np.sin(2 * y), y, color="#5c9a45", lw=8, zorder=3, solid_capstyle="round")
    for side, height, colour in ((-1, 3.0, "#6fb353"), (1, 3.4, "#83c464")):
        _oval(axes, 4.0 + side * 0.62, height, 1.3, 0.55, colour, 3.2, angle=side * 28)
    _oval(axes, 4.1, 4.15, 0.55, 0.75, "#8ccf6c", 3.3)


def _duck(axes: Any) -> None:
    axes.fill_between([0, WIDTH], 0, HEIGHT, color="#bfe6ea", zorder=0, linewidth=0)
    for i in range(9):
        axes.plot([i, i], [0, HEIGHT], color="#d8f1f3", lw=3, zorder=0.5)
        axes.plot([0, WIDTH], [i * 0.8, i * 0.8], color="#d8f1f3", lw=3, zorder=0.5)
    for i in range(60):
        x, y = (i * 1.37) % 8, 0.2 + (i * 0.61) % 1.5
        _oval(axes, x, y, 0.95, 0.85, "#ffffff" if i % 3 else "#e6f3fa", 3 + (1.7 - y) / 10)
    _oval(axes, 4.2, 2.3, 3.2, 1.7, "#ffd435", 2)
    _shape(axes, [(5.2, 2.7), (6.3, 3.3), (5.7, 2.1)], "#ffd435", 2)
    _oval(axes, 4.5, 2.5, 1.5, 0.8, "#f2bc1c", 2.2, angle=12)
    _oval(axes, 3.0, 3.7, 1.7, 1.6, "#ffd435", 2.1)
    _oval(axes, 2.05, 3.55, 0.8, 0.34, "#f08a24", 2.3)
    _oval(axes, 2.75, 3.95, 0.24, 0.3, "#2b2b2b", 2.4)
    _oval(axes, 2.71, 4.02, 0.08, 0.1, "#ffffff", 2.5)
    _shape(axes, [(2.5, 4.38), (3.7, 4.38), (3.5, 5.3), (2.7, 5.3)], "#33415e", 2.6)
    axes.plot([2.25, 3.95], [4.38, 4.38], color="#33415e", lw=8, zorder=2.6, solid_capstyle="round")
    axes.plot([2.55, 3.65], [4.6, 4.6], color="#c9504b", lw=8, zorder=2.7, solid_capstyle="butt")


def _rainbow(axes: Any) -> None:
    _sky(axes, "#8fb9d8", "#e6f1f3")
    from matplotlib.patches import Wedge

    for i, colour in enumerate(("#e4605e", "#f19a4b", "#f6d55c", "#7cc47f", "#5b9bd5", "#9274c0")):
        axes.add_patch(Wedge((4, 1.2), 3.7 - 0.22 * i, 0, 180, width=0.22, facecolor=colour, zorder=1, alpha=0.85))
    for x, y in ((1.0, 4.9), (6.4, 5.1)):
        for dx, dy, size in ((-0.5, 0, 0.9), (0.1, 0.2, 1.2), (0.7, 0, 0.9)):
            _oval(axes, x + dx, y + dy, size, 0.7 * size, "#ffffff", 2)
    _hills(axes, 1.5, 0.25, 0.5, "#8fc27a", 3)
    _hills(axes, 0.8, 0.2, 2.6, "#6ea862", 4)
    for i, x in enumerate((0.8, 1.9, 3.1, 4.6, 5.7, 7.0)):
        axes.plot([x, x], [0.3, 0.75], color="#4d8247", lw=3, zorder=5)
        for petal in np.arange(0, 2 * np.pi, np.pi / 2.5):
            _oval(axes, x + 0.13 * np.cos(petal), 0.85 + 0.13 * np.sin(petal), 0.2, 0.2,
                  ("#ffffff", "#f7b6c8")[i % 2], 6)  # fmt: skip
        _oval(axes, x, 0.85, 0.16, 0.16, "#ffd23f", 7)


PICTURES: Mapping[str, Picture] = {
    "sunrise": Picture("the sun coming up over green hills", "hopeful", _sunrise),
    "boat": Picture("a small boat on a quiet lake", "calming", _boat),
    "tea": Picture("a warm cup of tea on a wooden table", "calming", _tea),
    "tree": Picture("a tree in spring, summer, autumn and winter", "hopeful", _tree),
    "stars": Picture("a sky full of stars over a house in the hills", "calming", _stars),
    "cat": Picture("a ginger cat on a window sill", "funny", _cat),
    "sprout": Picture("a green sprout growing out of a cracked stone", "hopeful", _sprout),
    "duck": Picture("a rubber duck with a top hat in a bubble bath", "funny", _duck),
    "rainbow": Picture("a rainbow over a meadow with flowers", "hopeful", _rainbow),
}
"""Name to picture."""
