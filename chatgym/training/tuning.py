"""Tune the settings of an agent: train with different ones, in an Optuna study that several processes may share.

All trials are queued when the study begins, each with a place: trials of a grid with their values, others empty; the
process that takes one up lets the sampler fill it. So each point is tried once, however many processes share the study.
A working process sends a heartbeat; the trial of a killed one is queued again by the next process that looks.

The study's folder holds ``study.json`` (the plan), ``study.db`` (unless another storage is given), ``best.json`` (the
best settings so far, for ``chatgym train --from-study``), ``trials.csv`` (a row for each seed of a trial) and
``study.png``.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from chatgym.agent import Range, make_config, reported
from chatgym.dynamics.identity import same_simulator
from chatgym.errors import InvalidValue
from chatgym.evaluation.evaluation import evaluate
from chatgym.storage import atomic
from chatgym.storage.paths import given
from chatgym.training.failure import blaming
from chatgym.training.run import find_agent
from chatgym.training.search_space import grid, points
from chatgym.training.study import FORMAT, Plan, finished, read_study
from chatgym.training.study_storage import open_storage, quiet
from chatgym.training.trainer import VALIDATION_SEED

EVALUATIONS = 5
"""Evaluations in a training; after each but the last the trial may be pruned."""

POLL_SECONDS = 0.5
PLACE = "place"
RESULTS = "results"
"""Attribute of a trial: seed, turns, mean return and success rate of each training, as `report` writes them."""
FIGURES = ("seed", "turns", "mean_return", "success_rate")
DONE = (TrialState.COMPLETE, TrialState.PRUNED)

Progress = Callable[[int, Mapping[str, float]], None]


def tune(
    plan: Plan,
    folder: str | Path,
    *,
    trials: int = 50,
    name: str | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> optuna.Study:
    """Begin or join a study, and work on it until no trial is left; other processes may do so at the same time.

    Args:
        plan: What to tune, and how.
        folder: The study's folder.
        trials: Number of trials in all; a grid has its points.
        name: The study's name in its storage. None: the folder's name.
        storage: A SQLAlchemy URL. None: a SQLite file in the folder.
        progress: Called with the turns done by this process, and the agent's metrics.

    Returns:
        The study. A trial's value is the mean return.

    Raises:
        InvalidValue: There is a study of that name with another plan, or the folder holds another study.
        Unavailable: The storage can't be reached.
    """
    folder = given(folder)
    name = name or folder.name
    if (folder / "study.json").exists() and (there := read_study(folder).get("name", name)) != name:
        raise InvalidValue(f"{folder} holds the study {there!r}, not {name!r}; name another folder (--folder)")
    folder.mkdir(parents=True, exist_ok=True)
    with quiet(), open_storage(storage or folder / "study.db") as database:
        study = _join(plan, name, database)
        about = {"format": FORMAT, "version": 1, "name": name, **plan.to_json()}
        with _alone(folder):
            atomic.write_text(folder / "study.json", json.dumps(about, indent=2) + "\n")
        try:
            _work(study, plan, trials, folder, progress)
        except KeyboardInterrupt:
            _fill(study, plan, trials)  # queues the interrupted trial again
            report(study, plan, folder)
            raise
        report(study, plan, folder)
    return study


def report(study: optuna.Study, plan: Plan, folder: Path) -> None:
    """Write ``best.json``, ``trials.csv`` and ``study.png``, if a trial is finished."""
    from chatgym.training.study_plot import draw_study

    if not (ranked := finished(study)):
        return
    _write_best(ranked[0], plan, folder)
    with _alone(folder):
        atomic.write_text(folder / "trials.csv", _table(study, plan))
        atomic.write_file(folder / "study.png", lambda path: draw_study(study, plan, path))


def _table(study: optuna.Study, plan: Plan) -> str:
    """Return ``trials.csv``: a row for each seed of a trial, with the trial's means over its seeds.

    A trial that was ended early has no means; its last seed's row is of the evaluation that ended it.
    """
    names, text = list(plan.space), io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", *FIGURES, "trial_mean_return", "trial_success_rate", *names])
    for trial in study.get_trials(deepcopy=False, states=DONE):
        means = trial.value, trial.user_attrs.get("success_rate")
        if trial.state is TrialState.PRUNED:
            means = None, None
        for result in trial.user_attrs.get(RESULTS, [{}]):  # [{}]: of a study from before they were kept
            figures = map(result.get, FIGURES)
            table.writerow([trial.number, trial.state.name.lower(), *figures, *means, *map(trial.params.get, names)])
    return text.getvalue()


def _alone(folder: Path) -> FileLock:
    """Return a lock for writing: processes that share a study may share its folder."""
    return FileLock(folder / ".lock")


def _join(plan: Plan, name: str, storage: optuna.storages.RDBStorage) -> optuna.Study:
    """Return the study of that name; create it if there is none."""
    pruner = optuna.pruners.NopPruner() if plan.method == "grid" else optuna.pruners.MedianPruner(4, 0)
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
    )
    here = plan.to_json()
    there = study.user_attrs.get("plan")
    if there is None:
        study.set_user_attr("plan", here)
        return study
    if same_simulator(there["identity"], plan.task.identity()):
        there = {**there, "identity": here["identity"]}
    if differing := sorted(key for key in here if here[key] != there.get(key)):
        what = ", ".join(f"{key} is {there.get(key)!r} there and {here[key]!r} here" for key in differing)
        raise InvalidValue(f"the study {name!r} was begun with another plan: {what}; name another study (--study)")
    return study


def _fill(study: optuna.Study, plan: Plan, trials: int) -> None:
    """Queue a trial for each place that has none, or only failed ones.

    If two processes queue the same place at once, its first trial counts.
    """
    fixed = grid(plan.space) if plan.method == "grid" else [{}] * trials
    taken = {
        trial.user_attrs.get(PLACE) for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.FAIL
    }
    for place, values in enumerate(fixed):
        if place not in taken:
            study.enqueue_trial(values, user_attrs={PLACE: place})


class _Surplus(Exception):
    """A trial that isn't needed: another trial has its place, or all places are taken."""


