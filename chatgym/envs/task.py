"""A task: the scenario and the arguments that determine the dynamics an agent is trained and evaluated in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatgym.agent import Interface, MakeEnvs, plain
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.interfaces import WORDS, default_error_rate
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.scenarios import Scenario, find_scenario


@dataclass(frozen=True)
class Task:
    """A scenario's name, and arguments of `chatgym.envs.chat_env.ChatEnv` such as ``error_rate`` or ``max_turns``."""

    scenario: str = "customer_service"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", plain(dict(self.arguments)))  # for config.json, which takes no numpy

    def find_scenario(self) -> Scenario:
        """Return the scenario."""
        return find_scenario(self.scenario)

    def heard_by(self, interface: Interface) -> Task:
        """Return the task with the error rate that an agent with an interface has in it.

        Where the task leaves it to the environment, an agent that observes words has another one than the references of
        its score, which observe beliefs.
        """
        if "error_rate" in self.arguments or interface.observation not in WORDS:
            return self
        rate = default_error_rate(interface.observation)
        return dataclasses.replace(self, arguments={**self.arguments, "error_rate": rate})

    def make_envs(self, interface: Interface, num_envs: int, **overrides: Any) -> ChatVectorEnv:
        """Make B conversations; without words, unless `overrides` name a model."""
        arguments = {"llm": "template", **self.arguments, **overrides}
        return ChatVectorEnv(
            num_envs, scenario=self.scenario, action=interface.action, observation=interface.observation, **arguments
        )

    def maker(self, interface: Interface) -> MakeEnvs:
        """Return what an agent gets to learn from: makes environments that refuse conversations kept for evaluations.

        Agents may choose the arguments of `make_envs`.
        """

        def make(num_envs: int, **overrides: Any) -> ChatVectorEnv:
            envs = self.make_envs(interface, num_envs, **overrides)
            envs.only = "train"
            return envs

        return make

    def make_env(self, interface: Interface, **overrides: Any) -> ChatEnv:
        """Make the single environment, worded by templates; without a reward model, unless `overrides` name one."""
        arguments = {"llm": "template", **self.arguments, "reward_model": None, **overrides}
        return ChatEnv(scenario=self.scenario, action=interface.action, observation=interface.observation, **arguments)

    def describe_arguments(self) -> list[str]:
        """Return the arguments in words, such as ``"error rate 0.2"``."""
        return [f"{name.replace('_', ' ')} {_in_words(value)}" for name, value in self.arguments.items()]

    def identity(self, interface: Interface | None = None) -> dict[str, Any]:
        """Return versions and hashes of all that determines a conversation, without a reward model.

        See `chatgym.envs.conversations.Conversations.identity`.

        Args:
            interface: An agent's, whose words, NLU and tokenizer are part of it. None: acts and beliefs, by which two
                tasks are told apart whoever takes part.
        """
        return self.make_envs(interface or Interface(), 1, reward_model=None).identity()


def _in_words(value: Any) -> str:
    """Return an argument in words."""
    if isinstance(value, Mapping):
        return " and ".join(f"{_in_words(inner)} for {name.replace('_', ' ')}" for name, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
