"""``chatgym evaluate``: many conversations of a trained or scripted agent, counted, and written down if wished."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli.compare import compare_all, find
from chatgym.cli.terminal import console, measures, percent, progress_bar, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chatgym.agent import Agent
    from chatgym.training import Evaluation, Task

SEED = 2_000_000  # chatgym.training.evaluation.EVALUATION_SEED, which isn't imported for --help


def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_AGENT",
            help="A run folder, or an agent that needs no training (random, expert); several with --compare.",
        ),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare several over the same conversations, in a table and a picture.")
    ] = False,
    conversations: Annotated[int, typer.Option(min=1, metavar="N", help="How many to hold.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the first one; the next ones count on from it.")
    ] = SEED,
    llm: Annotated[
        str | None,
        typer.Option(metavar="LLM", help="Who words the partner: template, smollm2-135m, hf:ID-or-folder, ..."),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its scenario.", show_default="the run's, or customer_service"),
    ] = None,
    error_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="X", help="How often it misunderstands.", show_default="the run's, or 0.1"
        ),
    ] = None,
    max_turns: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Turns until a conversation breaks off.",
            show_default="the run's, or the scenario's",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write the conversations, for `chatgym replay`."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="The picture of a comparison.", show_default="compare.png"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure an agent over unseen conversations.

    Prints success rate, mean return and score (random is 0, the expert 100) with 95 % intervals, and how the
    conversations ended. The words don't change what happens, so there are none unless --llm or --trace asks for them.

    With --compare, runs that differ in their seed alone are taken together; differences are to the one named first.

    \b
    Examples:
      chatgym evaluate runs/qlearning
      chatgym evaluate expert --conversations 200 --error-rate 0.3
      chatgym evaluate runs/qlearning --conversations 100 --llm smollm2-135m
      chatgym evaluate runs/qlearning --conversations 20 --trace t.jsonl && chatgym replay t.jsonl
      chatgym evaluate --compare runs/qlearning runs/dqn expert
    """
    for path in (trace, picture):
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidValue(f"there is no folder {path.absolute().parent} to write {path.name} into; make it first")
    changes = {"error_rate": error_rate, "max_turns": max_turns}
    if compare:
        if llm is not None or trace is not None:
            raise InvalidValue("a comparison is without words: leave out --llm and --trace, or evaluate one by one")
        compare_all(what, scenario, changes, conversations, seed, picture or Path("compare.png"), as_json)
        return
    if len(what) > 1 or picture is not None:
        raise InvalidValue(
            f"only a comparison takes several, and --picture: chatgym evaluate --compare {' '.join(what)}"
        )
    run_or_agent = what[0]
    agent, task = find(run_or_agent, scenario, changes)
    recorder: Any = Recorder(agent)
    if llm not in (None, "template") and sys.stderr.isatty():
        typer.echo(f"{llm} makes its wordings at their first use, which takes minutes; the cache keeps them", err=True)
    from chatgym import training

    with progress_bar(run_or_agent, conversations, "conversations") as progress:
        show = progress or (lambda count, metrics: None)
        result = training.evaluate(
            recorder, task, conversations=conversations, seed=seed, llm=llm, progress=lambda count: show(count, {}),
            wording_progress=lambda banks: show(0, {"wordings": banks}),
        )  # fmt: skip
    if trace is not None:
        _write_trace(trace, recorder, result, task, llm or "template")
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
        return
    _print(result, run_or_agent, task)
    if trace is not None:
        console().print(f"\nTrace: {trace}; `chatgym replay {trace}` plays it again and compares every word")


class Recorder:
    """An agent that keeps what it did, so that the conversations of an evaluation can be held once more."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.requires = agent, agent.requires
        self.acts: list[npt.NDArray[np.int64]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    def act(self, observations: Any, **how: Any) -> npt.NDArray[np.int64]:
        """Act as the agent does, see `chatgym.agent.Agent`."""
        acts = self.agent.act(observations, **how)
        self.acts.append(acts)
        return acts

    def conversations(self, turns: npt.NDArray[np.int64]) -> Iterable[int]:
        """Return the acts of one conversation after the other, given how many turns each took, int64[N].

        An evaluation holds the conversations of a chunk side by side and calls the agent until the last has ended.
        """
        from chatgym.training.evaluation import ROWS

        calls = iter(self.acts)
        for first in range(0, len(turns), ROWS):
            lengths = turns[first : first + ROWS]
            rows = [next(calls) for _ in range(int(lengths.max()))]
            for row, length in enumerate(lengths.tolist()):
                yield from (int(rows[turn][row]) for turn in range(length))


def _write_trace(path: Path, recorder: Recorder, result: Evaluation, task: Task, llm: str) -> None:
    """Hold the evaluation's conversations again, the same acts in the same conversations, and write them down."""
    from chatgym.trace import record

    envs = task.make_envs(recorder.requires, len(result.turns))
    envs.reset(seed=result.seed)
    acts = iter(recorder.conversations(result.turns))
    env = task.make_env(recorder.requires, llm=llm)
    with progress_bar("trace", int(result.turns.sum()), "turns") as progress:
        held = 0

        def policy(observation: Any, info: dict[str, Any]) -> int:
            nonlocal held
            held += 1
            if progress is not None:
                progress(held, {})
            return next(acts)

        try:
            record(env, policy, path, keys=envs.room.keys.tolist())
        except OSError as error:
            raise InvalidValue(f"the trace can't be written to {path} ({error.strerror})") from error
    env.close()


def _print(result: Evaluation, what: str, task: Task) -> None:
    out, count = console(), len(result.returns)
    rows = measures(result.success_rate, result.mean_return, result.score)
    out.print(table(("", what, "95 % interval"), [*rows, ("turns", f"{result.turns.mean():.1f}", "")], (1, 2)))
    ends = [
        (outcome, f"{times:,}", percent(times / count))
        for outcome, times in Counter(result.outcomes.tolist()).most_common()
    ]
    out.print()
    out.print(table(("outcome", "conversations", "share"), ends, (1, 2)))
    if result.wording is not None and result.wording["candidates"]:
        out.print()
        out.print(table(("wording", ""), _figures(result.wording), (1,)))
    arguments = "".join(f", {name.replace('_', ' ')} {value}" for name, value in task.arguments.items())
    out.print(
        f"\n{count:,} conversations of {task.scenario}{arguments}; seeds {result.seed} to {result.seed + count - 1}; "
        f"score: random is 0, the expert 100"
    )


def _figures(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Write a report's counts and shares as rows, one below the other where they are grouped."""
    for name, value in report.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield label, ""
            yield from ((f"  {inner}", text) for inner, text in _figures(value))
        else:
            yield label, percent(value) if isinstance(value, float) else f"{value:,}"