def _work(study: optuna.Study, plan: Plan, trials: int, folder: Path, progress: Progress | None) -> None:
    """Run one trial after the other until all are finished, also those of other processes."""
    worker = _Worker(study, plan, progress)
    while True:
        optuna.storages.fail_stale_trials(study)
        _fill(study, plan, trials)
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        if TrialState.WAITING in states:
            try:
                study.optimize(worker, n_trials=1, catch=(_Surplus,))
            # This process stood still for so long that another took it for dead and queued its trial again.
            except optuna.exceptions.UpdateFinishedTrialError:
                continue
            except ValueError as error:
                if "Cannot tell" not in str(error):
                    raise
                continue
            if ranked := finished(study):
                _write_best(ranked[0], plan, folder)
        elif TrialState.RUNNING in states:
            time.sleep(POLL_SECONDS)
        else:
            return


def _write_best(trial: FrozenTrial, plan: Plan, folder: Path) -> None:
    """Write ``best.json``."""
    best = {
        "agent": plan.agent, "settings": {**plan.settings, **trial.params}, "scenario": plan.task.scenario,
        "arguments": dict(plan.task.arguments), "steps": plan.steps, "seeds": list(plan.seeds),
        "conversations": plan.conversations, "mean_return": trial.value,
        "success_rate": trial.user_attrs.get("success_rate"), "results": trial.user_attrs.get(RESULTS),
        "trial": trial.number,
    }  # fmt: skip
    with _alone(folder):
        atomic.write_text(folder / "best.json", json.dumps(best, indent=2) + "\n")


