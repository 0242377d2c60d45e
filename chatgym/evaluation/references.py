"""The two ends of the scale: what the random agent and the expert get in a scenario.

They are stored beside the scenario with the identity of the simulator that gave them. Another simulator (an
edited scenario, another error rate) has other references, which are then measured on the spot.
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
from chatgym.evaluation.intervals import Interval
from chatgym.evaluation.rollouts import ROWS, hold
from chatgym.storage.atomic import write_text

CONVERSATIONS = 10_000
REFERENCE_SEED = 3_000_000


@dataclass(frozen=True)
class References:
    """Mean return and success rate of random and expert under one simulator."""

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

    def score(self, returns: Interval) -> Interval:
        """Return a mean return on the scale where random is 0 and the expert 100."""
        return returns.scaled(self.random_return, (self.expert_return - self.random_return) / 100.0)


_known: dict[str, References] = {}


def references(task: Task) -> References:
    """Return the references of a task: those stored, if they are of this very simulator, else measured ones.

    Raises:
        Corrupted: When the stored file can't be read.
    """
    identity = task.identity()["sha256"]
    if identity not in _known:
        stored = _stored(task)
        _known[identity] = stored if stored and stored.identity == identity else measure(task)
    return _known[identity]


def measure(task: Task, conversations: int = CONVERSATIONS) -> References:
    """Measure the references of a task; the same every time."""
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
    """Write references beside the scenario's source.

    Raises:
        Unavailable: When that folder can't be written to.
    """
    path = _path(task)
    try:
        write_text(path, json.dumps(asdict(found), indent=2) + "\n")
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({error.strerror}); install the scenario editable") from error
    _known[found.identity] = found
    return path


def _path(task: Task) -> Path:
    return task.find_scenario().folder / "references.json"


def _stored(task: Task) -> References | None:
    path = _path(task)
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return References(**values)
    except (ValueError, TypeError) as error:
        remedy = f"`chatgym scenarios {task.scenario} --measure` writes it anew"
        raise Corrupted(f"{path} can't be read ({error}); {remedy}") from error


def _measure(name: str, task: Task, conversations: int) -> tuple[float, float]:
    """Return an agent's mean return and success rate."""
    agent = plugins.load().agents[name](task.find_scenario(), seed=REFERENCE_SEED)
    returns, successes = [], 0
    for first in range(0, conversations, ROWS):
        envs = task.make_envs(agent.requires, min(ROWS, conversations - first), reward_model=None)
        held = hold(agent, envs, REFERENCE_SEED + first)
        returns.append(held.returns)
        successes += int((held.outcomes == task.find_scenario().success).sum())
    return float(np.concatenate(returns).mean()), successes / conversations
