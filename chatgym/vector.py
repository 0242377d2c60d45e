"""ChatVectorEnv: B conversations in one step of compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from chatgym.engines import Engine
from chatgym.errors import ChatGymError, InvalidValue
from chatgym.interfaces import row_of
from chatgym.rewards import RewardModel
from chatgym.room import Snapshot
from chatgym.scenarios import ABOUT, NO_ACT, Scenario
from chatgym.talk import DEFAULT_LLM, Talk, root_of

BoolArray = npt.NDArray[np.bool_]


class ChatVectorEnv(VectorEnv[Any, Any, Any]):
    """The vector form of `chatgym.env.ChatEnv`: same arguments, same conversations, B at a time.

    Row i of an environment that was reset with seed s is, bit for bit, the single environment with seed s + i
    (or with the i-th seed of a list), over any number of conversations and in each autoreset mode.

    Two arguments are its own: `autoreset_mode` (all three of Gymnasium's) and `texts`. Words cost more than
    the turn, so ``info["text"]`` is there only with ``texts=True`` or ``observation="text"``.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        scenario: str | Scenario = "customer_service",
        action: str = "act",
        observation: str = "embedding",
        llm: str | Engine = DEFAULT_LLM,
        simulator: str = "agenda",
        reward_model: str | RewardModel | None = "default",
        reward_weights: Mapping[str, float] | None = None,
        max_turns: int | None = None,
        error_rate: float = 0.1,
        tokenizer: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        texts: bool = False,
        render_mode: None = None,
    ) -> None:
        """See the class, and `chatgym.env.ChatEnv` for the arguments that both have."""
        if render_mode is not None:
            raise InvalidValue("the vector environment doesn't render; use gym.make for a conversation to look at")
        self.talk = Talk(
            num_envs, scenario=scenario, action=action, observation=observation, llm=llm, simulator=simulator,
            reward_model=reward_model, reward_weights=reward_weights, max_turns=max_turns, error_rate=error_rate,
            tokenizer=tokenizer, texts=texts,
        )  # fmt: skip
        self.room, self.scenario = self.talk.room, self.talk.scenario
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_action_space = self.talk.single_action_space
        self.single_observation_space = self.talk.single_observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._user_acts = np.array([*self.scenario.user_acts, "unclear"], object)
        self._agent_acts = np.array(
            [*self.scenario.agent_acts, "unclear", ""], object
        )  # from the end: NO_ACT, UNCLEAR_ACT
        self._outcomes = np.array(self.scenario.outcomes, object)
        self._everywhere = np.ones(num_envs, bool)
        self._everywhere.flags.writeable = False
        self._ended = np.zeros(num_envs, bool)
        self._started = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a conversation in each row.

        Args:
            seed: An int s gives row i the seed s + i; a sequence gives each row its own (None: keep going).
            options: ``"reset_mask"``: bool[B], the rows to reset (all, if absent). ``"keys"``: uint64[B], the
                very conversations to begin, as a trace names them.

        Returns:
            The observations and the infos.
        """
        options = options or {}
        rows = _reset_mask(options.get("reset_mask"), self.num_envs)
        self._seed(seed, rows)
        keys = options.get("keys")
        if keys is not None:
            keys = np.asarray(keys, np.uint64)
            if keys.shape != (self.num_envs,):
                raise InvalidValue(f"options['keys'] needs shape ({self.num_envs},), not {keys.shape}")
        self.talk.start(rows, keys)
        where = self._everywhere if rows is None else rows
        self._ended[where] = False
        self._started = True
        acts = np.full(self.num_envs, NO_ACT)
        return self.talk.observe(), self._infos(acts, where, np.zeros((self.num_envs, len(self.talk.reward_weights))))

    def step(self, actions: npt.ArrayLike) -> tuple[Any, npt.NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Take one agent act in each row.

        Args:
            actions: B actions of the interface: int[B], or a sequence of B strings for ``action="text"``.

        Returns:
            Observations, rewards float64[B], terminations bool[B], truncations bool[B], infos.

        Raises:
            InvalidValue: When an action is none of the action space.
            ChatGymError: Before the first reset, or, with autoreset disabled, past a conversation's end.
        """
        if not self._started:
            raise ChatGymError("call reset() before the first step()")
        room, ended = self.room, self._ended
        fresh = ended if self.autoreset_mode is AutoresetMode.NEXT_STEP and ended.any() else None
        if self.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            rows = ", ".join(map(str, np.flatnonzero(ended)[:5]))
            raise ChatGymError(
                f"the conversations of rows {rows} have ended; reset them with options={{'reset_mask': ...}}, "
                "or choose another autoreset_mode"
            )
        acts = self.talk.step(actions, fresh=fresh)
        if fresh is not None:
            acts = np.where(fresh, NO_ACT, acts)
        rewards, terms = self.talk.rewards, self.talk.terms
        terminations, truncations = room.terminations, room.truncations
        self._ended = terminations | truncations
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            return self._same_step_reset(acts, rewards, terminations, truncations, terms)
        infos = self._infos(acts, self._everywhere, terms)
        return self.talk.observe(), rewards, terminations, truncations, infos

    def expert_acts(self) -> npt.NDArray[np.int64]:
        """Return what the scripted expert would do now, int64[B]."""
        return self.room.expert_acts()

    def identity(self) -> dict[str, Any]:
        """Name all that decides a conversation's course, see `Talk.identity`."""
        return self.talk.identity()

    def snapshot(self) -> Snapshot:
        """Copy the state of all conversations, for `restore`."""
        heard = {} if self.talk.judged is None else {"heard": self.talk.judged.dump()}
        return {**self.room.snapshot(), "ended": self._ended.copy(), **heard}

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot; words said before it are kept for the reward model only.

        Raises:
            InvalidValue: When it was taken from another kind of environment.
        """
        self.room.restore(snapshot)
        if self.talk.judged is not None:
            self.talk.judged.load(snapshot.get("heard"))
        self._ended = np.array(snapshot["ended"], bool)
        self._started = True

    def close_extras(self, **kwargs: Any) -> None:
        """Free the model, if there is one."""
        self.talk.close()

    def _seed(self, seed: int | Sequence[int | None] | None, rows: BoolArray | None) -> None:
        room, where = self.room, self._everywhere if rows is None else rows
        if isinstance(seed, (int, np.integer)):
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(int(seed))
            seed = range(int(seed), int(seed) + self.num_envs)
        if seed is None:
            if not self._started:
                room.seed(self.np_random.integers(2**64, size=self.num_envs, dtype=np.uint64))
            return
        if len(seed) != self.num_envs:
            raise InvalidValue(f"got {len(seed)} seeds for {self.num_envs} conversations; give one each, or an int")
        given = where & np.array([one is not None for one in seed])
        roots = np.zeros(self.num_envs, np.uint64)
        for i in np.flatnonzero(given).tolist():
            roots[i] = root_of(gym.utils.seeding.np_random(seed[i])[0])
        room.seed(roots, given)
        unseeded = where & ~given
        if unseeded.any() and not self._started:
            room.seed(self.np_random.integers(2**64, size=self.num_envs, dtype=np.uint64), unseeded)

    def _same_step_reset(
        self, acts: npt.NDArray[np.int64], rewards: npt.NDArray[np.float64], terminations: BoolArray,
        truncations: BoolArray, terms: npt.NDArray[np.float64],
    ) -> tuple[Any, npt.NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:  # fmt: skip
        ended, final = self._ended, np.full(self.num_envs, None, object)
        last = self.talk.observe()
        for i in np.flatnonzero(ended).tolist():
            final[i] = row_of(last, i)
        final_info = self._infos(acts, ended, terms)
        self.talk.start(ended)
        acts, terms = np.where(ended, NO_ACT, acts), np.where(ended[:, None], 0.0, terms)
        infos = self._infos(acts, self._everywhere, terms)
        infos.update(final_obs=final, _final_obs=ended, final_info=final_info, _final_info=ended)
        return self.talk.observe(), rewards, terminations, truncations, infos

    def _names(self, acts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return indices of names: acts without the slots that words may add to them."""
        return acts if self.talk.action == "act" else np.where(acts < 0, acts, acts % ABOUT)

    def _infos(self, acts: npt.NDArray[np.int64], where: BoolArray, terms: npt.NDArray[np.float64]) -> dict[str, Any]:
        """Return the infos of the rows in `where`, as Gymnasium lays them out: an array and its mask."""
        room = self.room
        reward_terms: dict[str, Any] = {}
        for i, name in enumerate(self.talk.reward_weights):
            reward_terms[name], reward_terms[f"_{name}"] = terms[:, i], where
        infos: dict[str, Any] = {
            "reward_terms": reward_terms,
            "agent_act": self._agent_acts[self._names(acts)],
            "user_act": self._user_acts[room.said["act"]],
        }
        masks = self.talk.codec.masks()
        if masks is not None:
            infos["action_mask"] = masks
        if self.talk.worded:
            infos["text"] = np.array(self.talk.texts, object)
        if self.talk.action == "candidate":
            infos["candidates"] = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(where).tolist():
                infos["candidates"][i] = self.talk.candidates(i)
        for name in tuple(infos):
            infos[f"_{name}"] = where
        over = room.outcomes > 0
        if over.any():
            infos["outcome"], infos["_outcome"] = self._outcomes[room.outcomes], over & where
        return infos


def _reset_mask(mask: Any, size: int) -> BoolArray | None:
    if mask is None:
        return None
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (size,) or not mask.any():
        raise InvalidValue(f"options['reset_mask'] is a numpy bool array of shape ({size},) with at least one True")
    copy: BoolArray = mask.copy()
    return copy
