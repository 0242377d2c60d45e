"""ChatVectorEnv: B conversations that advance in one step of compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from chatgym.dynamics.room import Snapshot
from chatgym.dynamics.values import is_integer
from chatgym.engines import Engine
from chatgym.envs.codecs import row_of
from chatgym.envs.conversation_env import ConversationEnv, check_key, check_options, check_seed, check_steps, root_of
from chatgym.envs.conversations import DEFAULT_LLM, Conversations
from chatgym.envs.state import check_snapshot
from chatgym.errors import ChatGymError, InvalidValue
from chatgym.rewards import RewardModel
from chatgym.rewards.function import Function
from chatgym.scenarios import ABOUT, NO_ACT, Scenario

BoolArray = npt.NDArray[np.bool_]
_RENDERS = (
    "one conversation is gym.make('ChatEnv-v0', render_mode='rgb_array'), many are gym.make_vec('ChatEnv-v0', "
    "num_envs=4, vectorization_mode='sync', render_mode='rgb_array')"
)


class ChatVectorEnv(ConversationEnv, VectorEnv[Any, Any, Any]):
    """The vector form of `chatgym.envs.chat_env.ChatEnv`: the same arguments and conversations, B at a time.

    Row i of an environment that was reset with seed s is, bit for bit, the single environment with seed s + i (or the
    i-th seed of a list), over any number of conversations and in each autoreset mode.

    Three arguments are its own: `autoreset_mode` (one of Gymnasium's three), `texts`, and `max_episode_steps`, which
    `gymnasium.make_vec` takes: the smaller of it and `max_turns` counts. Words cost more time than the dynamics, so
    ``info["text"]`` exists only with ``texts=True`` or ``observation="text"``; with ``texts="heard"`` it is what the
    agent heard, as where it observes words.
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
        reward: str | Function | None = None,
        max_turns: int | None = None,
        max_episode_steps: int | None = None,
        error_rate: float | None = None,
        tokenizer: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        texts: bool | str = False,
        render_mode: None = None,
    ) -> None:
        """Make B = `num_envs` conversations; the class and `chatgym.envs.chat_env.ChatEnv` explain the arguments."""
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if render_mode is not None:
            raise InvalidValue(
                f"the vector environment doesn't render, leave out render_mode={render_mode!r}; {_RENDERS}"
            )
        check_steps(max_episode_steps, action)
        super().__init__()
        self._hold(arguments, Conversations(
            num_envs, scenario=scenario, action=action, observation=observation, llm=llm, simulator=simulator,
            reward_model=reward_model, reward_weights=reward_weights, reward=reward, max_turns=max_turns,
            error_rate=error_rate, tokenizer=tokenizer, texts=texts,
        ))  # fmt: skip
        self.room.limit(max_episode_steps)
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_action_space = self._conversations.single_action_space
        self.single_observation_space = self._conversations.single_observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._user_acts = np.array([*self.scenario.user_acts, "unclear"], object)
        self._agent_acts = np.array(
            [*self.scenario.agent_acts, "unclear", ""], object
        )  # from the end: NO_ACT, UNCLEAR_ACT
        self._outcomes = np.array(self.scenario.outcomes, object)
        self._success = self.scenario.outcomes.index(self.scenario.success)
        self._everywhere = np.ones(num_envs, bool)
        self._everywhere.flags.writeable = False
        self._ended = np.zeros(num_envs, bool)
        self._started = False
        self._sealed = type(self) is ChatVectorEnv  # a subclass has attributes of its own

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a conversation in each row.

        Args:
            seed: An int s gives row i the seed s + i; a sequence gives each row its own (None: keep the row's).
            options: ``"reset_mask"``: bool[B], the rows to reset; without it, all. ``"keys"``: uint64[B], the keys
                of the conversations to begin. ``"split"``: the split that these and later conversations of the rows
                belong to, see `chatgym.dynamics.rng.SPLITS`; without it, ``"train"`` in rows that get a seed, else the
                same as before.

        Returns:
            Observations and infos.

        Raises:
            InvalidValue: An option is unknown or not allowed, or has another shape, dtype or range.
        """
        given = check_options(options, ("reset_mask", "keys", "split"))
        rows = _reset_mask(given.get("reset_mask"), self.num_envs)
        keys = given.get("keys")
        if keys is not None:
            keys = _check_keys("options['keys']", keys, self.num_envs)
        where, split = self._everywhere if rows is None else rows, given.get("split")
        self._check_split(split, None if keys is None else keys[where])
        if (seeded := self._seed(seed, where)).any():
            self._enter_split("train", seeded)
        if split is not None:
            self._enter_split(split, where)
        self._conversations.begin(rows, keys)
        self._ended[where] = False
        self._started = True
        acts = np.full(self.num_envs, NO_ACT)
        terms = np.zeros((self.num_envs, len(self._conversations.reward_weights)))
        return self._conversations.observe(), self._infos(acts, where, terms)

    def step(
        self, actions: npt.ArrayLike, *, active: BoolArray | None = None
    ) -> tuple[Any, npt.NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Take one action in each active row.

        Args:
            actions: B actions of the interface: int[B], or a sequence of B strings for ``action="text"``.
            active: bool[B], the rows that take their action; None: all. An inactive row doesn't change: its observation
                stays, its reward is 0, it is neither terminated nor truncated nor reset.

        Returns:
            Observations, rewards float64[B], terminations bool[B], truncations bool[B], infos.

        Raises:
            InvalidValue: An action isn't in the action space.
            ChatGymError: Before the first reset; with autoreset disabled, also after a conversation's end.
        """
        if not self._started:
            raise ChatGymError("call reset() before the first step()")
        ended, conversations = self._ended, self._conversations
        room = conversations.room
        if active is not None:
            _check_mask("active", active, self.num_envs)
            ended = ended & active
        fresh = ended if self.autoreset_mode is AutoresetMode.NEXT_STEP and ended.any() else None
        if self.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            rows = ", ".join(map(str, np.flatnonzero(ended)[:5]))
            raise ChatGymError(
                f"the conversations of rows {rows} have ended; reset them with options={{'reset_mask': ...}}, leave "
                "them out by active=..., or choose another autoreset_mode"
            )
        acts = conversations.step(actions, active, fresh)
        if fresh is not None:
            acts = np.where(fresh, NO_ACT, acts)
        where = self._everywhere if active is None else active.copy()
        rewards, terms = conversations.rewards, conversations.terms
        terminations, truncations = room.terminations, room.truncations
        over = terminations | truncations
        self._ended = over if active is None else over | (self._ended & ~active)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and over.any():
            return self._same_step_reset(acts, where, rewards, terms)
        return conversations.observe(), rewards, terminations, truncations, self._infos(acts, where, terms)

    def expert_acts(self) -> npt.NDArray[np.int64]:
        """Return the scripted expert's acts, int64[B]."""
        return self.room.expert_acts()

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute for each row, as Gymnasium's other vector environments do."""
        return (getattr(self, name),) * self.num_envs

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute for all rows, as Gymnasium's other vector environments do.

        Args:
            name: One that may be set, such as ``"error_rate"``.
            values: The value, or a list or tuple of B equal ones.

        Raises:
            InvalidValue: It would have no effect, or the values differ: the rows share it.
        """
        if isinstance(values, (list, tuple)):
            if len(values) != self.num_envs or any(value != values[0] for value in values):
                raise InvalidValue(f"{name} is one attribute for {self.num_envs} rows; give one value, or equal ones")
            values = values[0]
        setattr(self, name, values)

    def render(self) -> Any:
        """Raise `ChatGymError`: single environments render."""
        raise ChatGymError(f"the vector environment doesn't render; {_RENDERS}")

    def snapshot(self) -> Snapshot:
        """Copy the state of all conversations for `restore`: name to array with a leading axis B."""
        started = np.full(self.num_envs, self._started)
        return {**self._conversations.dump(), "ended": self._ended.copy(), "started": started}

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, arrays with a leading axis B, at any moment of the conversations.

        Raises:
            InvalidValue: It was taken from an environment with other arguments.
        """
        check_snapshot(snapshot, ("ended",))
        with self._setting():
            self._conversations.load(snapshot)
        self._ended = np.array(snapshot["ended"], bool)
        self._started = bool(snapshot["started"].all()) if "started" in snapshot else True  # saved before it was kept

    def fork(self, row: int, copies: int, *, keys: npt.ArrayLike | None = None) -> ChatVectorEnv:
        """Return an environment with B = `copies` copies of one conversation.

        Args:
            row: The conversation's row.
            copies: B of the new environment.
            keys: uint64[B], the keys from which the rest of each copy is drawn; None: the conversation's own. Copies
                with one key have one future, the same acts given. With other keys the partner, its goal and mood, and
                all that was said are the same, and what is drawn from here on differs: what the partner does and what
                is misunderstood. (With ``action="candidate"``, so does the order of the replies.) Such a conversation
                no longer follows from a key, so a trace can't begin it.

        Raises:
            InvalidValue: There is no such row, `copies` is below 1, or `keys` aren't `copies` keys.
        """
        if not is_integer(row) or not 0 <= row < self.num_envs:
            raise InvalidValue(f"there is no row {row!r}; rows are 0 to {self.num_envs - 1}")
        made = type(self)(**{**self._arguments, **self.settings(), "num_envs": copies})
        made.only = self.only
        made._take_words(self)
        snapshot = {name: array[[row] * copies] for name, array in self.snapshot().items()}
        made.restore(snapshot if keys is None else {**snapshot, "keys": _check_keys("keys", keys, copies)})
        return made

    def close_extras(self, **kwargs: Any) -> None:
        """Close the model; an `Engine` object stays open."""
        self._conversations.close()

    def _seed(self, seed: int | Sequence[int | None] | None, rows: BoolArray) -> BoolArray:
        """Set the roots of `rows`, bool[B], from a seed, B seeds, or ``np_random``; return the seeded rows, bool[B]."""
        if seed is None and self._started:
            return np.zeros(self.num_envs, bool)
        seeds: Any = [None] * self.num_envs if seed is None else seed
        if np.ndim(seeds) == 0:
            first = check_seed(seeds)
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(first)
            seeds = range(first, first + self.num_envs)
        if len(seeds) != self.num_envs:
            raise InvalidValue(f"got {len(seeds)} seeds for {self.num_envs} conversations; give one each, or an int")
        given: BoolArray = rows & np.array([one is not None for one in seeds])
        roots = np.zeros(self.num_envs, np.uint64)
        for i in np.flatnonzero(given).tolist():
            roots[i] = root_of(gym.utils.seeding.np_random(check_seed(seeds[i]))[0])
        self.room.seed(roots, given)
        if self._started:
            return given
        unseeded: BoolArray = ~given if seed is None else rows & ~given
        if unseeded.any():
            self.room.seed(self.np_random.integers(2**64, size=self.num_envs, dtype=np.uint64), unseeded)
        return np.logical_or(given, unseeded)

    def _same_step_reset(
        self, acts: npt.NDArray[np.int64], where: BoolArray, rewards: npt.NDArray[np.float64],
        terms: npt.NDArray[np.float64],
    ) -> tuple[Any, npt.NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:  # fmt: skip
        """Reset the rows that ended, and return the step's results with their final observations and infos.

        `acts` is int64[B], `where` bool[B], `rewards` float64[B], `terms` float64[B, T].
        """
        terminations, truncations = self.room.terminations, self.room.truncations
        ended, final = terminations | truncations, np.full(self.num_envs, None, object)
        last = self._conversations.observe()
        for i in np.flatnonzero(ended).tolist():
            final[i] = row_of(last, i)
        final_info = self._infos(acts, ended, terms)
        self._conversations.begin(ended)
        self._ended = np.zeros(self.num_envs, bool)
        acts, terms = np.where(ended, NO_ACT, acts), np.where(ended[:, None], 0.0, terms)
        infos = self._infos(acts, where, terms)
        infos.update(final_obs=final, _final_obs=ended, final_info=final_info, _final_info=ended)
        return self._conversations.observe(), rewards, terminations, truncations, infos

    def _infos(self, acts: npt.NDArray[np.int64], where: BoolArray, terms: npt.NDArray[np.float64]) -> dict[str, Any]:
        """Return Gymnasium's vector infos: an array for each name, and its mask `where`, bool[B].

        `acts` is int64[B], `terms` float64[B, T].
        """
        conversations = self._conversations
        room = conversations.room
        names = acts  # without the slots that words may add to an act
        if conversations.action != "act":
            names = np.where(acts < 0, acts, acts % ABOUT)
        reward_terms: dict[str, Any] = {}
        for i, name in enumerate(conversations.reward_weights):
            reward_terms[name], reward_terms[f"_{name}"] = terms[:, i], where
        infos: dict[str, Any] = {
            "reward_terms": reward_terms,
            "agent_act": self._agent_acts[names],
            "user_act": self._user_acts[room.said["act"]],
            "heard_act": self._user_acts[room.heard],
        }
        masks = conversations.action_masks()
        if masks is not None:
            infos["action_mask"] = masks
        if conversations.worded:
            infos["text"] = np.array(conversations.texts, object)
        if conversations.action == "candidate":
            infos["candidates"] = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(where).tolist():
                infos["candidates"][i] = conversations.candidates(i)
        for name in tuple(infos):
            infos[f"_{name}"] = where
        over = room.outcomes > 0
        if over.any():
            infos["outcome"], infos["is_success"] = self._outcomes[room.outcomes], room.outcomes == self._success
            infos["_outcome"] = infos["_is_success"] = over & where
        return infos


def _reset_mask(mask: Any, size: int) -> BoolArray | None:
    """Return a copy of the reset mask, bool[B]; None means all rows.

    Raises:
        InvalidValue: It isn't bool[B], or resets no row.
    """
    if mask is None:
        return None
    _check_mask("options['reset_mask']", mask, size)
    if not mask.any():
        raise InvalidValue("options['reset_mask'] selects no row; set at least one element to True, or leave it out")
    copy: BoolArray = mask.copy()
    return copy


def _check_keys(name: str, keys: Any, size: int) -> npt.NDArray[np.uint64]:
    """Return the keys of B conversations, uint64[B].

    Raises:
        InvalidValue: They have another shape, or one is no key.
    """
    if np.shape(keys) != (size,):
        raise InvalidValue(f"{name} needs shape ({size},), not {np.shape(keys)}")
    return np.array([check_key(key) for key in keys], np.uint64)


def _check_mask(name: str, mask: Any, size: int) -> None:
    """Check that a mask is bool[B].

    Raises:
        InvalidValue: It has another type, dtype or shape.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (size,):
        raise InvalidValue(f"{name} is a numpy bool array of shape ({size},), not {mask!r}")
