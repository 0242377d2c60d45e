"""RLHF: supervised fine-tuning, reward models and PPO, in one folder (Ouyang et al. 2022, figure 2).

``rlhf.json`` holds the plan. ``sft/`` is a run of `chatgym sft`; ``reward/`` and ``held-out/`` are reward models as of
`chatgym reward train`; ``ppo/`` is a run of `chatgym train ppo`. PPO trains on the first reward model and only reports
the second, which was trained on other conversations. Each step resumes where it was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatgym.envs.task import Task
from chatgym.errors import Corrupted, InvalidValue
from chatgym.storage import atomic
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json
from chatgym.training.run import Run, find_agent
from chatgym.training.trainer import prepare, resume

FORMAT, VERSION = "chatgym-rlhf", 1
PLAN = "rlhf.json"
REWARDS = {"reward": 0, "held-out": 500_000}
"""Folder of a reward model to the seed of the first conversation in its training data."""
STEPS = ("sft", *REWARDS, "ppo")
"""The folders of all steps."""

Watch = Callable[..., Any]
"""(label, total, unit, done = 0) to a context manager of a function (count, metrics)."""


@dataclass(frozen=True)
class Plan:
    """What to train, and for how long.

    Attributes:
        scenario: Name of the scenario.
        model: The model to start from; empty: a new one of 1.7 million weights.
        conversations: Conversations that the expert holds for the fine-tuning.
        wander: Probability that the expert takes a random act in a turn.
        epochs: Passes over these conversations.
        pairs: Conversations from which each reward model's pairs are made.
        turns: Turns of the PPO training.
        evaluation: Conversations in each evaluation of PPO.
        lora: Rank of LoRA in fine-tuning and PPO; 0: train all weights.
        zero: DeepSpeed's ZeRO stage.
        bf16: Whether to compute in bfloat16.
        seed: Seed of all random numbers.
        settings: Further settings of the agent ppo.
    """

    scenario: str = "customer_service"
    model: str = ""
    conversations: int = 1000
    wander: float = 0.3
    epochs: float = 3.0
    pairs: int = 300
    turns: int = 50_000
    evaluation: int = 200
    lora: int = 0
    zero: int = 1
    bf16: bool = False
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def begin(folder: Path, plan: Plan, *, overwrite: bool = False) -> Plan:
    """Write the plan into a new or empty folder; with `overwrite`, also into one that holds RLHF, which is deleted.

    Raises:
        InvalidValue: The folder isn't empty.
    """
    folder = given(folder)
    if (folder / PLAN).is_file():
        if not overwrite:
            raise InvalidValue(
                f"{folder} isn't empty; go on with it (--resume), replace it (--overwrite), or name another folder "
                "(--run)"
            )
        for name in STEPS:
            shutil.rmtree(folder / name, ignore_errors=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidValue(f"{folder} isn't empty and holds no RLHF; name another folder (--run)")
    with atomic.disk_space(folder, "free some, or name another folder (--run)"):
        folder.mkdir(parents=True, exist_ok=True)
        return _write(folder, plan)


def _write(folder: Path, plan: Plan) -> Plan:
    """Write the plan into an existing folder, and return it."""
    record = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(plan)}
    atomic.write_text(given(folder) / PLAN, json.dumps(record, indent=2) + "\n")
    return plan


def read(folder: Path) -> Plan:
    """Read the plan in a folder.

    Raises:
        InvalidValue: There is none.
        Corrupted: It can't be read.
    """
    path = given(folder) / PLAN
    if not path.is_file():
        raise InvalidValue(f"{folder} holds no plan to resume: there is no {path}; leave out --resume")
    try:
        found = read_json(path)
        if (found.pop("format"), found.pop("version")) != (FORMAT, VERSION):
            raise InvalidValue(f"{path} is something else's")
        return Plan(**found)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise Corrupted(f"{path} can't be read ({error}); begin anew, in another folder") from error


def lengthen(folder: Path, turns: int) -> Plan:
    """Change the turns of the PPO training in the plan of a folder, and return the plan.

    Raises:
        InvalidValue: PPO has begun with more turns, or there is no plan.
    """
    plan, run = read(folder), given(folder) / "ppo"
    if (run / "config.json").is_file() and turns < (most := Run.open(run).config["total_steps"]):
        raise InvalidValue(f"{run} is a training of {most:,} turns; --turns can only make it longer")
    return _write(folder, dataclasses.replace(plan, turns=turns))


def sft(folder: Path, plan: Plan, watch: Watch) -> Path:
    """Run or resume the fine-tuning in ``sft/``, and return the folder of its model."""
    from chatgym.finetuning.dialogues import held_by
    from chatgym.finetuning.loop import Optimization
    from chatgym.finetuning.sft import SFT, Settings, default_rate

    run = folder / "sft"
    if not (run / "config.json").is_file():
        task = Task(plan.scenario, {"error_rate": 0.0})  # the model that learns from it mishears nothing either
        with watch("expert talks", plan.conversations, "conversations") as progress:
            said = held_by(
                find_agent("expert")(task.find_scenario()), task, plan.conversations, seed=plan.seed,
                wander=plan.wander, progress=lambda n: progress(n, {}),
            )  # fmt: skip
        settings = Settings(plan.model, "", "", epochs=plan.epochs, lora=plan.lora, seed=plan.seed)
        optimization = Optimization(
            batch=8, learning_rate=default_rate(plan.model, plan.lora), zero=plan.zero, bf16=plan.bf16
        )
        about = {"teacher": "expert", "wander": plan.wander, "scenario": plan.scenario}
        SFT.prepare(run, settings, optimization, said=said, about=about)
    training = SFT.open(run)
    with contextlib.ExitStack() as stack:
        training.train(lambda done, total: stack.enter_context(watch("sft", total, "steps", done)))
    return training.model


def rewards(folder: Path, plan: Plan, watch: Watch) -> None:
    """Train the reward models that don't exist yet."""
    from chatgym.evaluation.reward_report import measure
    from chatgym.finetuning.preferences import pairs_of
    from chatgym.rewards import folder as storage
    from chatgym.rewards import training
    from chatgym.rewards.pairs import split

    scenario = Task(plan.scenario).find_scenario()
    for name, first in REWARDS.items():
        atomic.recover_folder(folder / name)
        if (folder / name).is_dir():
            continue
        with watch(f"{name} pairs", plan.pairs, "conversations") as progress:
            show = functools.partial(progress, metrics={})
            made = pairs_of(scenario, plan.pairs, seed=first + plan.seed, progress=show)
        learned, tested = split(made)
        model = training.train(learned, seed=plan.seed)
        report = measure(model, tested)
        about = {"scenario": plan.scenario, "learned": len(learned), "sha256": training.digest_of(learned)}

        def fill(new: Path, model: Any = model, report: Any = report, about: Any = about) -> None:
            storage.write_encoder(new, model, about)
            report.save(new / "report.json")

        atomic.replace_folder(folder / name, fill)


def begin_ppo(folder: Path, plan: Plan, model: Path) -> Run:
    """Create or open the run ``ppo/``."""
    run = folder / "ppo"
    if (run / "config.json").is_file():
        return Run.open(run)
    settings = {
        "model": str(model), "reward_model": str(folder / "reward"), "held_out": str(folder / "held-out"),
        "lora": plan.lora, "zero": plan.zero, "bf16": plan.bf16, **plan.settings,
    }  # fmt: skip
    return prepare("ppo", run, task=Task(plan.scenario), total_steps=plan.turns, seed=plan.seed,
                   settings=settings, conversations=plan.evaluation)  # fmt: skip


def ppo(folder: Path, plan: Plan, model: Path, watch: Watch) -> Run:
    """Run or resume PPO in ``ppo/``."""
    run = begin_ppo(folder, plan, model)
    total = max(plan.turns, run.config["total_steps"])  # that of the run, if `chatgym train` made it longer
    with watch("ppo", total, "turns", run.turns) as progress:
        return resume(run.folder, total_steps=total, progress=progress)
