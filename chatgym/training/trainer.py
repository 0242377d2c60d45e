"""Train an agent in a run folder, with evaluations and checkpoints; a killed training resumes exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatgym.agent import Agent, make_config, plain, reported
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue
from chatgym.evaluation.evaluation import evaluate
from chatgym.evaluation.rollouts import converse
from chatgym.finetuning import distributed
from chatgym.storage import interrupts
from chatgym.storage.paths import given
from chatgym.training import logs
from chatgym.training.curriculum import Curriculum, Lessons, check_same, record
from chatgym.training.failure import blaming
from chatgym.training.run import Run, check_free, find_agent, lock, versions

VALIDATION_SEED = 0
"""Seed of the first conversation of the evaluations during training, in the split ``"validation"``."""
SEEDS = 2**32
"""Seeds of a training are below this; all libraries take such."""

DEFAULT_STEPS = 1_000_000
CONVERSATIONS = 1000
EVALUATIONS = 20
TRANSCRIPTS = 5
SAMPLES = 2
"""Conversations written to ``transcripts.jsonl`` at each evaluation of an agent that generates text."""

Progress = Callable[[int, Mapping[str, float]], None]


def prepare(
    agent: str,
    folder: str | Path,
    *,
    task: Task | None = None,
    total_steps: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    evaluate_every: int | None = None,
    conversations: int | None = None,
    log: str | Sequence[str] = (),
    curriculum: Curriculum | None = None,
    overwrite: bool = False,
) -> Run:
    """Create the run folder of a training, without training yet.

    Args:
        agent: Name of an agent; ``chatgym plugins`` lists them.
        folder: The run folder, see `chatgym.training.run`.
        task: Scenario and arguments of the environment.
        total_steps: Turns to train for, over all conversations. None: the agent's default.
        seed: Seed of all random numbers.
        settings: Values for fields of the agent's `Config`, by name.
        evaluate_every: Turns between evaluations, each followed by a checkpoint. None: the agent's default, else 1/20.
        conversations: Conversations in each evaluation. None: the agent's default, else 1,000.
        log: Formats to log in besides ``metrics.jsonl``: ``"csv"``, ``"tensorboard"`` or both.
        curriculum: Changes the conversations while the agent learns, see `chatgym.training.curriculum`.
        overwrite: Whether to replace a run that the folder holds.

    Raises:
        InvalidValue: A name or value isn't allowed, or the folder holds something.
        Unavailable: The package of a log format isn't installed, or the disk is full.
    """
    config = configure(
        agent, task=task or Task(), total_steps=total_steps, seed=seed, settings=settings,
        evaluate_every=evaluate_every, conversations=conversations, log=log, curriculum=curriculum,
    )  # fmt: skip
    return create(folder, config, overwrite=overwrite)


def configure(
    agent: str, *, task: Task, total_steps: int | None, seed: int, settings: Mapping[str, Any] | None,
    evaluate_every: int | None, conversations: int | None, log: str | Sequence[str], curriculum: Curriculum | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the configuration of a run, see `prepare`; writes nothing.

    Raises:
        InvalidValue: A name or value isn't allowed.
        Unavailable: The package of a log format isn't installed.
    """
    made_by = find_agent(agent)
    task = task.heard_by(made_by.requires)
    default = getattr(made_by, "default_steps", DEFAULT_STEPS)
    if default == 0:
        raise InvalidValue(f"the agent {agent!r} learns nothing; measure it with `chatgym evaluate {agent}`")
    total = int(default if total_steps is None else total_steps)
    seed = plain(seed)
    evaluations = getattr(made_by, "default_evaluations", EVALUATIONS)
    every = max(total // evaluations, 1) if evaluate_every is None else evaluate_every
    counted = getattr(made_by, "default_conversations", CONVERSATIONS) if conversations is None else conversations
    every, counted = plain(every), plain(counted)
    for name, value in (("total_steps", total), ("evaluate_every", every), ("conversations", counted)):
        if value < 1:
            raise InvalidValue(f"{name} is a number from 1 on, not {value}")
    if not 0 <= seed < SEEDS:
        raise InvalidValue(f"seed is a number from 0 to {SEEDS - 1}, not {seed}")
    config = {
        "agent": agent, "settings": dataclasses.asdict(make_config(made_by.Config, settings)),
        "scenario": task.scenario, "arguments": dict(task.arguments), "seed": seed, "total_steps": total,
        "evaluate_every": every, "conversations": counted, "validation_seed": VALIDATION_SEED,
        "log": logs.formats(log),
        "identity": task.identity(made_by.requires), "versions": versions(agent, task.scenario),
    }  # fmt: skip
    if curriculum is not None:
        config["curriculum"] = record(curriculum, task, total, every)
    return config


def create(folder: str | Path, config: Mapping[str, Any], *, overwrite: bool = False) -> Run:
    """Create the run folder of a training with a configuration, see `prepare`."""
    folder = given(folder)
    check_free(folder, overwrite=overwrite)
    with lock(folder):
        return Run.create(folder, config, overwrite=overwrite)


def train(
    agent: str,
    folder: str | Path,
    *,
    curriculum: Curriculum | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Train an agent from the beginning, in a new run folder.

    The same arguments give the same model, byte for byte. Ctrl-C saves a checkpoint and raises KeyboardInterrupt.
    After that, or after a kill, `resume` ends with the same model as an uninterrupted training.

    Args:
        agent, folder, options: See `prepare`.
        curriculum: Changes the conversations while the agent learns, see `chatgym.training.curriculum`.
        progress: Called after each iteration with the turns done and the agent's metrics.

    Raises:
        InvalidValue: A name or value isn't allowed, or the folder holds something.
        Unavailable: The package of a log format isn't installed, or the disk is full; then the run can be resumed.
        AgentFailed: The agent's own code raised an exception; once that is mended, the run can be resumed.
    """
    run = prepare(agent, folder, curriculum=curriculum, **options)
    with lock(run.folder):
        _train(run, progress, curriculum)
    return run


def resume(
    folder: str | Path,
    *,
    total_steps: int | None = None,
    curriculum: Curriculum | None = None,
    progress: Progress | None = None,
) -> Run:
    """Continue an interrupted run, or, with more `total_steps`, a finished one; else that is checked and returned.

    Args:
        folder: The run folder.
        total_steps: Turns to train for in all; None: the run's.
        curriculum: The run's curriculum, if it has one.
        progress: See `train`.

    Raises:
        InvalidValue: The folder holds no run, or one trained with another version of the simulator, or its curriculum
            is missing or another one.
        Corrupted: A file of the run has changed.
        Unavailable: The disk is full, a log's package or the run's plugin isn't installed, or another process trains
            in the folder.
        AgentFailed: See `train`.
    """
    if total_steps is not None and total_steps < 1:
        raise InvalidValue(f"total_steps is a number from 1 on, not {total_steps}")
    run = Run.open(folder)
    logs.formats(run.log)
    run.check_simulator("its scores wouldn't go together: train again (--overwrite)")
    with lock(run.folder) if distributed.first() else contextlib.nullcontext():
        if run.finished and total_steps in (None, run.config["total_steps"]):
            run.check()
            return run
        _check_curriculum(run, curriculum)
        if total_steps is not None:
            run = _lengthened(run, total_steps, curriculum)
        _train(run, progress, curriculum)
    return run


def _check_curriculum(run: Run, curriculum: Curriculum | None) -> None:
    """Check that the curriculum is the run's.

    Raises:
        InvalidValue: It isn't, or is missing.
    """
    recorded = run.config.get("curriculum")
    if curriculum is None and recorded is not None:
        raise InvalidValue(
            f"{run.folder} is trained with a curriculum, the function {recorded['function']}; go on in Python: "
            f"`{run.resume_command()}`"
        )
    if curriculum is not None and recorded is None:
        raise InvalidValue(f"{run.folder} was begun without a curriculum; go on without one, or train anew with it")
    if curriculum is not None and recorded is not None:
        check_same(curriculum, recorded)


def _lengthened(run: Run, total_steps: int, curriculum: Curriculum | None) -> Run:
    """Return the run with other total turns."""
    if curriculum is None:
        return run.with_total_steps(total_steps)
    recorded = record(curriculum, run.task, total_steps, run.config["evaluate_every"])
    return run.with_total_steps(total_steps, curriculum=recorded)


class _StageOver(Exception):
    """The turns at which the total turns of the original run were changed."""


def _train(run: Run, progress: Progress | None, curriculum: Curriculum | None = None) -> None:
    """Train from the last checkpoint, or from the beginning, to the end."""
    for number, (total_steps, until) in enumerate(run.stages()):
        if number:
            distributed.join()  # until the first process has written the checkpoint of the stage before
        stop = until is not None and until < total_steps  # else the stage ends by itself
        with blaming(run.config["agent"], run.how_to_go_on):
            _train_stage(run, total_steps, until if stop else None, progress, Lessons(curriculum, run.turns))


def _train_stage(run: Run, total_steps: int, until: int | None, progress: Progress | None, lessons: Lessons) -> None:
    """Train for `total_steps`; end with a checkpoint after `until` turns, if not None."""
    agent = run.agent() if run.model.is_dir() else run.new_agent()
    distributed.join()
    callback: Any = (
        _Callback(run, agent, progress) if distributed.first()
        else _FollowerCallback(agent, run.config["evaluate_every"], run.turns)
    )  # fmt: skip
    callback.until, callback.lessons = until, lessons
    with interrupts.deferred() as interrupted:
        callback.interrupted = interrupted
        callback.begin()
        make: Any = run.task.maker(agent.requires)
        with contextlib.suppress(_StageOver):
            agent.learn(
                lambda num_envs, **overrides: lessons.apply_to(make(num_envs, **overrides)),
                total_steps, callback,
            )  # fmt: skip
            callback.finish()
    if interrupted():  # too late to stop before the end
        raise KeyboardInterrupt


class _Callback:
    """The callback of `Agent.learn`: evaluates, saves checkpoints and logs when due, and stops after Ctrl-C.

    Attributes:
        interrupted: Returns whether the user pressed Ctrl-C.
        until: Turns after which the stage is over, see `Run.stages`; None: it ends by itself.
        lessons: The curriculum.
    """

    until: int | None
    lessons: Lessons

    def __init__(self, run: Run, agent: Agent, progress: Progress | None) -> None:
        self.run, self.agent, self.progress = run, agent, progress
        self.log = logs.Logs(run.folder, run.log)
        self.interrupted: Callable[[], bool] = bool
        self.every: int = run.config["evaluate_every"]
        self.turns = 0
        self.began, self.seconds = time.perf_counter(), 0.0  # seconds: of earlier processes

    def begin(self) -> None:
        """Evaluate the untrained agent, or, in a resumed run, drop what is later than its checkpoint."""
        if not self.run.model.is_dir():
            self.run.keep_metrics(-1)
            self._evaluate({})
            return
        self.turns = self.run.turns
        self.run.keep_metrics(self.turns)
        self.run.keep_best()
        lines = self.run.lines()
        with self.run.writing():
            self.log.write(lines)
        self.seconds = lines[-1]["seconds"] if lines else 0.0

    def __call__(self, turns: int, metrics: Mapping[str, float]) -> None:
        """Handle an iteration after which the agent has trained for `turns`."""
        turns, metrics = reported(self.run.config["agent"], turns, metrics)
        due = turns // self.every > self.turns // self.every
        self.turns = turns
        self.lessons.advance(turns)  # before the checkpoint, which has the next turn's conversations
        if self.progress is not None:
            self.progress(turns, metrics)
        if due:
            self._evaluate(metrics)
        elif getattr(self.agent, "log_iterations", False):
            self.run.note(self._line(metrics))
        stopped, over = distributed.anywhere(self.interrupted()), self.until is not None and turns >= self.until
        if (stopped or over) and not due:
            self.run.checkpoint(self.agent, self.turns)
        if stopped:
            self.run.draw_curve()
            raise KeyboardInterrupt
        if over:
            raise _StageOver

    def finish(self) -> None:
        """Write the last evaluation, checkpoint and curve, and conversations before and after training."""
        lines = self.run.metrics()
        if not lines or lines[-1]["turns"] < self.turns:
            self._evaluate({})
        self.run.checkpoint(self.agent, self.turns)  # as `learn` left it
        self.run.draw_curve()
        if self._has_text:
            before = [one for one in self.run.transcripts() if one["trained_for"] < self.turns]
        else:
            before = self._transcripts(self.run.new_agent(), 0, TRANSCRIPTS)
        self.run.write_transcripts([*before, *self._transcripts(self.agent, self.turns, TRANSCRIPTS)])
        self.run.finish()

    @property
    def _has_text(self) -> bool:
        """Whether the agent generates text; then conversations are kept at each evaluation."""
        return self.agent.requires.observation == "text"

    def _transcripts(self, agent: Agent, trained_for: int, count: int) -> list[dict[str, Any]]:
        """Hold `count` conversations and return their transcripts; the untrained agent samples its acts."""
        env = self.run.task.make_env(agent.requires)
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + count)
        held = [converse(agent, env, seed, split="validation", deterministic=trained_for > 0) for seed in seeds]
        return [{"trained_for": trained_for, **one} for one in held]

    def _evaluate(self, metrics: Mapping[str, float]) -> None:
        """Evaluate the agent and save a checkpoint with the line of metrics; `metrics` are the training's own."""
        config = self.run.config
        result = evaluate(
            self.agent, self.run.task, conversations=config["conversations"], seed=config["validation_seed"],
            split="validation", causes=False,
        )  # fmt: skip
        line = self._line(
            metrics, success_rate=dataclasses.asdict(result.success_rate),
            mean_return=dataclasses.asdict(result.mean_return),
            score=result.score and dataclasses.asdict(result.score),
        )  # fmt: skip
        if self._has_text:
            kept = [one for one in self.run.transcripts() if one["trained_for"] < self.turns]
            self.run.write_transcripts([*kept, *self._transcripts(self.agent, self.turns, SAMPLES)])
        self.run.checkpoint(self.agent, self.turns, line)
        with self.run.writing():
            self.log.write(self.run.lines())

    def _line(self, metrics: Mapping[str, float], **measures: Any) -> dict[str, Any]:
        """Return a line of ``metrics.jsonl``, see `Run.lines`."""
        seconds = self.seconds + time.perf_counter() - self.began
        training = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"turns": self.turns, "seconds": round(seconds, 3), **measures, "training": training}
        return {**line, "curriculum": self.lessons.now} if self.lessons.now else line


class _FollowerCallback:
    """The callback of all processes but the first: takes part in checkpoints, and stops when any process stops."""

    until: int | None
    lessons: Lessons

    def __init__(self, agent: Agent, every: int, turns: int) -> None:
        self.agent = agent
        self.interrupted: Callable[[], bool] = bool
        self._every = every
        self._turns = self._saved = turns

    def begin(self) -> None:
        """Do nothing: the first process evaluates."""

    def __call__(self, turns: int, metrics: Mapping[str, float]) -> None:
        """Handle an iteration as `_Callback` does."""
        due = turns // self._every > self._turns // self._every
        self._turns = turns
        self.lessons.advance(turns)
        if due:
            self._save()
        stopped, over = distributed.anywhere(self.interrupted()), self.until is not None and turns >= self.until
        if (stopped or over) and not due:
            self._save()
        if stopped:
            raise KeyboardInterrupt
        if over:
            raise _StageOver

    def finish(self) -> None:
        """Take part in the last checkpoints."""
        if self._saved < self._turns:
            self._save()
        self._save()

    def _save(self) -> None:
        self._saved = self._turns
        self.agent.save(Path(os.devnull))  # a collective: only the first process writes
