"""ChatVecEnv: B conversations as a Stable-Baselines3 `VecEnv`, advanced by one step of compiled code.

SB3 expects a list of B info dicts a step, and its wrappers write into them; a row whose conversation goes on has an
empty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from chatgym.dynamics.room import Snapshot
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import ChatGymError, InvalidValue

Bools = npt.NDArray[np.bool_]
Indices = None | int | Iterable[int]


class ChatVecEnv(VecEnv):
    """A `ChatVectorEnv` for Stable-Baselines3 (PPO, A2C, DQN) and sb3-contrib (MaskablePPO).

    ```python
    envs = ChatVecEnv.make(64, scenario="customer_service", llm="template")
    PPO("MlpPolicy", VecMonitor(envs)).learn(100_000)
    ```

    Row i is, bit for bit, the single `chatgym.envs.chat_env.ChatEnv` with the i-th seed, except that rewards are
    float32. The info of a conversation's last step has

    * ``terminal_observation``: the last observation (the returned one belongs to the next conversation);
    * ``TimeLimit.truncated``: whether it was truncated, so that the value of its last state is bootstrapped;
    * ``terminal_action_mask``: int8[A], the mask of the last state, if the interface has masks;
    * ``outcome`` and ``is_success``.

    Attributes and methods are those of the vector environment. `get_attr` and `env_method` return an array with a
    leading axis B row by row, and repeat any other value for each row.
    """

    def __init__(self, envs: ChatVectorEnv) -> None:
        """Adapt an environment.

        Args:
            envs: Made with ``autoreset_mode="SameStep"``, which SB3 needs.

        Raises:
            InvalidValue: It has another autoreset mode.
        """
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise InvalidValue(
                f"Stable-Baselines3 resets in the same step, this environment has autoreset_mode="
                f"{envs.autoreset_mode.value!r}; make it with autoreset_mode='SameStep', or use ChatVecEnv.make"
            )
        self.envs = envs
        self._masks: npt.NDArray[np.int8] | None = None  # int8[B, A]
        self._actions: npt.NDArray[Any] = np.zeros(0, np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    @classmethod
    def make(cls, num_envs: int, **arguments: Any) -> ChatVecEnv:
        """Make B conversations; `arguments` are those of `ChatVectorEnv`."""
        return cls(ChatVectorEnv(num_envs, **arguments, autoreset_mode=AutoresetMode.SAME_STEP))

    def reset(self) -> Any:
        """Begin a conversation in each row and return the observations; `seed` and `set_options` come first."""
        seeds = None if None in self._seeds else self._seeds
        observations, infos = self.envs.reset(seed=seeds, options=self._given())
        self._reset_seeds()
        self._reset_options()
        self._masks = infos.get("action_mask")
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Store the actions, int[B], for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, npt.NDArray[np.float32], Bools, list[dict[str, Any]]]:
        """Take the stored actions.

        Returns:
            Observations, rewards float32[B], dones bool[B], infos.
        """
        observations, rewards, terminated, truncated, vector_infos = self.envs.step(self._actions)
        self._masks = vector_infos.get("action_mask")
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            last, success = vector_infos["final_info"], self.envs.scenario.success
            for row in np.flatnonzero(dones).tolist():
                outcome = last["outcome"][row]
                infos[row] = {
                    "terminal_observation": vector_infos["final_obs"][row],
                    "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
                    "outcome": outcome,
                    "is_success": outcome == success,
                }
                if "action_mask" in last:
                    infos[row]["terminal_action_mask"] = last["action_mask"][row]
        return observations, rewards.astype(np.float32), dones, infos

    def action_masks(self) -> npt.NDArray[np.int8]:
        """Return the actions that make sense, int8[B, A], for sb3-contrib's MaskablePPO.

        Raises:
            ChatGymError: Before the first `reset`, or if the action interface has no masks.
        """
        if self._masks is None:
            raise ChatGymError("there are no action masks before reset(), and none for action='text'")
        return self._masks

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the rows with ``seed``, ``seed + 1``, ... at the next `reset`; None: keep their seeds."""
        if seed is None:
            self._reset_seeds()
            return self._seeds
        return super().seed(seed)

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute for each row."""
        value = getattr(self if attr_name == "action_masks" else self.envs, attr_name)
        return self._by_row(value, indices)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the environment, for all rows.

        Raises:
            InvalidValue: `indices` selects some rows only.
        """
        if len(self._rows(indices)) != self.num_envs:
            raise InvalidValue(f"{attr_name} is one attribute for all conversations; set it without indices")
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method once and return its result for each row."""
        method = getattr(self if method_name == "action_masks" else self.envs, method_name)
        return self._by_row(method(*method_args, **method_kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Return False for each row: there are no single environments to wrap."""
        return [False for _ in self._rows(indices)]

    def snapshot(self) -> Snapshot:
        """Copy the state of all conversations for `restore`: name to array with a leading axis B."""
        masks = {} if self._masks is None else {"action_mask": self._masks.copy()}
        return {**self.envs.snapshot(), **masks}

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, arrays with a leading axis B."""
        rest = dict(snapshot)
        self._masks = rest.pop("action_mask", None)
        self.envs.restore(rest)

    def close(self) -> None:
        """Close the environment."""
        self.envs.close()

    def _rows(self, indices: Indices) -> list[int]:
        """Return the row numbers of SB3's `indices`."""
        return list(self._get_indices(indices))

    def _by_row(self, value: Any, indices: Indices) -> list[Any]:
        """Return a value for each row: an array's row if it has a leading axis B, else the value itself."""
        each = isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == self.num_envs
        return [value[row] if each else value for row in self._rows(indices)]

    def _given(self) -> dict[str, Any] | None:
        """Return the options of the next reset, made from ``{"key": k}`` or ``{"split": s}`` of each row.

        Raises:
            InvalidValue: A row's options are others, or the rows' splits differ.
        """
        if not any(self._options):
            return None
        if all(set(options) == {"key"} for options in self._options):
            return {"keys": [options["key"] for options in self._options]}
        if set(first := self._options[0]) == {"split"} and all(options == first for options in self._options):
            return first
        raise InvalidValue(
            'the options of a reset are {"key": k} for each row, or one {"split": s} for all, see ChatEnv.reset'
        )
