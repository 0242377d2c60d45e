"""The hooks of plugins. They register objects, or ``"module:attribute"``, which is imported at its first use."""

from collections.abc import Callable
from typing import Any

import pluggy

Register = Callable[[str, Any], None]  # register(name, thing)
hookspec, hookimpl = pluggy.HookspecMarker("chatgym"), pluggy.HookimplMarker("chatgym")


@hookspec
def register_agents(register: Register) -> None:
    """Register agent classes, see `chatgym.agent.Agent`."""


@hookspec
def register_scenarios(register: Register) -> None:
    """Register `chatgym.scenarios.Scenario` objects."""


@hookspec
def register_engines(register: Register) -> None:
    """Register factories ``(spec: str) -> Engine``; the name precedes the colon in ``llm="name:..."``."""


@hookspec
def register_reward_models(register: Register) -> None:
    """Register factories ``(spec: str) -> RewardModel``, named like engines."""
