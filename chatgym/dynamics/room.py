"""ChatRoom: the state of B conversations as arrays, advanced by compiled loops.

The room knows dialogue acts and numbers only: no words, no observation spaces, no autoreset. A scenario's functions
see one conversation; the loops run them over the batch. So a conversation depends on its key and its acts alone,
never on the rows beside it.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from numba.core.dispatcher import Dispatcher

from chatgym.dynamics import rng
from chatgym.dynamics.content import bytecode_digests, source_digest
from chatgym.dynamics.nb import LoopCache, forget, keep_by_content
from chatgym.dynamics.scenario import Scenario
from chatgym.dynamics.values import check_rate, check_size, check_turns, is_integer, is_number, weigh
from chatgym.errors import InvalidValue, unknown

Snapshot = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Kernels:
    """A scenario's functions, compiled over the batch; the loops in `_loops` state their arrays."""

    start: Callable[..., None]
    step: Callable[..., None]
    index: Callable[..., None]
    embed: Callable[..., None]
    mask: Callable[..., None]
    expert: Callable[..., None]


@nb.njit
def _next_keys(rows, roots, episodes, keys):  # type: ignore[no-untyped-def]
    """Derive the next key, uint64[B], in `rows`, bool[B], from `roots`, uint64[B], and `episodes`, int64[B]."""
    for i in range(rows.shape[0]):
        if rows[i]:
            keys[i] = rng.episode_key(roots[i], episodes[i])
            episodes[i] += 1


_compiled: dict[Scenario, Kernels] = {}
_content: dict[Scenario, str] = {}
_by_content: dict[str, Kernels] = {}
_frozen: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
"""Compiled functions to the digest that they had first: what they read then is in their code."""


def kernels(scenario: Scenario) -> Kernels:
    """Return a scenario's compiled loops: compiled at the first use, later read from the cache on disk.

    They are those of the scenario as it is now; scenarios with the same content share them.
    """
    content = content_of(scenario)
    if scenario not in _compiled or _content.get(scenario, content) != content:
        if content not in _by_content:
            loops = _loops(scenario)
            for loop in loops.values():
                loop._cache = LoopCache(loop.py_func, functools.partial(content_of, scenario), content)
            _by_content[content] = Kernels(**loops)
        _compiled[scenario], _content[scenario] = _by_content[content], content
    return _compiled[scenario]


def content_of(scenario: Scenario) -> str:
    """Return the digest of a scenario's loops, and have functions compiled anew that read something else by now."""
    whole, functions = bytecode_digests(_loops, scenario.content)
    for function, digest in functions:
        if isinstance(function, Dispatcher):
            keep_by_content(function)
            if _frozen.setdefault(function, digest) != digest:
                forget(function)
                _frozen[function] = digest
    return whole


@functools.cache
def loops_digest() -> str:
    """Return the SHA-256 of the code that all scenarios share: the random draws and the loops over the batch."""
    return source_digest(_loops)


