"""Where a result comes from: agent, run, settings, seeds, versions, and the commit of the working directory.

There is no date in it, so the same evaluation gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

from chatgym.agent import Agent
from chatgym.storage.model_store import sha256
from chatgym.training import checkpoint as checkpoints
from chatgym.training.run import Run, versions

GIT_SECONDS = 10.0


def provenance(name: str, agent: Agent, checkpoint: str = "last") -> dict[str, Any]:
    """Return what says how an agent was made, as JSON values.

    Args:
        name: A run folder, or the name of an agent that needs no training.
        agent: That agent.
        checkpoint: Which checkpoint of the run it is, ``"last"`` or ``"best"``.

    Returns:
        ``name`` of the agent, ``run`` (the folder), ``settings``, ``training_seed``, ``checkpoint``, ``trained_turns``,
        ``checkpoint_sha256`` (of ``model/checkpoint.json``, which names the digests of all files), and ``versions``
        of training and evaluation. Without a run, all that belongs to a training is None.
    """
    if not (Path(name) / "config.json").is_file():
        config = getattr(agent, "config", None)
        settings = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {}  # type: ignore[arg-type]
        return {
            "name": name, "run": None, "settings": settings, "training_seed": None, "checkpoint": None,
            "trained_turns": None, "checkpoint_sha256": None,
            "versions": {"training": None, "evaluation": versions(name)},
        }  # fmt: skip
    run = Run.open(name)
    folder = run.check(checkpoint)
    return {
        "name": run.config["agent"], "run": name, "settings": run.config["settings"],
        "training_seed": run.config["seed"], "checkpoint": checkpoint,
        "trained_turns": checkpoints.read(folder)["turns"], "checkpoint_sha256": sha256(folder / checkpoints.ABOUT),
        "versions": {"training": run.config["versions"], "evaluation": versions(run.config["agent"])},
    }  # fmt: skip


def commit(folder: Path | None = None) -> dict[str, Any] | None:
    """Return the git commit of a folder (None: the working directory).

    Returns:
        ``hash``, and ``changed``: whether files that git tracks differ from it. None without git or a commit.
    """
    head, changes = _git("rev-parse HEAD", folder), _git("status --porcelain --untracked-files=no", folder)
    return None if head is None or changes is None else {"hash": head, "changed": bool(changes)}


def _git(command: str, folder: Path | None) -> str | None:
    """Return what a git command prints; None if it fails or git isn't installed."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *command.split()],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
