"""The agent llm in `chatgym evaluate`: record its replies, so that the same command continues after an interruption."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.cli import budget
from chatgym.cli.options import print_json
from chatgym.cli.results import MESSAGES, RESULT, TRANSCRIPTS
from chatgym.cli.terminal import console, percent, progress_bar, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from chatgym.envs.task import Task
    from chatgym.evaluation import Evaluation

CALLS = "calls.sqlite"
"""File of the recorded replies."""
HANDLED = {
    "tool_calls": "called an act as a tool",
    "unknown_tools": "called no known tool; the partner doesn't understand that",
    "empty": "had no words outside of thoughts; the partner doesn't understand that",
    "cut": "cut off after max_new_tokens={max_new_tokens} tokens; a higher one is --set max_new_tokens=N",
}
"""The counts of replies in words, see `chatgym_agents.llm.LLM`."""


def folder_of(agent: Any, task: Task) -> Path:
    """Return the default folder of an evaluation of a language model: one named after model and scenario."""
    name = re.sub(r"[^\w.]+", "-", agent.engine.identity.split("//")[-1]).strip("-")
    return Path("evaluations") / f"{name}-{task.scenario}"


def keep_answers(agent: Any, folder: Path, **limits: float | None) -> None:
    """Record a model's replies as they come, and take those that are recorded already.

    Args:
        agent: An agent of `chatgym_agents.llm`.
        folder: The folder, made if needed.
        limits: See `chatgym.cli.budget.take_prices`.

    Raises:
        InvalidValue: The folder holds the replies of another model.
    """
    from chatgym.engines.recorded import RecordedEngine
    from chatgym.storage import atomic

    engine = agent.engine
    budget.take_prices(engine, **limits)
    with atomic.disk_space(folder, "free some, or name another folder (--out)"):
        folder.mkdir(parents=True, exist_ok=True)
        if not isinstance(engine, RecordedEngine):
            try:
                agent.engine = RecordedEngine(folder / CALLS, engine)
            except InvalidValue as error:
                raise InvalidValue(f"{error}: name another folder (--out)") from None


def print_prompt(agent: Any, task: Task, seed: int, words: Any, as_json: bool) -> None:
    """Print what the model is asked at the beginning of the first conversation, without asking it.

    Args:
        agent: An agent of `chatgym_agents.llm`.
        task: The task of the evaluation.
        seed: Seed of the first conversation.
        words: The model that words the partner.
        as_json: Whether to print one JSON document.
    """
    import numpy as np

    from chatgym.engines.chat import count_tokens, written_prompt
    from chatgym.engines.protocol import LazyEngine

    env = task.make_env(agent.requires, llm=words)
    opening, _ = env.reset(seed=seed, options={"split": "test"})
    agent.begin(np.zeros(1, np.uint64))
    shown: dict[str, Any] = {"messages": agent.prompt(0, opening)}
    shown |= {"tools": agent.tools} if agent.tools else {}
    engine = agent.engine
    if not callable(getattr(engine, "chat", None)):  # a model of this process, which continues a text
        opened = engine.opened() if isinstance(engine, LazyEngine) else engine
        prompt = written_prompt(opened, shown["messages"])
        shown |= {"prompt": prompt, "tokens": count_tokens(opened, prompt)}
        engine.close()
    if as_json:
        print_json(shown)
        return
    out = console()
    for message in shown["messages"]:
        out.print(f"{message['role']}:", style="bold")
        out.print(f"{message['content']}\n", soft_wrap=True)
    for tool in shown.get("tools", ()):
        out.print(f"tool {tool['function']['name']}: {tool['function']['description']}", soft_wrap=True)
    if "prompt" in shown:
        out.print(f"by the model's chat template, {shown['tokens']:,} tokens:", style="bold")
        out.print(shown["prompt"], soft_wrap=True)


def figures_of(agent: Any, **limits: float | None) -> dict[str, Any]:
    """Return what ``result.json`` says of a model's replies, and of the usage of this command.

    Args:
        agent: An agent of `chatgym_agents.llm`, after an evaluation.
        limits: As of `keep_answers`.

    Returns:
        ``agent``: its report, with the ``cost`` of all tokens at the prices, if there are any. ``usage``: see
        `chatgym.cli.budget.usage`, and the ``seconds`` spent waiting for the model.
    """
    report, prices = agent.report(), budget.take_prices(agent.engine, **limits)
    prompts, replies = report["tokens"]["prompts"], report["tokens"]["replies"]
    if (prices.prompt_price or prices.completion_price) and prompts is not None and replies is not None:
        report["cost"] = prices.cost(prompts, replies)
    return {"agent": report, "usage": {**(budget.usage(agent.engine) or {}), "seconds": round(agent.seconds, 3)}}


def write_transcripts(
    folder: Path, recorder: Any, result: Evaluation, task: Task, words: Any, figures: Mapping[str, Any]
) -> None:
    """Hold the conversations of an evaluation again, with the same actions, and write what was said.

    ``transcripts.jsonl`` has one conversation on each line, see `chatgym.evaluation.converse`; ``result.json`` has the
    figures. Of a language model, ``messages.jsonl`` has each conversation as the model saw it, on the same lines.
    """
    from chatgym.evaluation.rollouts import converse
    from chatgym.storage import atomic

    actions = iter(recorder.conversations(result.turns))

    class Again:
        """An agent that repeats the recorded actions."""

        requires = recorder.requires

        def act(self, observations: Any, **how: Any) -> list[Any]:
            return [next(actions)]

    env, held = task.make_env(recorder.requires, llm=words), []
    with progress_bar("transcripts", len(result.turns), "conversations") as progress:
        for number in range(len(result.turns)):
            seed = result.seed + number
            held.append(converse(Again(), env, seed, split=result.split))  # type: ignore[arg-type]
            progress(number + 1, {})
    files = {TRANSCRIPTS: _lines(held), RESULT: json.dumps(figures, indent=2) + "\n"}
    if exchanges := recorder.exchanges():
        named = [{name: one[name] for name in ("split", "seed", "key", "outcome")} for one in held]
        files[MESSAGES] = _lines([name | exchange for name, exchange in zip(named, exchanges, strict=True)])
    with atomic.disk_space(folder, "free some, or name another folder (--out)"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            atomic.write_text(folder / name, text)


def _lines(values: Sequence[Mapping[str, Any]]) -> str:
    """Return values as JSON, one a line."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def print_report(figures: Mapping[str, Any]) -> None:
    """Print what became of a model's replies, in words, and what they took; `figures` as of `figures_of`."""
    out, report = console(), figures["agent"]
    out.print()
    out.print(table((report["model"], "", "share of replies"), _rows(report, figures["usage"]), (1, 2)))


def _rows(report: Mapping[str, Any], usage: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of a model's table."""
    counts = report["counts"]
    replies = counts.get("replies", 0)
    yield "replies", f"{replies:,}", ""
    for name, words in HANDLED.items():
        if count := counts.get(name, 0):
            yield f"  {words.format(**report)}", f"{count:,}", percent(count / replies)
    for what, count in report["tokens"].items():
        yield f"tokens of {what}", "not stated" if count is None else f"{count:,}", ""
    if "cost" in report:
        yield "cost of these tokens", f"{report['cost']:.4g}", ""
    yield "seconds waited for replies, by this command", f"{usage['seconds']:,.1f}", ""
