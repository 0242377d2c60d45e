"""What an agent is trained on and measured by: a scenario and the arguments that decide its dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatgym.agent import Interface
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.scenarios import Scenario, find_scenario


@dataclass(frozen=True)
class Task:
    """A scenario by name, and arguments of `chatgym.envs.chat_env.ChatEnv` such as ``error_rate`` or ``max_turns``."""

    scenario: str = "customer_service"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def find_scenario(self) -> Scenario:
        """Return the scenario."""
        return find_scenario(self.scenario)

    def make_envs(self, interface: Interface, num_envs: int, **overrides: Any) -> ChatVectorEnv:
        """Make B conversations, without words unless `overrides` ask for them."""
        arguments = {"llm": "template", **self.arguments, **overrides}
        return ChatVectorEnv(
            num_envs, scenario=self.scenario, action=interface.action, observation=interface.observation, **arguments
        )

    def make_env(self, interface: Interface, **overrides: Any) -> ChatEnv:
        """Make the single environment, worded by templates, to count in: without a reward model, unless `overrides` say
        otherwise.
        """
        arguments = {"llm": "template", **self.arguments, "reward_model": None, **overrides}
        return ChatEnv(scenario=self.scenario, action=interface.action, observation=interface.observation, **arguments)

    def identity(self) -> dict[str, Any]:
        """Name all that decides a conversation's course, see `chatgym.envs.conversations.Conversations.identity`; no
        reward model is in it.
        """
        return self.make_envs(Interface(), 1, reward_model=None).identity()