def _loops(scenario: Scenario) -> dict[str, Any]:  # noqa: C901 (six loops, each trivial)
    """Compile the loops over a scenario's functions. Records are as in `Scenario`, which measures K terms."""
    begin, respond, number = scenario.start, scenario.respond, scenario.index
    fill, allow, choose = scenario.embed, scenario.mask, scenario.expert
    truncated = len(scenario.outcomes) - 1

    @nb.njit
    def start(rows, keys, turns, hidden, belief, said, outcomes, error_rate):  # type: ignore[no-untyped-def]
        """Begin conversations in `rows`, bool[B].

        The others are keys uint64[B], turns and outcomes int64[B], and the records[B] hidden, belief and said.
        """
        for i in range(rows.shape[0]):
            if rows[i]:
                turns[i] = 0
                outcomes[i] = 0
                begin(keys[i], hidden[i], belief[i], said[i], error_rate)

    @nb.njit
    def step(  # type: ignore[no-untyped-def]
        rows, fresh, acts, keys, roots, episodes, turns, hidden, belief, said, outcomes, rewards, terms, weights,
        worth, paid, terminations, truncations, max_turns, error_rate,
    ):  # fmt: skip
        """Take one act, int64[B], in `rows`, bool[B]; in `fresh`, bool[B], begin the next conversation instead.

        The others are keys and roots uint64[B]; episodes, turns and outcomes int64[B]; hidden, belief and said
        records[B]; rewards float64[B], terms float64[B, K], weights float64[K]; terminations and truncations bool[B].
        Term `paid` is set to the outcome's value in `worth`, float64[number of outcomes], unless it is -1.
        """
        for i in range(rows.shape[0]):
            rewards[i] = 0.0
            terminations[i] = truncations[i] = False
            for term in range(weights.shape[0]):
                terms[i, term] = 0.0
            if fresh[i]:
                keys[i] = rng.episode_key(roots[i], episodes[i])
                episodes[i] += 1
                turns[i] = 0
                outcomes[i] = 0
                begin(keys[i], hidden[i], belief[i], said[i], error_rate)
            if fresh[i] or not rows[i]:
                continue
            turns[i] += 1
            last = turns[i] >= max_turns
            outcome = respond(keys[i], turns[i], acts[i], hidden[i], belief[i], said[i], terms[i], error_rate, last)
            outcomes[i] = outcome
            terminations[i] = 0 < outcome < truncated
            truncations[i] = outcome == truncated
            if paid >= 0:
                terms[i, paid] = worth[outcome]
            reward = 0.0
            for term in range(weights.shape[0]):
                reward += weights[term] * terms[i, term]
            rewards[i] = reward

    @nb.njit
    def index(belief, out):  # type: ignore[no-untyped-def]
        """Fill `out`, int64[B], from `belief`, records[B]."""
        for i in range(out.shape[0]):
            out[i] = number(belief[i])

    @nb.njit
    def embed(belief, out):  # type: ignore[no-untyped-def]
        """Fill `out`, float32[B, embedding_size], from `belief`, records[B]."""
        for i in range(out.shape[0]):
            fill(belief[i], out[i])

    @nb.njit
    def mask(belief, out):  # type: ignore[no-untyped-def]
        """Fill `out`, bool[B, number of agent acts], from `belief`, records[B]."""
        for i in range(out.shape[0]):
            allow(belief[i], out[i])

    @nb.njit
    def expert(belief, out):  # type: ignore[no-untyped-def]
        """Fill `out`, int64[B], from `belief`, records[B]."""
        for i in range(out.shape[0]):
            out[i] = choose(belief[i])

    return {"start": start, "step": step, "index": index, "embed": embed, "mask": mask, "expert": expert}


