"""ChatVecEnv: B conversations as a Stable-Baselines3 `VecEnv`, advanced by one step of compiled code.

SB3 expects a list of B info dicts a step, and its wrappers write into them; unless infos are asked for, a row whose
conversation goes on has an empty one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, NormalizeReward
from stable_baselines3.common.vec_env import VecEnv

from chatgym.dynamics.room import Snapshot
from chatgym.envs.codecs import row_of
from chatgym.envs.conversation_env import SETTABLE, check_key, check_options
from chatgym.envs.infos import AT_END, EACH_STEP
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import ChatGymError, InvalidValue, unknown

Bools = npt.NDArray[np.bool_]
Indices = None | int | Iterable[int]
Info = dict[str, Any]

_OWN = {*EACH_STEP, *AT_END, "final_obs", "final_info"}


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

    With ``infos=True``, or a list of names, the info of each step is the single environment's; a conversation's last
    step has that of its end, and ``reset_infos`` has that of the next one's begin. This takes more time than the step
    itself, so it is off by default.

    Around the vector environment may stand wrappers of `gymnasium.wrappers.vector`, whose rewards, observations and
    infos are passed on:

    ```python
    envs = ChatVectorEnv(64, llm="template", autoreset_mode="SameStep")
    envs = ChatVecEnv(gymnasium.wrappers.vector.TransformReward(envs, lambda rewards: 2 * rewards))
    ```

    Gymnasium's observation wrappers refuse ``"SameStep"``; make the environment with ``autoreset_mode="Disabled"`` for
    them, and the rows that ended are reset here.

    Attributes and methods are those of the vector environment. `get_attr` and `env_method` return an array with a
    leading axis B row by row, and repeat any other value for each row.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], infos: bool | Collection[str] = False) -> None:
        """Adapt an environment.

        Args:
            envs: A `ChatVectorEnv`, wrapped or not, with ``autoreset_mode="SameStep"`` or ``"Disabled"``.
            infos: Whether each step has `chatgym.envs.infos.EACH_STEP`, or the names of those that it has.

        Raises:
            InvalidValue: It has another autoreset mode, or a wrapper that can't be adapted; an info isn't there.
        """
        self.envs = envs
        self.base = _base_of(envs)
        self._same_step = self.base.autoreset_mode is AutoresetMode.SAME_STEP
        self._named = self._names_of(infos)
        self._masks: npt.NDArray[np.int8] | None = None  # int8[B, A]
        self._everywhere = np.ones(envs.num_envs, bool)
        self._actions: npt.NDArray[Any] = np.zeros(0, np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    @classmethod
    def make(cls, num_envs: int, *, infos: bool | Collection[str] = False, **arguments: Any) -> ChatVecEnv:
        """Make B conversations; `infos` is that of the class, `arguments` are those of `ChatVectorEnv`."""
        return cls(ChatVectorEnv(num_envs, **arguments, autoreset_mode=AutoresetMode.SAME_STEP), infos)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; those of the environment that may be set are set there."""
        if name in SETTABLE:
            self.set_attr(name, value)
        else:
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name in SETTABLE:
            return getattr(self.base, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; those of the environment: get_attr()")

    def reset(self) -> Any:
        """Begin a conversation in each row and return the observations; `seed` and `set_options` come first."""
        seeds: Any = None if None in self._seeds else self._seeds
        observations, infos = self.envs.reset(seed=seeds, options=self._given())
        self._reset_seeds()
        self._reset_options()
        self._masks = infos.get("action_mask")
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._tell(self.reset_infos, infos, range(self.num_envs))
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Store the actions, int[B], for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, npt.NDArray[np.float32], Bools, list[dict[str, Any]]]:
        """Take the stored actions.

        Returns:
            Observations, rewards float32[B], dones bool[B], infos.
        """
        observations, rewards, terminated, truncated, now = self.envs.step(self._actions)
        dones: Bools = terminated | truncated
        infos: list[Info] = [{} for _ in range(self.num_envs)]
        ended: list[int] = np.flatnonzero(dones).tolist()
        last = now.get("final_info", now) if self._same_step else now
        if self._named:
            going = np.flatnonzero(~dones).tolist() if ended else range(self.num_envs)
            self._tell(infos, now, going)
            self._tell(infos, last, ended)
        if self.envs is not self.base:
            self._tell_added(infos, now)
        if ended:
            finals = now["final_obs"] if self._same_step else {row: row_of(observations, row) for row in ended}
            for row in ended:
                infos[row].update(self._ending(row, finals[row], last, bool(truncated[row] and not terminated[row])))
            if not self._same_step:
                observations, now = self.envs.reset(options={"reset_mask": dones.copy()})
            if self._named:
                for row in ended:
                    self.reset_infos[row] = {}
                self._tell(self.reset_infos, now, ended)
        self._masks = now.get("action_mask")
        return observations, rewards.astype(np.float32), dones, infos

    def action_masks(self) -> npt.NDArray[np.int8]:
        """Return the actions that make sense, int8[B, A], for sb3-contrib's MaskablePPO.

        Raises:
            ChatGymError: Before the first `reset`, or if the action interface has no masks, or a wrapper has another
                action space, to which they don't fit.
        """
        if self._masks is None:
            raise ChatGymError("there are no action masks before reset(), and none for action='text'")
        if self.action_space != self.base.single_action_space:
            raise ChatGymError(
                f"the masks are for the actions of {self.base.single_action_space}, and a wrapper made them "
                f"{self.action_space}; leave out the wrapper"
            )
        return self._masks

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the rows with ``seed``, ``seed + 1``, ... at the next `reset`; None: keep their seeds."""
        if seed is None:
            self._reset_seeds()
            return self._seeds
        return super().seed(seed)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next reset, see `chatgym.envs.chat_env.ChatEnv.reset`.

        Args:
            options: ``{"key": k}`` for each row, or ``{"split": s}`` for all.

        Raises:
            InvalidValue: An option is unknown, a key isn't in its range, or rows have different options or splits.
        """
        each = list(options) if isinstance(options, list) else [options or {}]
        for one in each:
            if "key" in check_options(one, ("key", "split")):
                check_key(one["key"])
        alike = len({tuple(one) for one in each}) == 1 and len({one.get("split") for one in each}) == 1
        if not alike or len(each[0]) > 1 or (isinstance(options, list) and len(each) != self.num_envs):
            raise InvalidValue(
                f'give {{"key": k}} to each of the {self.num_envs} rows, or one {{"split": s}} to all, or nothing; '
                f"options are {options!r}"
            )
        super().set_options(options)

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute for each row: that of the outermost wrapper that has it, or of the environment."""
        return self._by_row(getattr(self._holder(attr_name), attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute, such as ``error_rate``, for all rows, from the next turn on.

        It is that of the outermost wrapper that has it, or the environment's.

        Raises:
            InvalidValue: `indices` selects some rows only, or to set it would have no effect.
        """
        if len(self._rows(indices)) != self.num_envs:
            raise InvalidValue(f"{attr_name} is one attribute for all conversations; set it without indices")
        setattr(self._holder(attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method once and return its result for each row."""
        method = getattr(self._holder(method_name), method_name)
        return self._by_row(method(*method_args, **method_kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Tell for each row whether the vector environment has such a wrapper around it."""
        wrapped = any(isinstance(layer, wrapper_class) for layer in _layers(self.envs))
        return [wrapped for _ in self._rows(indices)]

    def snapshot(self) -> Snapshot:
        """Copy the state of all conversations for `restore`: name to array with a leading axis B.

        What wrappers remember, such as running means, isn't in it.
        """
        masks = {} if self._masks is None else {"action_mask": self._masks.copy()}
        return {**self.base.snapshot(), **masks}

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, arrays with a leading axis B."""
        rest = dict(snapshot)
        self._masks = rest.pop("action_mask", None)
        self.base.restore(rest)

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
        """Return the options of the next reset, made from ``{"key": k}`` or ``{"split": s}`` of each row."""
        if not any(self._options):
            return None
        first = self._options[0]
        return first if "split" in first else {"keys": [options["key"] for options in self._options]}

    def _holder(self, name: str) -> Any:
        """Return what has the attribute: this object, the outermost wrapper with it, or the environment."""
        if name == "action_masks":
            return self
        wrappers = [layer for layer in _layers(self.envs) if layer is not self.base]
        return next((layer for layer in wrappers if hasattr(layer, name)), self.base)

    def _names_of(self, infos: bool | Collection[str]) -> list[str]:
        """Return the names of the infos that are asked for.

        Raises:
            InvalidValue: The environment doesn't have one.
        """
        there = self.base.info_names
        if isinstance(infos, bool):
            return list(there) if infos else []
        if isinstance(infos, str):
            raise InvalidValue(f"infos is True, False or a list of names, such as [{infos!r}]")
        for name in infos:
            if name not in there:
                remedy = "Words are there with texts=True." if name == "text" else ""
                raise unknown("info", name, there, remedy)
        return list(infos)

    def _tell(self, infos: list[Info], vector: Mapping[str, Any], rows: Sequence[int]) -> None:
        """Write the infos that are asked for into those of some rows, from Gymnasium's vector infos."""
        for name in self._named if rows else ():
            if name == "reward_terms":
                terms = {term: values for term, values in vector[name].items() if f"_{term}" in vector[name]}
                table = np.column_stack(list(terms.values())).tolist()
                for row in rows:
                    infos[row][name] = dict(zip(terms, table[row], strict=True))
            else:
                values = vector[name]
                for row in rows:
                    infos[row][name] = values[row]

    def _tell_added(self, infos: list[Info], vector: Mapping[str, Any]) -> None:
        """Write what wrappers added to the vector infos, such as ``episode``, into those of the rows that it is for."""
        for name in vector:
            if name not in _OWN and name[0] != "_":
                for row in np.flatnonzero(vector.get(f"_{name}", self._everywhere)).tolist():
                    infos[row][name] = _row_of(vector[name], row)

    def _ending(self, row: int, observation: Any, last: Mapping[str, Any], truncated: bool) -> Info:
        """Return what the info of a conversation's last step has, from the vector infos of that step."""
        info = {
            "terminal_observation": observation,
            "TimeLimit.truncated": truncated,
            "outcome": last["outcome"][row],
            "is_success": bool(last["is_success"][row]),
        }
        return {**info, "terminal_action_mask": last["action_mask"][row]} if "action_mask" in last else info


def _layers(envs: Any) -> Iterator[Any]:
    """Yield the wrappers around a vector environment, the outermost first, and then itself."""
    yield envs
    while envs is not envs.unwrapped:
        envs = envs.env
        yield envs


def _base_of(envs: VectorEnv[Any, Any, Any]) -> ChatVectorEnv:
    """Return the `ChatVectorEnv` inside wrappers.

    Raises:
        InvalidValue: There is none; or it resets in the next step; or there is a wrapper that can't be adapted.
    """
    base: Any = envs.unwrapped
    if not isinstance(base, ChatVectorEnv):
        raise InvalidValue(
            f"ChatVecEnv adapts a ChatVectorEnv, wrapped or not, and this is a {type(base).__name__}; use "
            "ChatVecEnv.make, or for single environments stable_baselines3.common.env_util.make_vec_env"
        )
    if base.autoreset_mode is AutoresetMode.NEXT_STEP:
        raise InvalidValue(
            f"Stable-Baselines3 resets in the same step, this environment has autoreset_mode="
            f"{base.autoreset_mode.value!r}; make it with autoreset_mode='SameStep' (or 'Disabled' for Gymnasium's "
            "observation wrappers), or use ChatVecEnv.make"
        )
    for layer in _layers(envs):
        if isinstance(layer, DictInfoToList):
            raise InvalidValue("ChatVecEnv makes a list of infos itself; leave out the wrapper DictInfoToList")
        if isinstance(layer, NormalizeReward) and base.autoreset_mode is AutoresetMode.DISABLED:
            raise InvalidValue(
                "NormalizeReward forgets the returns of all rows whenever one is reset; make the environment with "
                "autoreset_mode='SameStep', or use Stable-Baselines3's VecNormalize"
            )
    return base


def _row_of(values: Any, row: int) -> Any:
    """Return a row of Gymnasium's vector info: an array, or a dict of these, with a leading axis B."""
    if isinstance(values, Mapping):
        return {name: _row_of(each, row) for name, each in values.items() if name[0] != "_"}
    value = values[row]
    return value.item() if isinstance(value, np.generic) else value
