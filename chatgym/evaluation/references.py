"""Reference scores of a task: the mean returns of the random agent (score 0) and of the expert (score 100).

They are stored beside the scenario, with the identity of the simulator they were measured in. For another simulator
(an edited scenario, another error rate) they are measured when they are needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatgym import plugins
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, Unavailable
from chatgym.evaluation.intervals import Interval, wilson
from chatgym.evaluation.rollouts import ROWS, run_conversations
from chatgym.storage.atomic import write_text
from chatgym.storage.utf8 import read_json

CONVERSATIONS = 10_000
REFERENCE_SEED = 0
"""Seed of the first conversation, in the split of the references."""
MARGIN = 0.1
"""By how much of the larger of the two returns the expert's must exceed random's, for a score to mean anything."""


@dataclass(frozen=True)
class References:
    """Mean return and success rate (0 to 1) of random and expert in one simulator."""

    identity: str
    scenario: str
    version: int
    error_rate: float
    conversations: int
    seed: int
    random_return: float
    random_success: float
    expert_return: float
    expert_success: float

    @property
    def why_no_score(self) -> str:
        """Why there is no score, and the remedy; empty if there is one.

        A score divides by the difference of the two mean returns, so it is undefined where the expert is not clearly
        better than random: neither in returns (see `MARGIN`) nor in successes (95 % intervals).
        """
        gain = self.expert_return - self.random_return
        expert, random = (
            wilson(round(share * self.conversations), self.conversations)
            for share in (self.expert_success, self.random_success)
        )
        enough = gain > 0 and gain >= MARGIN * max(abs(self.expert_return), abs(self.random_return))
        if enough and expert.low > random.high:
            return ""
        return (
            f"the expert is not clearly better than random there: mean return {self.expert_return:.3f} and "
            f"{self.random_return:.3f}, success rate {self.expert_success:.1%} and {self.random_success:.1%}; allow "
            "more turns (--max-turns) or fewer errors (--error-rate)"
        )

    def score(self, returns: Interval) -> Interval | None:
        """Return a mean return on the scale where random is 0 and the expert 100; None, see `why_no_score`."""
        if self.why_no_score:
            return None
        return returns.scaled(self.random_return, (self.expert_return - self.random_return) / 100.0)


_known: dict[str, References] = {}


def references(task: Task) -> References:
    """Return the references of a task: the stored ones if they are of the same simulator, else measured ones.

    Raises:
        Corrupted: The stored file can't be read.
    """
    identity = task.identity()["sha256"]
    if identity not in _known:
        stored = _stored(task)
        _known[identity] = stored if stored and stored.identity == identity else measure(task)
    return _known[identity]


def measure(task: Task, conversations: int = CONVERSATIONS) -> References:
    """Measure the references of a task; the result is the same every time."""
    identity = task.identity()
    (random_return, random_success), (expert_return, expert_success) = (
        _measure(name, task, conversations) for name in ("random", "expert")
    )
    return References(
        identity=identity["sha256"],
        scenario=task.scenario,
        version=identity["scenario"]["version"],
        error_rate=identity["error_model"]["rate"],
        conversations=conversations,
        seed=REFERENCE_SEED,
        random_return=random_return,
        random_success=random_success,
        expert_return=expert_return,
        expert_success=expert_success,
    )


def store(found: References, task: Task) -> Path:
    """Write references into the scenario's folder and return the path.

    Raises:
        Unavailable: That folder can't be written to.
    """
    path = _path(task)
    try:
        write_text(path, json.dumps(asdict(found), indent=2) + "\n")
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({error.strerror}); install the scenario editable") from error
    _known[found.identity] = found
    return path


def _path(task: Task) -> Path:
    """Return where the references of a task are stored."""
    return task.find_scenario().folder / "references.json"


def _stored(task: Task) -> References | None:
    """Read the stored references; None if there are none."""
    path = _path(task)
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = read_json(path)
        return References(**values)
    except (ValueError, TypeError) as error:
        remedy = f"`chatgym scenarios {task.scenario} --measure` writes it anew"
        raise Corrupted(f"{path} can't be read ({error}); {remedy}") from error


def _measure(name: str, task: Task, conversations: int) -> tuple[float, float]:
    """Return the mean return and success rate of the agent `name`."""
    agent = plugins.load().agents[name](task.find_scenario(), seed=REFERENCE_SEED)
    returns, successes = [], 0
    for first in range(0, conversations, ROWS):
        envs = task.make_envs(agent.requires, min(ROWS, conversations - first), reward_model=None)
        rollouts = run_conversations(agent, envs, REFERENCE_SEED + first, split="references")
        returns.append(rollouts.returns)
        successes += int((rollouts.outcomes == task.find_scenario().success).sum())
    return float(np.concatenate(returns).mean()), successes / conversations
