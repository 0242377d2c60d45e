"""``chatgym evaluate``: measure a trained or scripted agent over many conversations."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli import budget, llm_agent, results
from chatgym.cli.compare import LanguageModel, Outputs, compare_all, find_agent_and_task, is_llm_agent
from chatgym.cli.options import PARTNER, AsJson, Overwrite, RewardWeight, check_output, print_json
from chatgym.cli.tasks import described, read_weights
from chatgym.cli.terminal import console, measures, percent, progress_bar, table
from chatgym.errors import InvalidValue, Unavailable

if TYPE_CHECKING:
    from chatgym.envs.task import Task
    from chatgym.evaluation import Evaluation
    from chatgym.evaluation.recorder import Recorder

SEED = 0  # chatgym.evaluation.evaluation.EVALUATION_SEED, which isn't imported for --help


class Checkpoint(str, Enum):
    """The checkpoints of a run, see `chatgym.training.run`."""

    last = "last"
    best = "best"


def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_AGENT",
            help="Run folder, or an agent without training (random, constant, expert, llm); several with --compare.",
        ),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare several in the same conversations, in tables and a picture.")
    ] = False,
    conversations: Annotated[int, typer.Option(min=1, metavar="N", help="Number of conversations.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the first test conversation; the i-th has seed N + i.")
    ] = SEED,
    llm: Annotated[
        str | None,
        typer.Option(
            metavar="LLM",
            help="Model of the agent llm: smollm2-135m, hf:ID-or-folder, openai:URL#MODEL, ...; for other agents "
            "the same as --partner.",
        ),
    ] = None,
    partner: Annotated[
        str | None,
        typer.Option(metavar="LLM", help=f"Model that generates {PARTNER}", show_default="none: acts without words"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Setting of an agent that needs no training, such as tools=true."
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Scenario.", show_default="the run's, or customer_service"),
    ] = None,
    error_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="X", help="Probability that the agent misunderstands an act or a value.",
            show_default="the run's, or 0.1; 0 for an agent that reads words",
        ),
    ] = None,
    max_turns: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Most turns of a conversation.", show_default="the run's, or the scenario's"
        ),
    ] = None,
    reward_weight: RewardWeight = None,
    checkpoint: Annotated[
        Checkpoint, typer.Option(help="Which checkpoint of a run: its last, or the one with the best evaluation.")
    ] = Checkpoint.last,
    other_simulator: Annotated[
        bool,
        typer.Option(
            "--other-simulator", help="Go on with a run that was trained in another simulator, such as a scenario "
            "that has changed since."
        ),
    ] = False,
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Act as in training: a language model samples, other agents explore.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write the conversations for `chatgym replay`."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Folder for result.json and transcripts.jsonl; for the agent llm also messages.jsonl (all that it was "
            "told and wrote) and calls.sqlite (its replies).",
            show_default="none; for the agent llm evaluations/MODEL-SCENARIO",
        ),
    ] = None,
    show_prompt: Annotated[
        bool,
        typer.Option(
            "--show-prompt", help="Print what the agent llm is asked first (system message, partner's words, tools) "
            "and stop; a model of this process is loaded for its chat template."
        ),
    ] = False,
    max_requests: budget.MaxRequests = None,
    max_tokens: budget.MaxTokens = None,
    max_cost: budget.MaxCost = None,
    prompt_price: budget.PromptPrice = None,
    completion_price: budget.CompletionPrice = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Picture of a comparison: .png, .pdf or .svg.",
            show_default="compare.png",
        ),
    ] = None,
    returns: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write a CSV line for each conversation."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure an agent over unseen conversations.

    It prints success rate, mean return and score (0: the best agent that doesn't listen, 100: the expert) with 95 %
    intervals, and the outcomes. The score is n/a where the expert isn't clearly better, such as with --max-turns 1.
    Words don't change what happens, so none are generated without --partner or --trace.

    The agent llm is any language model, prompted with the scenario's instructions. Its replies are recorded in the
    folder as they come: after Ctrl-C, a kill or a reached limit the same command continues and asks for none of them
    again. Limits apply to its server, else to the partner's. See docs/sft.md for an example.

    With --compare, runs that differ only in their seed are taken as one agent; differences are to the first agent.
    Intervals hold the variance of training if there are at least three seeds of an agent. --llm, --set, --out and the
    limits are those of the agent llm among them.

    result.json, and --json, name agent, run, settings, seeds, versions and the git commit of the working directory. A
    file that is there, or the result of another evaluation, is only replaced with --overwrite.

    \b
    Examples:
      chatgym evaluate runs/qlearning
      chatgym evaluate expert --conversations 200 --error-rate 0.3
      chatgym evaluate runs/qlearning --conversations 100 --partner smollm2-135m-partner
      chatgym evaluate llm --llm openai:http://127.0.0.1:8000/v1#smollm2-135m --conversations 200
      chatgym evaluate llm --llm openai:https://host/v1#big --set tools=true --max-tokens 5000000
      chatgym evaluate runs/qlearning --conversations 20 --trace t.jsonl && chatgym replay t.jsonl
      chatgym evaluate runs/ppo --sampled
      chatgym evaluate runs/dqn --checkpoint best
      chatgym evaluate --compare runs/qlearning runs/dqn expert --picture scores.pdf --returns scores.csv
      chatgym evaluate --compare llm expert --llm smollm2-135m --set max_new_tokens=32 --conversations 20
    """
    for path, flag in ((trace, "--trace"), (picture, "--picture"), (returns, "--returns")):
        check_output(path, flag, overwrite)
    changes = {
        "error_rate": error_rate, "max_turns": max_turns, "reward_weights": read_weights(reward_weight or ()) or None,
    }  # fmt: skip
    limits = {
        "max_requests": max_requests, "max_tokens": max_tokens, "max_cost": max_cost, "prompt_price": prompt_price,
        "completion_price": completion_price,
    }  # fmt: skip
    if compare:
        if sampled or show_prompt or (partner, trace) != (None, None):
            raise InvalidValue(
                "a comparison words no partner and takes each agent's best acts: leave out --partner, --sampled, "
                "--trace and --show-prompt, or evaluate one by one"
            )
        to = Outputs(picture or Path("compare.png"), returns, overwrite, as_json)
        model = LanguageModel(llm, settings or (), out, limits)
        compare_all(
            what, scenario, changes, conversations, seed, to, checkpoint.value, model, other_simulator=other_simulator
        )
        return
    if len(what) > 1 or picture is not None:
        raise InvalidValue(
            f"only a comparison takes several, and --picture: chatgym evaluate --compare {' '.join(what)}"
        )
    agent, task = find_agent_and_task(
        what[0], scenario, changes, settings or (), llm, checkpoint.value, other_simulator=other_simulator
    )
    if not is_llm_agent(agent):
        if show_prompt:
            raise InvalidValue(f"{what[0]} is no language model that is prompted; evaluate llm --show-prompt")
        if llm is not None and partner is not None:
            raise InvalidValue(f"{what[0]} is no language model: --llm and --partner mean the same; leave out one")
        partner = llm if partner is None else partner
    words = budget.open_engine(partner, **({} if is_llm_agent(agent) else limits))
    if show_prompt:
        llm_agent.print_prompt(agent, task, seed, words or "template", as_json)
        return
    if is_llm_agent(agent):
        out = out or llm_agent.folder_of(agent, task)
    given = "template" if partner == "template" else words
    about = results.about(
        what[0], agent, task, checkpoint=checkpoint.value, conversations=conversations, seed=seed, partner=partner,
        sampled=sampled,
    )  # fmt: skip
    results.check_folder(out, about, overwrite)
    result, figures = _measure(what[0], agent, task, given, about, trace, out, limits)
    if returns is not None:
        results.write_returns([(what[0], task.scenario, result)], returns)
    if why := getattr(agent, "why_wordless", str)():
        raise Unavailable(f"{why}. This is no measurement; what it did is in {out}")
    if as_json:
        print_json(figures)
        return
    act = getattr(agent, "constant_act", None)
    label = f"always {act}" if act else what[0] + (" (best)" if checkpoint.value == "best" else "")
    _print(result, label, task)
    if is_llm_agent(agent):
        llm_agent.print_report(figures)
    _print_files(out, trace)


