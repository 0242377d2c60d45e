"""``chatgym train AGENT``: one command for each installed agent, with options from the agent's `Config`."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from chatgym.cli import options, repeat, tasks
from chatgym.cli.terminal import console, measures, percent, progress_bar, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from chatgym.envs.task import Task
    from chatgym.training import Run

NUMBER = {int: "N", float: "X"}
MEASURES = ("success_rate", "mean_return", "score")

WITH_RESUME = {"run", "steps", "resume", "processes"}


class Agents(TyperGroup):
    """A command for each agent, made when it is needed; listing the names imports no agent."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; with --config, the agent may be left out."""
        return super().parse_args(ctx, repeat.with_agent(args))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the agents."""
        from chatgym import plugins

        return list(plugins.load().agents)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of one agent.

        Raises:
            InvalidValue: There is no such agent.
            Unavailable: Its plugin can't be imported.
        """
        from chatgym.training.run import find_agent

        return agent_command(cmd_name, find_agent(cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find an agent's command; a run that is named beside an agent that isn't here says which plugin it needs."""
        try:
            return super().resolve_command(ctx, args)
        except InvalidValue:
            repeat.check_plugin(args)
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the agents with their plugins."""
        from chatgym import plugins

        registry = plugins.load()
        rows = [(name, f"from {registry.plugins[plugin]}") for name, plugin in registry.agents.sources.items()]
        with formatter.section("Agents"):
            formatter.write_dl(rows)


app = typer.Typer(cls=Agents, no_args_is_help=True, rich_markup_mode=None, subcommand_metavar="AGENT [OPTIONS]")


@app.callback()
def train_group() -> None:
    """Train an agent into a run folder.

    `chatgym train AGENT --help` lists the settings of an agent. With --config the agent may be left out.

    \b
    Examples:
      chatgym train qlearning                        into runs/qlearning
      chatgym train qlearning --run runs/short --steps 5000000 --learning-rate 0.3
      chatgym train qlearning --run runs/short --resume
      chatgym train --config runs/short/config.json --run runs/again
      chatgym train qlearning --log tensorboard      and watch it: tensorboard --logdir runs

    A run folder holds config.json (everything to repeat the run), metrics.jsonl (one line for each evaluation), model/
    (the agent), best/ (the agent at its best evaluation: highest success rate, then highest mean return), curve.png and
    transcripts.jsonl. After Ctrl-C or a kill, --resume continues the run and ends with the same model as an
    uninterrupted one. With --resume a finished run prints its result again. --config repeats a run, also one from
    another machine: with the same versions the result is the same.
    """


def _common(
    ctx: typer.Context,
    run: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Run folder.", show_default="runs/AGENT")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Turns to train for.", show_default="the agent's")
    ] = None,
    scenario: options.ScenarioName = "customer_service",
    seed: options.Seed = 0,
    error_rate: options.ErrorRate = None,
    max_turns: options.MaxTurns = None,
    reward_weight: options.RewardWeight = None,
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
        typer.Option(metavar="FORMAT", help="Also log as csv or tensorboard; can be repeated."),
    ] = None,
    from_study: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Use task and best settings of a `chatgym tune`; options here override settings."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Repeat the training of this config.json of a run; --run names the new folder."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run; more --steps make it longer; a finished one is shown.")
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Declare the options that every agent's command has."""


def _several(processes: options.Processes = 1) -> None:
    """Declare the option of agents that several processes can train."""


def agent_command(name: str, agent: Any) -> Any:
    """Return the command that trains an agent: the common options, then one for each field of its `Config`."""

    def command(**values: Any) -> None:
        _train(name, **values)

    declared: list[Callable[..., None]] = (
        [_common, _several] if getattr(agent, "several_processes", False) else [_common]
    )
    parameters = [one for of in declared for one in inspect.signature(of, eval_str=True).parameters.values()]
    taken = {flag.lstrip("-") for one in _click(name, command, parameters).params
             for flag in (*one.opts, *one.secondary_opts)}  # fmt: skip
    parameters += _settings(agent.Config, taken | {"help"})
    steps = getattr(agent, "default_steps", None)
    lasts = f"\n\nThe default training takes {steps:,} turns." if steps else ""
    lasts = "\n\nThis agent learns nothing: measure it with `chatgym evaluate`." if steps == 0 else lasts
    return _click(name, command, parameters, f"Train {name}.\n\n{inspect.getdoc(agent) or ''}{lasts}")


