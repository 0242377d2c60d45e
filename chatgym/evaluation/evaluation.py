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
from chatgym.dynamics.hearing import CAUSES
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue
from chatgym.evaluation.intervals import Interval, bootstrap_mean, wilson
from chatgym.evaluation.references import Scale, scored_returns
from chatgym.evaluation.references import scale as scale_of
from chatgym.evaluation.rollouts import ROWS, Rollouts, run_conversations

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
        scale: Scored returns of the references in the same conversations, or None.
        wording: Counts of accepted and rejected wordings of the partner; None without words.
        causes: object[N], why each conversation failed, see `chatgym.dynamics.hearing.Listener.causes`; empty where it
            succeeded. None where that wasn't looked into.
        split: The conversations' split, see `chatgym.dynamics.rng.SPLITS`.
        unclear: Share of the agent's turns whose words NLU didn't understand; None for agents that don't write words.
    """

    returns: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.object_]
    turns: npt.NDArray[np.int64]
    seed: int
    success: str
    identity: Mapping[str, Any]
    scale: Scale | None = None
    wording: Mapping[str, Any] | None = None
    causes: npt.NDArray[np.object_] | None = None
    split: str = "test"
    unclear: float | None = None

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
        """Mean scored return on the scale where an agent that doesn't listen is 0 and the expert 100.

        All three hold the same conversations, so the interval is that of a paired comparison. None where the expert
        isn't clearly better; `Scale.why_no_score` is the reason.

        Raises:
            InvalidValue: It was evaluated without references.
        """
        return self._scale.score(self.scored)

    @property
    def scored(self) -> npt.NDArray[np.float64]:
        """Scored returns, float64[N]: a conversation that was cut off counts as given up, see `scored_returns`.

        Raises:
            InvalidValue: It was evaluated without references.
        """
        return scored_returns(self._scale.task, self.returns, self.outcomes)

    @property
    def _scale(self) -> Scale:
        if self.scale is None:
            raise InvalidValue("there is no score without references; evaluate with references=True")
        return self.scale

    @property
    def failures(self) -> dict[str, int]:
        """Failed conversations by cause: garbled, policy, patience; empty where that wasn't looked into."""
        if self.causes is None:
            return {}
        found = Counter(self.causes.tolist())
        return {cause: found[cause] for cause in CAUSES}

    @property
    def given_up(self) -> int:
        """Conversations that the agent itself ended without success, in at most half the expert's turns.

        0 without references.
        """
        if self.scale is None:
            return 0
        ended = np.isin(self.outcomes.astype(str), self.scale.task.find_scenario().quits)
        return int((ended & (self.turns <= self.scale.pace / 2)).sum())

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        figures: dict[str, Any] = {
            "conversations": len(self.returns),
            "split": self.split,
            "seed": self.seed,
            "mean_return": dataclasses.asdict(self.mean_return),
            "success_rate": dataclasses.asdict(self.success_rate),
            "score": dataclasses.asdict(score) if self.scale and (score := self.score) else None,
            "mean_turns": float(self.turns.mean()),
            "outcomes": dict(Counter(self.outcomes.tolist()).most_common()),
            "failures": self.failures,
            "given_up": self.given_up,
            "unclear": self.unclear,
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
    causes: bool = True,
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
        references: Whether to measure the references in the same conversations, for the score.
        causes: Whether to look into why conversations fail.
        progress: Called with the number of conversations that have ended.
        wording_progress: Called with the number of banks of wordings that `llm` has filled (`Speaker.progress`).

    Raises:
        InvalidValue: `conversations` is below 1.
    """
    if conversations < 1:
        raise InvalidValue(f"an evaluation needs at least one conversation, not {conversations}")
    task = (task or Task()).heard_by(agent.requires)
    parts, wording, identity = [], None, {}
    for first in range(0, conversations, ROWS):
        size = min(ROWS, conversations - first)
        words = {} if llm is None else {"llm": llm, "texts": True}
        envs = task.make_envs(agent.requires, size, reward_model=None, **words)
        if envs.speaker:
            envs.speaker.progress = wording_progress
        done = None if progress is None else (lambda n, first=first: progress(first + n))
        parts.append(run_conversations(
            agent, envs, seed + first, split=split, deterministic=deterministic, causes=causes, progress=done
        ))  # fmt: skip
        identity = envs.identity()
        wording = dataclasses.asdict(envs.speaker.report()) if envs.speaker else None
        if not hasattr(llm, "generate"):  # an `Engine` belongs to the caller and stays open
            envs.close()
    held = Rollouts.joined(parts)
    unclear = None if held.unclear is None else float(held.unclear.sum() / held.turns.sum())
    return Evaluation(
        held.returns, held.outcomes, held.turns, seed, task.find_scenario().success, identity,
        scale_of(task, seed, conversations, split) if references else None, wording, held.causes, split, unclear,
    )  # fmt: skip
