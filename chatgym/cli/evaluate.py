"""``chatgym evaluate``: many conversations of a trained or scripted agent, counted, and written down if wished."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli import llm_agent
from chatgym.cli.compare import compare_all, find, speaks
from chatgym.cli.budget import (
    CompletionPrice,
    MaxCost,
    MaxRequests,
    MaxTokens,
    PromptPrice,
    open_engine,
    explain_interruption,
    usage,
)
from chatgym.cli.terminal import console, measures, percent, progress_bar, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chatgym.agent import Agent
    from chatgym.envs.task import Task
    from chatgym.evaluation import Evaluation

SEED = 2_000_000  # chatgym.evaluation.evaluation.EVALUATION_SEED, which isn't imported for --help


def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_AGENT",
            help="A run folder, or an agent that needs no training (random, expert, llm); several with --compare.",
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
        typer.Option(
            metavar="LLM",
            help="Of the agent llm, the model that it is: smollm2-135m, hf:ID-or-folder, openai:URL#MODEL, ...; of any "
            "other, the same as --partner.",
        ),
    ] = None,
    partner: Annotated[
        str | None,
        typer.Option(metavar="LLM", help="Who words the partner: template, smollm2-135m-partner, hf:ID-or-folder, ..."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A setting of an agent that needs no training, as tools=true."
        ),
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
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Act as in training: an LLM samples its words, others explore.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write the conversations, for `chatgym replay`."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Write result.json and transcripts.jsonl there; of the agent llm also its answers, calls.sqlite.",
            show_default="of the agent llm, evaluations/MODEL-SCENARIO",
        ),
    ] = None,
    max_requests: MaxRequests = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    prompt_price: PromptPrice = None,
    completion_price: CompletionPrice = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="The picture of a comparison.", show_default="compare.png"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure an agent over unseen conversations.

    Prints success rate, mean return and score (random is 0, the expert 100) with 95 % intervals, and how the
    conversations ended. The words don't change what happens, so there are none unless --llm or --trace asks for them.

    The agent llm is any language model, prompted with the scenario's instructions. Its answers are kept in the folder
    as they come, so that the same command goes on after Ctrl-C, a kill, or a limit that was reached, and asks for none
    of them again. Limits are for its server, else for the partner's. docs/sft.md has an example.

    With --compare, runs that differ in their seed alone are taken together; differences are to the one named first.

    \b
    Examples:
      chatgym evaluate runs/qlearning
      chatgym evaluate expert --conversations 200 --error-rate 0.3
      chatgym evaluate runs/qlearning --conversations 100 --partner smollm2-135m-partner
      chatgym evaluate llm --llm openai:http://127.0.0.1:8000/v1#smollm2-135m --conversations 200
      chatgym evaluate llm --llm openai:https://host/v1#big --set tools=true --max-tokens 5000000
      chatgym evaluate runs/qlearning --conversations 20 --trace t.jsonl && chatgym replay t.jsonl
      chatgym evaluate runs/ppo --sampled
      chatgym evaluate --compare runs/qlearning runs/dqn expert
    """
    for path in (trace, picture):
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidValue(f"there is no folder {path.absolute().parent} to write {path.name} into; make it first")
    changes = {"error_rate": error_rate, "max_turns": max_turns}
    limits = {
        "max_requests": max_requests, "max_tokens": max_tokens, "max_cost": max_cost, "prompt_price": prompt_price,
        "completion_price": completion_price,
    }  # fmt: skip
    if compare:
        if sampled or (llm, partner, trace, out, settings) != (None,) * 5 or set(limits.values()) != {None}:
            raise InvalidValue(
                "a comparison is without words, of what agents know best: leave out --llm, --partner, --set, "
                "--sampled, --trace, --out and the limits, or evaluate one by one"
            )
        compare_all(what, scenario, changes, conversations, seed, picture or Path("compare.png"), as_json)
        return
    if len(what) > 1 or picture is not None:
        raise InvalidValue(
            f"only a comparison takes several, and --picture: chatgym evaluate --compare {' '.join(what)}"
        )
    agent, task = find(what[0], scenario, changes, settings or (), llm)
    if not speaks(agent):
        if llm is not None and partner is not None:
            raise InvalidValue(f"{what[0]} is no model: --llm and --partner both say who words the partner; give one")
        partner = llm if partner is None else partner
    words = open_engine(partner, **({} if speaks(agent) else limits))
    if speaks(agent):
        out = llm_agent.keep_answers(agent, task, out, **limits)
    given = "template" if partner == "template" else words
    result, figures = _measure(what[0], agent, task, given, conversations, seed, trace, out, sampled)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    _print(result, what[0], task)
    if "agent" in figures:
        llm_agent.print_report(figures["agent"])
    if out is not None:
        console().print(f"\nFolder: {out} ({', '.join(sorted(path.name for path in out.iterdir()))})")
    if trace is not None:
        console().print(f"\nTrace: {trace}; `chatgym replay {trace}` plays it again and compares every word")


