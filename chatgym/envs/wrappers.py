"""Wrappers that give the environment the interface of other programs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from chatgym.errors import InvalidValue
from chatgym.words.charset import CHARSET, MAX_CHARS


class LegacyAPI:
    """The interface of Gym in 2016: ``state = env.reset()``, ``state, reward, done, info = env.step(a)``.

    Attributes:
        state_space: Number of states, an int.
        action_space: Number of actions, an int.
        env: The wrapped environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap an environment with `Discrete` observations and actions.

        Raises:
            InvalidValue: A space isn't `Discrete`, so no table can hold it.
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
        """Take an action; return state, reward, done (terminated or truncated) and info."""
        state, reward, terminated, truncated, info = self.env.step(action)
        info["TimeLimit.truncated"] = truncated and not terminated
        return int(state), float(reward), bool(terminated or truncated), info

    def render(self) -> Any:
        """Render the wrapped environment."""
        return self.env.render()

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()


class FlatTokens(gym.ObservationWrapper[npt.NDArray[np.int64], Any, dict[str, npt.NDArray[Any]]]):
    """``observation="token"`` as one Box, for libraries without Dict spaces: the ids, -1 for padding."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap an environment with ``observation="token"``.

        Raises:
            InvalidValue: Its observations are others.
        """
        space = env.observation_space
        if not isinstance(space, spaces.Dict) or set(space.spaces) != {"ids", "mask"}:
            raise InvalidValue('FlatTokens needs token observations; make the environment with observation="token"')
        super().__init__(env)
        ids: Any = space["ids"]
        self.observation_space = spaces.Box(-1, int(ids.high.max()), ids.shape, np.int64)

    def observation(self, observation: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
        """Return the ids, int64[512], with -1 for padding."""
        flat: npt.NDArray[np.int64] = np.where(observation["mask"] == 1, observation["ids"], -1)
        return flat


class ChatMLMessages(gym.ObservationWrapper[tuple[dict[str, str], ...], Any, Any]):
    """Observations as chat messages for language models: a tuple of ``{"role": ..., "content": ...}``.

    The first message, of role ``system``, holds the rules (`Scenario.instructions`); then the partner is the ``user``,
    the agent the ``assistant``.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap a `chatgym.envs.chat_env.ChatEnv` with any observations."""
        super().__init__(env)
        self._chat: Any = env.unwrapped
        texts = spaces.Text(10 * MAX_CHARS, min_length=0, charset=CHARSET)
        roles = spaces.Text(9, charset=frozenset("systemuserassistant"))
        self.observation_space = spaces.Sequence(spaces.Dict({"role": roles, "content": texts}))

    def observation(self, observation: Any) -> tuple[dict[str, str], ...]:
        """Return the messages so far; the last one is the partner's."""
        scenario = self._chat.scenario
        roles = {scenario.partner_role: "user", scenario.agent_role: "assistant"}
        said = [turn for turn in self._chat.transcript() if turn["role"] in roles]
        system = {"role": "system", "content": scenario.instructions()}
        return (system, *({"role": roles[turn["role"]], "content": str(turn["text"])} for turn in said))
