"""Evaluation: many conversations, each with its own seed, counted and put on the scale of random and expert."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.agent import Agent
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue
from chatgym.evaluation.intervals import Interval, bootstrap_mean, wilson
from chatgym.evaluation.references import References
from chatgym.evaluation.references import references as look_up
from chatgym.evaluation.rollouts import ROWS, hold

EVALUATION_SEED = 2_000_000
"""First seed of an evaluation; training sees those from the agent's seed on (one for each of its environments)."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """N conversations of one agent.

    Attributes:
        returns: float64[N], the sums of rewards.
        outcomes: object[N], names of outcomes.
        turns: int64[N], agent turns.
        seed: Seed of the first conversation; the i-th has ``seed + i``.
        success: The outcome that counts as success.
        identity: What decided the conversations' course, see `chatgym.envs.conversations.Conversations.identity`.
        references: Random's and the expert's returns there, or None.
        wording: How the partner's words came about, when there were words.
    """

    returns: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.object_]
    turns: npt.NDArray[np.int64]
    seed: int
    success: str
    identity: Mapping[str, Any]
    references: References | None = None
    wording: Mapping[str, Any] | None = None

    @functools.cached_property
    def mean_return(self) -> Interval:
        """Mean return, with a bootstrap interval."""
        return bootstrap_mean(self.returns)

    @property
    def success_rate(self) -> Interval:
        """Share of successes, with Wilson's interval."""
        return wilson(int((self.outcomes == self.success).sum()), len(self.outcomes))

    @property
    def score(self) -> Interval:
        """Mean return on the scale where random is 0 and the expert 100 (both taken as exact).

        Raises:
            InvalidValue: When it was evaluated without references.
        """
        if self.references is None:
            raise InvalidValue("there is no score without references; evaluate with references=True")
        return self.references.score(self.mean_return)

    def to_json(self) -> dict[str, Any]:
        """Return the figures, JSON-able."""
        figures: dict[str, Any] = {
            "conversations": len(self.returns),
            "seed": self.seed,
            "mean_return": dataclasses.asdict(self.mean_return),
            "success_rate": dataclasses.asdict(self.success_rate),
            "score": dataclasses.asdict(self.score) if self.references else None,
            "mean_turns": float(self.turns.mean()),
            "outcomes": dict(Counter(self.outcomes.tolist()).most_common()),
            "identity": dict(self.identity),
        }
        return {**figures, "wording": dict(self.wording)} if self.wording else figures


def evaluate(
    agent: Agent,
    task: Task | None = None,
    *,
    conversations: int = 1000,
    seed: int = EVALUATION_SEED,
    llm: Any = None,
    deterministic: bool = True,
    references: bool = True,
    progress: Callable[[int], None] | None = None,
    wording_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Let an agent hold conversations, and count: by the task's own reward, whatever reward model it was trained with.

    Args:
        agent: Any agent.
        task: Scenario and arguments.
        conversations: N, how many; the i-th has seed ``seed + i``.
        seed: See `EVALUATION_SEED`.
        llm: Who words the partner, as in `chatgym.envs.chat_env.ChatEnv`; None for acts without words. The words don't
            change what an agent with a belief observation does.
        deterministic: Whether the agent takes the best known act; else it acts as in training.
        references: Whether to look up (or measure) what random and expert get, for the score.
        progress: Called with the number of conversations that have ended.
        wording_progress: Called with the number of banks of wordings that `llm` has filled (`Speaker.progress`).

    Raises:
        InvalidValue: When `conversations` is below 1.
    """
    if conversations < 1:
        raise InvalidValue(f"an evaluation needs at least one conversation, not {conversations}")
    task = task or Task()
    parts, wording, identity = [], None, {}
    for first in range(0, conversations, ROWS):
        size = min(ROWS, conversations - first)
        words = {} if llm is None else {"llm": llm, "texts": True}
        envs = task.make_envs(agent.requires, size, reward_model=None, **words)
        if envs.speaker:
            envs.speaker.progress = wording_progress
        done = None if progress is None else (lambda n, first=first: progress(first + n))
        parts.append(hold(agent, envs, seed + first, deterministic=deterministic, progress=done))
        identity = envs.identity()
        wording = dataclasses.asdict(envs.speaker.report()) if envs.speaker else None
        if not hasattr(llm, "generate"):  # an engine of the caller's own stays open
            envs.close()
    returns, outcomes, turns = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("returns", "outcomes", "turns")
    )
    return Evaluation(
        returns, outcomes, turns, seed, task.find_scenario().success, identity,
        look_up(task) if references else None, wording,
    )  # fmt: skip
