"""References of a task: an agent that doesn't listen (score 0) and the expert (score 100).

The agent that doesn't listen is the better of random and the best constant act. Which one that is, and what it reaches,
is measured over many conversations of its own and stored beside the scenario, with the identity of the simulator. For
another simulator (an edited scenario, another error rate) it is measured when it is needed. A score compares an agent
with both references in the agent's own conversations (`Scale`).

It compares *scored returns*: in a score, a conversation that is cut off counts as given up, or an agent that stalls
until its turns run out would have more than half of the expert's score. The reward itself takes nothing for truncation,
since learners add the value of going on (Pardo et al. 2018, "Time limits in reinforcement learning").
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym import plugins
from chatgym.dynamics.values import weigh
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, Unavailable
from chatgym.evaluation.intervals import Interval, percentiles, resampled_means, wilson
from chatgym.evaluation.rollouts import ROWS, Rollouts, run_conversations
from chatgym.storage.atomic import write_text
from chatgym.storage.utf8 import read_json

CONVERSATIONS = 10_000
REFERENCE_SEED = 0
"""Seed of the first conversation, in the split of the references."""
MARGIN = 0.1
"""By how much of the larger of the two returns the expert's must exceed the other's, for a score to mean anything."""
FEW = 0.25
"""Share of the difference of the references' returns that they must have in the scored conversations, too."""


@dataclass(frozen=True)
class References:
    """Mean return and success rate (0 to 1) of the references in one simulator.

    `ignorant` is the better of random and the best constant act, by the mean scored return (see `scored_returns`):
    ``"random"``, or the name of the act. The fields ``..._scored`` are mean scored returns.
    """

    identity: str
    scenario: str
    version: int
    error_rate: float
    conversations: int
    seed: int
    ignorant: str
    ignorant_return: float
    ignorant_scored: float
    ignorant_success: float
    random_return: float
    random_scored: float
    random_success: float
    expert_return: float
    expert_scored: float
    expert_success: float

    @property
    def zero(self) -> str:
        """The agent with score 0, in words."""
        return "random" if self.ignorant == "random" else f"always {self.ignorant}"

    @property
    def why_no_score(self) -> str:
        """Why there is no score, and the remedy; empty if there is one.

        A score divides by the difference of the two mean scored returns, so it is undefined where the expert is not
        clearly better than the agent that doesn't listen: neither in returns (see `MARGIN`) nor in successes (95 %
        intervals).
        """
        gain = self.expert_scored - self.ignorant_scored
        expert, ignorant = (
            wilson(round(share * self.conversations), self.conversations)
            for share in (self.expert_success, self.ignorant_success)
        )
        enough = gain > 0 and gain >= MARGIN * max(abs(self.expert_scored), abs(self.ignorant_scored))
        if enough and expert.low > ignorant.high:
            return ""
        return (
            f"the expert is not clearly better than {self.zero} in {self.conversations:,} reference conversations: "
            f"mean scored return {self.expert_scored:.3f} and {self.ignorant_scored:.3f}, success rate "
            f"{self.expert_success:.1%} and {self.ignorant_success:.1%}; "
            "allow more turns (--max-turns) or fewer errors (--error-rate)"
        )


