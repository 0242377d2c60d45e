"""Conversations held to learn from: whole turns of all of them at once, every sampled token kept with what it takes."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics import rng
from chatgym.words.charset import MAX_CHARS, clean

from .sampling import Supports
from .states import features
from .turns import Turn, Turns

SPEECH = rng.PURPOSES - 4
"""Purpose of the draw that seeds an agent's turn."""


@dataclass(eq=False)
class Conversation:
    """A conversation from the agent's side; N is the number of tokens that it sampled, K that of its turns.

    Attributes:
        key: Which conversation.
        ids: All of it, as ChatML.
        messages: All of it, as text.
        places: int64[N], where the tokens stand in `ids`.
        logprobs, values: float32[N], see `Turn`.
        supports: uint8[N, V / 8] or None.
        ends: int64[K], the last token of each turn, counted among the N.
        states: float32[K + 1, F], what `states.features` knows before each turn and after the last; or nothing.
        rewards: float64[K], of the environment, a reward model's term included.
        task_return: Sum of the task's own rewards.
        bootstrap: Value of the state after the last turn; 0 where the conversation ended.
        broken: Whether it was broken off instead, by the environment or for its length.
        outcome: Its name; empty where it was broken off for being longer than the model may read.
        reference: float32[N], log-probabilities under the frozen reference.
        kl, token_rewards, advantages, returns: float64[N], filled in before learning.
    """

    key: int
    ids: list[int]
    messages: list[dict[str, str]]
    places: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]
    supports: Supports | None
    ends: npt.NDArray[np.int64]
    states: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float64]
    task_return: float
    bootstrap: float
    broken: bool
    outcome: str
    reference: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    kl: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    token_rewards: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    advantages: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    returns: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """The tokens that the agent sampled, int64[N]."""
        return np.array(self.ids, np.int64)[self.places]


class Phases:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began  # type: ignore[assignment]


def speech_seeds(keys: npt.NDArray[np.uint64], turns: npt.NDArray[np.int64], salt: Sequence[int]) -> Any:
    """Return the seeds of turns, uint64[B].

    Args:
        keys: uint64[B], of the conversations.
        turns: int64[B], how many turns were taken.
        salt: B numbers that tell conversations of the same key apart.
    """
    found = zip(keys.tolist(), turns.tolist(), salt, strict=True)
    return np.array([rng.bits(rng.bits(key, turn, SPEECH), other, SPEECH) for key, turn, other in found], np.uint64)


def hold(
    turns: Turns, envs: Any, keys: npt.NDArray[np.uint64], salt: Sequence[int], *, max_length: int,
    phases: Phases, states: bool = False,
) -> list[Conversation]:  # fmt: skip
    """Hold one conversation in each row of the environment, to its end.

    Args:
        turns: Of B conversations in which nothing was said.
        envs: A `ChatVectorEnv` of B rows, ``action="text"``, ``observation="text"``.
        keys: uint64[B], which conversations.
        salt: See `speech_seeds`.
        max_length: Tokens of a conversation at which it is broken off.
        phases: Where time is counted.
        states: Whether to keep what a value function of the simulator's state knows.

    Returns:
        B conversations.
    """
    room = envs.room
    with phases("environment"):
        envs.reset(options={"keys": keys})
    size = envs.num_envs
    taken: list[list[Turn]] = [[] for _ in range(size)]
    known = [features(room)] if states else []
    rewards: list[list[float]] = [[] for _ in range(size)]
    messages = [[{"role": "user", "content": text}] for text in envs.texts]
    returns, bootstraps, cut = np.zeros(size), np.zeros(size), np.zeros(size, bool)
    for row in range(size):
        turns.hear(row, envs.texts[row])
    going, texts = np.ones(size, bool), [""] * size
    while going.any():
        rows = np.flatnonzero(going).tolist()
        with phases("generation"):
            said = turns.speak(rows, speech_seeds(room.keys[rows], room.turns[rows], [salt[row] for row in rows]))
        for row, turn in zip(rows, said, strict=True):
            taken[row].append(turn)
            texts[row] = clean(turns.text(turn))[:MAX_CHARS]
        with phases("environment"):
            _, earned, *_ = envs.step(texts, active=going)
            if states:
                known.append(features(room))
        for row in rows:
            rewards[row].append(float(earned[row]))
            returns[row] += room.rewards[row]
            messages[row].append({"role": "assistant", "content": texts[row]})
            if not room.terminations[row]:
                turns.hear(row, envs.texts[row])
                messages[row].append({"role": "user", "content": envs.texts[row]})
        longest = max_length - turns.max_new_tokens
        broken = np.array([len(ids) > longest for ids in turns.history.ids]) | room.truncations
        cut |= (now := going & broken & ~room.terminations)
        going &= ~(room.terminations | broken)
        if now.any():
            with phases("generation"):
                bootstraps[now] = turns.peek(np.flatnonzero(now).tolist())
    names = np.array(envs.scenario.outcomes, object)[room.outcomes]
    return [
        _conversation(
            int(keys[row]), turns, row, taken[row], rewards[row], messages[row],
            states=np.array([state[row] for state in known[: len(taken[row]) + 1]], np.float32),
            task_return=float(returns[row]),
            bootstrap=float(bootstraps[row]), broken=bool(cut[row]), outcome=str(names[row]),
        )
        for row in range(size)
    ]  # fmt: skip


def _conversation(
    key: int, turns: Turns, row: int, taken: Sequence[Turn], rewards: list[float], messages: list[dict[str, str]],
    **end: Any,
) -> Conversation:  # fmt: skip
    ids = turns.history.ids[row]
    if len(ids) < taken[-1].start + len(taken[-1].tokens):  # nobody spoke after it, so its end isn't there yet
        ids.append(turns.tokenizer.end)
    supports = [support for turn in taken for support in turn.supports]
    return Conversation(
        key, ids, messages,
        places=np.concatenate([turn.start + np.arange(len(turn.tokens)) for turn in taken]),
        logprobs=np.array([p for turn in taken for p in turn.logprobs], np.float32),
        values=np.array([v for turn in taken for v in turn.values], np.float32),
        supports=np.array(supports) if supports else None,
        ends=np.cumsum([len(turn.tokens) for turn in taken]) - 1,
        rewards=np.array(rewards), **end,
    )  # fmt: skip
