"""Logs of a run for other programs: ``metrics.csv`` and TensorBoard's event files.

Both repeat the lines of ``metrics.jsonl``. A resumed run writes them again from the first line, so a kill neither
doubles a row nor loses one. The calling thread writes everything, so a full disk raises an `OSError` there.
"""

from __future__ import annotations

import csv
import importlib
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatgym.errors import Unavailable, unknown
from chatgym.storage import atomic

FORMATS = {"csv": "metrics.csv", "tensorboard": "tensorboard"}
"""Log format to the file or folder that it fills in the run folder."""


def formats(names: str | Sequence[str]) -> list[str]:
    """Return the log formats that are named, each once; one string may name several, separated by commas.

    Raises:
        InvalidValue: A format is unknown.
        Unavailable: The package of a format isn't installed.
    """
    parts = [part.strip() for name in ([names] if isinstance(names, str) else names) for part in name.split(",")]
    found = list(dict.fromkeys(parts))
    for name in found:
        if name not in FORMATS:
            raise unknown("log format", name, FORMATS, "metrics.jsonl is written in any case.")
    if "tensorboard" in found:
        _tensorboard("summary.writer.record_writer")
    return found


def flat(line: Mapping[str, Any]) -> dict[str, float]:
    """Flatten a line of metrics: ``score`` for its value, ``score/low``, ``training/epsilon``; drop null values."""
    row: dict[str, float] = {}
    for name, value in line.items():
        for inner, number in value.items() if isinstance(value, Mapping) else (("value", value),):
            if number is not None:
                row[name if inner == "value" else f"{name}/{inner}"] = number
    return row


class Logs:
    """The logs of a run in training."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Log into the run `folder` in the formats `names`."""
        self.folder, self.names = folder, names
        self._events: Path | None = None
        self._written = 0

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Bring the logs up to date.

        Args:
            lines: All lines of ``metrics.jsonl``, those logged before and new ones.

        Raises:
            OSError: The disk is full; a resumed run writes the logs again.
        """
        if "csv" in self.names:
            atomic.write_text(self.folder / FORMATS["csv"], _csv(lines))
        if "tensorboard" in self.names:
            self._write_events(lines)

    def _write_events(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append the events of new lines to this process's event file, and delete the files of earlier processes."""
        folder, before = self.folder / FORMATS["tensorboard"], []
        events: list[dict[str, Any]] = []
        if self._events is None:
            folder.mkdir(exist_ok=True)
            before = list(folder.glob("events.out.tfevents.*"))
            now = time.time()
            self._began = now - (lines[-1]["seconds"] if lines else 0.0)
            self._events = folder / f"events.out.tfevents.{now:.6f}.chatgym"
            self._written = 0
            # Readers of the earlier files forget all of their steps at this purge, and read them again here.
            events = [{"file_version": "brain.Event:2"}, {"session_log": {"status": 1}}]
            events = [{"wall_time": now, "step": 0, **event} for event in events]
        for line in lines[self._written :]:
            events += [
                {"wall_time": self._began + line["seconds"], "step": line["turns"],
                 "summary": {"value": [{"tag": name, "simple_value": value}]}}
                for name, value in flat(line).items() if name != "turns"
            ]  # fmt: skip
        atomic.append_bytes(self._events, b"".join(map(_record, events)))
        self._written = len(lines)
        for path in before:
            path.unlink()


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return lines of metrics as CSV with a header."""
    rows = [flat(line) for line in lines]
    columns = dict.fromkeys(name for row in rows for name in row)  # the first line has no metrics of training yet
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _record(event: Mapping[str, Any]) -> bytes:
    """Encode an event, given by the fields of the protocol buffer ``tensorboard.Event``, as a record of its file."""
    data = io.BytesIO()
    encoded = _tensorboard("compat.proto.event_pb2").Event(**event).SerializeToString()
    _tensorboard("summary.writer.record_writer").RecordWriter(data).write(encoded)
    return data.getvalue()


def _tensorboard(module: str) -> Any:
    """Import a module of the package tensorboard, whose own writer would fail unseen in a thread on a full disk."""
    try:
        return importlib.import_module(f"tensorboard.{module}")
    except ImportError as error:
        remedy = "`pip install 'chatgym[tensorboard]'`, or log as csv"
        raise Unavailable(f"the log format 'tensorboard' needs the package of that name ({error}): {remedy}") from error
