"""``chatgym train --config FILE``: repeat the training of a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatgym.cli import tasks
from chatgym.cli.options import SETTING
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from chatgym.training import Run

FREE = {"config", "run", "overwrite", "processes"}
"""Parameters that change nothing about the training."""


def with_agent(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``chatgym train`` with an agent's name in front, which --config gives if it is left out.

    Raises:
        InvalidValue: The file isn't a run's.
        Corrupted: It can't be read.
    """
    from chatgym.training.run import read_config

    arguments = list(arguments)
    if not arguments or not arguments[0].startswith("-"):
        return arguments
    files = _values("--config", arguments)
    return [str(read_config(files[0])["agent"]), *arguments] if files and files[0] else arguments


def check_plugin(arguments: Sequence[str]) -> None:
    """Check that the plugin of a run that ``chatgym train AGENT`` continues or repeats is here.

    Raises:
        Unavailable: It isn't.
    """
    from chatgym.training import Run

    agent, *rest = arguments
    for name in _values("--config", rest) or _values("--run", rest) or [f"runs/{agent}"]:
        folder = Path(name) if Path(name).is_dir() else Path(name).parent
        if (folder / "config.json").is_file() and (run := Run.open(folder)).config["agent"] == agent:
            run.agent_class()


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """Return the values of an option in arguments that nobody has parsed yet."""
    following = itertools.zip_longest(arguments, arguments[1:], fillvalue="")
    return [after if one == option else one.removeprefix(f"{option}=") for one, after in following
            if one == option or one.startswith(f"{option}=")]  # fmt: skip


def prepare(name: str, folder: Path, given: set[str], values: Mapping[str, Any]) -> Run:
    """Create the run folder of a training that repeats the one of the configuration in ``values["config"]``.

    Args:
        name: The agent.
        folder: The new run folder.
        given: Parameters that the command line sets; those beside --config must say what the file says.
        values: The values of all parameters.

    Raises:
        InvalidValue: An option says something else, or the run can't be repeated here.
        Corrupted: The file can't be read.
    """
    from chatgym.envs.task import Task
    from chatgym.training import logs
    from chatgym.training.repeat import prepare_repeat, read

    file = values["config"]
    config = read(file)
    if config["agent"] != name:
        raise InvalidValue(f"{file} trains {config['agent']}, not {name}; leave out the agent's name")
    if "from_study" in given:
        raise InvalidValue("--config and --from-study both name settings; leave out one")
    asked = {key: values[key] for key in given - FREE}
    for key, parse in (("reward_weight", tasks.read_weights), ("log", logs.formats)):
        if key in asked:
            asked[key] = parse(asked[key])
    there = {
        **tasks.effective(Task(config["scenario"], config["arguments"])),
        "steps": config["total_steps"], "seed": config["seed"], "evaluate_every": config["evaluate_every"],
        "conversations": config["conversations"], "log": config.get("log", []),
        **{SETTING + key: value for key, value in config["settings"].items()},
    }  # fmt: skip
    tasks.check_agrees(asked, there, str(file), "train without --config")
    return prepare_repeat(file, folder, overwrite=values["overwrite"])
