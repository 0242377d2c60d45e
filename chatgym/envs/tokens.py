"""Token observations: the words of B conversations as growing lists of token ids.

An utterance is encoded once, when it is said, without special tokens: nobody can end a turn by its words. An agent's
tokens are kept as it chose them, so that it can learn from them: only there a special token can stand that no turn
made. The format is ChatML: the partner is the ``user``, the agent the ``assistant``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.state import decode_rows, encode_rows

CONTEXT = 512
"""Tokens of an observation: the last ones of the conversation."""


def token_space(tokenizer: ChatTokenizer) -> spaces.Dict:
    """Return the space of token observations: ``ids`` int64[512], padded on the left, and ``mask`` int8[512]."""
    return spaces.Dict(
        {
            "ids": spaces.Box(0, tokenizer.size - 1, (CONTEXT,), np.int64),
            "mask": spaces.Box(0, 1, (CONTEXT,), np.int8),
        }
    )


class TokenHistory:
    """The words of B conversations as ids; each list ends where the agent's next turn begins."""

    def __init__(self, size: int, tokenizer: ChatTokenizer) -> None:
        """Make B empty lists."""
        self.tokenizer = tokenizer
        self.ids: list[list[int]] = [[] for _ in range(size)]
        self._user, self._assistant = (tokenizer.encode(f"<|im_start|>{role}\n") for role in ("user", "assistant"))
        self._close = [tokenizer.end, *tokenizer.encode("\n")]

    def begin(self, row: int, partner: str) -> None:
        """Begin a conversation with the partner's utterance."""
        self.ids[row] = []
        self.step(row, partner)

    def say(self, row: int, agent: str | Sequence[int]) -> None:
        """Append the agent's utterance: a text, or tokens without the end token."""
        self.ids[row] += self.tokenizer.words(agent) if isinstance(agent, str) else agent

    def step(self, row: int, partner: str) -> None:
        """End the agent's turn, if there is one, and append the partner's utterance."""
        ids = self.ids[row]
        if ids:
            ids += self._close
        ids += [*self._user, *self.tokenizer.words(partner), *self._close, *self._assistant]

    def observe(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``ids`` int64[B, `CONTEXT`] and ``mask`` int8[B, `CONTEXT`], padded on the left with 0."""
        ids = np.zeros((len(self.ids), CONTEXT), np.int64)
        mask = np.zeros((len(self.ids), CONTEXT), np.int8)
        for i, row in enumerate(self.ids):
            last = row[-CONTEXT:]
            ids[i, CONTEXT - len(last) :] = last
            mask[i, CONTEXT - len(last) :] = 1
        return {"ids": ids, "mask": mask}

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``ids``, str[B]: the ids of each conversation as JSON."""
        return {"ids": encode_rows(self.ids)}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore the ids that `dump` returned, str[B]."""
        self.ids = decode_rows(state["ids"])
