"""Check an agent's files: the part of `check_agent` about saving and loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from chatgym.errors import Corrupted
from chatgym.testing.findings import Findings

SUFFIXES = (".json", ".npz", ".safetensors")
Files = dict[str, bytes]
"""Name to content."""


def differ(a: Files, b: Files) -> str:
    """Return the names of files that differ."""
    return ", ".join(sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name)))


def check_files(findings: Findings, folder: Path, files: Files) -> None:
    """Check that the saved files can be read without executing code."""
    findings.expect(files, "save() writes no file. Write what load() needs into the folder.")
    for name in files:
        path = folder / name
        if not findings.expect(
            path.suffix in SUFFIXES,
            f"save() writes {name}. Write {', '.join(SUFFIXES)} only: a pickle runs a stranger's code when it is read.",
        ):
            continue
        try:
            _read(path)
        except Exception as error:  # each library has its own
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
            findings.expect(
                False,
                f"{name} can't be read as what it is called without pickle ({reason}). Write arrays of numbers with "
                "np.savez or safetensors, everything else as JSON.",
            )


def _read(path: Path) -> None:
    """Read a file by the format of its suffix."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                file[name]
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    else:
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            file.keys()


def check_damaged(findings: Findings, agent_class: Any, saved: Path, copy: Path) -> None:
    """Check that loading a file that was cut off raises `Corrupted`."""
    for path in sorted(path for path in saved.rglob("*") if path.is_file()):
        name = path.relative_to(saved).as_posix()
        shutil.copytree(saved, copy)
        (copy / name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        try:
            agent_class.load(copy)
            what = "makes an agent of it"
        except Corrupted:
            what = ""
        except Exception as error:  # whatever a stranger's code raises
            what = f"raises {type(error).__name__}"
        findings.expect(
            not what,
            f"where {name} is cut off in the middle, load() {what}. Raise `chatgym.errors.Corrupted`, which says what "
            "to do.",
        )
        shutil.rmtree(copy)
