"""One of several processes that train an agent together: the first one keeps the run, the others keep it company.

A launcher starts them: ``chatgym train ... --processes N``, or ``deepspeed --module chatgym.training RUN``. An agent
whose class has ``several_processes = True`` shares its work among them by torch.distributed, and its `save` may need
all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from chatgym.agent import Agent
from chatgym.errors import ChatGymError

if TYPE_CHECKING:
    from chatgym.training.run import Run


def rank() -> int:
    """Return the number of this process, as a launcher set it."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Return how many processes train together, as a launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Tell whether this is the process that keeps the run."""
    return rank() == 0


def largest(value: float) -> float:
    """Return the largest of a number over the processes; each has to ask."""
    if processes() == 1:
        return value
    import torch

    found = torch.tensor(value, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return float(found)


def anywhere(here: bool) -> bool:
    """Tell whether something is so in any of the processes; each has to ask."""
    return bool(largest(float(here)))


def run_process(train: Callable[[], object]) -> int:
    """Train as one of the processes, and return its exit code; the first one says what went wrong."""
    from chatgym.cli.terminal import print_error

    try:
        train()
    except ChatGymError as error:
        if first():
            print_error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class Follower:
    """The callback of the processes that don't keep the run: takes part in each checkpoint, and stops with the others.

    Attributes:
        interrupted: Tells whether this process got Ctrl-C.
    """

    def __init__(self, run: Run, agent: Agent, turns: int) -> None:
        self.agent = agent
        self.interrupted: Callable[[], bool] = bool
        self._every: int = run.config["evaluate_every"]
        self._turns = self._saved = turns

    def __call__(self, turns: int, metrics: Mapping[str, float]) -> None:
        """Take note of an iteration."""
        due = turns // self._every > self._turns // self._every
        self._turns = turns
        if due:
            self._save()
        if anywhere(self.interrupted()):
            if not due:
                self._save()
            raise KeyboardInterrupt

    def finish(self) -> None:
        """Take part in what belongs to the end."""
        if self._saved < self._turns:
            self._save()
        self._save()

    def _save(self) -> None:
        self._saved = self._turns
        self.agent.save(Path(os.devnull))  # nothing is written but by the first process


def join() -> None:
    """Wait until all processes are here."""
    if processes() > 1:
        from chatgym.finetuning.loop import join_others

        join_others()