def _print_files(out: Path | None, trace: Path | None) -> None:
    """Print what was written, and which commands read it."""
    if out is not None:
        console().print(f"\nFolder: {out} ({', '.join(sorted(path.name for path in out.iterdir()))})")
        console().print(
            f"`chatgym show {shlex.quote(str(out))} N` prints a conversation, with what was heard and believed"
        )
    if trace is not None:
        replay = f"chatgym replay {shlex.quote(str(trace))}"
        console().print(f"\nTrace: {trace}; `{replay}` replays it and compares every word")


def _measure(
    what: str, agent: Any, task: Task, words: Any, about: dict[str, Any], trace: Path | None, out: Path | None,
    limits: Mapping[str, float | None],
) -> tuple[Evaluation, dict[str, Any]]:  # fmt: skip
    """Hold the conversations, and again for each file to write; return the evaluation and its figures as JSON."""
    from chatgym.evaluation.recorder import Recorder
    from chatgym.training.provenance import commit

    if is_llm_agent(agent):
        assert out is not None
        llm_agent.keep_answers(agent, out, **limits)
    recorder: Any = Recorder(agent)
    engine = agent.engine if is_llm_agent(agent) else words if words != "template" else None
    kept = f"the replies are kept in {out}" if is_llm_agent(agent) else "the utterances generated so far are kept"
    with budget.explain_interruption(engine, kept):
        result = _evaluate(what, recorder, task, about["conversations"], about["seed"], words, about["sampled"])
        figures = {**about, "commit": commit(), **result.to_json()}
        if is_llm_agent(agent):
            figures |= llm_agent.figures_of(agent, **limits)
            figures["agent"] = {**about["agent"], **figures["agent"]}
        if trace is not None:
            _write_trace(trace, recorder, result, task, words or "template")
        if out is not None:
            llm_agent.write_transcripts(out, recorder, result, task, words or "template", figures)
    if hasattr(words, "close"):
        words.close()
    return result, figures


