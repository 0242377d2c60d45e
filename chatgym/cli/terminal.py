"""Print tables on stdout, errors and progress on stderr; text is never read as markup."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from chatgym.finetuning import distributed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from chatgym.evaluation.intervals import Interval

PIPED_WIDTH = 200
"""Columns of output that goes to a file or pipe, where a table needn't fit a terminal."""

REFRESH_SECONDS = 0.1
LINE_SECONDS = 60.0
"""Seconds between two lines of progress where there is no terminal."""
IN_LINE = 8
"""Most metrics in such a line."""
NOTED = 4
"""Most metrics without a table below the progress bar."""
GRID = 3
"""Metrics in a row of that table."""

Progress = Callable[[int, Mapping[str, float]], None]


def replace_what_cannot_be_shown() -> None:
    """Let the standard streams replace what their encoding can't show or decode, where they would raise an error.

    A terminal's code page may have neither the euro nor the dashes of conversations. Streams that are closed, as in a
    program without a console, become empty ones.
    """
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 (as long as the process)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
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


def print_failure(error: Exception) -> None:
    """Print an error as one line on stderr, above it the part of a traceback that is in an agent's own code."""
    if trace := getattr(error, "trace", ""):
        typer.echo(f"Traceback in the agent's code:\n{trace}", err=True, nl=False)
    print_error(str(error))


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], numbers: Iterable[int] = ()) -> Table:
    """Return a table of plain strings; the columns with indices in `numbers` are aligned to the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    right = set(numbers)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def measures(success_rate: Interval, mean_return: Interval, score: Interval | None) -> list[tuple[str, str, str]]:
    """Return the three measures of an agent as rows: name, value, 95 % interval."""
    share = success_rate.scaled(0.0, 0.01)
    return [
        ("success rate", f"{share.value:.1f} %", f"{share.low:.1f} to {share.high:.1f} %"),
        ("mean return", f"{mean_return.value:.3f}", f"{mean_return.low:.3f} to {mean_return.high:.3f}"),
        ("score", f"{score.value:.1f}", f"{score.low:.1f} to {score.high:.1f}") if score else ("score", "n/a", ""),
    ]


def percent(share: float) -> str:
    """Write a share, 0 to 1, in percent."""
    return f"{100 * share:.1f} %"


def _grid(metrics: Mapping[str, float]) -> Table:
    """Return a table of metrics, `GRID` in a row."""
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    cells = [cell for name, value in metrics.items() for cell in (name.replace("_", " "), f"{value:.4g}")]
    for start in range(0, len(cells), 2 * GRID):
        made.add_row(*cells[start : start + 2 * GRID])
    return made


@contextlib.contextmanager
def progress_bar(what: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show progress on stderr while the block runs: a bar on a terminal, else a line a minute.

    Of several processes that train together, the first one shows it.

    Args:
        what: Label before the bar.
        total: Count at which the bar is full.
        unit: What is counted, in the plural.
        done: Count at which the bar begins; more than 0 is told as a resumption.

    Yields:
        A function (count, metrics) that moves the bar and shows metrics.
    """
    if not distributed.first():
        yield lambda count, metrics: None
        return
    if 0 < done < total:
        typer.echo(f"Resumed at {unit.removesuffix('s')} {done:,} of {total:,}", err=True)
    with (_bar if sys.stderr.isatty() else _lines)(what, total, unit, done) as progress:
        yield progress


@contextlib.contextmanager
def _lines(what: str, total: int, unit: str, done: int) -> Iterator[Progress]:
    """Print a line every `LINE_SECONDS`, also while nothing is counted; arguments as of `progress_bar`."""
    latest: tuple[int, Mapping[str, float]] = (done, {})
    began, over = time.monotonic(), threading.Event()

    def progress(count: int, metrics: Mapping[str, float]) -> None:
        nonlocal latest
        latest = count, metrics

    def report() -> None:
        while not over.wait(LINE_SECONDS):
            (count, metrics), spent = latest, time.monotonic() - began
            left = f", about {_span(spent * (total - count) / (count - done))} left" if done < count < total else ""
            shown = itertools.islice(metrics.items(), IN_LINE)
            figures = "".join(f", {name} {value:.4g}" for name, value in shown)
            typer.echo(f"{what}: {count:,} of {total:,} {unit} after {_span(spent)}{left}{figures}", err=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        over.set()
        thread.join()


def _span(seconds: float) -> str:
    """Write a time as hours and minutes, ``0:05``."""
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02} h"


@contextlib.contextmanager
def _bar(what: str, total: int, unit: str, done: int) -> Iterator[Progress]:
    """Show a bar; arguments as of `progress_bar`."""
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

    class BarWithMetrics(Bar):
        """A bar, and below it the table of metrics, if there are more than `NOTED`."""

        def get_renderables(self) -> Iterable[Any]:
            yield from super().get_renderables()
            if len(latest[1]) > NOTED:
                yield _grid(latest[1])

    with BarWithMetrics(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(what, total=total, completed=done, note="")
        shown = 0.0

        def show() -> None:
            turns, metrics = latest
            more: dict[str, Any] = {}
            if "success_rate" in metrics:
                more["note"] = f"success {metrics['success_rate']:.1%}"
            elif "wordings" in metrics:
                more["note"] = f"generated {metrics['wordings']} banks of wordings"
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
