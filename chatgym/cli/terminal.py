"""Print tables on stdout, errors and progress on stderr; text is never read as markup."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from chatgym.evaluation.intervals import Interval

PIPED_WIDTH = 200
"""Columns where there is no terminal: a table in a file isn't cut to the width of one."""

REFRESH_SECONDS = 0.1
NOTED = 4
"""Most metrics that are no reason for a table below the progress bar."""
GRID = 3
"""Metrics side by side in it."""

Progress = Callable[[int, Mapping[str, float]], None]


def replace_what_cannot_be_shown() -> None:
    """Let the standard streams replace what their encoding can't show or decode, where they would raise an error.

    A terminal's code page may have neither the euro nor the dashes of conversations.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")


def console() -> Console:
    """Return stdout for tables and conversations."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_error(message: str) -> None:
    """Print an error as one line on stderr."""
    typer.secho(f"Error: {' '.join(message.split())}", err=True, fg="red")


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], numbers: Iterable[int] = ()) -> Table:
    """Make a table of plain strings; the columns whose indices are in `numbers` stand to the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    right = set(numbers)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def measures(success_rate: Interval, mean_return: Interval, score: Interval) -> list[tuple[str, str, str]]:
    """Write the three measures of an agent as rows: name, value, 95 % interval."""
    share = success_rate.scaled(0.0, 0.01)
    return [
        ("success rate", f"{share.value:.1f} %", f"{share.low:.1f} to {share.high:.1f} %"),
        ("mean return", f"{mean_return.value:.3f}", f"{mean_return.low:.3f} to {mean_return.high:.3f}"),
        ("score", f"{score.value:.1f}", f"{score.low:.1f} to {score.high:.1f}"),
    ]


def percent(share: float) -> str:
    """Write a share."""
    return f"{100 * share:.1f} %"


def _grid(metrics: Mapping[str, float]) -> Table:
    """Lay names and numbers out in columns."""
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    cells = [cell for name, value in metrics.items() for cell in (name.replace("_", " "), f"{value:.4g}")]
    for start in range(0, len(cells), 2 * GRID):
        made.add_row(*cells[start : start + 2 * GRID])
    return made


@contextlib.contextmanager
def progress_bar(what: str, total: int, unit: str, done: int = 0) -> Iterator[Progress | None]:
    """Show a bar on a terminal while the block runs; without a terminal, yield None and show nothing.

    Args:
        what: Stands before the bar.
        total: Where it ends.
        unit: What is counted, in the plural.
        done: Where it begins.

    Yields:
        A function of how many are done and of metrics; ``success_rate``, ``wordings`` and ``answers`` are shown.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0.0:,.0f} {unit}/s")

    plain = "{task.completed:,.0f} of {task.total:,.0f} " + unit
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), TextColumn(plain, markup=False),
        Rate(), TextColumn("{task.fields[note]}", markup=False), TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    latest: tuple[int, Mapping[str, float]] = (done, {})

    class Watched(Bar):
        """A bar, and below it what an agent has to say of itself, where that is more than a word."""

        def get_renderables(self) -> Iterable[Any]:
            yield from super().get_renderables()
            if len(latest[1]) > NOTED:
                yield _grid(latest[1])

    with Watched(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(what, total=total, completed=done, note="")
        shown = 0.0

        def show() -> None:
            turns, metrics = latest
            more: dict[str, Any] = {}
            if "success_rate" in metrics:
                more["note"] = f"success {metrics['success_rate']:.1%}"
            elif "wordings" in metrics:
                more["note"] = f"found words for {metrics['wordings']} kinds of utterance"
            elif "answers" in metrics:
                more["note"] = f"{metrics['answers']:,} answers"
            bar.update(task, completed=min(turns, total), **more)

        def progress(count: int, metrics: Mapping[str, float]) -> None:
            nonlocal latest, shown
            latest = count, metrics
            if (now := time.monotonic()) - shown > REFRESH_SECONDS:
                shown = now
                show()

        try:
            yield progress
        finally:
            show()
