"""``chatgym train AGENT``: one command per agent that is installed, its options made from the agent's `Config`."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from chatgym.cli.terminal import console, measures, progress_bar, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from chatgym.training import Run

SETTING = "setting_"
"""Stands before the names of the parameters that are an agent's settings, so that they never clash with ours."""

NUMBER = {int: "N", float: "X"}

WITH_RESUME = ("run", "steps", "resume", "processes")


class Agents(TyperGroup):
    """A command for each agent, made when it is asked for; a list of names imports no agent."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the agents."""
        from chatgym import plugins

        return list(plugins.load().agents)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Make the command of one agent.

        Raises:
            InvalidValue: When there is no such agent.
            Unavailable: When its plugin can't be imported.
        """
        from chatgym.training.run import find_agent

        return agent_command(cmd_name, find_agent(cmd_name))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the agents with the plugins that they come from."""
        from chatgym import plugins

        registry = plugins.load()
        rows = [(name, f"from {registry.plugins[plugin]}") for name, plugin in registry.agents.sources.items()]
        with formatter.section("Agents"):
            formatter.write_dl(rows)


app = typer.Typer(cls=Agents, no_args_is_help=True, rich_markup_mode=None, subcommand_metavar="AGENT [OPTIONS]")


@app.callback()
def train_group() -> None:
    """Train an agent into a run folder.

    `chatgym train AGENT --help` shows what can be set.

    \b
    Examples:
      chatgym train qlearning                        into runs/qlearning
      chatgym train qlearning --run runs/short --steps 5000000 --learning-rate 0.3
      chatgym train qlearning --run runs/short --resume
      chatgym train qlearning --log csv,tensorboard  and watch it: tensorboard --logdir runs

    A run folder holds config.json (everything to repeat the run), metrics.jsonl (an evaluation a line), model/ (the
    agent), curve.png and transcripts.jsonl. It can be interrupted at any moment, by Ctrl-C or a kill, and goes on
    with --resume, to the same model that an undisturbed run ends with.
    """


def _common(
    ctx: typer.Context,
    run: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Run folder.", show_default="runs/AGENT")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Turns to train for.", show_default="the agent's")
    ] = None,
    scenario: Annotated[
        str, typer.Option(metavar="NAME", help="What the conversations are about, see `chatgym scenarios`.")
    ] = "customer_service",
    seed: Annotated[int, typer.Option(min=0, max=999_999, metavar="N", help="Of everything random.")] = 0,
    error_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="How often the agent misunderstands an act or a value.")
    ] = 0.1,
    max_turns: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Turns until a conversation breaks off.", show_default="the scenario's"),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Turns between evaluations and checkpoints.", show_default="a twentieth of all"
        ),
    ] = None,
    conversations: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Conversations in each evaluation.", show_default="the agent's, or 1000"),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT", help="Log as csv or tensorboard, too; can be given twice."),
    ] = None,
    from_study: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Take the best settings of a `chatgym tune`; options here go before them."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run; more --steps make it longer.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
) -> None:
    """Declare the options that every agent's command has."""


def _several(
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Processes on this machine, by DeepSpeed.")] = 1,
) -> None:
    """Declare the option of agents that can be trained by several processes."""


def agent_command(name: str, agent: Any) -> Any:
    """Make the command that trains an agent: the common options, then one for each field of its `Config`."""

    def command(**values: Any) -> None:
        _train(name, **values)

    declared: list[Callable[..., None]] = (
        [_common, _several] if getattr(agent, "several_processes", False) else [_common]
    )
    parameters = [one for of in declared for one in inspect.signature(of, eval_str=True).parameters.values()]
    parameters += _settings(agent.Config, {parameter.name for parameter in parameters})
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    steps = getattr(agent, "default_steps", None)
    lasts = f"\n\nBy default it trains for {steps:,} turns." if steps else ""
    lasts = "\n\nIt learns nothing: measure it with `chatgym evaluate`." if steps == 0 else lasts
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command(name, help=f"Train {name}.\n\n{inspect.getdoc(agent) or ''}{lasts}")(command)
    return typer.main.get_command(one)


def _settings(config: type, taken: set[str]) -> list[inspect.Parameter]:
    """Make a parameter for each field of a `Config` whose type a command line can give."""
    hints, parameters = typing.get_type_hints(config), []
    for field in dataclasses.fields(config):
        kind = _plain(hints[field.name])
        if kind is None or field.default is dataclasses.MISSING:
            continue
        flag = field.name.replace("_", "-")
        flag = f"agent-{flag}" if field.name in taken else flag
        bounds: dict[str, Any] = {} if kind not in (int, float) else {
            "min": field.metadata.get("low"), "max": field.metadata.get("high"), "metavar": NUMBER[kind],
        }  # fmt: skip
        declaration = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
        option = typer.Option(declaration, help=_sentence(field.metadata.get("help", "")), **bounds)
        wanted: Any = Annotated[hints[field.name], option]
        parameters.append(
            inspect.Parameter(
                SETTING + field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=wanted
            )
        )
    return parameters