class ChatRoom:
    """B conversations with partners of one scenario.

    Attributes:
        size: B.
        keys: uint64[B], the key of each conversation; key and acts determine the conversation.
        roots: uint64[B], the seeds from which the rows' keys are derived.
        episodes: int64[B], conversations begun in each row since it was seeded.
        turns: int64[B], agent turns taken.
        hidden, belief, said: records[B], see `Scenario`.
        heard: int[B], index into ``scenario.user_acts`` of what each agent understood last; their number for nothing.
        outcomes: int64[B], index into ``scenario.outcomes``; 0 while the conversation goes on.
        rewards: float64[B] of the last step; ``terms`` float64[B, T] are the unweighted terms.
        terminations, truncations: bool[B] of the last step.
    """

    _STATE = ("keys", "roots", "episodes", "turns", "hidden", "belief", "said", "outcomes", "rewards", "terms",
              "terminations", "truncations")  # fmt: skip

    def __init__(
        self,
        scenario: Scenario,
        size: int,
        *,
        error_rate: float = 0.1,
        max_turns: int | None = None,
        reward_weights: Mapping[str, float] | None = None,
    ) -> None:
        """Make a room of B conversations; `begin` begins them.

        Args:
            scenario: The scenario of all conversations.
            size: B, at least 1.
            error_rate: Semantic error rate, 0 to 1: how often the agent misunderstands an act or a value.
            max_turns: Turns after which a conversation is truncated; None: the scenario's default.
            reward_weights: Reward term to weight; terms left out keep the scenario's weight.

        Raises:
            InvalidValue: A value is out of range, or a reward term is unknown.
        """
        check_size(size)
        self.scenario, self.size = scenario, size
        for term in scenario.reward_terms:
            if term not in scenario.measured:
                raise unknown("reward term", term, scenario.measured, "Name it in the scenario's `measured`.")
        for outcome, value in scenario.outcome_values.items():
            if outcome not in scenario.outcomes:
                raise unknown("outcome", outcome, scenario.outcomes, "The scenario's `outcome_values` are of these.")
            if not is_number(value):
                raise InvalidValue(f"the value of the outcome {outcome!r} is a finite number, not {value!r}")
        self._worth = np.array([scenario.outcome_values.get(name, 0.0) for name in scenario.outcomes])
        self._paid = scenario.measured.index("outcome") if scenario.outcome_values else -1
        shown = [scenario.measured.index(name) for name in scenario.reward_terms]
        self._shown = None if shown == list(range(len(scenario.measured))) else np.array(shown)
        self.belief = np.zeros(size, scenario.belief)
        self._limit: int | None = None
        self.set_error_rate(error_rate)
        self.set_max_turns(max_turns)
        self.set_reward_weights(reward_weights)
        self._kernels, self._content = kernels(scenario), _content.get(scenario)
        self._all, self._none = np.ones(size, bool), np.zeros(size, bool)
        self.keys = np.zeros(size, np.uint64)
        self.roots = np.zeros(size, np.uint64)
        self.episodes = np.zeros(size, np.int64)
        self.turns = np.zeros(size, np.int64)
        self.hidden = np.zeros(size, scenario.hidden)
        self.said = np.zeros(size, scenario.said)
        self.heard = self.belief["heard"] if "heard" in (scenario.belief.names or ()) else self.said["act"]
        self.outcomes = np.zeros(size, np.int64)
        self.rewards = np.zeros(size)
        self.terms = np.zeros((size, len(self.reward_weights)))
        self.terminations = np.zeros(size, bool)
        self.truncations = np.zeros(size, bool)

    def seed(self, roots: npt.NDArray[np.uint64], rows: npt.NDArray[np.bool_] | None = None) -> None:
        """Set the roots, uint64[B], in `rows`, bool[B] (None: all), and count their conversations from 0."""
        where = self._all if rows is None else rows
        self.roots[where] = roots[where]
        self.episodes[where] = 0

    def begin(self, rows: npt.NDArray[np.bool_] | None = None, keys: npt.NDArray[np.uint64] | None = None) -> None:
        """Begin the next conversation in `rows`, bool[B] (None: all), or the ones with the given keys, uint64[B]."""
        where = self._all if rows is None else rows
        if keys is None:
            _next_keys(where, self.roots, self.episodes, self.keys)
        else:
            self.keys[where] = keys[where]
        self._kernels.start(
            where, self.keys, self.turns, self.hidden, self.belief, self.said, self.outcomes, self.error_rate
        )

    def openings(self, error_rate: float) -> npt.NDArray[Any]:
        """Return the beliefs with which the rows' conversations begin at an error rate, records[B]."""
        belief = self.belief.copy()  # with `max_turns`, which isn't the scenario's
        hidden, said = np.zeros_like(self.hidden), np.zeros_like(self.said)
        turns, outcomes = np.zeros_like(self.turns), np.zeros_like(self.outcomes)
        self._kernels.start(self._all, self.keys, turns, hidden, belief, said, outcomes, error_rate)
        return belief

    def step(
        self,
        acts: npt.NDArray[np.int64],
        rows: npt.NDArray[np.bool_] | None = None,
        fresh: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Take one agent act in each of `rows`; the results are attributes.

        `rewards`, `terms`, `terminations` and `truncations` become new arrays, 0 and False where no act was taken.

        Args:
            acts: int64[B], indices into ``scenario.agent_acts``, perhaps with `ABOUT` a slot, or `UNCLEAR_ACT`.
            rows: bool[B]; None: all.
            fresh: bool[B], rows that begin their next conversation instead, as `begin` does; None: no row.
        """
        self.rewards, self.terms = np.empty(self.size), np.empty((self.size, len(self._weights)))
        self.terminations, self.truncations = np.empty(self.size, bool), np.empty(self.size, bool)
        self._kernels.step(
            self._all if rows is None else rows, self._none if fresh is None else fresh, acts, self.keys, self.roots,
            self.episodes, self.turns, self.hidden, self.belief, self.said, self.outcomes, self.rewards, self.terms,
            self._weights, self._worth, self._paid, self.terminations, self.truncations, self.max_turns,
            self.error_rate,
        )  # fmt: skip
        if self._shown is not None:
            self.terms = self.terms[:, self._shown]

    def end(self, row: int, outcome: int, measured: Mapping[str, float]) -> None:
        """End a row's conversation now, in the turn that was taken last, with an outcome and terms of its own.

        Args:
            row: The row.
            outcome: Index into ``scenario.outcomes``.
            measured: Measured term to its new value; the others keep theirs.
        """
        if self._paid >= 0:
            measured = {"outcome": float(self._worth[outcome]), **measured}
        self.outcomes[row], self.terminations[row], self.truncations[row] = outcome, True, False
        reward = 0.0
        for term, (name, weight) in enumerate(self.reward_weights.items()):
            self.terms[row, term] = measured.get(name, self.terms[row, term])
            reward += weight * self.terms[row, term]  # in the order of the compiled loop, to the last bit
        self.rewards[row] = reward

    def discrete(self) -> npt.NDArray[np.int64]:
        """Return the discrete observations, int64[B] below ``scenario.n_beliefs``; 0 after the conversation's end."""
        out = np.empty(self.size, np.int64)
        self._kernels.index(self.belief, out)
        return out

    def embedding(self) -> npt.NDArray[np.float32]:
        """Return the embedding observations, float32[B, ``scenario.embedding_size``] in [-1, 1]."""
        out = np.empty((self.size, self.scenario.embedding_size), np.float32)
        self._kernels.embed(self.belief, out)
        return out

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return the acts that make sense, bool[B, number of agent acts]."""
        out = np.empty((self.size, len(self.scenario.agent_acts)), bool)
        self._kernels.mask(self.belief, out)
        return out

    def expert_acts(self, belief: npt.NDArray[Any] | None = None) -> npt.NDArray[np.int64]:
        """Return the scripted expert's acts, int64[B], for `belief`, records[B] (None: the room's own)."""
        belief = self.belief if belief is None else belief
        out = np.empty(len(belief), np.int64)
        self._kernels.expert(belief, out)
        return out

    def dump(self) -> Snapshot:
        """Copy the state: name to array with a leading axis B. `load` takes it at any moment of the conversations."""
        return {name: getattr(self, name).copy() for name in self._STATE}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore a state that `dump` of a room with the same scenario and size returned: arrays with a leading axis B.

        Raises:
            InvalidValue: The state comes from another scenario or size.
        """
        for name in self._STATE:
            mine, theirs = getattr(self, name), state.get(name)
            if theirs is None or theirs.shape != mine.shape or theirs.dtype.descr != mine.dtype.descr:
                raise InvalidValue(
                    f"the snapshot doesn't fit this room of {self.size} {self.scenario.name!r} conversations: "
                    f"{name!r} differs; restore it into a room made with the same arguments"
                )
        for name in ("rewards", "terms", "terminations", "truncations"):  # the old ones were given away
            setattr(self, name, np.empty_like(getattr(self, name)))
        for name in self._STATE:
            getattr(self, name)[...] = state[name]
        self._tell_limit()

    def check_unchanged(self) -> None:
        """Check that the scenario is still what was compiled for this room.

        Raises:
            InvalidValue: A function or a value that it reads was replaced since.
        """
        if self._content not in (None, content_of(self.scenario)):
            raise InvalidValue(
                f"what the scenario {self.scenario.name!r} reads was replaced since this environment began; "
                "make the environment again"
            )

    def limit(self, turns: int | None) -> None:
        """Truncate conversations after `turns`, if that is less than the room's own `max_turns`; None: after those."""
        self._limit = turns
        self.max_turns = self._most_turns if turns is None else min(self._most_turns, turns)
        self._tell_limit()

    def set_error_rate(self, error_rate: float) -> None:
        """Set the semantic error rate, 0 to 1, from the next turn on.

        Raises:
            InvalidValue: It is no such number.
        """
        self.error_rate = check_rate(error_rate)

    def set_max_turns(self, max_turns: int | None) -> None:
        """Set the room's own number of turns until truncation, from the next turn on; None: the scenario's default.

        Raises:
            InvalidValue: It is not an integer from 1 to 10,000.
        """
        self._most_turns = check_turns(self.scenario.max_turns if max_turns is None else max_turns)
        self.limit(self._limit)

    def set_reward_weights(self, reward_weights: Mapping[str, float] | None) -> None:
        """Set the weights of reward terms, from the next turn on; terms left out get the scenario's weight.

        Raises:
            InvalidValue: A weight is not a finite number, or is that of an unknown term.
        """
        self.reward_weights = weigh(self.scenario.reward_terms, reward_weights)
        self._weights = np.array([self.reward_weights.get(name, 0.0) for name in self.scenario.measured])

    def dump_settings(self) -> Snapshot:
        """Copy what the setters set: arrays with a leading axis B, equal in all rows. `load_settings` takes them."""
        own = {"error_rate": self.error_rate, "most_turns": self._most_turns, "limit": self._limit or 0}
        weights = {f"weight {name}": weight for name, weight in self.reward_weights.items()}
        return {name: np.full(self.size, value) for name, value in {**own, **weights}.items()}

    def load_settings(self, settings: Mapping[str, npt.NDArray[Any]]) -> None:
        """Set what `dump_settings` of a room with the same scenario returned: arrays with a leading axis B.

        Raises:
            InvalidValue: They are of a scenario with other reward terms, such as another version.
        """
        weights = {name[7:]: float(each[0]) for name, each in settings.items() if name.startswith("weight ")}
        if weights.keys() != self.reward_weights.keys():
            raise InvalidValue(
                f"the snapshot's reward terms are {', '.join(weights)}, not {', '.join(self.reward_weights)}; restore "
                "it into an environment of the same version of the scenario"
            )
        self.set_error_rate(settings["error_rate"][0])
        self.set_reward_weights(weights)
        self._limit = int(settings["limit"][0]) or None
        self.set_max_turns(settings["most_turns"][0])

    def _tell_limit(self) -> None:
        """Write `max_turns` into the beliefs of a scenario whose expert plans with it."""
        if "max_turns" in (self.scenario.belief.names or ()):
            self.belief["max_turns"] = self.max_turns

    def fork(self, index: int, copies: int) -> ChatRoom:
        """Make a room with B = `copies` copies of one conversation.

        Raises:
            InvalidValue: There is no such row, or `copies` is below 1.
        """
        if not is_integer(index) or not 0 <= index < self.size:
            raise InvalidValue(f"there is no row {index} in a room of {self.size}; rows are 0 to {self.size - 1}")
        check_size(copies)
        room = copy.copy(self)
        room.size, room._all, room._none = copies, np.ones(copies, bool), np.zeros(copies, bool)
        for name in self._STATE:
            setattr(room, name, getattr(self, name)[[index] * copies])
        return room
