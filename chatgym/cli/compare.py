"""``chatgym evaluate --compare``: evaluate several runs and agents in the same conversations."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.cli import budget, llm_agent, results
from chatgym.cli.options import check_output, print_json
from chatgym.cli.tasks import described, reweighted
from chatgym.cli.terminal import console, percent, progress_bar, table
from chatgym.errors import InvalidValue, Unavailable, unknown

if TYPE_CHECKING:
    from rich.table import Table

    from chatgym.agent import Agent
    from chatgym.envs.task import Task
    from chatgym.evaluation import Comparison, Competitor
    from chatgym.evaluation.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a comparison writes: a picture, the table of returns (if any), and tables or JSON on stdout."""

    picture: Path
    returns: Path | None = None
    overwrite: bool = False
    as_json: bool = False


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """The language model among the agents of a comparison: the options of the agent llm.

    Attributes:
        llm: The model; None: its default.
        settings: Its settings, each ``"name=value"``.
        out: The folder of its replies; None: see `chatgym.cli.llm_agent.folder_of`.
        limits: See `chatgym.cli.llm_agent.keep_answers`.
    """

    llm: str | None = None
    settings: Sequence[str] = ()
    out: Path | None = None
    limits: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Whether any option is given."""
        return bool(self.settings) or {self.llm, self.out, *self.limits.values()} != {None}


def find_agent_and_task(
    run_or_agent: str, scenario: str | None, changes: Mapping[str, Any], settings: Sequence[str] = (),
    llm: str | None = None, checkpoint: str = "last", *, other_simulator: bool = False,
) -> tuple[Agent, Task]:  # fmt: skip
    """Return the agent of a run folder or of a name, and the task to evaluate it in.

    Args:
        run_or_agent: A run folder, or the name of an agent that needs no training.
        scenario: Name of the scenario; None: the run's, or customer_service.
        changes: Changed arguments of the environment; None: the run's, or the scenario's.
        settings: Settings of an agent without a run, each ``"name=value"``.
        llm: Its model, if it is a language model.
        checkpoint: Which checkpoint of a run, ``"last"`` or ``"best"``.
        other_simulator: Whether a run may have been trained in another simulator than the one here.

    Raises:
        InvalidValue: There is no such run or agent, or it can't be evaluated like this.
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
        return made_by(task.find_scenario(), make_config(made_by.Config, given)), task.heard_by(made_by.requires)
    if settings:
        raise InvalidValue(f"{run_or_agent} keeps the settings that it was trained with; leave out --set")
    if not Path(run_or_agent).exists():
        untrained = [name for name, one in agents.usable().items() if getattr(one, "default_steps", None) == 0]
        raise unknown("agent or run folder", run_or_agent, untrained, "`chatgym train` makes run folders.")
    run = Run.open(run_or_agent)
    if scenario not in (None, run.task.scenario):
        raise InvalidValue(f"{run_or_agent} was trained for {run.task.scenario!r}, it knows nothing of {scenario!r}")
    if not other_simulator:
        run.check_simulator("a score here isn't what it learned for: train again, go on anyway (--other-simulator)")
    return run.agent(checkpoint), reweighted(Task(run.task.scenario, {**run.task.arguments, **changed}), weights)


def is_llm_agent(agent: Any) -> bool:
    """Return whether an agent (or its class) is a language model, chosen by its setting ``llm``."""
    return any(field.name == "llm" for field in dataclasses.fields(agent.Config))


