"""Wrappers: the environment as other programs expect it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from chatgym.errors import InvalidValue


class LegacyAPI:
    """The environment as Gym was in 2016: ``state = env.reset()``, ``state, reward, done, info = env.step(a)``.

    Attributes:
        state_space: Number of states, an int.
        action_space: Number of actions, an int.
        env: The environment inside.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap an environment whose observations and actions are `Discrete`.

        Raises:
            InvalidValue: When a space isn't `Discrete`: a table couldn't hold it.
        """
        for what, space in (("observation", env.observation_space), ("action", env.action_space)):
            if not isinstance(space, gym.spaces.Discrete):
                raise InvalidValue(
                    f"LegacyAPI needs a Discrete {what} space, not {space}; "
                    'make the environment with observation="discrete" and action="act"'
                )
        self.env = env
        self.state_space = int(env.observation_space.n)  # type: ignore[attr-defined]
        self.action_space = int(env.action_space.n)  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None) -> int:
        """Begin a conversation and return its state."""
        state, _ = self.env.reset(seed=seed)
        return int(state)

    def step(self, action: int) -> tuple[int, float, bool, dict[str, Any]]:
        """Take one action; returns state, reward, done (ended or truncated) and info."""
        state, reward, terminated, truncated, info = self.env.step(action)
        info["TimeLimit.truncated"] = truncated and not terminated
        return int(state), float(reward), bool(terminated or truncated), info

    def render(self) -> Any:
        """Render as the environment inside does."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment inside."""
        self.env.close()
