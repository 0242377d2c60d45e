"""The agent llm in `chatgym evaluate`: record its replies, so that the same command continues after an interruption."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.cli.budget import limit
from chatgym.cli.terminal import console, progress_bar, table

if TYPE_CHECKING:
    from chatgym.envs.task import Task
    from chatgym.evaluation import Evaluation

CALLS = "calls.sqlite"
"""File of the recorded replies."""


def keep_answers(agent: Any, task: Task, out: Path | None, **limits: float | None) -> Path:
    """Record a model's replies as they come, and take those that are recorded already.

    Args:
        agent: An agent of `chatgym_agents.llm`.
        task: The task of the evaluation.
        out: The folder, made if needed. None: one named after model and scenario.
        limits: See `chatgym.cli.budget.limit`.

    Returns:
        The folder.
    """
    from chatgym.engines.recorded import RecordedEngine
    from chatgym.storage import atomic

    engine = agent.engine
    limit(engine, **limits)
    name = re.sub(r"[^\w.]+", "-", engine.identity.split("//")[-1]).strip("-")
    folder = out or Path("evaluations") / f"{name}-{task.scenario}"
    with atomic.disk_space(folder, "free some, or name another folder (--out)"):
        folder.mkdir(parents=True, exist_ok=True)
        if not isinstance(engine, RecordedEngine):
            agent.engine = RecordedEngine(folder / CALLS, engine)
    return folder


def write_transcripts(
    folder: Path, recorder: Any, result: Evaluation, task: Task, words: Any, figures: Mapping[str, Any]
) -> None:
    """Hold the conversations of an evaluation again, with the same actions, and write what was said.

    ``transcripts.jsonl`` has one conversation on each line, see `chatgym.evaluation.converse`; ``result.json`` has the
    figures.
    """
    from chatgym.evaluation.rollouts import converse
    from chatgym.storage import atomic

    actions = iter(recorder.conversations(result.turns))

    class Again:
        """An agent that repeats the recorded actions."""

        requires = recorder.requires

        def act(self, observations: Any, **how: Any) -> list[Any]:
            return [next(actions)]

    env, lines = task.make_env(recorder.requires, llm=words), []
    with progress_bar("transcripts", len(result.turns), "conversations") as progress:
        for number in range(len(result.turns)):
            seed = result.seed + number
            conversation = converse(Again(), env, seed, split=result.split)  # type: ignore[arg-type]
            lines.append(json.dumps(conversation, ensure_ascii=False) + "\n")
            progress(number + 1, {})
    with atomic.disk_space(folder, "free some, or name another folder (--out)"):
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / "transcripts.jsonl", "".join(lines))
        atomic.write_text(folder / "result.json", json.dumps(figures, indent=2) + "\n")


def print_report(report: Mapping[str, Any]) -> None:
    """Print the counts of a model's replies by how they were handled."""
    out = console()
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in report["counts"].items()]
    out.print()
    out.print(table((report["model"], ""), rows, (1,)))
