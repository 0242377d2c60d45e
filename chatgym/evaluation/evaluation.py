"""Evaluate an agent: hold many conversations, each with its own seed, and return returns, outcomes and score."""

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
from chatgym.evaluation.rollouts import ROWS, run_conversations

EVALUATION_SEED = 0
"""Default seed of an evaluation's first conversation; a split has conversations of its own for each seed."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of an evaluation over N conversations.

    Attributes:
        returns: float64[N], the sum of rewards of each conversation.
        outcomes: object[N], the name of each conversation's outcome.
        turns: int64[N], agent turns.
        seed: Seed of the first conversation; the i-th has ``seed + i``.
        success: The outcome that counts as success.
        identity: Scenario, versions and error model, see `chatgym.envs.conversations.Conversations.identity`.
        references: Mean returns of random and expert in the same task, or None.
        wording: Counts of accepted and rejected wordings of the partner; None without words.
        split: The conversations' split, see `chatgym.dynamics.rng.SPLITS`.
    """

    returns: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.object_]
    turns: npt.NDArray[np.int64]
    seed: int
    success: str
    identity: Mapping[str, Any]
    references: References | None = None
    wording: Mapping[str, Any] | None = None
    split: str = "test"

    @functools.cached_property
    def mean_return(self) -> Interval:
        """Mean return with its 95 % bootstrap interval."""
        return bootstrap_mean(self.returns)

    @property
    def success_rate(self) -> Interval:
        """Share of successful conversations, 0 to 1, with Wilson's 95 % interval."""
        return wilson(int((self.outcomes == self.success).sum()), len(self.outcomes))

    @property
    def score(self) -> Interval | None:
        """Mean return on the scale where random is 0 and the expert 100 (both taken as exact).

        None where the expert isn't clearly better than random; `References.why_no_score` is the reason.

        Raises:
            InvalidValue: It was evaluated without references.
        """
        if self.references is None:
            raise InvalidValue("there is no score without references; evaluate with references=True")
        return self.references.score(self.mean_return)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        figures: dict[str, Any] = {
            "conversations": len(self.returns),
            "split": self.split,
            "seed": self.seed,
            "mean_return": dataclasses.asdict(self.mean_return),
            "success_rate": dataclasses.asdict(self.success_rate),
            "score": dataclasses.asdict(score) if self.references and (score := self.score) else None,
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
    split: str = "test",
    llm: Any = None,
    deterministic: bool = True,
    references: bool = True,
    progress: Callable[[int], None] | None = None,
    wording_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Let an agent hold N conversations and return what it got, by the task's own reward.

    A reward model that the agent was trained with isn't used.

    Args:
        agent: Any agent.
        task: Scenario and arguments of the environment.
        conversations: N; the i-th conversation has seed ``seed + i``.
        seed: Seed of the first conversation.
        split: The conversations' split: ``"test"``, or ``"validation"`` to choose an agent or its settings. No reset of
            an environment begins one of them unless it asks for the split.
        llm: The model that generates the partner's utterances, as in `chatgym.envs.chat_env.ChatEnv`. None: acts
            without words, which is faster and gives the same result for an agent that observes beliefs.
        deterministic: Whether the agent takes its best act; else it samples or explores as in training.
        references: Whether to look up (or measure) the returns of random and expert, for the score.
        progress: Called with the number of conversations that have ended.
        wording_progress: Called with the number of banks of wordings that `llm` has filled (`Speaker.progress`).

    Raises:
        InvalidValue: `conversations` is below 1.
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
        parts.append(run_conversations(
            agent, envs, seed + first, split=split, deterministic=deterministic, progress=done
        ))  # fmt: skip
        identity = envs.identity()
        wording = dataclasses.asdict(envs.speaker.report()) if envs.speaker else None
        if not hasattr(llm, "generate"):  # an `Engine` belongs to the caller and stays open
            envs.close()
    returns, outcomes, turns = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("returns", "outcomes", "turns")
    )
    return Evaluation(
        returns, outcomes, turns, seed, task.find_scenario().success, identity,
        look_up(task) if references else None, wording, split,
    )  # fmt: skip
