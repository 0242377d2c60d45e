"""``chatgym evaluate --compare``: evaluate several runs and agents in the same conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.cli.options import print_json
from chatgym.cli.tasks import reweighted
from chatgym.cli.terminal import console, percent, progress_bar, table
from chatgym.errors import InvalidValue, unknown

if TYPE_CHECKING:
    from rich.table import Table

    from chatgym.agent import Agent
    from chatgym.envs.task import Task
    from chatgym.evaluation import Comparison, Competitor
    from chatgym.evaluation.intervals import Interval


def find_agent_and_task(
    run_or_agent: str, scenario: str | None, changes: Mapping[str, Any], settings: Sequence[str] = (),
    llm: str | None = None, checkpoint: str = "last",
) -> tuple[Agent, Task]:  # fmt: skip
    """Return the agent of a run folder or of a name, and the task to evaluate it in.

    Args:
        run_or_agent: A run folder, or the name of an agent that needs no training.
        scenario: Name of the scenario; None: the run's, or customer_service.
        changes: Changed arguments of the environment; None: the run's, or the scenario's.
        settings: Settings of an agent without a run, each ``"name=value"``.
        llm: Its model, if it is a language model.
        checkpoint: Which checkpoint of a run, ``"last"`` or ``"best"``.
    """
    from chatgym import plugins
    from chatgym.agent import make_config
    from chatgym.envs.task import Task
    from chatgym.training import Run
    from chatgym.training.search_space import read_settings

    changed = {name: value for name, value in changes.items() if value is not None}
    weights = changed.pop("reward_weights", {})
    agents = plugins.load().agents
    if run_or_agent in agents and not (Path(run_or_agent) / "config.json").exists():
        made_by = agents[run_or_agent]
        if getattr(made_by, "default_steps", None) != 0:
            raise InvalidValue(
                f"the agent {run_or_agent!r} must be trained first; run `chatgym train {run_or_agent}`, "
                f"then `chatgym evaluate runs/{run_or_agent}`"
            )
        if checkpoint != "last":
            raise InvalidValue(f"the agent {run_or_agent!r} has no checkpoints; leave out --checkpoint")
        task = reweighted(Task(scenario or "customer_service", changed), weights)
        given = read_settings(made_by.Config, settings)
        if llm is not None and is_llm_agent(made_by):
            given["llm"] = llm
        return made_by(task.find_scenario(), make_config(made_by.Config, given)), task
    if settings:
        raise InvalidValue(f"{run_or_agent} keeps the settings that it was trained with; leave out --set")
    if not Path(run_or_agent).exists():
        untrained = [name for name in agents if getattr(agents[name], "default_steps", None) == 0]
        raise unknown("agent or run folder", run_or_agent, untrained, "`chatgym train` makes run folders.")
    run = Run.open(run_or_agent)
    if scenario not in (None, run.task.scenario):
        raise InvalidValue(f"{run_or_agent} was trained for {run.task.scenario!r}, it knows nothing of {scenario!r}")
    return run.agent(checkpoint), reweighted(Task(run.task.scenario, {**run.task.arguments, **changed}), weights)


def is_llm_agent(agent: Any) -> bool:
    """Return whether an agent (or its class) is a language model, chosen by its setting ``llm``."""
    return any(field.name == "llm" for field in dataclasses.fields(agent.Config))


def compare_all(
    names: Sequence[str], scenario: str | None, changes: Mapping[str, Any],
    conversations: int, seed: int, picture: Path, as_json: bool, checkpoint: str = "last",
) -> None:  # fmt: skip
    """Compare runs and agents, draw the picture, and print the tables or JSON."""
    from chatgym.evaluation import compare
    from chatgym.evaluation.comparison_plot import draw_comparison
    from chatgym.storage import atomic

    competitors = _competitors(names, scenario, changes, checkpoint)
    with progress_bar("compare", conversations * len(competitors), "conversations") as progress:
        show = progress or (lambda count, metrics: None)
        found = compare(competitors, conversations=conversations, seed=seed, progress=lambda count: show(count, {}))
    with atomic.disk_space(picture, "free some, or draw elsewhere (--picture)"):
        atomic.write_file(picture, lambda temporary: draw_comparison(found, temporary))
    if as_json:
        print_json({**found.to_json(), "picture": picture})
        return
    _print(found)
    console().print(f"Picture: {picture}")


def _competitors(
    names: Sequence[str], scenario: str | None, changes: Mapping[str, Any], checkpoint: str
) -> list[Competitor]:
    """Return the runs and agents; an agent that needs no training takes part in every task of the runs."""
    from chatgym.evaluation import Competitor
    from chatgym.training import Run

    if len(names) < 2:
        raise InvalidValue(f"a comparison takes at least two runs or agents, such as {names[0]} and expert")
    if twice := [name for name in names if [Path(other).resolve() for other in names].count(Path(name).resolve()) > 1]:
        raise InvalidValue(f"{twice[0]} is named twice; leave one out")
    runs = {
        name: find_agent_and_task(name, scenario, changes, checkpoint=checkpoint) for name in names if _is_run(name)
    }
    tasks = {task.identity()["sha256"]: task for _, task in runs.values()}
    tasks = tasks or {"": find_agent_and_task(names[0], scenario, changes)[1]}
    competitors = []
    for name in names:
        if name in runs:
            competitors.append(Competitor(name, *runs[name], Run.open(name).config))
        else:
            for task in tasks.values():
                agent, _ = find_agent_and_task(name, task.scenario, {})
                competitors.append(Competitor(name, agent, task, {"agent": name}))
    return competitors


def _is_run(name: str) -> bool:
    """Return whether a name is a run folder's, existing or not, rather than an agent's."""
    from chatgym import plugins

    return (Path(name) / "config.json").exists() or name not in plugins.load().agents


def _print(found: Comparison) -> None:
    """Print all tables of a comparison."""
    out, agents = console(), found.agents
    out.print(_scores(found))
    if len(agents) > 1:
        out.print()
        out.print(_differences(found))
    if len(agents) > 2:
        out.print()
        out.print(_improvement(found))
    for name, task in found.tasks.items():
        out.print()
        out.print(_outcomes(found, name, task))
    grouped = [f"{agent.label}: {', '.join(agent.names)}" for agent in agents if {agent.label} != {*agent.names}]
    out.print("\n" + "".join(f"{line}\n" for line in grouped) + _notes(found))


def _scores(found: Comparison) -> Table:
    """Return the table of success rates and scores."""
    rows = [
        (agent.label, str(len(agent.names)), percent(success.value), *_cells(mean), *_cells(middle))
        for agent, success, mean, middle in zip(found.agents, found.success_rate, found.mean, found.iqm, strict=True)
    ]
    columns = ("", "runs", "success rate", "score", "95 % interval", "IQM", "95 % interval")
    return table(columns, rows, range(1, len(columns)))


def _differences(found: Comparison) -> Table:
    """Return the table of differences to the first agent."""
    rows = [
        (agent.label, *_cells(difference, "+.1f"), *_cells(row[0].scaled(0, 0.01), unit=" %"))
        for agent, difference, row in zip(found.agents, found.difference, found.improvement, strict=True)
        if row[0] is not None
    ]
    columns = (f"against {found.agents[0].label}", "score", "95 % interval", "better conversations", "95 % interval")
    return table(columns, rows, range(1, len(columns)))


def _improvement(found: Comparison) -> Table:
    """Return the table of probabilities of improvement, each agent over each other."""
    rows = [
        (f"{number}  {agent.label}", *("" if cell is None else percent(cell.value) for cell in row))
        for number, (agent, row) in enumerate(zip(found.agents, found.improvement, strict=True), 1)
    ]
    columns = ("better conversations than", *(str(number) for number in range(1, len(found.agents) + 1)))
    return table(columns, rows, range(1, len(columns)))


def _cells(interval: Interval, form: str = ".1f", unit: str = "") -> tuple[str, str]:
    """Return an interval as two cells of a table."""
    return f"{interval.value:{form}}{unit}", f"{interval.low:{form}} to {interval.high:{form}}{unit}"


def _outcomes(found: Comparison, name: str, task: Task) -> Table:
    """Return the table of outcomes in a task: a row for each outcome that occurred."""
    shares = [agent.outcomes(name) for agent in found.agents]
    rows = [
        (outcome, *(percent(share.get(outcome, 0.0)) for share in shares))
        for outcome in task.find_scenario().outcomes
        if any(outcome in share for share in shares)
    ]
    title = f"outcome in {name}" if len(found.tasks) > 1 else "outcome"
    return table((title, *(agent.label for agent in found.agents)), rows, range(1, len(shares) + 1))


def _notes(found: Comparison) -> str:
    """Return the notes below the tables: tasks, seeds and terms."""
    tasks = [", ".join([name, *task.describe_arguments()]) for name, task in found.tasks.items()]
    seeds = f"seeds {found.seed} to {found.seed + found.conversations - 1}"
    return (
        f"{found.conversations:,} conversations of {' and '.join(tasks)}, the same for all; {seeds}\n"
        "score: random is 0, the expert 100; IQM: mean of the middle half of the runs (of fewer than four: of all);\n"
        "better conversations: share in which it got the higher return with the same partner; a tie counts half"
    )