def compare_all(
    names: Sequence[str], scenario: str | None, changes: Mapping[str, Any], conversations: int, seed: int, to: Outputs,
    checkpoint: str = "last", model: LanguageModel | None = None, *, other_simulator: bool = False,
) -> None:  # fmt: skip
    """Compare runs and agents, draw the picture, and print the tables or JSON.

    `model` says what the agent llm is. Its replies are recorded as `chatgym evaluate llm` records them.
    """
    from chatgym.evaluation.comparison_plot import draw_comparison
    from chatgym.storage import atomic
    from chatgym.storage.figures import check_picture
    from chatgym.training.provenance import commit, provenance

    check_picture(to.picture)
    check_output(to.picture, "--picture", to.overwrite)
    model = model or LanguageModel()
    competitors = _competitors(names, scenario, changes, checkpoint, model, other_simulator)
    found, figures = _hold(competitors, conversations, seed, model)
    with atomic.disk_space(to.picture, "free some, or draw elsewhere (--picture)"):
        atomic.write_file(to.picture, lambda temporary: draw_comparison(found, temporary))
    if to.returns is not None:
        results.write_returns((one for agent in found.agents for one in agent.evaluations()), to.returns)
    if to.as_json:
        made = {one.name: provenance(one.name, one.agent, checkpoint) for one in competitors}
        for name, told in figures:
            made[name] |= {**told["agent"], "usage": told["usage"]}
        print_json({**found.to_json(), "provenance": made, "commit": commit(), "picture": to.picture})
        return
    _print(found)
    for _, told in figures:
        llm_agent.print_report(told)
    console().print(f"Picture: {to.picture}")


def _hold(
    competitors: Sequence[Competitor], conversations: int, seed: int, model: LanguageModel
) -> tuple[Comparison, list[tuple[str, dict[str, Any]]]]:
    """Hold the conversations; return the comparison, and name and figures of each language model.

    Raises:
        InvalidValue: `model` has options, but no competitor is a language model.
        Unavailable: No reply of a language model could be used.
    """
    from chatgym.evaluation import compare

    models: list[tuple[str, Task, Any]] = [
        (one.name, one.task, one.agent) for one in competitors if is_llm_agent(one.agent)
    ]
    if model.given and not models:
        raise InvalidValue("only a language model has --llm, --set, --out and limits; name llm among the agents")
    with contextlib.ExitStack() as stack:
        for _, task, agent in models:
            folder = model.out or llm_agent.folder_of(agent, task)
            llm_agent.keep_answers(agent, folder, **model.limits)
            stack.enter_context(budget.explain_interruption(agent.engine, f"the replies are kept in {folder}"))
        show = stack.enter_context(progress_bar("compare", conversations * len(competitors), "conversations"))
        ended = 0

        def done(count: int) -> None:
            nonlocal ended
            ended = count
            show(count, {})

        for *_, agent in models:
            agent.progress = lambda answers: show(ended, {"answers": answers})
        found = compare(competitors, conversations=conversations, seed=seed, progress=done)
        figures = [(name, llm_agent.figures_of(agent, **model.limits)) for name, _, agent in models]
    if why := next(filter(None, (agent.why_wordless() for *_, agent in models)), ""):
        raise Unavailable(f"{why}. This is no measurement; `chatgym evaluate llm` keeps what it did")
    return found, figures


def _competitors(
    names: Sequence[str], scenario: str | None, changes: Mapping[str, Any], checkpoint: str, model: LanguageModel,
    other_simulator: bool,
) -> list[Competitor]:  # fmt: skip
    """Return the runs and agents; an agent that needs no training takes part in every task of the runs."""
    from chatgym import plugins
    from chatgym.evaluation import Competitor
    from chatgym.training import Run

    if len(names) < 2:
        raise InvalidValue(f"a comparison takes at least two runs or agents, such as {names[0]} and expert")
    check_named_once(names)
    runs = {
        name: find_agent_and_task(name, scenario, changes, checkpoint=checkpoint, other_simulator=other_simulator)
        for name in names
        if _is_run(name)
    }
    tasks = {task.identity()["sha256"]: task for _, task in runs.values()}
    tasks = tasks or {"": find_agent_and_task(names[0], scenario, changes)[1]}
    competitors = []
    for name in names:
        if name in runs:
            competitors.append(Competitor(name, *runs[name], Run.open(name).config))
        else:
            own: Any = {"settings": model.settings, "llm": model.llm}
            own = own if name in plugins.load().agents and is_llm_agent(plugins.load().agents[name]) else {}
            for task in tasks.values():
                agent, _ = find_agent_and_task(name, task.scenario, {}, **own)
                competitors.append(Competitor(name, agent, task, {"agent": name}))
    return competitors


