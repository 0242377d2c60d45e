"""``chatgym tune AGENT``: which settings an agent learns best with."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli.terminal import console, progress_bar, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    import optuna

    from chatgym.training.study_plan import Plan

SHOWN = 10


class Method(str, Enum):
    """How settings are chosen."""

    grid = "grid"
    random = "random"
    tpe = "tpe"


def tune(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="See `chatgym plugins`.")],
    method: Annotated[
        Method, typer.Option(help="All combinations, at random, or by what was good so far.")
    ] = Method.tpe,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=...]",
            help="A setting to tune: NAME, NAME=0.1,0.3,0.5 (values), NAME=0.1:0.5 or NAME=1e-4:1e-2:log (a range).",
            show_default="all that have a range of their own",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trials in all, those done before too; a grid has its points.")
    ] = 50,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Turns of each training.", show_default="the agent's")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Trainings in a trial, averaged.")] = 1,
    scenario: Annotated[str, typer.Option(metavar="NAME", help="See `chatgym scenarios`.")] = "customer_service",
    error_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="How often the agent misunderstands an act or a value.")
    ] = 0.1,
    conversations: Annotated[int, typer.Option(min=1, metavar="N", help="Conversations in each evaluation.")] = 500,
    seed: Annotated[
        int, typer.Option(min=0, max=999_999, metavar="N", help="First seed, and that of the choices.")
    ] = 0,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the study.", show_default="the agent's")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Study folder.", show_default="studies/NAME")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database of the study, such as postgresql+psycopg://user@host/database.",
            envvar="CHATGYM_STORAGE",
            show_envvar=True,
            show_default="SQLite in the folder",
        ),
    ] = None,
) -> None:
    """Find the settings that an agent learns best with.

    \b
    Examples:
      chatgym tune qlearning --method grid --steps 1000000 \\
          --param learning_rate=0.1,0.3,0.5 --param discount_factor=0.9,0.95,1.0
      chatgym tune dqn --trials 100 --steps 300000 --seeds 3
      chatgym train qlearning --from-study studies/qlearning

    A trial trains with settings of its own; its value is the mean return over unseen conversations. Random and tpe
    stop a trial early whose evaluations are below the median of the others (pruning). Several processes that name the
    same study share its trials. It can be interrupted; the same command goes on. The folder holds best.json, trials.csv
    and study.png: a heat map for a grid over two settings.
    """
    from chatgym.envs.task import Task
    from chatgym.training import tuning
    from chatgym.training.run import find_agent
    from chatgym.training.search_space import grid, search_space
    from chatgym.training.study_plan import Plan
    from chatgym.training.trainer import DEFAULT_STEPS

    made_by = find_agent(agent)
    default = getattr(made_by, "default_steps", DEFAULT_STEPS)
    if default == 0:
        raise InvalidValue(f"the agent {agent!r} learns nothing, so there is nothing to tune")
    plan = Plan(
        agent, search_space(made_by.Config, param or ()), Task(scenario, {"error_rate": error_rate}), method.value,
        steps or default, tuple(range(seed, seed + seeds)), conversations, seed=seed,
    )  # fmt: skip
    name = study or agent
    where = folder or Path("studies") / name
    count = len(grid(plan.space)) if plan.method == "grid" else trials
    try:
        with progress_bar(f"tune {agent}", count * plan.steps * seeds, "turns") as progress:
            done = tuning.tune(plan, where, trials=count, name=name, storage=storage, progress=progress)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; the study in {where} is kept, the same command goes on", err=True)
        raise typer.Exit(130) from None
    _print(done, plan, where)


def _print(study: optuna.Study, plan: Plan, folder: Path) -> None:
    from chatgym.training.tuning import finished

    ranked, out = finished(study), console()
    rows = []
    for trial in ranked[:SHOWN]:
        success = f"{100 * trial.user_attrs['success_rate']:.1f} %"
        rows.append((f"{trial.value:.3f}", success, *(_write(trial.params[name]) for name in plan.space)))
    numbers = range(2 + len(plan.space))
    out.print(table(("mean return", "success rate", *plan.space), rows, numbers))
    pruned = sum(trial.state.name == "PRUNED" for trial in study.get_trials(deepcopy=False))
    ended = f", {pruned} ended early" if pruned else ""
    out.print(
        f"\n{plan.agent} in {plan.task.scenario}: {len(ranked)} trials of {plan.steps:,} turns{ended}; "
        f"{plan.conversations:,} conversations an evaluation"
    )
    out.print(f"Study folder: {folder} (best.json, trials.csv, study.png)")
    out.print(f"Next: `chatgym train {plan.agent} --from-study {shlex.quote(str(folder))}`")


def _write(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
