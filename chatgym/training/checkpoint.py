"""A checkpoint: the folder of a saved agent, with its turns and the digests of its files in ``checkpoint.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatgym.agent import Agent
from chatgym.errors import Corrupted
from chatgym.storage import atomic
from chatgym.storage.model_store import sha256
from chatgym.storage.utf8 import read_json

ABOUT = "checkpoint.json"


def save(agent: Agent, turns: int, folder: Path) -> None:
    """Save an agent after `turns` of training in an empty folder."""
    agent.save(folder)
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write(folder, {"turns": turns, "files": files})


def check(folder: Path) -> None:
    """Check that the files are as they were saved.

    Raises:
        Corrupted: One has changed or is missing.
    """
    for name, recorded in read(folder)["files"].items():
        path = folder / name
        if not path.is_file() or sha256(path) != recorded:
            what = "isn't as it was saved" if path.is_file() else "is missing"
            raise Corrupted(f"{path} {what}; restore it or train again (--overwrite)")


def write(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``checkpoint.json``."""
    atomic.write_text(folder / ABOUT, json.dumps(about, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """Return the content of ``checkpoint.json``: ``turns``, ``files`` (name to SHA-256), perhaps ``finished``.

    Raises:
        Corrupted: It can't be read.
    """
    path = folder / ABOUT
    try:
        found = read_json(path)
        return {**found, "turns": int(found["turns"]), "files": dict(found["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); restore it or train again (--overwrite)") from error