def _click(name: str, command: Callable[..., None], parameters: Sequence[inspect.Parameter], help: str = "") -> Any:
    """Return a command that calls `command` with these parameters."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    one = typer.Typer(add_completion=False, rich_markup_mode=None)
    one.command(name, help=help)(command)
    return typer.main.get_command(one)


def _settings(config: type, taken: set[str]) -> list[inspect.Parameter]:
    """Return a parameter for each field of a `Config`; its option is ``--agent-NAME`` where `taken` has the name.

    Raises:
        InvalidValue: A field can't be an option, see `chatgym.agent.setting_problems`.
    """
    from chatgym.agent import default_of, setting_hints, setting_type

    hints, parameters = setting_hints(config), []
    for field in dataclasses.fields(config):
        kind = setting_type(hints[field.name])
        flag = field.name.replace("_", "-")
        flag = f"agent-{flag}" if taken & {flag, f"no-{flag}"} else flag
        bounds: dict[str, Any] = {} if kind not in (int, float) else {
            "min": field.metadata.get("low"), "max": field.metadata.get("high"), "metavar": NUMBER[kind],
        }  # fmt: skip
        declaration = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
        option = typer.Option(declaration, help=_sentence(field.metadata.get("help", "")), **bounds)
        wanted: Any = Annotated[hints[field.name], option]
        parameters.append(
            inspect.Parameter(
                options.SETTING + field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default_of(field),
                annotation=wanted,
            )
        )
    return parameters


def _sentence(text: str) -> str:
    """Return a field's help with a capital and a full stop."""
    capital = text[:1].upper() if text[1:2].islower() else text[:1]  # not for a symbol such as γ
    return f"{capital}{text[1:]}{'' if text.endswith('.') or not text else '.'}"


def _train(
    name: str, ctx: Any, run: Path | None, steps: int | None, resume: bool, as_json: bool, **values: Any
) -> None:
    """Train or resume with a progress bar, and print the result."""
    folder = Path("runs") / name if run is None else run
    with options.interruptible(lambda: _how_to_continue(folder)):
        finished = (_resume if resume else _begin)(name, folder, steps, options.given_options(ctx), values)
    if as_json:
        options.print_json(result_json(finished))
    else:
        print_result(finished)


def _begin(name: str, folder: Path, steps: int | None, given: set[str], values: Mapping[str, Any]) -> Run:
    """Create the run folder and train."""
    from chatgym.training import prepare
    from chatgym.training.run import check_free, find_agent

    check_free(folder, overwrite=values["overwrite"])
    if values["config"] is not None:
        again = repeat.prepare(name, folder, given, {**values, "steps": steps})
        return _train_by(again, values.get("processes", 1))
    settings = {key.removeprefix(options.SETTING): values[key] for key in given if key.startswith(options.SETTING)}
    if values["from_study"] is not None:
        from chatgym.training.study import best_settings

        settings = {**best_settings(values["from_study"], name), **settings}
        task = _study_task(values["from_study"], given, values)
    else:
        about = {key: values[key] for key in tasks.TASK_OPTIONS}
        task = tasks.make_task(**about, learner=find_agent(name))
    prepared = prepare(
        name, folder, task=task, total_steps=steps, seed=values["seed"],
        settings=settings, evaluate_every=values["evaluate_every"], conversations=values["conversations"],
        log=values["log"] or (), overwrite=values["overwrite"],
    )  # fmt: skip
    return _train_by(prepared, values.get("processes", 1))


def _study_task(study: Path, given: set[str], values: Mapping[str, Any]) -> Task:
    """Return the task of a study, and check that the options of the command line say nothing else."""
    from chatgym.training.study import tuned_task

    task = tuned_task(study)
    asked = {key: values[key] for key in tasks.TASK_OPTIONS if key in given}
    if "reward_weight" in asked:
        asked["reward_weight"] = tasks.read_weights(asked["reward_weight"])
    tasks.check_agrees(asked, tasks.effective(task), str(study), "tune in the task that you train in")
    return task