def _plain(hint: Any) -> Any:
    """Return the type of an option, bool, int, float, str or a choice; None for what only Python can give."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        hint = inner[0] if len(inner) == 1 else None
    return hint if hint in (bool, int, float, str) or typing.get_origin(hint) is Literal else None


def _sentence(text: str) -> str:
    """Write a field's help as the other options' are: with a capital and a full stop."""
    capital = text[:1].upper() if text[1:2].islower() else text[:1]  # not for a symbol such as γ
    return f"{capital}{text[1:]}{'' if text.endswith('.') or not text else '.'}"


def _train(name: str, ctx: Any, run: Path | None, steps: int | None, resume: bool, **values: Any) -> None:
    """Train or go on, with a progress bar, and print the result."""
    given = {key for key in ctx.params if str(ctx.get_parameter_source(key)).endswith("COMMANDLINE")}
    folder = Path("runs") / name if run is None else run
    go_on = _resumed if resume else _begun
    try:
        finished = go_on(name, folder, steps, given, values)
    except KeyboardInterrupt:
        _interrupted(folder)
        raise typer.Exit(130) from None
    print_result(finished)


def _begun(name: str, folder: Path, steps: int | None, given: set[str], values: Mapping[str, Any]) -> Run:
    from chatgym.envs.task import Task
    from chatgym.training import prepare
    from chatgym.training.run import check_free

    check_free(folder, overwrite=values["overwrite"])
    arguments = {"error_rate": values["error_rate"]}
    if values["max_turns"] is not None:
        arguments["max_turns"] = values["max_turns"]
    settings = {key.removeprefix(SETTING): values[key] for key in given if key.startswith(SETTING)}
    if values["from_study"] is not None:
        from chatgym.training.tuning import best_settings

        settings = {**best_settings(values["from_study"], name), **settings}
    prepared = prepare(
        name, folder, task=Task(values["scenario"], arguments), total_steps=steps, seed=values["seed"],
        settings=settings, evaluate_every=values["evaluate_every"], conversations=values["conversations"],
        log=values["log"] or (), overwrite=values["overwrite"],
    )  # fmt: skip
    return _trained(prepared, values.get("processes", 1))


def _trained(run: Run, processes: int) -> Run:
    """Train, here or by several processes."""
    if processes == 1:
        return watched(run)
    from chatgym.finetuning.launch import launch

    launch("train", run.folder, processes)
    return run


def watched(run: Run, steps: int | None = None) -> Run:
    """Train with a progress bar."""
    from chatgym.training import resume

    total = run.config["total_steps"] if steps is None else steps
    with progress_bar(run.config["agent"], total, "turns", run.turns) as progress:
        return resume(run.folder, total_steps=steps, progress=progress)


def _resumed(name: str, folder: Path, steps: int | None, given: set[str], values: Mapping[str, Any]) -> Run:
    from chatgym.training import Run

    if extra := sorted(given - set(WITH_RESUME)):
        flags = ", ".join("--" + key.removeprefix(SETTING).replace("_", "-") for key in extra)
        raise InvalidValue(
            f"--resume goes on with the run's own configuration, only --steps can change: leave out {flags}"
        )
    run = Run.open(folder)
    if run.config["agent"] != name:
        raise InvalidValue(f"{folder} trains another agent; go on with `{run.resume_command()}`")
    total = run.config["total_steps"] if steps is None else steps
    if total < (done := run.turns):
        raise InvalidValue(f"{folder} is trained for {done:,} turns already; --steps can only make it longer")
    processes = values.get("processes", 1)
    if processes > 1 and steps is not None:
        run = run.with_total_steps(steps)
    return watched(run, steps) if processes == 1 else _trained(run, processes)


def _interrupted(folder: Path) -> None:
    from chatgym.training import Run

    if (folder / "config.json").exists():
        typer.echo(f"Interrupted; go on with `{Run.open(folder).resume_command()}`", err=True)
    else:
        typer.echo("Interrupted before the training began", err=True)


def print_result(run: Run) -> None:
    """Print what a run came to: before and after, and what to do with it."""
    from chatgym.evaluation.intervals import Interval
    from chatgym.training.logs import FORMATS

    lines, config, out = run.metrics(), run.config, console()
    before, after = (
        measures(*(Interval(**line[key]) for key in ("success_rate", "mean_return", "score")))
        for line in (lines[0], lines[-1])
    )
    rows = [(name, old, new, interval) for (name, old, _), (_, new, interval) in zip(before, after, strict=True)]
    out.print(table(("", "untrained", "trained", "95 % interval"), rows, (1, 2, 3)))
    out.print(
        f"\n{config['agent']} in {config['scenario']}, {lines[-1]['turns']:,} turns; "
        f"{config['conversations']:,} conversations an evaluation; score: random is 0, the expert 100"
    )
    logged = "".join(f"{FORMATS[name]}, " for name in run.log)
    out.print(f"Run folder: {run.folder} (model/, metrics.jsonl, {logged}curve.png, transcripts.jsonl)")
    folder = shlex.quote(str(run.folder))
    out.print(f"Next: `chatgym evaluate {folder}` measures it on conversations that it never saw,")
    out.print(f"      `chatgym play {folder} --as-partner` lets you talk to it")