class _Worker:
    """The objective of the study: trains with each seed and returns the mean of the mean returns."""

    def __init__(self, study: optuna.Study, plan: Plan, progress: Progress | None) -> None:
        self.study, self.plan, self.progress = study, plan, progress
        self.done = len(study.get_trials(deepcopy=False, states=DONE)) * plan.steps * len(plan.seeds)

    def __call__(self, trial: optuna.Trial) -> float:
        """Run a trial."""
        place = trial.user_attrs.get(PLACE)
        if place is None or self._done_before(trial.number, place):
            raise _Surplus
        plan, begun = self.plan, self.done
        self.study.sampler = _sampler(plan, place)
        params = {
            name: _suggest(trial, name, points(choices) if plan.method == "grid" else choices)
            for name, choices in plan.space.items()
        }
        results: list[dict[str, Any]] = []
        try:
            for number, seed in enumerate(plan.seeds):
                results.append({"seed": seed})
                self._train(trial, params, number, results[-1])
        except optuna.TrialPruned:
            trial.set_user_attr(RESULTS, results)
            raise
        finally:
            self.done = begun + plan.steps * len(plan.seeds)
        trial.set_user_attr(RESULTS, results)
        returns, successes = ([one[name] for one in results] for name in FIGURES[2:])
        trial.set_user_attr("success_rate", sum(successes) / len(successes))
        return float(sum(returns) / len(returns))

    def _done_before(self, number: int, place: int) -> bool:
        """Return whether another trial has this place: a finished one, or an earlier one that is running."""
        return any(
            other.user_attrs.get(PLACE) == place
            and (other.state in DONE or (other.state is TrialState.RUNNING and other.number < number))
            for other in self.study.get_trials(deepcopy=False)
            if other.number != number
        )

    def _train(self, trial: optuna.Trial, params: Mapping[str, Any], number: int, result: dict[str, Any]) -> None:
        """Train once, with evaluations after which the trial may be pruned.

        Args:
            trial: The trial.
            params: Its settings.
            number: How many trainings of the trial came before.
            result: Has the ``seed``; gets the other `FIGURES` at each evaluation.
        """
        plan, made_by = self.plan, find_agent(self.plan.agent)
        config = make_config(made_by.Config, {**plan.settings, **params})
        scenario = plan.task.find_scenario()
        every, evaluated, done = max(plan.steps // EVALUATIONS, 1), 0, 0

        def measure(turns: int) -> float:
            found = evaluate(
                agent, plan.task, conversations=plan.conversations, seed=VALIDATION_SEED, split="validation",
                references=False, causes=False,
            )  # fmt: skip
            value = float(found.returns.mean())
            result.update(turns=turns, mean_return=value, success_rate=found.success_rate.value)
            return value

        def callback(turns: int, metrics: Mapping[str, float]) -> None:
            nonlocal done, evaluated
            done, metrics = reported(plan.agent, turns, metrics)
            if self.progress is not None:
                self.progress(self.done + min(done, plan.steps), metrics)
            if done // every > evaluated and done < plan.steps and plan.method != "grid":
                evaluated = done // every
                trial.report(measure(done), number * EVALUATIONS + evaluated)
                if trial.should_prune():
                    raise optuna.TrialPruned

        settings = ", ".join(f"{name} {value}" for name, value in params.items())
        how = f"it had {settings}, in trial {trial.number}; mend it, then the same command goes on"
        with blaming(plan.agent, lambda: how):
            agent = made_by(scenario, config, seed=result["seed"])
            agent.learn(plan.task.maker(agent.requires), plan.steps, callback)
            value = measure(done)
        self.done += plan.steps
        if plan.method != "grid":
            trial.report(value, (number + 1) * EVALUATIONS)


def _sampler(plan: Plan, place: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of a place, seeded by it, so that no two processes draw the same settings."""
    seed = (plan.seed * 1_000_003 + place) % 2**32
    if plan.method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _suggest(trial: optuna.Trial, name: str, choices: Range | Sequence[Any]) -> Any:
    """Let the sampler choose a setting; a grid's values are queued with the trial."""
    if not isinstance(choices, Range):
        return trial.suggest_categorical(name, list(choices))
    if isinstance(choices.low, int) and isinstance(choices.high, int):
        return trial.suggest_int(name, choices.low, choices.high, log=choices.log)
    return trial.suggest_float(name, choices.low, choices.high, log=choices.log)
