"""ChatEnv: one conversation as a Gymnasium environment."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from chatgym.dynamics.room import Snapshot
from chatgym.engines import Engine
from chatgym.envs.account import Account, with_entries
from chatgym.envs.codecs import row_of
from chatgym.envs.conversation_env import (
    ConversationEnv,
    check_key,
    check_options,
    check_seed,
    check_steps,
    check_wrappers,
    root_of,
)
from chatgym.envs.conversations import DEFAULT_LLM, Conversations
from chatgym.envs.rendering import print_turns, to_ansi
from chatgym.envs.state import check_snapshot, decode_rows, encode_rows
from chatgym.errors import ChatGymError, InvalidValue
from chatgym.rewards import RewardModel
from chatgym.rewards.function import Function
from chatgym.scenarios import ABOUT, NO_ACT, Scenario

Turn = dict[str, Any]


class ChatEnv(ConversationEnv, gym.Env[Any, Any]):
    """A conversation with a simulated partner, who has a hidden goal and reveals it step by step.

    ## Description
    The partner is a user simulator. A hidden goal, a mood and an agenda determine its dialogue acts and slots; a
    language model only words them. The agent answers with a dialogue act, or with words in which NLU finds one. An
    error channel stands between the partner and the agent's belief: each act and slot value is misunderstood with
    probability `error_rate` and has a confidence. An agent that observes words reads what was heard, ``(?)`` marking
    low confidence, so that words and belief agree. In ``scenario="customer_service"`` the agent finds out what a
    customer wants, checks it, and grants what the policy allows.

    `snapshot`, `restore` and `fork` copy the environment at any moment of a conversation; so do `copy.deepcopy` and
    `pickle`. The copy continues exactly as the original would.

    ## Action Space
    | `action` | Space | Meaning |
    |----------|-------|---------|
    | ``"act"`` | `Discrete(15)` | a dialogue act of the agent |
    | ``"candidate"`` | `Discrete(15)` | one of the replies in ``info["candidates"]``, shuffled; the rest is padding |
    | ``"text"`` | `Text(2000)` | the agent's words, any characters; NLU finds the act |
    | ``"token"`` | `Discrete(49152)` | one token of the agent's words; the end token, or the 64th, ends the turn |

    The acts of ``scenario="customer_service"``:

    | Num | Act | Num | Act | Num | Act |
    |-----|-----|-----|-----|-----|-----|
    | 0 | greet | 5 | ask_proof | 10 | offer_fix |
    | 1 | ask_topic | 6 | confirm (the least certain slot) | 11 | offer_credit |
    | 2 | ask_reference | 7 | explain | 12 | check_satisfaction |
    | 3 | ask_date | 8 | apologise | 13 | escalate |
    | 4 | ask_amount | 9 | offer_refund | 14 | close |

    Where the space is Discrete, ``info["action_mask"]``, int8[n], is 1 for the actions that make sense:
    ``env.action_space.sample(info["action_mask"])`` draws one of them. Other actions are accepted and waste a turn, as
    do words that NLU doesn't understand.

    ## Observation Space
    Observations are functions of what was said and understood; none contains the goal or the mood.

    | `observation` | Space | Meaning |
    |---------------|-------|---------|
    | ``"embedding"`` | `Box(-1, 1, (85,), float32)` | the belief state: last acts, tone, slots, confidence, counts |
    | ``"discrete"`` | `Discrete(6018)` | the belief state's number, without turn, tone and counts; 0: ended |
    | ``"text"`` | `Text(2000)` | the partner's last utterance, without the error channel |
    | ``"token"`` | `Dict(ids, mask)` | all words as token ids (ChatML): the last 512, padded on the left |
    | ``"belief"`` | `Box(0, 255, (n,), uint8)` | the bytes of the belief record, for scripted experts |

    ## Rewards
    The reward is a weighted sum of terms; ``info["reward_terms"]`` holds the unweighted ones. In customer_service:

    | Term | Weight | Value |
    |------|--------|-------|
    | outcome | 1 | resolved 1, wrong_resolution -0.5, policy_violation -1, hung_up -1.5, other failures -2 |
    | time | 0.02 | -1 a turn |
    | mood | 0.05 | change of the partner's mood (0 to 10) |
    | satisfaction | 0.2 | mood / 10 at the end, if resolved |
    | progress | 0.5 | rise in the share of what the policy needs that the customer has told |
    | reward_model | 0.05 | with a reward model: its score of the agent's words in context, -1 to 1 |

    ## Info
    | Key | Type | When |
    |-----|------|------|
    | ``reward_terms`` | dict of str to float | always; 0 after a reset |
    | ``agent_act`` | str | always; ``""`` after a reset and within a turn of tokens, ``"unclear"`` if not understood |
    | ``user_act`` | str | always: the partner's act; an agent that observes beliefs may have misheard it |
    | ``heard_act`` | str | always: the act that it heard; ``"unclear"`` if it understood none |
    | ``action_mask`` | int8[n] | unless ``action="text"`` |
    | ``text`` | str | always: the partner's words; where words are observed, those that were heard |
    | ``candidates`` | tuple of n str | with ``action="candidate"`` |
    | ``outcome`` | str | at the end of a conversation |
    | ``is_success`` | bool | at the end of a conversation; Stable-Baselines3's `EvalCallback` reads it |

    ## Starting State
    The conversation's key determines the partner's goal, mood, patience and character. The partner speaks first: with
    probability 0.5 it greets, otherwise it states its problem. ``reset(seed=s)`` derives the key from ``np_random``,
    later resets derive the next keys; ``reset(options={"key": k})`` begins the conversation with key k. Every random
    draw is a function of key, turn and purpose. A reset gives a conversation for training; those to evaluate in come
    from disjoint sets of keys: ``reset(seed=s, options={"split": "test"})``.

    ## Episode End
    *Terminated*: the agent closes or escalates, or the partner hangs up; ``info["outcome"]`` names the outcome.
    *Truncated*: after `max_turns` agent turns (20); that turn is paid like any other. A `TimeLimit` around the
    environment, as ``gym.make(..., max_episode_steps=n)`` makes one, limits the turns too, with the outcome
    ``"truncated"``; with ``action="token"`` it is refused, since it would count tokens.

    ## Arguments
    ```python
    gym.make("ChatEnv-v0", scenario="customer_service", action="act", llm="smollm2-135m-partner")
    ```

    * ``scenario``: a name (``chatgym scenarios`` lists them) or a `Scenario`.
    * ``action``, ``observation``: see above.
    * ``llm``: the model that words the partner. ``"smollm2-135m-partner"``, the default, is SmolLM2-135M with a LoRA
      adapter; its wordings ship with ChatGym, so the model itself is opened only for wordings that don't. Others are
      ``"smollm2-135m"``, ``"template"`` (the scenario's sentences, no model), ``"hf:ID-or-folder"``, and an `Engine`,
      which stays open when the environment closes.
    * ``simulator``: ``"agenda"``, or ``"llm"``: the model `llm`, a strong one, plays the partner
      (`chatgym.envs.llm_simulator`); this needs ``action="text"`` and ``observation="text"``, and has no error channel.
    * ``reward_model``: ``"default"`` (the scenario's, if it has one; off with ``action="act"``, where the words are the
      scenario's own), None, a folder, ``"hf:ID-or-folder"``, ``"judge:LLM"``, or a `RewardModel`.
    * ``reward_weights``: reward term to weight; terms left out keep the scenario's weight.
    * ``reward``: a function of arrays that replaces the weighted sum, ``reward(step) -> float64[N]``, or its name
      ``"module:function"``; `chatgym.rewards.RewardStep` explains ``step``. Its value is the term ``custom``, with
      weight 1; the other terms then have weight 0.
    * ``max_turns``: agent turns until truncation; None: the scenario's default.
    * ``error_rate``: semantic error rate, 0 to 1; None: 0 where the agent observes words, else 0.1.
    * ``tokenizer``: for tokens: the name of a stored model, or a folder; None: the partner's model's.
    * ``render_mode``: None; ``"ansi"``: `render` returns coloured text; ``"human"``: each step prints its turns;
      ``"rgb_array"``: `render` returns a picture of the conversation with its rewards, uint8[600, 800, 3].

    The attributes ``error_rate``, ``max_turns`` and ``reward_weights`` of ``env.unwrapped`` may be set at any time and
    take effect from the next turn on; to set another argument is an error.

    ## Vectorized environment
    ``gym.make_vec("ChatEnv-v0", num_envs=1024, vectorization_mode="vector_entry_point")``, see
    `chatgym.envs.vector_env.ChatVectorEnv`.

    ## Version History
    * v0: Initial version.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human", "rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
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
        error_rate: float | None = None,
        tokenizer: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Make the environment; the class explains the arguments."""
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InvalidValue(f"unknown render_mode {render_mode!r}; known: None, 'ansi', 'human', 'rgb_array'")
        self._hold(arguments, Conversations(
            1, scenario=scenario, action=action, observation=observation, llm=llm, simulator=simulator,
            reward_model=reward_model, reward_weights=reward_weights, reward=reward, max_turns=max_turns,
            error_rate=error_rate, tokenizer=tokenizer, texts=True,
        ))  # fmt: skip
        self.action_space = self._conversations.single_action_space
        self.observation_space = self._conversations.single_observation_space
        self.render_mode = render_mode
        self._seeded_by: np.random.Generator | None = None
        self._going = False
        self._last_act = NO_ACT
        self._turns: list[Turn] = []
        self.account = Account(self.room)  # of what was heard and believed, for people
        self._belief = self.room.belief.view(np.uint8)
        self._user_act_code = self.room.said["act"]
        self._user_acts = (*self.scenario.user_acts, "unclear")
        self._unworded: list[tuple[Turn, int, bytes, int]] = []  # turns of the agent, worded when they are looked at
        self._sealed = type(self) is ChatEnv  # a subclass has attributes of its own

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a conversation; the partner speaks first.

        Args:
            seed: Seed of ``np_random``; None: begin the next conversation.
            options: ``"key"``: the key of the conversation to begin, an int below 2**64. ``"split"``: the split that
                this and later conversations belong to, see `chatgym.dynamics.rng.SPLITS`; without it, ``"train"`` after
                a seed, else the same as before.

        Returns:
            Observation and info.

        Raises:
            InvalidValue: An option is unknown or not allowed, or the key or the seed isn't an integer in its range.
        """
        self.limit_turns(_callers(self, sys._getframe().f_back))
        given = check_options(options, ("key", "split"))
        key, split = given.get("key"), given.get("split")
        keys = None if key is None else np.array([check_key(key)], np.uint64)
        self._check_split(split, keys)
        super().reset(seed=None if seed is None else check_seed(seed))
        if seed is not None or self.np_random is not self._seeded_by:
            self.room.seed(np.array([root_of(self.np_random)]))
            self._seeded_by = self.np_random
            split = split or "train"
        if split is not None:
            self._enter_split(split, np.array([True]))
        self._conversations.begin(keys=keys)
        self._going, self._last_act, self._turns, self._unworded = True, NO_ACT, [], []
        self.account.begin()
        terms = dict.fromkeys(self._conversations.reward_weights, 0.0)
        info = self._info(terms, "")
        self._hear(info)
        return row_of(self._conversations.observe(), 0), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; with it, or with the last token of a turn, the partner answers.

        Args:
            action: An element of the action space.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            InvalidValue: The action isn't in the action space.
            ChatGymError: The conversation has ended or never began; call `reset`.
        """
        if not self._going:
            raise ChatGymError("the conversation has ended or never began; call reset() before step()")
        talk = self._conversations
        room, scenario = talk.room, talk.scenario
        turn, belief = room.turns.item() + 1, self._belief.tobytes()
        act = self._last_act = talk.step(self._batch(action)).item()
        reward, terminated, truncated = talk.rewards.item(), room.terminations.item(), room.truncations.item()
        name = talk.act_name(act)
        info = self._info(dict(zip(talk.reward_weights, talk.terms.tolist()[0], strict=True)), name)
        if act != NO_ACT:
            said = {
                "role": scenario.agent_role, "act": name, "text": talk.own_words.get(0, ""), "reward": reward,
                "reward_terms": dict(info["reward_terms"]),
            }  # fmt: skip
            if act >= ABOUT:
                said["heard"] = f"about {self._about(act)}"
            elif 0 not in talk.own_words or act >= 0:
                self._unworded.append((said, act, belief, turn))
            self._turns.append(said)
            self.account.take(act)
            self._hear(info)
        if terminated or truncated:
            self._going = False
            info["outcome"] = outcome = scenario.outcomes[room.outcomes[0]]
            info["is_success"] = outcome == scenario.success
        return row_of(talk.observe(), 0), reward, terminated, truncated, info

    def limit_turns(self, wrappers: Iterable[Any]) -> None:
        """Truncate conversations where a `gymnasium.wrappers.TimeLimit` among `wrappers` does, so that they end by it.

        Else the wrapper would cut a conversation off that has no outcome, and of which the expert expects more turns.
        Without such a wrapper the environment's own `max_turns` counts.

        Raises:
            InvalidValue: The wrapper counts tokens, with ``action="token"``; or an attribute of this environment was
                set on a wrapper of a library, as Stable-Baselines3's ``set_attr`` does, where it has no effect.
        """
        wrappers = list(wrappers)
        check_wrappers(wrappers)
        limits = [wrapper._max_episode_steps for wrapper in wrappers if isinstance(wrapper, gym.wrappers.TimeLimit)]
        for turns in limits:
            check_steps(turns, self._conversations.action)
        self.room.limit(min(limits, default=None))

    def render(self) -> str | npt.NDArray[np.uint8] | None:
        """Show the conversation so far.

        Returns:
            ``"ansi"``: coloured text. ``"rgb_array"``: a picture, uint8[600, 800, 3]. ``"human"``: None, for each step
            prints its turns.
        """
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode: gym.make('ChatEnv-v0', render_mode='rgb_array')")
        if self.render_mode == "ansi":
            return to_ansi(self._worded_turns(), self.scenario)
        if self.render_mode == "rgb_array":
            from chatgym.envs.picture import draw

            return draw(self.transcript(), self.scenario, self.room.max_turns)
        return None

    def action_masks(self) -> npt.NDArray[np.int8]:
        """Return ``info["action_mask"]``, int8[n], as it is now; sb3-contrib's MaskablePPO calls this.

        Raises:
            ChatGymError: With ``action="text"``, which has no mask.
        """
        masks = self._conversations.action_masks()
        if masks is None:
            raise ChatGymError(
                f"action={self._conversations.action!r} has no action mask; 'act', 'candidate' and 'token' have"
            )
        row: npt.NDArray[np.int8] = masks[0]
        return row

    def transcript(self) -> list[Turn]:
        """Return the turns so far: ``role``, ``act``, ``text`` and, of the agent's, ``reward`` and ``reward_terms``.

        Where the agent chose its own words, ``heard`` says how they were understood, in the scenario's words or as the
        slot that they are about: only this counts. The agent's turns have ``expert_act``, too, the partner's what the
        agent heard and believed, see `chatgym.envs.account.Account.entries`. After the end, a last entry of role
        ``"goal"`` reveals the partner's goal; its ``act`` is the outcome, its ``failure`` why it wasn't a success.
        """
        entries = self.account.entries()
        turns = with_entries(self._worded_turns(), entries)
        if self._going or not turns:
            return turns
        goal = {"role": "goal", "act": self.scenario.outcomes[self.room.outcomes[0]], "text": self.account.goal()}
        why = {name: entries[-1][name] for name in ("failure", "misheard") if entries and name in entries[-1]}
        return [*turns, {**goal, **why}]

    def snapshot(self) -> Snapshot:
        """Copy the state of the conversation, for `restore`: name to array with a leading axis 1."""
        state = {
            "turns": self._worded_turns(), "going": self._going, "last_act": int(self._last_act),
            "states": self.account.dump(),
            "seeded": self._seeded_by is not None and self._seeded_by is self._np_random,
        }  # fmt: skip
        return {**self._conversations.dump(), "transcript": encode_rows([state])}

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, arrays with a leading axis 1, at any moment of a conversation.

        Raises:
            InvalidValue: It was taken from an environment with other arguments.
        """
        check_snapshot(snapshot, ("transcript",))
        with self._setting():
            self._conversations.load(snapshot)
        state = decode_rows(snapshot["transcript"])[0]
        self._turns, self._going, self._last_act = state["turns"], state["going"], state["last_act"]
        self._unworded = []
        self.account.load(state.get("states", ()))  # snapshots from before have none
        self._seeded_by = self.np_random if state["seeded"] else None

    def fork(self) -> ChatEnv:
        """Return a copy of the environment; both continue alike as long as the actions are the same."""
        return copy.deepcopy(self)

    def close(self) -> None:
        """Close the model; an `Engine` object stays open."""
        self._conversations.close()

    @property
    def key(self) -> int:
        """Key of the conversation, for ``reset(options={"key": key})``."""
        return int(self.room.keys[0])

    @property
    def agent_turn(self) -> Turn:
        """The agent's last turn, as in `transcript`; empty before its first turn and within a turn."""
        turns = self._worded_turns()
        return turns[-2] if len(turns) > 1 and self._last_act != NO_ACT else {}

    @property
    def agent_text(self) -> str:
        """The agent's last utterance; empty before its first turn and within a turn."""
        return str(self.agent_turn.get("text", ""))

    def _batch(self, action: Any) -> Any:
        """Return the action as a batch of one."""
        if self._conversations.action == "text":
            return [action]
        if isinstance(action, (int, np.integer)) or (isinstance(action, np.ndarray) and action.shape == ()):
            return np.array([action])
        acts = self.scenario.agent_acts if self._conversations.action == "act" else ()
        last = int(self.action_space.n) - 1  # type: ignore[attr-defined]
        raise InvalidValue(f"there is no action {action!r}; they are 0 to {last}{': ' * bool(acts)}{', '.join(acts)}")

    def _worded_turns(self) -> list[Turn]:
        """Return the turns, after wording the agent's that have no words yet."""
        for said, act, belief, turn in self._unworded:
            record = np.frombuffer(belief, self.scenario.belief)[0]
            words = self._conversations.word_agent(act, record, self.room.keys[0], turn)
            said["heard" if said["text"] else "text"] = words
        self._unworded = []
        return self._turns

    def _about(self, act: int) -> str:
        """Return the slot that an act is about, as in its part of the sentences, ``"confirm/date"``."""
        return next(part.partition("/")[2] for part, code in self.scenario.agent_codes.items() if code == act)

    def _info(self, terms: dict[str, float], agent_act: str) -> dict[str, Any]:
        """Return the info of a step, given its reward terms and the name of the agent's act."""
        info = {
            "reward_terms": terms,
            "agent_act": agent_act,
            "user_act": self._user_acts[self._user_act_code[0]],
            "heard_act": self._user_acts[self.room.heard[0]],
            "text": self._conversations.texts[0],
        }
        masks = self._conversations.action_masks()
        if masks is not None:
            info["action_mask"] = masks[0]
        if self._conversations.action == "candidate":
            info["candidates"] = self._conversations.candidates(0)
        return info

    def _hear(self, info: dict[str, Any]) -> None:
        """Append the partner's turn to the transcript; with ``render_mode="human"``, print the last two turns."""
        scenario = self._conversations.scenario
        turn: Turn = {"role": scenario.partner_role, "act": info["user_act"], "text": info["text"]}
        if self.render_mode == "rgb_array":  # the tone colours the bubble
            turn["tone"] = scenario.partner_meaning(self.room.said[0]).tone
        self._turns.append(turn)
        if self.render_mode == "human":
            print_turns(self._worded_turns()[-2:], scenario)


def _callers(env: ChatEnv, frame: FrameType | None) -> Iterator[Any]:
    """Yield the wrappers whose `reset` led to `frame`: an environment isn't told what is around it."""
    while frame is not None:
        if frame.f_code.co_name == "reset":
            wrapper = frame.f_locals.get("self")
            if isinstance(wrapper, gym.Wrapper) and wrapper.unwrapped is env:
                yield wrapper
        frame = frame.f_back