def check_named_once(names: Sequence[str]) -> None:
    """Check that no run is named twice.

    Raises:
        InvalidValue: One is.
    """
    if twice := [name for name in names if [Path(other).resolve() for other in names].count(Path(name).resolve()) > 1]:
        raise InvalidValue(f"{twice[0]} is named twice; leave one out")


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
        out.print()
        out.print(_failures(found, name))
    for agent in agents:
        if agent.unclear is not None:
            out.print(f"\n{agent.label}: {percent(agent.unclear)} of its turns weren't understood")
    grouped = [f"{agent.label}: {', '.join(agent.names)}" for agent in agents if {agent.label} != {*agent.names}]
    out.print("\n" + "".join(f"{line}\n" for line in grouped) + _notes(found))


def _scores(found: Comparison) -> Table:
    """Return the table of success rates and scores."""
    rows = [
        (agent.label, str(len(agent.names)), *_percent(success), *_cells(mean), *_cells(middle))
        for agent, success, mean, middle in zip(found.agents, found.success_rate, found.mean, found.iqm, strict=True)
    ]
    columns = (
        "", "runs", "success rate", "95 % interval", "score", "95 % interval", "IQM of scores", "95 % interval"
    )  # fmt: skip
    return table(columns, rows, range(1, len(columns)))


def _differences(found: Comparison) -> Table:
    """Return the table of differences to the first agent."""
    rows = [
        (agent.label, *_percent(gain, "+.1f"), *_cells(difference, "+.1f"), *_percent(row[0]))
        for agent, gain, difference, row in zip(
            found.agents, found.success_difference, found.difference, found.improvement, strict=True
        )
        if row[0] is not None
    ]
    columns = (
        f"against {found.agents[0].label}", "success rate", "95 % interval", "score", "95 % interval",
        "better conversations", "95 % interval",
    )  # fmt: skip
    return table(columns, rows, range(1, len(columns)))


def _improvement(found: Comparison) -> Table:
    """Return the table of probabilities of improvement, each agent over each other."""
    rows = [
        (f"{number}  {agent.label}", *("" if cell is None else percent(cell.value) for cell in row))
        for number, (agent, row) in enumerate(zip(found.agents, found.improvement, strict=True), 1)
    ]
    columns = ("better conversations than", *(str(number) for number in range(1, len(found.agents) + 1)))
    return table(columns, rows, range(1, len(columns)))


def _percent(share: Interval, form: str = ".1f") -> tuple[str, str]:
    """Return a share, or a difference of shares, in percent as two cells of a table."""
    return _cells(share.scaled(0, 0.01), form, " %")


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


def _failures(found: Comparison, name: str) -> Table:
    """Return the table of causes of failures in a task, in shares of all conversations."""
    shares = [agent.failures(name) for agent in found.agents]
    rows = [(cause, *(percent(share[cause]) for share in shares)) for cause in shares[0]]
    title = f"failed in {name} by" if len(found.tasks) > 1 else "failed by"
    return table((title, *(agent.label for agent in found.agents)), rows, range(1, len(shares) + 1))


def _notes(found: Comparison) -> str:
    """Return the notes below the tables: tasks, seeds and terms."""
    tasks = [described(task, found.agents[0].runs[name][0]) for name, task in found.tasks.items()]
    seeds = f"test seeds {found.seed} to {found.seed + found.conversations - 1}"
    single = ", ".join(found.without_variance)
    lacking = f"the variance of training is missing for {single}: train at least three seeds of each agent\n"
    return (
        _interfaces(found)
        + (lacking if single else "")
        + (
            f"{found.conversations:,} conversations of {' and '.join(tasks)}, the same for all; {seeds}\n"
            "score: the best agent that doesn't listen (random, or always one act) is 0, the expert 100;\n"
            "IQM: mean of the middle half of the runs (of fewer than four: of all);\n"
            "better conversations: share in which it got the higher return with the same partner; a tie counts half"
        )
    )


def _interfaces(found: Comparison) -> str:
    """Return a note of how each agent acts and observes; empty if all do alike."""
    each = [agent.interface for agent in found.agents]
    if all(one == each[0] for one in each):
        return ""
    said = "; ".join(
        f"{agent.label}: {one['action']}, {one['observation']}" for agent, one in zip(found.agents, each, strict=True)
    )
    note = "who observes words mishears nothing; what it says is understood by NLU\n"
    mixed = len({one["words"] is None for one in each}) > 1
    return f"interfaces differ (action, observation): {said}\n{note * mixed}"
