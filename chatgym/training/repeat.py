"""Repeat a training from the ``config.json`` of a run, also of one from another machine.

The same agent is trained in the same task, with the same settings, seed, turns and evaluations. With the same versions
of the libraries the result is the same, byte for byte; a run that was lengthened is lengthened at the same turns.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatgym.agent import Interface
from chatgym.dynamics.identity import DECIDING, same_simulator
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, InvalidValue
from chatgym.training.curriculum import Curriculum, check_same
from chatgym.training.run import Run, read_config
from chatgym.training.trainer import VALIDATION_SEED, Progress, configure, create, resume

KINDS = {
    "agent": str, "settings": dict, "scenario": str, "arguments": dict, "seed": int, "total_steps": int,
    "evaluate_every": int, "conversations": int, "identity": dict, "versions": dict,
}  # fmt: skip
"""Types of the values in a configuration by which a run is repeated."""


def repeat(
    file: str | Path,
    folder: str | Path,
    *,
    curriculum: Curriculum | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train again what a run trained, in a new run folder.

    Warns where the versions of libraries or plugins differ.

    Args:
        file: ``config.json`` of a run, or the run folder.
        folder: The new run folder.
        curriculum: The run's curriculum, if it had one.
        overwrite: Whether to replace a run that the folder holds.
        progress: See `chatgym.training.train`.

    Raises:
        InvalidValue: The run can't be repeated here, see `prepare_repeat`.
        Unavailable, Corrupted: See `chatgym.training.train`.
    """
    run = prepare_repeat(file, folder, curriculum=curriculum, overwrite=overwrite)
    return resume(run.folder, progress=progress, curriculum=curriculum)


def read(file: str | Path) -> dict[str, Any]:
    """Read the configuration of a run.

    Raises:
        InvalidValue: It is no run's.
        Corrupted: It can't be read, or a value is of another type than a run writes.
    """
    config = read_config(file)
    for name, kind in KINDS.items():
        if type(config[name]) is not kind:
            raise Corrupted(f"{file} can't be repeated: its {name} is {config[name]!r}; restore the file")
    return config


def prepare_repeat(
    file: str | Path, folder: str | Path, *, curriculum: Curriculum | None = None, overwrite: bool = False
) -> Run:
    """Create the run folder of a training that repeats another, without training yet; see `repeat`.

    Raises:
        InvalidValue: `file` is no run's, the agent or scenario isn't installed, the simulator is another one, or the
            curriculum is missing or another one.
        Corrupted: `file` can't be read.
    """
    config = read(file)
    _check_curriculum(config, file, curriculum)
    if config["arguments"].get("reward") is not None:
        raise InvalidValue(
            f"{file} names a reward function, {config['arguments']['reward']!r}: code, which a file mustn't choose; "
            "repeat the run in Python by chatgym.training.train, with a Task that has this function"
        )
    task = Task(config["scenario"], config["arguments"])
    _check_simulator(config, file, task)
    made = configure(
        config["agent"], task=task, total_steps=config["total_steps"], seed=config["seed"],
        settings=config["settings"], evaluate_every=config["evaluate_every"], conversations=config["conversations"],
        log=config.get("log", ()), curriculum=curriculum,
    )  # fmt: skip
    if differing := _differences(config, made):
        warnings.warn(f"the result may differ from that of {file}: {differing}", stacklevel=2)
    if stages := config.get("stages"):
        made["stages"] = stages
    return create(folder, made, overwrite=overwrite)


def _check_curriculum(config: Mapping[str, Any], file: str | Path, curriculum: Curriculum | None) -> None:
    """Check that a curriculum is given if the run had one, and is the same."""
    recorded = config.get("curriculum")
    if recorded is None:
        if curriculum is not None:
            raise InvalidValue(f"the run of {file} had no curriculum; leave it out, or use chatgym.training.train")
        return
    if curriculum is None:
        raise InvalidValue(
            f"{file} names a curriculum, the Python function {recorded['function']}, which a file can't hold; repeat "
            f"the run in Python: chatgym.training.repeat({str(file)!r}, FOLDER, curriculum={recorded['function']})"
        )
    check_same(curriculum, recorded)


def _check_simulator(config: Mapping[str, Any], file: str | Path, task: Task) -> None:
    """Check that the simulator here is the one of the run.

    Raises:
        InvalidValue: It is another, or validates on other conversations.
    """
    before = config["identity"]
    interface = Interface(before["action"], before["observation"])  # as recorded, which may not be the agent's
    here = task.make_envs(interface, 1, reward_model=None).identity()
    same = same_simulator(before["sha256"], here)
    if same and config["validation_seed"] == VALIDATION_SEED:
        return
    parts = [name for name in DECIDING if before.get(name) != here[name]] if not same else ["validation seeds"]
    parts = parts or ["SHA-256"]
    versions = config["versions"]
    installed = ", ".join(f"{name} {versions[name]}" for name in ("chatgym", "plugin") if name in versions)
    raise InvalidValue(
        f"{file} is of another simulator ({', '.join(parts).replace('_', ' ')} differ), so its training can't be "
        f"repeated here; install what it names ({installed}) as it was then, or train anew without --config"
    )


def _differences(config: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return versions and settings that differ between a run's configuration and the one made here, in words."""
    found = []
    for key in ("versions", "settings"):
        names = [*dict.fromkeys([*config[key], *here[key]])]
        found += [
            f"{name} {config[key].get(name, 'unknown')} there, {here[key].get(name, 'none')} here"
            for name in names
            if config[key].get(name) != here[key].get(name)
        ]
    return "; ".join(found)
