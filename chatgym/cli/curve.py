"""``chatgym curve``: draw learning curves; runs that differ only in their seed are one curve with a band."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatgym.cli.compare import check_named_once
from chatgym.cli.options import AsJson, Overwrite, check_output, print_json
from chatgym.cli.terminal import console, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chatgym.evaluation import Curve, TrainedRun

FORM = {"success_rate": (100.0, ".1f", " %"), "score": (1.0, ".1f", ""), "mean_return": (1.0, ".3f", "")}
"""Measure to factor, form and unit of its numbers in the table."""


class Statistic(str, Enum):
    """What a curve shows of the runs at each point."""

    iqm = "iqm"
    mean = "mean"


def curve(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")],
    picture: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, help="Picture to write: .png, .pdf or .svg.")
    ] = Path("curve.png"),
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", dir_okay=False, help="Also write the numbers as CSV.")
    ] = None,
    statistic: Annotated[
        Statistic, typer.Option(help="Over runs: the interquartile mean (of fewer than four: the mean), or the mean.")
    ] = Statistic.iqm,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw learning curves of several runs: success rate and score over turns of training, for each scenario.

    Runs that differ only in their seed make one curve. Its band is a 95 % stratified bootstrap interval over these runs
    (Agarwal et al. 2021), so it holds the variance of training; that needs at least three seeds. The curves come from
    the evaluations that `chatgym train` made, on validation conversations.

    \b
    Examples:
      for seed in 0 1 2 3 4; do chatgym train qlearning --seed $seed --run runs/q-$seed; done
      chatgym curve runs/q-*
      chatgym curve runs/q-* runs/dqn-* --picture curves.pdf --csv curves.csv
    """
    from chatgym.evaluation.curves import curves_of, write_csv
    from chatgym.evaluation.curves_plot import draw_curves
    from chatgym.storage import atomic
    from chatgym.storage.figures import check_picture

    check_picture(picture)
    for path, flag in ((picture, "--picture"), (csv, "--csv")):
        check_output(path, flag, overwrite)
    check_named_once(runs)
    curves = curves_of([_read(name) for name in runs], statistic.value)
    with atomic.disk_space(picture, "free some, or write elsewhere (--picture, --csv)"):
        atomic.write_file(picture, lambda temporary: draw_curves(curves, temporary))
        if csv is not None:
            write_csv(curves, csv)
    lacking = list(dict.fromkeys(one.label for one in curves if one.lacks_variance))
    if as_json:
        figures = [one.to_json() for one in curves]
        print_json({"statistic": statistic.value, "curves": figures, "without_training_variance": lacking,
                    "picture": picture, "csv": csv})  # fmt: skip
        return
    _print(curves, statistic.value, lacking)
    console().print(f"Picture: {picture}" + (f"; numbers: {csv}" if csv else ""))


def _read(name: str) -> TrainedRun:
    """Return what a run has learned so far.

    Raises:
        InvalidValue: It has no evaluation yet.
    """
    from chatgym.evaluation import TrainedRun
    from chatgym.training import Run

    run = Run.open(name)
    if not (metrics := run.metrics()):
        raise InvalidValue(f"{name} has no evaluation yet; go on with the training: `{run.resume_command()}`")
    return TrainedRun(name, run.task, run.config, metrics)


def _print(curves: Sequence[Curve], statistic: str, lacking: Sequence[str]) -> None:
    """Print where each curve ends."""
    out, rows = console(), []
    for one in curves:
        second = "score" if "score" in one.bands else "mean_return"
        cells = [*_cells(one, "success_rate"), *(_cells(one, "score") if second == "score" else ("n/a", ""))]
        rows.append((one.task, one.label, str(len(one.runs)), f"{one.turns[-1]:,.0f}", *cells))
    columns = ("scenario", "agent", "runs", "turns", "success rate", "95 % interval", "score", "95 % interval")
    out.print(table(columns, rows, range(2, len(columns))))
    how = "interquartile mean over runs (of fewer than four: mean)" if statistic == "iqm" else "mean over runs"
    out.print(
        f"\n{how}; intervals: stratified bootstrap over runs; score: 0 is the best agent that doesn't listen, 100 the "
        "expert"
    )
    if lacking:
        out.print(f"the variance of training is missing for {', '.join(lacking)}: train at least three seeds of each")


def _cells(one: Curve, measure: str) -> tuple[str, str]:
    """Return the last value of a curve and its interval as two cells."""
    unit, form, sign = FORM[measure]
    value, low, high = one.bands[measure].at(-1)
    ends = "" if low is None or high is None else f"{unit * low:{form}} to {unit * high:{form}}{sign}"
    return f"{unit * value:{form}}{sign}", ends
