"""How well a language model speaks after its fine-tuning: whether its replies are language, and are understood."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chatgym.dynamics import rng
from chatgym.envs.task import Task
from chatgym.finetuning.dialogues import Dialogue

CONVERSATIONS, TURNS = 16, 8
"""How many conversations are held, and how many turns of each at most."""
DEGENERATE, UNDERSTOOD = 0.1, 0.5
"""A model is undertrained from this share of degenerate replies on, or below this share of understood ones."""
_REPEATED = re.compile(r"\b(\w+(?:\W+\w+){0,3})(?:\W+\1\b){2,}|(\S)\2{7,}", re.IGNORECASE)


@dataclass(frozen=True)
class Speech:
    """A model's replies, with the most likely tokens.

    Attributes:
        replies: Number of replies.
        degenerate: Share of them that have no words or repeat some, see `degenerate`.
        understood: Share of them that NLU understands; None where no scenario says what there is to understand.
        conversation: One of the conversations, as messages.
    """

    replies: int
    degenerate: float
    understood: float | None
    conversation: list[dict[str, str]]

    @property
    def undertrained(self) -> bool:
        """Whether so many replies are degenerate or aren't understood that the model needs more training."""
        return self.degenerate >= DEGENERATE or (self.understood is not None and self.understood < UNDERSTOOD)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {**dataclasses.asdict(self), "undertrained": self.undertrained}


def degenerate(text: str) -> bool:
    """Return whether a text has no word, or repeats up to four words three times in a row, or a character eight times.

    Such texts are what Holtzman et al. 2020 call neural text degeneration.
    """
    return re.search(r"\w", text) is None or _REPEATED.search(text) is not None


def speech_in(agent: Any, task: Task) -> Speech:
    """Let an agent that generates text talk with the partner of a task, on validation conversations."""
    envs = task.make_envs(agent.requires, CONVERSATIONS, reward_model=None, llm="template")
    heard, _ = envs.reset(seed=0, options={"split": "validation"})
    agent.begin(rng.hashed(envs.room.keys))
    going, understood = np.ones(CONVERSATIONS, bool), list[bool]()
    said = [[_partner(text)] for text in heard]
    for _ in range(TURNS):
        rows = np.flatnonzero(going).tolist()
        replies = agent.act(tuple(text if on else "" for text, on in zip(heard, going, strict=True)))
        heard, _, terminations, truncations, infos = envs.step(replies, active=going)
        understood += [infos["agent_act"][row] != "unclear" for row in rows]
        going &= ~(terminations | truncations)
        for row in rows:
            said[row] += [_reply(replies[row]), *([_partner(heard[row])] if going[row] else [])]
        if not going.any():
            break
    envs.close()
    return _speech(said, float(np.mean(understood)))


def speech_about(agent: Any, dialogues: Sequence[Dialogue]) -> Speech:
    """Let an agent that generates text answer the messages of the user in conversations from a file."""
    asked = [
        [one["content"] for one, after in itertools.pairwise(messages)
         if (one["role"], after["role"]) == ("user", "assistant") and one["content"]][:TURNS]
        for messages in dialogues[:CONVERSATIONS]
    ]  # fmt: skip
    asked = [texts for texts in asked if texts]
    agent.begin(np.arange(len(asked), dtype=np.uint64))
    said: list[list[dict[str, str]]] = [[] for _ in asked]
    for turn in range(max(map(len, asked), default=0)):
        heard = [texts[turn] if turn < len(texts) else "" for texts in asked]
        for one, text, reply in zip(said, heard, agent.act(heard), strict=True):
            one += [_partner(text), _reply(reply)] if text else []
    return _speech(said, None)


def _speech(said: Sequence[list[dict[str, str]]], understood: float | None) -> Speech:
    """Return what is measured of conversations, given as messages."""
    replies = [message["content"] for one in said for message in one if message["role"] == "assistant"]
    share = sum(map(degenerate, replies)) / max(len(replies), 1)
    return Speech(len(replies), share, understood, said[0] if said else [])


def _partner(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
