"""The files of an evaluation: what ``result.json`` says besides the figures, and that nothing is replaced silently."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from chatgym.agent import Agent
    from chatgym.envs.task import Task
    from chatgym.evaluation import Evaluation

RESULT, TRANSCRIPTS, MESSAGES = "result.json", "transcripts.jsonl", "messages.jsonl"


def about(
    name: str, agent: Agent, task: Task, *, checkpoint: str, conversations: int, seed: int, partner: str | None,
    sampled: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return what determines an evaluation, as JSON values: agent, task, seeds, versions."""
    from chatgym.training.provenance import provenance

    made: dict[str, Any] = {
        "agent": provenance(name, agent, checkpoint), "scenario": task.scenario, "arguments": dict(task.arguments),
        "simulator": task.identity()["sha256"], "conversations": conversations, "split": "test", "seed": seed,
        "partner": partner, "sampled": sampled,
    }  # fmt: skip
    return dict(json.loads(json.dumps(made)))


def check_folder(folder: Path | None, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Check that a result can be written into a folder: there is none, or one of the very same evaluation.

    Args:
        folder: The folder; None: nothing is written.
        settings: See `about`.
        overwrite: Whether to replace the result of another evaluation.

    Raises:
        InvalidValue: The folder holds the result of another evaluation, or transcripts of something else.
    """
    if folder is None or overwrite or not (there := [n for n in (RESULT, TRANSCRIPTS) if (folder / n).exists()]):
        return
    remedy = "replace it (--overwrite; recorded replies are kept) or name another folder (--out)"
    if RESULT not in there:
        raise InvalidValue(f"{folder / TRANSCRIPTS} is no transcript of an evaluation; {remedy}")
    try:
        found: Any = json.loads((folder / RESULT).read_bytes())
        differing = [words for key, value in settings.items() for words in _differences(key, found[key], value)]
    except (ValueError, LookupError, TypeError):
        raise InvalidValue(f"{folder / RESULT} doesn't say which evaluation it is of; {remedy}") from None
    if differing:
        what = ", ".join(differing)
        raise InvalidValue(f"{folder / RESULT} is of another evaluation, it differs in: {what}; {remedy}")


def write_returns(evaluations: Iterable[tuple[str, str, Evaluation]], path: Path) -> None:
    """Write the table of returns, see `chatgym.evaluation.returns.write_returns`."""
    from chatgym.evaluation.returns import write_returns
    from chatgym.storage import atomic

    with atomic.disk_space(path, "free some, or name another file (--returns)"):
        write_returns(evaluations, path)


def _differences(name: str, found: Any, value: Any) -> Iterator[str]:
    """Yield where a field of a result differs from a value, such as ``"temperature (0.7, there 0.0)"``.

    A model's report on its replies may stand in the same object as its settings.
    """
    if isinstance(found, Mapping) and isinstance(value, Mapping):
        names = {**value, **(found if name == "arguments" else {})}  # those that are left out are the scenario's own
        for key in names:
            yield from _differences(key, found.get(key), value.get(key))
    elif found != value:
        yield name if _is_hash(found) or _is_hash(value) else f"{name} ({_in_words(value)}, there {_in_words(found)})"


def _is_hash(value: Any) -> bool:
    """Return whether a value is a SHA-256, which tells nobody anything."""
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")


def _in_words(value: Any) -> str:
    return "not given" if value is None else str(value)
