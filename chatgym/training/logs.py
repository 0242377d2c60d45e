"""What a run logs beside ``metrics.jsonl``, for other programs: ``metrics.csv`` and TensorBoard's event files.

Both are made from ``metrics.jsonl`` and hold nothing of their own: a resumed run writes them anew from its lines, so a
kill neither doubles a row nor loses one.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatgym.errors import Unavailable, unknown
from chatgym.storage import atomic

FORMATS = {"csv": "metrics.csv", "tensorboard": "tensorboard"}
"""Names of the formats, and the file or folder of each in the run folder."""


def formats(names: str | Sequence[str]) -> list[str]:
    """Return the formats that are meant, each once; a comma separates names, too.

    Raises:
        InvalidValue: When there is no such format.
        Unavailable: When its package isn't installed.
    """
    parts = [part.strip() for name in ([names] if isinstance(names, str) else names) for part in name.split(",")]
    found = list(dict.fromkeys(parts))
    for name in found:
        if name not in FORMATS:
            raise unknown("log format", name, FORMATS, "metrics.jsonl is written in any case.")
    if "tensorboard" in found:
        _summary_writer()
    return found


def flat(line: Mapping[str, Any]) -> dict[str, float]:
    """Return a line of metrics as one level: ``score`` for its value, then ``score/low``, ``training/epsilon`` ..."""
    row: dict[str, float] = {}
    for name, value in line.items():
        for inner, number in value.items() if isinstance(value, Mapping) else (("value", value),):
            row[name if inner == "value" else f"{name}/{inner}"] = number
    return row


@contextlib.contextmanager
def logging(folder: Path, names: Sequence[str]) -> Iterator[Logs]:
    """Open the logs of a run for the block."""
    logs = Logs(folder, names)
    try:
        yield logs
    finally:
        logs.close()


class Logs:
    """The logs of a run that trains; `logging` makes it."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        self.writer: Any = None
        self.written = 0

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Bring the logs up to date.

        Args:
            lines: All of ``metrics.jsonl``: those that the logs had before, and new ones.
        """
        if "csv" in self.names:
            atomic.write_text(self.folder / FORMATS["csv"], _csv(lines))
        if "tensorboard" in self.names:
            self._write_events(lines)

    def close(self) -> None:
        """Close the event file; all that was written is in it already."""
        if self.writer is not None:
            with contextlib.suppress(OSError):  # a full disk was reported by `write`
                self.writer.close()

    def _write_events(self, lines: Sequence[Mapping[str, Any]]) -> None:
        folder = self.folder / FORMATS["tensorboard"]
        before = []
        if self.writer is None:
            before = list(folder.glob("events.out.tfevents.*"))
            # Whoever has read the old files forgets all their steps at the purge, and reads them here once more.
            self.writer = _summary_writer()(str(folder), purge_step=0)
            self.began = time.time() - (lines[-1]["seconds"] if lines else 0.0)
        for line in lines[self.written :]:
            for name, value in flat(line).items():
                if name != "turns":
                    self.writer.add_scalar(name, value, line["turns"], walltime=self.began + line["seconds"])
        self.writer.flush()
        self.written = len(lines)
        for path in before:
            path.unlink()


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [flat(line) for line in lines]
    columns = dict.fromkeys(name for row in rows for name in row)  # the first line has no metrics of training yet
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _summary_writer() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        remedy = "`pip install 'chatgym[tensorboard]'`, or log as csv"
        raise Unavailable(f"the log format 'tensorboard' needs the package of that name ({error}): {remedy}") from error
