"""Check an agent's ``act``: the part of `check_agent` about actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from chatgym.dynamics import rng
from chatgym.envs.interfaces import draw_allowed
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.testing.findings import Findings

MOMENTS = (0, 2, 5)
"""Turns after which the conversations are shown to the agent."""
FIRST_ROWS = (1, 2, 3, 5, 8, 13, 21, 32)
"""So many of the rows are also shown without the others."""


@dataclass(frozen=True)
class Moment:
    """The state of B conversations as an agent sees it.

    Attributes:
        observations: As the agent's interface defines them, with a leading axis B.
        masks: int8[B, n], or None.
    """

    observations: Any
    masks: Any

    def __len__(self) -> int:
        first = next(iter(self.observations.values())) if isinstance(self.observations, dict) else self.observations
        return len(first)

    def rows(self, rows: Any) -> Moment:
        """Return a copy of some rows, int[N]."""
        return Moment(_rows(self.observations, rows), None if self.masks is None else self.masks[rows].copy())


def _rows(observations: Any, rows: Any) -> Any:
    """Return copies of rows, int[N], of a batch of observations."""
    if isinstance(observations, dict):
        return {name: array[rows].copy() for name, array in observations.items()}
    if isinstance(observations, tuple):
        return tuple(observations[i] for i in rows)
    return observations[rows].copy()


def check_acting(findings: Findings, load: Callable[[], Any], envs: ChatVectorEnv, learns: bool) -> None:
    """Let newly loaded agents act in the same conversations, and compare their actions.

    Args:
        findings: Collects the problems.
        load: Loads the same agent at each call.
        envs: B conversations of the agent's interface.
        learns: Whether deterministic actions must be a function of the observation.
    """
    moments = _moments(envs)
    space, size = envs.single_action_space, envs.num_envs
    every, half = np.arange(size), np.arange(size // 2)
    with findings.global_randomness_kept("act()", 3):
        firsts = [_act(load(), moment) for moment in moments]
        if not all(_well_formed(findings, actions, space, size) for actions in firsts):
            return
        moment, actions = moments[-1], firsts[-1]
        given = moment.rows(every)
        load().act(given.observations, deterministic=True, action_masks=given.masks)
        findings.expect(
            _same(given.observations, moment.observations) and _same(given.masks, moment.masks),
            "act() writes into the observations or masks that it is given. Work on a copy.",
        )
        findings.expect(
            _same(_act(load(), moment), actions),
            "two agents loaded from the same folder act differently on the same observations. Whatever is drawn has to "
            "follow from the seed, which is saved.",
        )
        others = [every[:k] for k in FIRST_ROWS]
        others.append(np.concatenate([half, half[::-1]]))
        findings.expect(
            all(
                _same(_act(load(), moment.rows(rows))[: len(half)], actions[: min(len(rows), len(half))])
                for rows in others
            ),
            "what a row's agent does depends on the rows beside it, or on how many there are. Normalise by no batch, "
            "and draw for each row by itself (`chatgym.dynamics.rng.uniform` with the row's number as key).",
        )
        if learns:
            _deterministic(findings, load(), moments, firsts)
        explored = load().act(moment.observations, deterministic=False, action_masks=moment.masks)
        _well_formed(findings, explored, space, size)
        with findings.trying("act() without action_masks"):
            _well_formed(findings, load().act(moment.observations), space, size)


def _deterministic(findings: Findings, agent: Any, moments: list[Moment], firsts: list[Any]) -> None:
    """Check that deterministic actions are the same at each call and in each row."""
    order = np.arange(len(moments[0]))[::-1]
    findings.expect(
        all(_same(_act(agent, m), actions) for _ in range(2) for m, actions in zip(moments, firsts, strict=True)),
        "with deterministic=True the same observations get other actions at another call. Take the best known one; "
        "draw and remember nothing.",
    )
    findings.expect(
        all(_same(_act(agent, m.rows(order))[order], a) for m, a in zip(moments, firsts, strict=True)),
        "with deterministic=True a row in another place gets another action. It has to follow from the row's own "
        "observation.",
    )


def _act(agent: Any, moment: Moment) -> Any:
    """Return the agent's deterministic actions; the agent gets a copy of the observations."""
    shown = moment.rows(np.arange(len(moment)))  # a copy: some write into it
    return agent.act(shown.observations, deterministic=True, action_masks=shown.masks)


def _well_formed(findings: Findings, actions: Any, space: spaces.Space[Any], size: int) -> bool:
    """Check type, dtype, shape and range of actions, int64[B] or B texts; return whether they are right."""
    if not isinstance(space, spaces.Discrete):
        return findings.expect(
            len(actions) == size and all(isinstance(text, str) for text in actions),
            f"act() doesn't return {size} strings for {size} conversations. Return one text for each.",
        )
    n = int(space.n)
    got = f"{actions.dtype}{list(actions.shape)}" if isinstance(actions, np.ndarray) else type(actions).__name__
    right = isinstance(actions, np.ndarray) and actions.dtype == np.int64 and actions.shape == (size,)
    return findings.expect(
        right, f"act() returns {got} for {size} conversations. Return a numpy array int64[{size}]."
    ) and findings.expect(
        ((actions >= 0) & (actions < n)).all(),
        f"act() returns actions from {actions.min()} to {actions.max()}; there are 0 to {n - 1}.",
    )


def _same(a: Any, b: Any) -> bool:
    """Tell whether two batches of observations or actions are equal."""
    if isinstance(a, dict):
        return all(np.array_equal(a[name], b[name]) for name in b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)


def _moments(envs: ChatVectorEnv) -> list[Moment]:
    """Take random actions and return the conversations after `MOMENTS` turns."""
    observations, infos = envs.reset(seed=11)
    found = []
    for turn in range(max(MOMENTS) + 1):
        masks = infos.get("action_mask")
        moment = Moment(observations, masks)
        if turn in MOMENTS:
            found.append(moment.rows(np.arange(envs.num_envs)))
        observations, _, _, _, infos = envs.step(_random(envs.single_action_space, masks, envs.num_envs, turn))
    return found


def _random(space: spaces.Space[Any], masks: Any, size: int, time: int) -> Any:
    """Return random allowed actions, int64[B], or B texts."""
    if not isinstance(space, spaces.Discrete):
        return ["Hello, how can I help you?"] * size
    return draw_allowed(masks, rng.uniform(np.arange(size), time, 0))
