"""Collect conversations: whole turns of all of them at once, each sampled token kept with what learning needs.

This is the only file of the agent that touches the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics import rng
from chatgym.dynamics.room import ChatRoom
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.rewards.term import NAME

from .turns import Supports, Turn, Turns, speech_seeds

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
CLASSES = 16
"""Small whole numbers up to this become one-hot features."""


@dataclass(eq=False)
class Conversation:
    """A conversation from the agent's side: K turns, in which it sampled N tokens.

    Attributes:
        key: Key of the conversation, uint64.
        ids: All token ids, as ChatML.
        messages: The same as text.
        places: int64[N], indices of the sampled tokens in `ids`.
        tokens: int64[N], the sampled tokens.
        logprobs: float32[N], see `Turn`.
        values: float32[N], see `Turn`.
        supports: uint8[N, ceil(V / 8)], see `Supports`, or None where all tokens could be sampled.
        ends: int64[K], index of each turn's last token among the N.
        states: float32[K + 1, F], `features` before each turn and after the last; float32[0] if they weren't asked for.
        rewards: float64[K], of the environment, including the reward model's term.
        task_return: Sum of the task's own rewards.
        bootstrap: Value of the state after the last turn; 0 where the conversation terminated.
        broken: Whether it was broken off, by the environment or at the length limit.
        outcome: Name of the outcome; empty where it was broken off at the length limit.
        reference: float32[N], log-probabilities under the frozen reference.
        kl: float64[N], see `equations.kl_estimates`.
        token_rewards: float64[N], see `equations.token_rewards`.
        advantages: float64[N].
        returns: float64[N], targets of the value function.
    """

    key: int
    ids: list[int]
    messages: list[dict[str, str]]
    places: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    logprobs: Floats
    values: Floats
    supports: Supports | None
    ends: npt.NDArray[np.int64]
    states: Floats
    rewards: Doubles
    task_return: float
    bootstrap: float
    broken: bool
    outcome: str
    reference: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    kl: Doubles = field(default_factory=lambda: np.zeros(0))
    token_rewards: Doubles = field(default_factory=lambda: np.zeros(0))
    advantages: Doubles = field(default_factory=lambda: np.zeros(0))
    returns: Doubles = field(default_factory=lambda: np.zeros(0))


def hold(
    turns: Turns, envs: ChatVectorEnv, keys: npt.NDArray[np.uint64], salt: Sequence[int], *, max_length: int,
    phases: Callable[[str], AbstractContextManager[None]], states: bool = False, judged_only: bool = False,
) -> list[Conversation]:  # fmt: skip
    """Hold one conversation in each row of the environment, to its end.

    Args:
        turns: B empty conversations.
        envs: B rows, ``action="text"``, ``observation="text"``.
        keys: uint64[B], which conversations.
        salt: B numbers that tell conversations with the same key apart.
        max_length: Tokens at which a conversation is broken off.
        phases: ``with phases(name)`` counts the time of a phase.
        states: Whether to keep `features`.
        judged_only: Whether a reward is the reward model's term alone.

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
    for row, text in enumerate(envs.texts):
        turns.hear(row, text)
    going, texts = np.ones(size, bool), [""] * size
    roots = rng.hashed(room.keys)  # a server that generates is told the seeds
    while going.any():
        rows = np.flatnonzero(going).tolist()
        with phases("generation"):
            said = turns.speak(rows, speech_seeds(roots[rows], room.turns[rows], [salt[row] for row in rows]))
        for row, turn in zip(rows, said, strict=True):
            taken[row].append(turn)
            texts[row] = turns.text(turn)
        with phases("environment"):
            _, earned, *_, infos = envs.step(texts, active=going)
            if judged_only:
                earned = envs.reward_weights[NAME] * infos["reward_terms"][NAME]
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
    """Return a row's conversation, whose K turns were taken; `end` holds the attributes that are known already."""
    ids = turns.history.ids[row]
    if len(ids) < taken[-1].start + len(taken[-1].tokens):  # nobody spoke after it, so its end isn't there yet
        ids.append(turns.tokenizer.end)
    supports = [support for turn in taken for support in turn.supports]
    return Conversation(
        key, ids, messages,
        places=np.concatenate([turn.start + np.arange(len(turn.tokens)) for turn in taken]),
        tokens=np.array([token for turn in taken for token in turn.tokens], np.int64),
        logprobs=np.array([p for turn in taken for p in turn.logprobs], np.float32),
        values=np.array([v for turn in taken for v in turn.values], np.float32),
        supports=np.array(supports) if supports else None,
        ends=np.cumsum([len(turn.tokens) for turn in taken]) - 1,
        rewards=np.array(rewards), **end,
    )  # fmt: skip


def features(room: ChatRoom) -> Floats:
    """Return the simulator's state as `equations.StateValues` takes it, float32[B, F], including what is hidden.

    It holds the belief state as in the embedding observation, the share of turns taken, and each number of the hidden
    and of the belief record: a small one as one of `CLASSES`, any other by its logarithm.
    """
    columns: list[Floats] = [room.embedding(), (room.turns / room.max_turns).astype(np.float32)[:, None]]
    for record in (room.hidden, room.belief):
        for name in record.dtype.names or ():
            field = record[name].reshape(room.size, -1)
            if field.dtype.itemsize == 1:
                kinds = np.clip(field.astype(np.int64) + 1, 0, CLASSES - 1)
                columns.append((kinds[:, :, None] == np.arange(CLASSES)).reshape(room.size, -1).astype(np.float32))
            else:
                numbers = field.astype(np.float64)
                columns.append((np.sign(numbers) * np.log1p(np.abs(numbers)) / 10).astype(np.float32))
    return np.concatenate(columns, 1)