@dataclass(frozen=True, eq=False)
class Scale:
    """Scored returns of the two references in N conversations, by which those of an agent become a score.

    Attributes:
        references: Which agents the references are, and what they reach in general.
        ignorant: float64[N], scored returns of the agent that doesn't listen.
        expert: float64[N], scored returns of the expert.
        pace: Mean turns of the expert.
        task: Scenario and arguments of the conversations.
    """

    references: References
    ignorant: npt.NDArray[np.float64]
    expert: npt.NDArray[np.float64]
    pace: float
    task: Task

    @functools.cached_property
    def why_no_score(self) -> str:
        """Why there is no score, and the remedy; empty if there is one."""
        if not self.references.why_no_score and self.expert.mean() - self.ignorant.mean() < self._least:
            return (
                f"in these {len(self.expert):,} conversations the expert is hardly better than {self.references.zero}; "
                "hold more (--conversations)"
            )
        return self.references.why_no_score

    def scores(self, means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the scores float64[R, C] of means float64[R, C + 2] of returns; the last two columns are the scale's.

        A resample may hold conversations in which the references hardly differ: see `FEW`.
        """
        unit = np.maximum(means[:, -1:] - means[:, -2:-1], self._least)
        scores: npt.NDArray[np.float64] = 100.0 + 100.0 * (means[:, :-2] - means[:, -1:]) / unit
        return scores

    def score(self, scored: npt.NDArray[np.float64]) -> Interval | None:
        """Return the score of scored returns, float64[N], with its 95 % interval; None: see `why_no_score`.

        The agent and both references are paired.
        """
        if self.why_no_score:
            return None
        return percentiles(self.scores(resampled_means(np.stack([scored, self.ignorant, self.expert], 1)))[:, 0])

    @property
    def _least(self) -> float:
        """The least difference of the references' mean returns that is taken for one."""
        return FEW * (self.references.expert_scored - self.references.ignorant_scored)


def scored_returns(
    task: Task, returns: npt.NDArray[np.float64], outcomes: npt.NDArray[np.object_]
) -> npt.NDArray[np.float64]:
    """Return the scored returns, float64[N], of N conversations of a task with `returns` and `outcomes` (names).

    A conversation that was cut off counts as given up: it has the value of the worst outcome by which an agent itself
    ends one without success.
    """
    scenario = task.find_scenario()
    weights = weigh(scenario.reward_terms, task.arguments.get("reward_weights"))
    worst = min((scenario.outcome_values.get(name, 0.0) for name in scenario.quits), default=0.0)
    scored = np.where(outcomes == scenario.outcomes[-1], weights.get("outcome", 0.0) * min(worst, 0.0), 0.0)
    return np.asarray(returns + scored, np.float64)


_known: dict[str, References] = {}
_scales: dict[tuple[str, tuple[str, ...], str, int, int], Scale] = {}


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


def scale(task: Task, seed: int, conversations: int, split: str = "test") -> Scale:
    """Return the scale of the N = `conversations` conversations of a task that an evaluation from `seed` holds."""
    found = references(task)
    scenario = task.find_scenario()
    key = found.identity, scenario.leaving, split, seed, conversations
    if key not in _scales:
        held = [_hold(name, task, seed, conversations, split) for name in (found.ignorant, "expert")]
        ignorant, expert = (scored_returns(task, one.returns, one.outcomes) for one in held)
        _scales[key] = Scale(found, ignorant, expert, float(held[1].turns.mean()), task)
    return _scales[key]


def measure(task: Task, conversations: int = CONVERSATIONS) -> References:
    """Measure the references of a task; the result is the same every time."""
    identity, scenario = task.identity(), task.find_scenario()
    measured = {}
    for name in ("expert", "random", *scenario.agent_acts):
        held = _hold(name, task, REFERENCE_SEED, conversations, "references")
        scored = scored_returns(task, held.returns, held.outcomes)
        successes = held.outcomes == scenario.success
        measured[name] = {
            "scored": float(scored.mean()), "return": float(held.returns.mean()), "success": float(successes.mean())
        }  # fmt: skip
    expert = measured.pop("expert")
    ignorant = max(measured, key=lambda name: measured[name]["scored"])
    chosen = {"ignorant": measured[ignorant], "random": measured["random"], "expert": expert}
    return References(
        identity=identity["sha256"],
        scenario=task.scenario,
        version=identity["scenario"]["version"],
        error_rate=identity["error_model"]["rate"],
        conversations=conversations,
        seed=REFERENCE_SEED,
        ignorant=ignorant,
        **{f"{which}_{name}": value for which, figures in chosen.items() for name, value in figures.items()},
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


def _hold(name: str, task: Task, seed: int, conversations: int, split: str) -> Rollouts:
    """Hold conversations from `seed` with ``"random"``, the ``"expert"``, or always the act `name`."""
    agents, scenario = plugins.load().agents, task.find_scenario()
    if name in ("random", "expert"):
        agent = agents[name](scenario, seed=REFERENCE_SEED)
    else:
        agent = agents["constant"](scenario, agents["constant"].Config(act=name))
    parts = []
    for first in range(0, conversations, ROWS):
        envs = task.make_envs(agent.requires, min(ROWS, conversations - first), reward_model=None)
        parts.append(run_conversations(agent, envs, seed + first, split=split, causes=False))
    return Rollouts.joined(parts)
