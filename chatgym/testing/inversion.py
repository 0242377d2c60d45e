"""Check that nothing an agent sees gives a conversation's key away, the generator's inverse included.

A draw is a bijection of the key (`chatgym.dynamics.rng`): whoever sees all its bits computes the key, and whoever sees
many of them tries the rest. From the key everything that is hidden follows.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics import rng
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.scenarios import Scenario
from chatgym.testing.findings import Findings

MOST_BITS = 22
"""Bits of one draw that may be seen: to try the other 42 for a conversation takes an hour on a core."""
ROWS = 8192
"""Conversations in which the resolution of a field is measured."""
SAMPLE = 64
"""Conversations in which fields are compared with draws: a bit of each makes a word."""
TURNS = 3

Words = npt.NDArray[np.uint64]
Column = tuple[str, npt.NDArray[Any]]


def check_inversion(findings: Findings, scenario: Scenario) -> None:
    """Compare all observations and infos of some turns, bit by bit, with all draws that a scenario can make."""
    keys = rng._mix.py_func(np.arange(1, ROWS + 1, dtype=np.uint64) << np.uint64(40))
    columns: list[Column] = []
    envs = ChatVectorEnv(
        ROWS, scenario=scenario, llm="template", reward_model=None, texts=True, autoreset_mode="Disabled"
    )
    _, infos = envs.reset(options={"keys": keys})
    for turn in range(TURNS + 1):
        room = envs.room
        belief = {name: room.belief[name] for name in scenario.belief.names or ()}
        seen = {"embedding": room.embedding(), "discrete": room.discrete(), "belief": belief, "info": infos}
        columns += _columns("", seen)
        if turn < TURNS:
            *_, infos = envs.step(envs.expert_acts(), active=room.outcomes == 0)
    given_away = set(revealing(columns, keys, TURNS))
    findings.expect(
        not given_away,
        f"the conversation's key, from which everything hidden follows, can be computed from "
        f"{', '.join(sorted(given_away))}: more than {MOST_BITS} bits of a draw stand there. Show fewer bits, or draw "
        "by `chatgym.dynamics.rng.public_seed`.",
    )


def revealing(columns: list[Column], keys: Words, turn: int) -> Iterator[str]:
    """Yield the names of columns that hold more than `MOST_BITS` bits of the key or of a draw up to `turn`.

    Args:
        columns: Names and values, number[N] each.
        keys: uint64[N].
        turn: The turns taken.
    """
    fine = {name: _order(values[:SAMPLE]).tobytes() for name, values in columns if _resolution(values) > MOST_BITS}
    holders: dict[int, set[str]] = defaultdict(set)
    for name, values in columns:
        for word in _bit_words(_as_integers(values[:SAMPLE])).tolist():
            holders[word].add(name)
    holders.pop(0, None)  # the bits that never change
    for draws in _draws(keys[:SAMPLE], turn):  # uint64[SAMPLE, D]
        words = _bit_words(draws)  # (64, D)
        shown = np.isin(words, np.fromiter(holders, np.uint64, len(holders)))
        for each in np.flatnonzero(shown.sum(0) > MOST_BITS):
            names: Counter[str] = Counter()
            for word in words[shown[:, each], each].tolist():
                names.update(holders[word])
            yield " and ".join(name for name, _ in names.most_common(2))
        orders = {order.tobytes() for order in _order(draws).T} if fine else set()
        yield from (name for name, order in fine.items() if order in orders)


def _draws(keys: Words, turn: int) -> Iterator[Words]:
    """Yield the keys, hashed forwards and backwards, and all draws up to a turn, uint64[N, D] each."""
    hashed = rng._mix.py_func(keys)
    yield np.stack([keys, hashed, unmix(keys)], 1)
    purposes = np.arange(rng.PURPOSES)
    for each in range(turn + 1):
        counters = np.uint64(each * rng.PURPOSES + 1) + purposes.astype(np.uint64)
        yield rng._mix.py_func(hashed[:, None] + counters * rng._GOLDEN)


def unmix(z: Words) -> Words:
    """Return the inverse of the generator's finaliser, uint64[...]."""

    def unshift(y: Words, shift: int) -> Words:
        x = y
        for _ in range(64 // shift):
            x = y ^ (x >> np.uint64(shift))
        return x

    first, second = (np.uint64(pow(int(factor), -1, 2**64)) for factor in (rng._M1, rng._M2))
    return unshift(unshift(unshift(z, 31) * second, 27) * first, 30)


def _columns(name: str, seen: Any) -> Iterator[Column]:
    """Yield the numbers in what N agents see as columns, number[N], long ones in texts included."""
    if isinstance(seen, dict):
        for key, value in seen.items():
            yield from _columns(f"{name} {key}".strip(), value)
    elif isinstance(seen, np.ndarray) and seen.dtype.kind in "biuf":
        flat = seen.reshape(len(seen), -1)
        yield from ((name, np.ascontiguousarray(flat[:, k])) for k in range(flat.shape[1]))
    elif isinstance(seen, (tuple, np.ndarray)):
        found = [re.findall(r"\d{7,19}", each) if isinstance(each, str) else [] for each in seen]
        if all(found):
            yield name, np.array([int(each[0]) for each in found], np.uint64)


def _as_integers(values: npt.NDArray[Any]) -> Words:
    """Return numbers[N] as uint64[N]: floats in [0, 1) as the 53 bits that were drawn."""
    if values.dtype.kind == "f":
        return (np.clip(np.nan_to_num(values.astype(np.float64)), 0.0, 1.0) * 2.0**53).astype(np.uint64)
    return values.astype(np.uint64)


def _bit_words(values: Words) -> Words:
    """Return bit i of values, uint64[SAMPLE, ...], as one word, uint64[64, ...]; a bit and its opposite are equal."""
    places = np.arange(SAMPLE, dtype=np.uint64).reshape(-1, *[1] * (values.ndim - 1))
    words = np.stack([((values >> np.uint64(i) & np.uint64(1)) << places).sum(0, dtype=np.uint64) for i in range(64)])
    return np.where(words & np.uint64(1), ~words, words)


def _order(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return which value of numbers[N, ...] is the smallest, the second, ..., int64[N, ...]."""
    return values.argsort(0, kind="stable")


def _resolution(values: npt.NDArray[Any]) -> float:
    """Return how many bits numbers[N] seem to have: the range, over the smallest difference, as a logarithm."""
    distinct = np.unique(values.astype(np.float64))
    gaps = np.diff(distinct)
    return float(np.log2((distinct[-1] - distinct[0]) / gaps.min())) if len(gaps) else 0.0
