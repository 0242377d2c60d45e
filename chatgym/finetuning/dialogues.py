"""Conversations as lists of messages, read from a file or held by an agent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from chatgym.agent import Agent
from chatgym.dynamics import rng
from chatgym.envs.interfaces import draw_allowed
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue
from chatgym.rewards import forms
from chatgym.storage.paths import given
from chatgym.storage.utf8 import valid

Message: TypeAlias = Mapping[str, str]
Dialogue: TypeAlias = Sequence[Message]
"""ChatML messages: ``{"role": "system" | "user" | "assistant", "content": text}``; the agent is the assistant."""

ROWS = 512
"""Conversations held side by side."""

_WANDER, _WHERE = rng.PURPOSES - 3, rng.PURPOSES - 2  # purposes of the draws of random acts


def read(path: Path) -> list[Dialogue]:
    """Read conversations, JSON lines of ``{"messages": [...]}`` or of other forms (`chatgym.rewards.forms`).

    Raises:
        InvalidValue: The file can't be read, or a line is no conversation with a message of the assistant.
    """
    dialogues = forms.read_records(given(path), _checked)
    if not dialogues:
        raise InvalidValue(f'{path} holds no conversation; each line is one, {{"messages": [...]}}')
    return dialogues


def write(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """Write conversations in the form that `read` reads."""
    lines = [json.dumps({"messages": [dict(one) for one in messages]}, ensure_ascii=False) for messages in dialogues]
    path.write_text(valid("\n".join(lines) + "\n"), encoding="utf-8")


def held_by(
    agent: Agent,
    task: Task,
    conversations: int,
    *,
    seed: int = 0,
    wander: float = 0.0,
    llm: Any = "template",
    progress: Callable[[int], None] | None = None,
) -> list[Dialogue]:
    """Let an agent hold conversations, and return them.

    Args:
        agent: The agent; if it chooses acts, its words are the scenario's own sentences.
        task: Scenario and arguments of the environment.
        conversations: N, the number of conversations.
        seed: Seed of the first conversation; the i-th has ``seed + i``.
        wander: Share of turns in which a random allowed act replaces the agent's, which makes an imperfect teacher.
        llm: Model that generates the partner's utterances, see `chatgym.envs.chat_env.ChatEnv`.
        progress: Called with the number of finished conversations.

    Returns:
        N conversations, each from the partner's first message to the agent's last. The partner's are what the agent
        heard: who learns from them reads words, and is to answer what it reads.
    """
    dialogues: list[Dialogue] = []
    envs = None
    for first in range(0, conversations, ROWS):
        size = min(ROWS, conversations - first)
        if envs is None or envs.num_envs != size:
            envs = task.make_envs(agent.requires, size, llm=llm, texts="heard")
        done = None if progress is None else (lambda n, first=first: progress(first + n))
        dialogues += _hold(agent, envs, seed + first, wander, done)
    return dialogues


def _hold(
    agent: Agent, envs: ChatVectorEnv, seed: int, wander: float, progress: Callable[[int], None] | None
) -> list[list[Message]]:
    """Hold one conversation in each environment; arguments as of `held_by`."""
    room = envs.room
    observations, infos = envs.reset(seed=seed)
    masks, going = infos.get("action_mask"), np.ones(envs.num_envs, bool)
    said: list[list[Message]] = [[{"role": "user", "content": text}] for text in envs.texts]
    while going.any():
        acts = agent.act(observations, deterministic=True, action_masks=masks)
        if wander and masks is not None:
            keys, turns = room.keys.tolist(), room.turns.tolist()
            astray = np.array([rng.draw(k, t, _WANDER) for k, t in zip(keys, turns, strict=True)]) < wander
            where = np.array([rng.draw(k, t, _WHERE) for k, t in zip(keys, turns, strict=True)])
            acts = np.where(astray, draw_allowed(masks, where), acts)
        words = {row: envs.agent_words(row, int(acts[row])) for row in np.flatnonzero(going).tolist()}
        observations, _, _, _, infos = envs.step(acts, active=going)
        masks = infos.get("action_mask")
        for i, text in words.items():
            said[i].append({"role": "assistant", "content": text})
        going &= room.outcomes == 0
        for i in np.flatnonzero(going).tolist():
            said[i].append({"role": "user", "content": envs.texts[i]})
        if progress is not None:
            progress(int((~going).sum()))
    return said


def _checked(record: Any, where: str) -> Dialogue:
    """Return the messages of a record, or raise `InvalidValue`."""
    messages = forms.conversation(record)
    if all(message["role"] != "assistant" for message in messages):
        raise InvalidValue("no message of the assistant; SFT learns only those, so leave the conversation out")
    return messages
