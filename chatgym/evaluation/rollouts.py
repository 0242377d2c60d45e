"""Let an agent hold conversations: many at a time, or one with its transcript."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.agent import Agent
from chatgym.dynamics import rng
from chatgym.dynamics.hearing import Hearing
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.scenarios import NO_ACT, UNCLEAR_ACT, Scenario

ROWS = 4096
"""Most conversations at a time; a constant, so that an agent that samples draws the same acts every time."""


@dataclass(frozen=True, eq=False)
class Rollouts:
    """N finished conversations.

    Attributes:
        returns: float64[N], the sum of rewards of each.
        outcomes: object[N], the name of the outcome of each.
        turns: int64[N], agent turns.
        causes: object[N], why each failed, see `chatgym.dynamics.hearing.Listener.causes`; empty where it succeeded.
            None where that wasn't looked into.
        unclear: int64[N], turns of each whose words NLU didn't understand; None for agents that don't write words.
    """

    returns: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.object_]
    turns: npt.NDArray[np.int64]
    causes: npt.NDArray[np.object_] | None
    unclear: npt.NDArray[np.int64] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """Return several rollouts as one."""
        columns = ([getattr(part, each.name) for part in parts] for each in fields(cls))
        joined: list[Any] = [None if column[0] is None else np.concatenate(column) for column in columns]
        return cls(*joined)


def run_conversations(
    agent: Agent,
    envs: ChatVectorEnv,
    seed: int,
    *,
    split: str = "test",
    deterministic: bool = True,
    causes: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Rollouts:
    """Hold one conversation in each of N rows; finished rows stand still until the last has finished.

    Args:
        agent: Any agent.
        envs: N conversations with the interface that the agent requires, in any autoreset mode but same-step.
        seed: Row i has seed ``seed + i``.
        split: The conversations' split, see `chatgym.dynamics.rng.SPLITS`.
        deterministic: Whether the agent takes its best action; else it samples or explores as in training.
        causes: Whether to look into why conversations fail; that takes up to half as long again as holding them.
        progress: Called with the number of conversations that have ended.
    """
    size, room = envs.num_envs, envs.room
    returns, going = np.zeros(size), np.ones(size, bool)
    observations, infos = envs.reset(seed=seed, options={"split": split})
    _begin(agent, room.keys)
    hearing, numbers = Hearing(room) if causes else None, _act_numbers(envs.scenario)
    unclear = np.zeros(size, np.int64) if agent.requires.action in ("text", "token") else None
    while going.any():
        if isinstance(observations, tuple):  # spares a language model the finished rows
            observations = tuple(text if on else "" for text, on in zip(observations, going, strict=True))
        actions = agent.act(observations, deterministic=deterministic, action_masks=infos.get("action_mask"))
        observations, rewards, terminations, truncations, infos = envs.step(actions, active=going)
        if unclear is not None:
            unclear += going & (infos["agent_act"] == "unclear")
        if hearing is not None:
            acts = np.array([numbers[act] for act in infos["agent_act"].tolist()])
            hearing.step(acts, going & (acts != NO_ACT))
        returns += rewards
        ended = terminations | truncations
        going &= ~ended
        if progress is not None and ended.any():
            progress(size - int(going.sum()))
    outcomes = np.array(envs.scenario.outcomes, object)[room.outcomes]
    return Rollouts(returns, outcomes, room.turns.copy(), None if hearing is None else hearing.causes(), unclear)


def _act_numbers(scenario: Scenario) -> dict[str, int]:
    """Return the act of each name that infos have."""
    return {"": NO_ACT, "unclear": UNCLEAR_ACT, **{name: act for act, name in enumerate(scenario.agent_acts)}}


def _begin(agent: Agent, keys: npt.NDArray[np.uint64]) -> None:
    """Call `begin` of an agent with memory; it doesn't get to know `keys`, the conversations', uint64[N]."""
    begin = getattr(agent, "begin", None)
    if begin is not None:
        begin(rng.hashed(keys))


def converse(
    agent: Agent, env: ChatEnv, seed: int, *, split: str = "test", deterministic: bool = True
) -> dict[str, Any]:
    """Hold one conversation and return its transcript.

    Args:
        agent: Any agent.
        env: An environment with the interface that the agent requires (`Task.make_env`).
        seed: Seed of the conversation; an evaluation holds the same one for it.
        split: The conversation's split.
        deterministic: See `evaluate`.

    Returns:
        ``split``, ``seed``, ``key`` (hexadecimal), ``outcome``, ``return`` and ``turns``, the list of
        `ChatEnv.transcript`, whose last entry is the partner's goal.
    """
    observation, info = env.reset(seed=seed, options={"split": split})
    _begin(agent, env.room.keys)
    total, over = 0.0, False
    while not over:
        batch = (observation,) if isinstance(observation, str) else np.asarray(observation)[None]
        masks = info["action_mask"][None] if "action_mask" in info else None
        action = agent.act(batch, deterministic=deterministic, action_masks=masks)[0]
        observation, reward, terminated, truncated, info = env.step(action)
        total, over = total + reward, terminated or truncated
    return {
        "split": split, "seed": seed, "key": f"{env.key:016x}", "outcome": info["outcome"], "return": total,
        "turns": env.transcript(),
    }  # fmt: skip