def _measure(
    what: str, agent: Any, task: Task, words: Any, conversations: int, seed: int, trace: Path | None,
    out: Path | None, sampled: bool,
) -> tuple[Evaluation, dict[str, Any]]:  # fmt: skip
    """Hold the conversations, and once more for whatever is to be written; returns the figures as JSON, too."""
    recorder: Any = Recorder(agent)
    engine = agent.engine if speaks(agent) else words if words != "template" else None
    kept = f"what was answered is kept in {out}" if speaks(agent) else "the words made so far are kept"
    with explain_interruption(engine, kept):
        result = _hold(what, recorder, task, conversations, seed, words, sampled)
        figures = result.to_json()
        if speaks(agent):
            figures |= {"agent": agent.report(), "usage": usage(engine)}
        if trace is not None:
            _write_trace(trace, recorder, result, task, words or "template")
        if out is not None:
            llm_agent.write_transcripts(out, recorder, result, task, words or "template", figures)
    if hasattr(words, "close"):
        words.close()
    return result, figures


def _hold(what: str, recorder: Any, task: Task, conversations: int, seed: int, words: Any, sampled: bool) -> Evaluation:
    """Hold the conversations behind a progress bar."""
    if words not in (None, "template") and sys.stderr.isatty():
        typer.echo(
            "The model makes the partner's words at their first use, which takes minutes; they are kept", err=True
        )
    from chatgym import evaluation

    with progress_bar(what, conversations, "conversations") as progress:
        show, ended = progress or (lambda count, metrics: None), 0

        def done(count: int) -> None:
            nonlocal ended
            ended = count
            show(count, {})

        if hasattr(recorder.agent, "progress"):
            recorder.agent.progress = lambda answers: show(ended, {"answers": answers})
        return evaluation.evaluate(
            recorder, task, conversations=conversations, seed=seed, llm=words, progress=done,
            wording_progress=lambda banks: show(0, {"wordings": banks}), deterministic=not sampled,
        )  # fmt: skip


class Recorder:
    """An agent that keeps what it did, so that the conversations of an evaluation can be held once more."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.requires = agent, agent.requires
        self.acts: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    def act(self, observations: Any, **how: Any) -> Any:
        """Act as the agent does, see `chatgym.agent.Agent`."""
        acts = self.agent.act(observations, **how)
        self.acts.append(acts)
        return acts

    def conversations(self, turns: npt.NDArray[np.int64]) -> Iterable[int | str]:
        """Return the actions of one conversation after the other, given how many turns each took, int64[N].

        An evaluation holds the conversations of a chunk side by side and calls the agent until the last has ended.
        """
        from chatgym.evaluation.rollouts import ROWS

        calls = iter(self.acts)
        for first in range(0, len(turns), ROWS):
            lengths = turns[first : first + ROWS]
            rows = [next(calls) for _ in range(int(lengths.max()))]
            for row, length in enumerate(lengths.tolist()):
                for turn in range(length):
                    action = rows[turn][row]
                    yield action if isinstance(action, str) else int(action)


def _write_trace(path: Path, recorder: Recorder, result: Evaluation, task: Task, llm: Any) -> None:
    """Hold the evaluation's conversations again, the same acts in the same conversations, and write them down."""
    from chatgym.envs.replay import record

    envs = task.make_envs(recorder.requires, len(result.turns))
    envs.reset(seed=result.seed)
    acts = iter(recorder.conversations(result.turns))
    env = task.make_env(recorder.requires, llm=llm)
    with progress_bar("trace", int(result.turns.sum()), "turns") as progress:
        held = 0

        def policy(observation: Any, info: dict[str, Any]) -> int | str:
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
