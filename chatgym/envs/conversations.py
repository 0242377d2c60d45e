"""Conversations: a room with its interfaces and words, which `ChatEnv` and `ChatVectorEnv` show to the agent.

Data takes one path: actions -> codec -> room -> NLG -> observation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.identity import identity_digest
from chatgym.dynamics.room import ChatRoom, Snapshot, loops_digest
from chatgym.engines import DEFAULT_MODEL, PLAIN_MODEL, Engine, make_engine
from chatgym.engines.tokenizer import tokenizer_of
from chatgym.envs import interfaces
from chatgym.envs.codecs import ActCodec, CandidateCodec, Codec, TextCodec, TokenCodec, observe
from chatgym.envs.infos import EACH_STEP
from chatgym.envs.llm_simulator import LLMSimulator, check_interface
from chatgym.envs.payment import Payment, make_function
from chatgym.envs.state import Stateful, check_snapshot, decode_rows, dump_parts, encode_rows, load_parts
from chatgym.envs.tokens import TokenHistory
from chatgym.errors import InvalidValue, unknown
from chatgym.rewards import RewardModel
from chatgym.rewards.function import Function
from chatgym.rewards.term import make_term
from chatgym.scenarios import ABOUT, NO_ACT, UNCLEAR_ACT, Meaning, Scenario, find_scenario
from chatgym.storage.model_store import MODELS
from chatgym.words.nlg import Speaker

DEFAULT_LLM = DEFAULT_MODEL
SIMULATORS = ("agenda", "llm")
_SETTINGS = "settings."  # begins the names of settings in a snapshot


class Conversations:
    """B conversations with their action and observation interfaces and their words.

    Attributes:
        room: The dynamics.
        codec: Reads actions.
        garbles: Whether the words are those that the agent heard, as they are where it observes words; earlier
            versions showed it what was said.
        speaker: NLG; None without words.
        llm_simulator: The language model that plays the partner; None where the agenda does.
        judged: The reward model's term of the reward; None without one.
        payment: The reward terms and their weights.
        history: Token ids of the conversations; None unless ``observation="token"``.
        texts: The partners' last utterances, str[B]; empty without words.
        own_words: Row to the agent's last utterance, where the agent chose its words.
        rewards: float64[B] of the last step, the weighted sum of `terms` by `reward_weights`.
        terms: float64[B, T] of the last step, unweighted, in the order of `reward_weights`.
    """

    def __init__(
        self,
        size: int,
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
        texts: bool | str = False,
    ) -> None:
        """Make B conversations; `ChatEnv` explains the arguments.

        `texts` asks for words in every interface, ``"heard"`` for those that the agent heard.
        """
        if simulator not in SIMULATORS:
            raise unknown("simulator", simulator, SIMULATORS)
        if simulator == "llm":
            check_interface(action, observation)
            error_rate = 0.0  # the agent reads the model's words themselves
        if texts not in (False, True, "heard"):
            raise InvalidValue(f'texts is True, False or "heard", not {texts!r}')
        self.garbles = (observation in interfaces.WORDS or texts == "heard") and simulator == "agenda"
        if error_rate is None:
            error_rate = interfaces.default_error_rate(observation)
        if action not in interfaces.ACTIONS:
            raise unknown("action interface", action, interfaces.ACTIONS)
        self.scenario = find_scenario(scenario)
        self.action, self.observation, self.simulator = action, observation, simulator
        tokens = "token" in (action, observation)
        self.tokenizer = tokenizer_of(tokenizer or _tokenizer_for(llm)) if tokens else None
        self.single_observation_space = interfaces.observation_space(self.scenario, observation, self.tokenizer)
        function = make_function(reward, reward_weights)
        self.judged, weights = make_term(reward_model, reward_weights, self.scenario, action, size)
        self._check_error_rate(error_rate)
        self.room = ChatRoom(self.scenario, size, error_rate=error_rate, max_turns=max_turns, reward_weights=weights)
        self.payment = Payment(self.room, self.judged, function)
        self._settles = self.judged is not None or function is not None
        self.history = TokenHistory(size, self.tokenizer) if self.tokenizer and observation == "token" else None
        self.codec = self._make_codec(action)
        self.single_action_space = self.codec.space
        self.worded = bool(texts or observation in interfaces.WORDS or action == "candidate" or self.judged is not None)
        self.engine = make_engine(llm) if self.worded else None
        self._opened = isinstance(llm, str)
        self.llm_simulator = LLMSimulator(self.scenario, self.engine, size) if simulator == "llm" else None
        self.speaker = Speaker(self.scenario, None if self.llm_simulator else self.engine) if self.worded else None
        self.rewards, self.terms = np.zeros(size), np.zeros((size, len(self.reward_weights)))
        self.texts = [""] * size if self.worded else []
        self.own_words: dict[int, str] = {}
        self._listeners = tuple(one for one in (self.history, self.judged) if one is not None)
        self._heard: dict[int, str] = {}
        self._everyone = list(range(size))
        self._said = self.room.said.view(f"V{self.scenario.said.itemsize}")  # as bytes: those can be looked up
        self._meaning = _meanings_of(self.scenario)
        self._all = np.ones(size, bool)
        self._parts: dict[str, Stateful | None] = {
            "codec": self.codec, "history": self.history, "judge": self.judged, "simulator": self.llm_simulator,
        }  # fmt: skip

    def begin(self, rows: npt.NDArray[np.bool_] | None = None, keys: npt.NDArray[np.uint64] | None = None) -> None:
        """Begin the next conversation in `rows`, bool[B] (None: all), or the ones with the given keys, uint64[B]."""
        self.room.begin(rows, keys)
        if self.worded:
            self._word_partner(rows)
        for listener in self._listeners:
            for i in self._indices(rows):
                listener.begin(i, self.texts[i])
        self.codec.begin(self._all if rows is None else rows)

    def step(
        self, actions: Any, rows: npt.NDArray[np.bool_] | None = None, fresh: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Take one action in each of `rows`, and begin the next conversation in each of `fresh`.

        Args:
            actions: B actions of the interface, see `Codec.step`.
            rows: bool[B]; None: all.
            fresh: bool[B], rows that begin a conversation instead; None: no row.

        Returns:
            int64[B], the acts that the agents took; `chatgym.scenarios.NO_ACT` where a turn isn't complete.
        """
        if fresh is not None:
            rows = ~fresh if rows is None else rows & ~fresh
        decoded = self.codec.step(actions, rows)
        self.own_words = decoded.texts or {}
        taken, room = decoded.rows, self.room
        if self.history is not None and self.action != "token":
            for i, text in zip(self._indices(taken), self.agent_texts(decoded.acts, taken), strict=True):
                self.history.say(i, text)
        if self.llm_simulator is not None:
            self._heard = dict(zip(self._indices(taken), self.agent_texts(decoded.acts, taken), strict=True))
        if self.judged is not None:
            self.judged.say(self._indices(taken), self.agent_texts(decoded.acts, taken))
        if self.payment.function is not None:
            self.payment.begin_step()
        room.step(decoded.acts, taken, fresh)
        if self.worded:
            answered = decoded.acts if fresh is None else np.where(fresh, NO_ACT, decoded.acts)
            self._word_partner(taken if taken is None or fresh is None else taken | fresh, answered)
        for listener in self._listeners:
            for i in self._indices(taken):
                listener.step(i, self.texts[i])
            for i in () if fresh is None else self._indices(fresh):
                listener.begin(i, self.texts[i])
        if fresh is not None:
            self.codec.begin(fresh)
        self.rewards, self.terms = room.rewards, room.terms
        if self._settles:
            self.rewards, self.terms = self.payment.settle(decoded.acts, taken)
        return decoded.acts

    def observe(self) -> Any:
        """Return the observations, see `chatgym.envs.codecs.observe`."""
        return observe(self.room, self.observation, self.texts, self.history)

    def action_masks(self) -> npt.NDArray[np.int8] | None:
        """Return the actions that make sense, int8[B, n], as `Discrete.sample` takes them; None for text."""
        masks = self.codec.masks()
        return None if masks is None else masks.view(np.int8)

    def act_name(self, act: int) -> str:
        """Return the name of an act that `step` returned; empty for `NO_ACT`."""
        return "unclear" if act == UNCLEAR_ACT else "" if act < 0 else self.scenario.agent_acts[act % ABOUT]

    def word_agent(self, act: int, belief: Any, key: np.uint64, turn: int) -> str:
        """Return the scenario's words for an agent act at a turn, given `belief`, a record, before it."""
        if self.speaker is None or act < 0:
            return ""
        meaning = self.scenario.agent_meaning(act % ABOUT, belief)
        return self.speaker.say([meaning], np.array([key]), np.array([turn]), "agent")[0]

    def agent_texts(self, acts: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_] | None) -> list[str]:
        """Return what the agents in `rows`, bool[B] (None: all), say by their acts, int64[B], before `room.step`."""
        room = self.room
        return [
            self.own_words[i] if i in self.own_words
            else self.word_agent(int(acts[i]), room.belief[i], room.keys[i], int(room.turns[i]) + 1)
            for i in self._indices(rows)
        ]  # fmt: skip

    def candidates(self, row: int) -> tuple[str, ...]:
        """Return the replies to choose from in a row with ``action="candidate"``; padding is empty."""
        assert isinstance(self.codec, CandidateCodec)
        room = self.room
        belief, key, turn = room.belief[row], room.keys[row], int(room.turns[row]) + 1
        return tuple(self.word_agent(act, belief, key, turn) for act in self.codec.acts[row].tolist())

    @property
    def reward_weights(self) -> dict[str, float]:
        """Reward term to weight, the reward model's and the function's included."""
        return self.payment.weights

    @property
    def info_names(self) -> tuple[str, ...]:
        """Names of what ``info`` has at each step, of `chatgym.envs.infos.EACH_STEP`."""
        there = {"action_mask": self.action != "text", "text": self.worded, "candidates": self.action == "candidate"}
        return tuple(name for name in EACH_STEP if there.get(name, True))

    def set_error_rate(self, error_rate: float) -> None:
        """Set the semantic error rate, 0 to 1, from the next turn on.

        Raises:
            InvalidValue: It is no such number; or nothing garbles the words that the agent observes: a language model
                plays the partner, or the scenario has no `heard_meaning`.
        """
        self._check_error_rate(error_rate)
        self.room.set_error_rate(error_rate)

    def _check_error_rate(self, error_rate: float) -> None:
        """Check that what the agent mishears can reach it, see `set_error_rate`."""
        if error_rate == 0:
            return
        if self.simulator == "llm":
            raise InvalidValue(
                f"error_rate={error_rate!r} would have no effect: with simulator='llm' the agent reads the model's "
                "words themselves; simulator='agenda' has an error channel"
            )
        if self.garbles and self.scenario.heard_meaning is None:
            raise InvalidValue(
                f"the scenario {self.scenario.name!r} has no heard_meaning, so an agent that observes words can't "
                "mishear: error_rate=0, or observe beliefs"
            )

    def dump(self) -> Snapshot:
        """Copy the state of all conversations: name to array with a leading axis B, saved by numpy without pickle.

        What may be set between turns (error rate, most turns, reward weights) is a part of it.
        """
        return {**self._dump(), **{f"{_SETTINGS}{name}": array for name, array in self.payment.dump().items()}}

    def load(self, snapshot: Snapshot) -> None:
        """Restore a state that `dump` returned: arrays with a leading axis B.

        Raises:
            InvalidValue: It comes from conversations with other arguments.
        """
        check_snapshot(snapshot, self._dump())
        settings = {name: array for name, array in snapshot.items() if name.startswith(_SETTINGS)}
        self.payment.load({name.removeprefix(_SETTINGS): array for name, array in settings.items()})
        self.room.load(snapshot)
        load_parts(self._parts, snapshot)
        if self.worded:
            self.texts = decode_rows(snapshot["texts"])
        self.own_words = {}

    def identity(self) -> dict[str, Any]:
        """Return versions and content hashes of all that determines a conversation.

        ``sha256`` covers what determines outcomes and rewards, not words or observations: two scores are comparable if
        it is equal. ``content`` is one hash of all that the scenario declares, by which earlier records are recognised
        (`chatgym.dynamics.identity.same_simulator`).

        Raises:
            InvalidValue: Something that the scenario reads was replaced since the environment was made.
        """
        scenario, room = self.scenario, self.room
        room.check_unchanged()
        code = scenario.digests
        deciding: dict[str, Any] = {
            "scenario": {"name": scenario.name, "version": scenario.version, "sha256": code["scenario"]},
            "simulator": {"name": self.simulator, "version": 1, "sha256": loops_digest(), **self._simulator_identity()},
            "error_model": {
                "name": "semantic",
                "version": 2 if self._garbled else 1,
                "sha256": code["error_model"],
                "rate": room.error_rate,
            },
            "nlu": self._nlu_identity(),
            "reward": {
                "version": scenario.version,
                "sha256": code["reward"],
                **self.payment.identity(),
            },
            "max_turns": room.max_turns,
        }
        digest = identity_digest(deciding)
        words = self.speaker.identity() if self.speaker else None
        tokenizer = self.tokenizer and {"name": self.tokenizer.name, "sha256": self.tokenizer.sha256}
        return {"env": "ChatEnv-v0", "sha256": digest, **deciding, "content": scenario.digest, "action": self.action,
                "observation": self.observation, "words": words, "tokenizer": tokenizer}  # fmt: skip

    def close(self) -> None:
        """Close the model that was opened here; an `Engine` object stays open."""
        if self.engine is not None and self._opened:
            self.engine.close()

    def _dump(self) -> Snapshot:
        """Copy the state of all conversations, without settings: name to array with a leading axis B."""
        texts = {"texts": encode_rows(self.texts)} if self.worded else {}
        return {**self.room.dump(), **texts, **dump_parts(self._parts)}

    def _make_codec(self, action: str) -> Codec:
        """Return the codec of an action interface."""
        if action == "act":
            return ActCodec(self.room)
        if action == "candidate":
            return CandidateCodec(self.room)
        if action == "text":
            return TextCodec(self.room)
        assert self.tokenizer is not None
        history = self.history
        on_token = None if history is None else (lambda row, token: history.say(row, [token]))
        return TokenCodec(self.room, self.tokenizer, on_token)

    def _nlu_identity(self) -> dict[str, Any] | None:
        """Return the identity of the NLU where it understands the agent's words; None for other interfaces."""
        if self.action not in ("text", "token"):
            return None
        from chatgym.words.nlu import nlu_of

        return nlu_of(self.scenario).identity()

    def _simulator_identity(self) -> dict[str, Any]:
        """Return the identity of the language model that plays the partner; empty without one."""
        return {} if self.llm_simulator is None else {"player": self.llm_simulator.identity()}

    def _indices(self, rows: npt.NDArray[np.bool_] | None) -> list[int]:
        """Return the row numbers of `rows`, bool[B] (None: all)."""
        if rows is None:
            return self._everyone
        indices: list[int] = np.flatnonzero(rows).tolist()
        return indices

    def _word_partner(self, rows: npt.NDArray[np.bool_] | None, acts: npt.NDArray[np.int64] | None = None) -> None:
        """Word the partners' utterances in `rows`, bool[B] (None: all); `acts`, int64[B], are the acts they answer."""
        assert self.speaker is not None
        if self.llm_simulator is not None:
            indices = self._indices(rows)
            for i, text in zip(indices, self.llm_simulator.step(self.room, indices, self._heard), strict=True):
                self.texts[i] = text
            return
        said, keys, turns = self._said, self.room.keys, self.room.turns
        if rows is not None:
            said, keys, turns = said[rows], keys[rows], turns[rows]
        answered: list[str] = []
        if acts is not None and self.speaker.answers:
            answered = [self.act_name(act) for act in (acts if rows is None else acts[rows]).tolist()]
        meanings = [self._meaning(record) for record in said.tolist()]
        if self._garbled:
            self._garble(meanings, self._all if rows is None else rows)
        texts = self.speaker.say(meanings, keys, turns, acts=answered)
        for i, text in zip(self._indices(rows), texts, strict=True):
            self.texts[i] = text

    @property
    def _garbled(self) -> bool:
        """Whether agents observe what they heard, not what was said."""
        return self.garbles and self.room.error_rate > 0

    def _garble(self, meanings: list[Meaning], rows: npt.NDArray[np.bool_]) -> None:
        """Replace the meanings of the utterances in `rows`, bool[B], by what was heard; last words are always heard."""
        assert self.scenario.heard_meaning is not None
        room = self.room
        heard = (room.outcomes == 0) | (room.outcomes == len(self.scenario.outcomes) - 1)
        for place, row in enumerate(np.flatnonzero(rows).tolist()):
            if heard[row]:
                meanings[place] = self.scenario.heard_meaning(room.said[row], room.belief[row])


@functools.cache
def _meanings_of(scenario: Scenario) -> Callable[[bytes], Meaning]:
    """Return a function from the bytes of a ``said`` record to its meaning, with a cache."""
    names = scenario.said.names or ()

    @functools.lru_cache(maxsize=65_536)
    def meaning(record: bytes) -> Meaning:
        # As plain numbers: to read a record's field takes longer than the rest of the step.
        values = np.frombuffer(record, scenario.said)[0].item()
        return scenario.partner_meaning(dict(zip(names, values, strict=True)))

    return meaning


def _tokenizer_for(llm: str | Engine) -> str:
    """Return the tokenizer of the partner's model if it has one, else the default model's."""
    name = llm.replace("deepspeed:", "hf:", 1) if isinstance(llm, str) else ""
    return name if name in MODELS or name.startswith("hf:") else PLAIN_MODEL
