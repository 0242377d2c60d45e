"""``chatgym tune AGENT``: search the settings with which an agent learns best."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli.options import (
    AsJson,
    ErrorRate,
    MaxTurns,
    RewardWeight,
    ScenarioName,
    Seed,
    interruptible,
    print_json,
)
from chatgym.cli.tasks import make_task
from chatgym.cli.terminal import console, progress_bar, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    import optuna

    from chatgym.training.study import Plan

SHOWN = 10
"""Best trials in the table."""


class Method(str, Enum):
    """How to choose the settings of a trial."""

    grid = "grid"
    random = "random"
    tpe = "tpe"


def tune(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Agent; `chatgym plugins` lists them.")],
    method: Annotated[
        Method, typer.Option(help="All combinations, random ones, or TPE: near the best so far.")
    ] = Method.tpe,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=...]",
            help="Setting to tune: NAME, NAME=0.1,0.3,0.5 (values), NAME=0.1:0.5 or NAME=1e-4:1e-2:log (a range); can "
            "be repeated.",
            show_default="all with a range of their own",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trials of the study, with finished ones; a grid has its points.")
    ] = 50,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Turns of each training.", show_default="the agent's")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Trainings in a trial.")] = 1,
    scenario: ScenarioName = "customer_service",
    error_rate: ErrorRate = None,
    max_turns: MaxTurns = None,
    reward_weight: RewardWeight = None,
    conversations: Annotated[int, typer.Option(min=1, metavar="N", help="Conversations in each evaluation.")] = 500,
    seed: Seed = 0,
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
    as_json: AsJson = False,
) -> None:
    """Find the settings with which an agent learns best.

    A trial trains the agent with settings of its own; its value is the mean return over unseen conversations, and over
    its seeds. With random and tpe a trial ends early if its evaluations are below the median of the others (pruning).
    Several processes that name the same study share its trials. After Ctrl-C or a kill the same command continues.

    \b
    Examples:
      chatgym tune qlearning --method grid --steps 1000000 \\
          --param learning_rate=0.1,0.3,0.5 --param discount_factor=0.9,0.95,1.0
      chatgym tune dqn --trials 100 --steps 300000 --seeds 3
      chatgym train qlearning --from-study studies/qlearning

    The study folder holds best.json, trials.csv (a row for each seed of a trial) and study.png: a heat map for a grid
    over two settings, else the history and the importance of each setting.
    """
    from chatgym.training import tuning
    from chatgym.training.run import find_agent
    from chatgym.training.search_space import grid, search_space
    from chatgym.training.study import Plan
    from chatgym.training.trainer import DEFAULT_STEPS

    made_by = find_agent(agent)
    default = getattr(made_by, "default_steps", DEFAULT_STEPS)
    if default == 0:
        raise InvalidValue(f"the agent {agent!r} learns nothing, so there is nothing to tune")
    task = make_task(scenario, error_rate=error_rate, max_turns=max_turns, reward_weight=reward_weight, learner=made_by)
    plan = Plan(
        agent, search_space(made_by.Config, param or ()), task, method.value, steps or default,
        tuple(range(seed, seed + seeds)), conversations, seed=seed,
    )  # fmt: skip
    name = study or agent
    where = folder or Path("studies") / name
    count = len(grid(plan.space)) if plan.method == "grid" else trials
    with (
        interruptible(lambda: f"the study in {where} is kept, the same command goes on"),
        progress_bar(f"tune {agent}", count * plan.steps * seeds, "turns") as progress,
    ):
        done = tuning.tune(plan, where, trials=count, name=name, storage=storage, progress=progress)
    _print(done, plan, where, as_json)


def _print(study: optuna.Study, plan: Plan, folder: Path, as_json: bool) -> None:
    """Print the best trials, or with --json all."""
    from chatgym.training import tuning
    from chatgym.training.study import finished

    ranked, out, rows = finished(study), console(), []
    pruned = sum(trial.state.name == "PRUNED" for trial in study.get_trials(deepcopy=False))
    if as_json:
        trials = [
            {"trial": one.number, "success_rate": one.user_attrs["success_rate"], "mean_return": one.value,
             "results": one.user_attrs.get(tuning.RESULTS),
             "settings": {name: one.params[name] for name in plan.space}} for one in ranked
        ]  # fmt: skip
        print_json({"study": folder, "plan": plan.to_json(), "pruned": pruned, "trials": trials})
        return
    for trial in ranked[:SHOWN]:
        success = f"{100 * trial.user_attrs['success_rate']:.1f} %"
        rows.append((success, f"{trial.value:.3f}", *(_write(trial.params[name]) for name in plan.space)))
    numbers = range(2 + len(plan.space))
    out.print(table(("success rate", "mean return", *plan.space), rows, numbers))
    ended = f", {pruned} ended early" if pruned else ""
    out.print(
        f"\n{plan.agent} in {plan.task.scenario}: {len(ranked)} trials of {plan.steps:,} turns{ended}; "
        f"{plan.conversations:,} conversations an evaluation"
    )
    out.print(f"Study folder: {folder} (best.json, trials.csv, study.png)")
    out.print(f"Next: `chatgym train {plan.agent} --from-study {shlex.quote(str(folder))}`")


def _write(value: Any) -> str:
    """Write the value of a setting."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
