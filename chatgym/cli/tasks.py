"""The task that the options of a command describe: scenario, error rate, turns, weights of reward terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from chatgym.cli.options import flags
from chatgym.errors import InvalidValue, unknown

if TYPE_CHECKING:
    from chatgym.envs.task import Task
    from chatgym.evaluation import Evaluation

TASK_OPTIONS = ("scenario", "error_rate", "max_turns", "reward_weight")


def make_task(
    scenario: str,
    *,
    error_rate: float | None = None,
    max_turns: int | None = None,
    reward_weight: Iterable[str] | None = None,
    learner: Any = None,
) -> Task:
    """Make a task; what is None is left to the environment.

    Args:
        scenario: Name of the scenario.
        error_rate: Semantic error rate, 0 to 1; None: what an agent like `learner` has by default.
        max_turns: Turns after which a conversation is truncated.
        reward_weight: Weights of reward terms, each ``"name=value"``.
        learner: The class of the agent that will be trained; one with a setting ``reward_model`` has a weight for it.

    Raises:
        InvalidValue: A weight can't be read, or its term isn't one of the scenario's.
    """
    from chatgym.envs.interfaces import default_error_rate
    from chatgym.envs.task import Task

    if error_rate is None and learner is not None:
        error_rate = default_error_rate(learner.requires.observation)
    arguments = {"error_rate": error_rate, "max_turns": max_turns}
    given: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
    if reward_weight:
        given["reward_weights"] = read_weights(reward_weight)
        check_terms(given["reward_weights"], scenario, learner)
    return Task(scenario, given)


def read_weights(pairs: Iterable[str]) -> dict[str, float]:
    """Read weights of reward terms, each ``"name=value"``.

    Raises:
        InvalidValue: One can't be read, or a term is named twice.
    """
    weights: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if name in weights:
            raise InvalidValue(f"--reward-weight names {name} twice; leave one out")
        try:
            weights[name] = float(text)
        except ValueError:
            raise InvalidValue(f"--reward-weight {pair} is no weight; write it as {name or 'NAME'}=0.5") from None
    return weights


def check_terms(weights: Mapping[str, float], scenario: str, learner: Any = None) -> None:
    """Check that weights are of reward terms that there are; see `make_task`.

    Raises:
        InvalidValue: One isn't.
    """
    from chatgym.rewards.term import NAME
    from chatgym.scenarios import find_scenario

    terms = list(find_scenario(scenario).reward_terms)
    if learner is not None and any(field.name == NAME for field in dataclasses.fields(learner.Config)):
        terms.append(NAME)
    for name in weights:
        if name not in terms:
            raise unknown("reward term", name, terms, f"`chatgym scenarios {scenario}` shows their weights.")


def reweighted(task: Task, weights: Mapping[str, float]) -> Task:
    """Return a task with some weights of reward terms changed, after `check_terms`."""
    from chatgym.envs.task import Task

    if not weights:
        return task
    check_terms(weights, task.scenario)
    merged = {**task.arguments.get("reward_weights", {}), **weights}
    return Task(task.scenario, {**task.arguments, "reward_weights": merged})


def effective(task: Task) -> dict[str, Any]:
    """Return the values of a task's options, `TASK_OPTIONS`, also of those that it leaves to the scenario."""
    from chatgym.agent import Interface

    room = task.make_envs(Interface(), 1, reward_model=None).room
    weights = {**room.reward_weights, **task.arguments.get("reward_weights", {})}
    values = (task.scenario, room.error_rate, room.max_turns, weights)
    return dict(zip(TASK_OPTIONS, values, strict=True))


def described(task: Task, result: Evaluation) -> str:
    """Return the task of an evaluation in words: scenario, error rate, and the other arguments that were given."""
    rate = {"error_rate": result.identity["error_model"]["rate"]}
    return ", ".join(
        [task.scenario, *dataclasses.replace(task, arguments={**rate, **task.arguments}).describe_arguments()]
    )


def check_agrees(given: Mapping[str, Any], there: Mapping[str, Any], origin: str, remedy: str) -> None:
    """Check that options of the command line say what a file says.

    Args:
        given: Options that the command line sets; ``reward_weight`` as a mapping.
        there: The values in the file; options that it doesn't have may have any value.
        origin: Names the file.
        remedy: What to do instead of leaving the options out.

    Raises:
        InvalidValue: An option says something else.
    """
    differing = {}
    for name in (name for name in there if name in given):
        mine, theirs = given[name], there[name]
        if isinstance(mine, Mapping):
            theirs = {term: theirs.get(term) for term in mine}
        if mine != theirs:
            differing[name] = f"{flags([name])} {_written(theirs)}, not {_written(mine)}"
    if differing:
        what = "; ".join(differing.values())
        raise InvalidValue(f"{origin} has {what}: leave out {flags(differing)}, or {remedy}")


def _written(value: Any) -> str:
    """Write a value of an option."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_written(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_written, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
