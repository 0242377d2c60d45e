"""Record the actions of an agent, so that the conversations of an evaluation can be held again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.agent import Agent
from chatgym.evaluation import rollouts


class Recorder:
    """An agent that records its actions, so that the conversations of an evaluation can be held again."""

    def __init__(self, agent: Agent) -> None:
        """Wrap an agent; all other attributes are the agent's."""
        self.agent, self.requires = agent, agent.requires
        self.acts: list[Any] = []
        self._exchanges: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    def act(self, observations: Any, **how: Any) -> Any:
        """Return the agent's actions, see `chatgym.agent.Agent`, and record them."""
        acts = self.agent.act(observations, **how)
        self.acts.append(acts)
        return acts

    def begin(self, keys: npt.NDArray[np.uint64]) -> None:
        """Begin B conversations with these keys, uint64[B], if the agent has memory; keep what it was told before."""
        self._exchanges = self.exchanges()
        if hasattr(self.agent, "begin"):
            self.agent.begin(keys)

    def exchanges(self) -> list[dict[str, Any]]:
        """Return all conversations as a language model saw them, see `chatgym_agents.llm.LLM.exchanges`; else none."""
        held = getattr(self.agent, "exchanges", None)
        return self._exchanges + (held() if held else [])

    def conversations(self, turns: npt.NDArray[np.int64]) -> Iterable[int | str]:
        """Return the actions of one conversation after the other.

        Args:
            turns: Turns of each conversation, int64[N]. An evaluation holds `ROWS` of them at a time, and calls the
                agent until the last one has ended.
        """
        calls = iter(self.acts)
        for first in range(0, len(turns), rollouts.ROWS):
            lengths = turns[first : first + rollouts.ROWS]
            rows = [next(calls) for _ in range(int(lengths.max()))]
            for row, length in enumerate(lengths.tolist()):
                for turn in range(length):
                    action = rows[turn][row]
                    yield action if isinstance(action, str) else int(action)
