"""ChatEnv: one conversation as a Gymnasium environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from chatgym.dynamics.room import Snapshot
from chatgym.engines import Engine
from chatgym.envs.codecs import row_of
from chatgym.envs.conversation_env import ConversationEnv, check_key, check_options, root_of
from chatgym.envs.conversations import DEFAULT_LLM, Conversations
from chatgym.envs.rendering import print_turns, to_ansi
from chatgym.envs.state import check_snapshot, decode_rows, encode_rows
from chatgym.errors import ChatGymError, InvalidValue
from chatgym.rewards import RewardModel
from chatgym.scenarios import ABOUT, NO_ACT, Scenario

Turn = dict[str, Any]


class ChatEnv(ConversationEnv, gym.Env[Any, Any]):
    """A conversation with a partner who wants something, and doesn't say all of it at once.

    ## Description
    The partner is a user simulator: a hidden goal, a mood and an agenda decide what it does (its dialogue act and
    slots), a language model only how it says it. The agent (the action) answers with a dialogue act, or with words
    that are understood as one. What the agent understands of the partner's words passes through an error channel:
    each act and slot value is misunderstood with probability `error_rate`, and comes with a confidence. In
    ``scenario="customer_service"`` the agent finds out what a customer wants, checks it, and grants what the policy
    allows.

    ## Action Space
    | `action` | Space | Meaning |
    |----------|-------|---------|
    | ``"act"`` | `Discrete(15)` | a dialogue act of the agent |
    | ``"candidate"`` | `Discrete(15)` | one of the replies in ``info["candidates"]``, shuffled; the rest is padding |
    | ``"text"`` | `Text(2000)` | what the agent says, any characters; NLU finds the act in it |
    | ``"token"`` | `Discrete(49152)` | one token of it; the turn ends by the end token, or after 64 |

    The acts of ``scenario="customer_service"``:

    | Num | Act | Num | Act | Num | Act |
    |-----|-----|-----|-----|-----|-----|
    | 0 | greet | 5 | ask_proof | 10 | offer_fix |
    | 1 | ask_topic | 6 | confirm (the least certain slot) | 11 | offer_credit |
    | 2 | ask_reference | 7 | explain | 12 | check_satisfaction |
    | 3 | ask_date | 8 | apologise | 13 | escalate |
    | 4 | ask_amount | 9 | offer_refund | 14 | close |

    ``info["action_mask"]`` (int8[n], where the space is Discrete) marks the actions that make sense; another is
    taken, and wastes a turn, as do words that aren't understood.

    ## Observation Space
    All are functions of what was said and understood; none knows the goal or the mood.

    | `observation` | Space | Meaning |
    |---------------|-------|---------|
    | ``"embedding"`` | `Box(-1, 1, (85,), float32)` | the belief state: last acts, tone, slots, confidence, counts |
    | ``"discrete"`` | `Discrete(6018)` | its number, without turn, tone and counts; 0: it has ended |
    | ``"text"`` | `Text(2000)` | the partner's last words, which no error channel garbles |
    | ``"token"`` | `Dict(ids, mask)` | all words so far as token ids (ChatML): the last 512, padded on the left |

    ## Rewards
    A weighted sum of terms, all of them in ``info["reward_terms"]``. In customer_service:

    | Term | Weight | Value |
    |------|--------|-------|
    | outcome | 1 | +1 resolved; -0.5 wrong resolution, needless escalation; -1 policy violation, hung up, abandoned |
    | time | 0.02 | -1 a turn |
    | mood | 0.05 | change of the partner's mood (0 to 10) |
    | satisfaction | 0.2 | mood / 10 at the end, if resolved |
    | reward_model | 0.05 | where one judges: its score, -1 to 1, of the conversation up to the agent's words |

    ## Starting State
    A partner with a goal, mood, patience and character drawn from the conversation's key opens with a greeting
    (half of the time) or its problem. The key comes from ``np_random`` when the environment is seeded; later
    conversations derive theirs from it. Every draw is a function of key, turn and purpose.

    ## Episode End
    *Terminated*: the agent closes or escalates, or the partner hangs up; ``info["outcome"]`` says how it ended.
    *Truncated*: after `max_turns` agent turns (20).

    ## Arguments
    ```python
    gym.make("ChatEnv-v0", scenario="customer_service", action="act", llm="smollm2-135m-partner")
    ```

    * ``scenario``: a name (``chatgym scenarios``) or a `Scenario`.
    * ``action``, ``observation``: see above.
    * ``llm``: who words the partner: ``"smollm2-135m-partner"`` (SmolLM2 with a voice), ``"smollm2-135m"``,
      ``"template"`` (no model), ``"hf:ID-or-folder"``, or an `Engine`, which stays open when the environment closes.
    * ``simulator``: ``"agenda"`` decides what the partner does, `llm` how it says it; or ``"llm"``: `llm`, a strong
      model, plays it (`chatgym.envs.llm_simulator`); that is ``action="text"``, ``observation="text"``, and no error
      channel.
    * ``reward_model``: adds what it makes of the agent's words to the reward (`chatgym.rewards.make_reward_model`):
      ``"default"`` (the scenario's own, if it has one; off with ``action="act"``, where words are the scenario's and
      cost more than the turn), None, a folder, ``"hf:ID-or-folder"``, ``"judge:LLM"``, a `RewardModel`.
    * ``reward_weights``: reward term to weight, for those to change.
    * ``max_turns``: turns until truncation.
    * ``error_rate``: the semantic error rate, 0 to 1.
    * ``tokenizer``: for tokens: the name of a stored model, or the folder of one; the partner's model's when None.
    * ``render_mode``: None; ``"ansi"``: `render` returns coloured text; ``"human"``: each step prints its turns;
      ``"rgb_array"``: `render` returns a picture of the conversation with its rewards, uint8[600, 800, 3].

    ``reset(options={"key": k})`` begins one very conversation, as a trace names it.

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
        max_turns: int | None = None,
        error_rate: float = 0.1,
        tokenizer: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        """See the class."""
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InvalidValue(f"unknown render_mode {render_mode!r}; known: None, 'ansi', 'human', 'rgb_array'")
        self._hold(arguments, Conversations(
            1, scenario=scenario, action=action, observation=observation, llm=llm, simulator=simulator,
            reward_model=reward_model, reward_weights=reward_weights, max_turns=max_turns, error_rate=error_rate,
            tokenizer=tokenizer, texts=True,
        ))  # fmt: skip
        self.action_space = self._conversations.single_action_space
        self.observation_space = self._conversations.single_observation_space
        self.render_mode = render_mode
        self._seeded_by: np.random.Generator | None = None
        self._going = False
        self._last_act = NO_ACT
        self._turns: list[Turn] = []
        self._belief = self.room.belief.view(np.uint8)
        self._user_act_code = self.room.said["act"]
        self._user_acts = (*self.scenario.user_acts, "unclear")
        self._unworded: list[tuple[Turn, int, bytes, int]] = []  # turns of the agent, worded when they are looked at

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a conversation; the partner speaks first.

        Args:
            seed: Seeds ``np_random``; None goes on with the next conversation.
            options: ``"key"``: the very conversation to begin, an int below 2**64.

        Returns:
            The observation and the info.

        Raises:
            InvalidValue: Another option, or a key that is none.
        """
        key = check_options(options, ("key",)).get("key")
        keys = None if key is None else np.array([check_key(key)], np.uint64)
        super().reset(seed=seed)
        if seed is not None or self.np_random is not self._seeded_by:
            self.room.seed(np.array([root_of(self.np_random)]))
            self._seeded_by = self.np_random
        self._conversations.begin(keys=keys)
        self._going, self._last_act, self._turns, self._unworded = True, NO_ACT, [], []
        terms = dict.fromkeys(self._conversations.reward_weights, 0.0)
        info = self._info(terms, "")
        self._hear(info)
        return row_of(self._conversations.observe(), 0), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Say something to the partner, and hear its answer.

        Args:
            action: One of the action space.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            InvalidValue: When it is none.
            ChatGymError: After the conversation's end, before `reset`.
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
            said = {"role": scenario.agent_role, "act": name, "text": talk.own_words.get(0, ""), "reward": reward}
            if act >= ABOUT:
                said["heard"] = f"about {self._about(act)}"
            elif 0 not in talk.own_words or act >= 0:
                self._unworded.append((said, act, belief, turn))
            self._turns.append(said)
            self._hear(info)
        if terminated or truncated:
            self._going = False
            info["outcome"] = scenario.outcomes[room.outcomes[0]]
        return row_of(talk.observe(), 0), reward, terminated, truncated, info

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
        """Return the actions that make sense now, as ``info["action_mask"]``; sb3-contrib's MaskablePPO calls it.

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
        """Return the conversation for people: ``role``, ``act``, ``text`` and, of the agent's turns, ``reward``.

        Where the agent chose its own words and an act was understood, ``heard`` says that act in the scenario's words:
        the question or the values in them are those that count, whatever the agent's words named. Of an act about a
        slot it says which.

        Once it is over, a last entry (role ``"goal"``) tells what the partner had in mind and the outcome.
        """
        turns = self._worded_turns()
        if self._going or not turns:
            return list(turns)
        goal = {
            "role": "goal",
            "act": self.scenario.outcomes[self.room.outcomes[0]],
            "text": self.scenario.describe_goal(self.room.hidden[0]),
        }
        return [*turns, goal]

    def snapshot(self) -> Snapshot:
        """Copy the state of the conversation, for `restore`: name to array with a leading axis 1."""
        turns = {"turns": self._worded_turns(), "going": self._going, "last_act": int(self._last_act)}
        return {**self._conversations.dump(), "transcript": encode_rows([turns])}

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, exactly, at any moment of a conversation.

        Raises:
            InvalidValue: It was taken from an environment with other arguments.
        """
        check_snapshot(snapshot, ("transcript",))
        self._conversations.load(snapshot)
        state = decode_rows(snapshot["transcript"])[0]
        self._turns, self._going, self._last_act = state["turns"], state["going"], state["last_act"]
        self._unworded = []
        self._seeded_by = self.np_random

    def fork(self) -> ChatEnv:
        """Make a copy of the conversation: it differs from here on only by the agent's actions."""
        return copy.deepcopy(self)

    def close(self) -> None:
        """Free the model, if there is one."""
        self._conversations.close()

    @property
    def key(self) -> int:
        """The conversation's key, for ``reset(options={"key": key})``."""
        return int(self.room.keys[0])

    @property
    def agent_text(self) -> str:
        """What the agent said last, empty before its first turn and within one."""
        turns = self._worded_turns()
        return str(turns[-2]["text"]) if len(turns) > 1 and self._last_act != NO_ACT else ""

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
        """Return the turns, with words in those of the agent too."""
        for said, act, belief, turn in self._unworded:
            record = np.frombuffer(belief, self.scenario.belief)[0]
            words = self._conversations.word_agent(act, record, self.room.keys[0], turn)
            said["heard" if said["text"] else "text"] = words
        self._unworded = []
        return self._turns

    def _about(self, act: int) -> str:
        """Return what an act that names a slot is about: its part says so, ``"confirm/date"``."""
        return next(part.partition("/")[2] for part, code in self.scenario.agent_codes.items() if code == act)

    def _info(self, terms: dict[str, float], agent_act: str) -> dict[str, Any]:
        info = {
            "reward_terms": terms,
            "agent_act": agent_act,
            "user_act": self._user_acts[self._user_act_code[0]],
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
        turn: Turn = {"role": self.scenario.partner_role, "act": info["user_act"], "text": info["text"]}
        if self.render_mode == "rgb_array":  # the tone colours the bubble
            turn["tone"] = self.scenario.partner_meaning(self.room.said[0]).tone
        self._turns.append(turn)
        if self.render_mode == "human":
            print_turns(self._worded_turns()[-2:], self.scenario)
