"""The table of returns: a line of CSV for each conversation of an evaluation, for statistics of your own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from chatgym.evaluation.evaluation import Evaluation
from chatgym.storage import atomic

COLUMNS = ("run", "scenario", "number", "seed", "return", "outcome", "turns", "success")


def write_returns(evaluations: Iterable[tuple[str, str, Evaluation]], path: Path) -> None:
    """Write the conversations of evaluations, each given with the name of its run or agent and its scenario.

    ``number`` counts an evaluation's conversations from 0, ``return`` is written exactly, ``success`` is 1 or 0.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for name, scenario, found in evaluations:
        ends = zip(found.returns.tolist(), found.outcomes.tolist(), found.turns.tolist(), strict=True)
        for number, (total, outcome, turns) in enumerate(ends):
            success = int(outcome == found.success)
            table.writerow([name, scenario, number, found.seed + number, repr(total), outcome, turns, success])
    atomic.write_text(path, text.getvalue())