def _train_by(run: Run, processes: int, steps: int | None = None) -> Run:
    """Train in this process, or in several."""
    if processes == 1:
        return train_run(run, steps)
    if steps is not None:
        run = run.with_total_steps(steps)
    from chatgym.finetuning.launch import launch

    launch("train", run.folder, processes)
    return run


def train_run(run: Run, steps: int | None = None) -> Run:
    """Train or resume with a progress bar, for `steps` turns in all (None: the run's own)."""
    from chatgym.training import resume

    total = run.config["total_steps"] if steps is None else steps
    with progress_bar(run.config["agent"], total, "turns", run.turns) as progress:
        return resume(run.folder, total_steps=steps, progress=progress)


def _resume(name: str, folder: Path, steps: int | None, given: set[str], values: Mapping[str, Any]) -> Run:
    """Continue a run."""
    from chatgym.training import Run

    options.check_resume(given, WITH_RESUME)
    run = Run.open(folder)
    if run.config["agent"] != name:
        raise InvalidValue(f"{folder} trains another agent; go on with `{run.resume_command()}`")
    if steps in (None, run.config["total_steps"]) and run.finished:
        return run
    if steps is not None and steps < min(done := run.turns, run.config["total_steps"]):
        raise InvalidValue(f"{folder} is trained for {done:,} turns already; --steps can only make the training longer")
    return _train_by(run, values.get("processes", 1), steps)


def _how_to_continue(folder: Path) -> str:
    """Return how to continue an interrupted training."""
    from chatgym.training import Run

    begun = (folder / "config.json").exists()
    return f"go on with `{Run.open(folder).resume_command()}`" if begun else "the training hasn't begun yet"


def result_json(run: Run) -> dict[str, Any]:
    """Return the result of a run: its evaluations before and after training."""
    lines, config = run.metrics(), run.config
    before, after = ({key: line[key] for key in MEASURES} for line in (lines[0], lines[-1]))
    return {
        "run": run.folder, "agent": config["agent"], "scenario": config["scenario"], "turns": lines[-1]["turns"],
        "conversations": config["conversations"], "untrained": before, "trained": after, "best": _best_json(run),
    }  # fmt: skip


def _best_json(run: Run) -> dict[str, Any] | None:
    """Return turns and measures of the best checkpoint; None where none is kept."""
    best = run.best()
    if best is None or not (run.folder / "best").is_dir():
        return None
    return {key: best[key] for key in ("turns", *MEASURES)}


def print_result(run: Run) -> None:
    """Print the evaluations before and after training, and the next commands."""
    from chatgym.evaluation.intervals import Interval
    from chatgym.evaluation.references import references
    from chatgym.training.logs import FORMATS

    lines, config, out = run.metrics(), run.config, console()
    before, after = (
        measures(*(line[key] and Interval(**line[key]) for key in MEASURES)) for line in (lines[0], lines[-1])
    )
    rows = [(name, old, new, interval) for (name, old, _), (_, new, interval) in zip(before, after, strict=True)]
    out.print(table(("", "untrained", "trained", "95 % interval"), rows, (1, 2, 3)))
    found = references(run.task)
    why = found.why_no_score or "an evaluation has too few conversations for it (--conversations)"
    scale = f"{found.zero} is 0, the expert 100" if lines[-1]["score"] else f"n/a, {why}"
    out.print(
        f"\n{config['agent']} in {config['scenario']}, {lines[-1]['turns']:,} turns; "
        f"{config['conversations']:,} conversations in each evaluation; score: {scale}"
    )
    logged = "".join(f"{FORMATS[name]}, " for name in run.log)
    models = "model/"
    if best := _best_json(run):
        models = "model/, best/"
        success, value = percent(best["success_rate"]["value"]), best["mean_return"]["value"]
        out.print(f"Best checkpoint: after {best['turns']:,} turns, success rate {success}, mean return {value:.3f}")
    out.print(f"Run folder: {run.folder} ({models}, metrics.jsonl, {logged}curve.png, transcripts.jsonl)")
    folder = shlex.quote(str(run.folder))
    out.print(f"Next: `chatgym evaluate {folder}` measures it on unseen conversations (--checkpoint best: the best),")
    out.print(f"      `chatgym play {folder} --as-partner` lets you talk to it")