def _evaluate(
    what: str, recorder: Any, task: Task, conversations: int, seed: int, words: Any, sampled: bool
) -> Evaluation:  # fmt: skip
    """Evaluate with a progress bar."""
    if words not in (None, "template") and sys.stderr.isatty():
        typer.echo(
            "The model generates the partner's utterances at their first use, which takes minutes; they are kept",
            err=True,
        )
    from chatgym import evaluation

    with progress_bar(what, conversations, "conversations") as progress:
        ended = 0

        def done(count: int) -> None:
            nonlocal ended
            ended = count
            progress(count, {})

        if hasattr(recorder.agent, "progress"):
            recorder.agent.progress = lambda answers: progress(ended, {"answers": answers})
        return evaluation.evaluate(
            recorder, task, conversations=conversations, seed=seed, llm=words, progress=done,
            wording_progress=lambda banks: progress(0, {"wordings": banks}), deterministic=not sampled,
        )  # fmt: skip


def _write_trace(path: Path, recorder: Recorder, result: Evaluation, task: Task, llm: Any) -> None:
    """Hold the conversations of an evaluation again, with the same actions, and write the trace."""
    from chatgym.envs.replay import record

    envs = task.make_envs(recorder.requires, len(result.turns))
    envs.reset(seed=result.seed, options={"split": result.split})
    acts = iter(recorder.conversations(result.turns))
    env = task.make_env(recorder.requires, llm=llm)
    with progress_bar("trace", int(result.turns.sum()), "turns") as progress:
        held = 0

        def policy(observation: Any, info: dict[str, Any]) -> int | str:
            nonlocal held
            held += 1
            progress(held, {})
            return next(acts)

        try:
            seeds = range(result.seed, result.seed + len(result.turns))
            record(env, policy, path, keys=envs.room.keys.tolist(), seeds=seeds)
        except OSError as error:
            raise InvalidValue(f"the trace can't be written to {path} ({error.strerror})") from error
    env.close()


def _print(result: Evaluation, what: str, task: Task) -> None:
    """Print the measures, the outcomes, the causes of failures and the report on wordings as tables."""
    from chatgym.dynamics.hearing import CAUSES

    out, count = console(), len(result.returns)
    rows = [*measures(result.success_rate, result.mean_return, result.score)]
    rows.append(("turns", f"{result.turns.mean():.1f}", ""))
    if result.unclear is not None:
        rows.append(("turns not understood", percent(result.unclear), ""))
    out.print(table(("", what, "95 % interval"), rows, (1, 2)))
    ends = [
        (outcome, f"{times:,}", percent(times / count))
        for outcome, times in Counter(result.outcomes.tolist()).most_common()
    ]
    out.print()
    if result.given_up:
        name = "given up: ended by the agent, unsolved, in half the expert's turns"
        ends.append((name, f"{result.given_up:,}", percent(result.given_up / count)))
    out.print(table(("outcome", "conversations", "share"), ends, (1, 2)))
    if failed := sum(result.failures.values()):
        out.print()
        causes = [(why, CAUSES[why], f"{times:,}", percent(times / failed)) for why, times in result.failures.items()]
        out.print(table(("failed by", "", "conversations", "share"), causes, (2, 3)))
    if result.wording is not None and result.wording["candidates"]:
        out.print()
        out.print(table(("wording", ""), _figures(result.wording), (1,)))
    scale = result.scale
    why = scale.why_no_score if scale else ""
    scored = f"{scale.references.zero} is 0, the expert 100, in the same conversations" if scale else ""
    if task.find_scenario().outcomes[-1] in result.outcomes:
        scored += "; a conversation that is cut off counts as given up"
    out.print(
        f"\n{count:,} conversations of {described(task, result)}; {result.split} seeds {result.seed} to "
        f"{result.seed + count - 1}; "
        f"score: {f'n/a, {why}' if why else scored}"
    )


def _figures(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Return a report's counts and shares as rows; groups are indented."""
    for name, value in report.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield label, ""
            yield from ((f"  {inner}", text) for inner, text in _figures(value))
        else:
            yield label, percent(value) if isinstance(value, float) else f"{value:,}"
