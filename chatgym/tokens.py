"""Token ids of conversations: a tokenizer, and what was said so far as a growing list of ids.

An utterance is encoded once, when it is said; what an agent says token by token is kept as the tokens that it chose.
The ids are ChatML: the partner is the ``user``, the agent the ``assistant``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from chatgym import store
from chatgym.errors import InvalidValue

CONTEXT = 512
"""Tokens of an observation: the last ones of the conversation."""

END = "<|im_end|>"


class ChatTokenizer:
    """A model's tokenizer, and how it writes a conversation.

    Attributes:
        name: As in ``tokenizer=...``.
        sha256: Of its file.
        size: Number of token ids.
        end: The id that ends a turn.
    """

    def __init__(self, name: str) -> None:
        """Load ``tokenizer.json`` of a stored model, or of a folder ("hf:" may stand before it).

        Raises:
            InvalidValue: When there is no such file, or it can't be read.
            Unavailable: When a stored model isn't here and can't be fetched.
        """
        from tokenizers import Tokenizer

        folder = store.path(name) if name in store.MODELS else Path(name.removeprefix("hf:")).expanduser()
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InvalidValue(
                f"there is no {file} for tokenizer {name!r}; name one of {', '.join(store.MODELS)}, or a folder"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library's own, which is a bare Exception
            raise InvalidValue(f"{file} can't be read ({error}); save it with `tokenizer.save_pretrained`") from error
        self._tokenizer.no_truncation()
        self.name, self.sha256 = name, store.sha256(file)
        self.size = int(self._tokenizer.get_vocab_size())
        self.end = self._end(folder)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without anything added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _end(self, folder: Path) -> int:
        known = self._tokenizer.token_to_id(END)
        if known is not None:
            return int(known)
        for name in ("generation_config.json", "config.json"):
            path = folder / name
            found: Any = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
            if found is not None:
                return int(found[0] if isinstance(found, list) else found)
        raise InvalidValue(f"the tokenizer in {folder} names no token that ends a turn (eos_token_id)")


@functools.cache
def tokenizer_of(name: str) -> ChatTokenizer:
    """Return the process's tokenizer of a name."""
    return ChatTokenizer(name)


def token_space(tokenizer: ChatTokenizer) -> spaces.Dict:
    """Return the space of token observations: the last `CONTEXT` ids, padded on the left, and which are there."""
    return spaces.Dict(
        {
            "ids": spaces.Box(0, tokenizer.size - 1, (CONTEXT,), np.int64),
            "mask": spaces.Box(0, 1, (CONTEXT,), np.int8),
        }
    )


class TokenHistory:
    """What was said in B conversations, as ids; each ends where the agent's next turn begins."""

    def __init__(self, size: int, tokenizer: ChatTokenizer) -> None:
        """Begin with B conversations in which nothing was said."""
        self.tokenizer = tokenizer
        self.ids: list[list[int]] = [[] for _ in range(size)]
        self._user, self._assistant = (tokenizer.encode(f"<|im_start|>{role}\n") for role in ("user", "assistant"))
        self._close = [tokenizer.end, *tokenizer.encode("\n")]

    def begin(self, row: int, partner: str) -> None:
        """Begin a conversation that the partner opens."""
        self.ids[row] = []
        self.hear(row, partner)

    def say(self, row: int, agent: str | Sequence[int]) -> None:
        """Append what the agent says: a text, or the tokens that it chose, without the one that ends its turn."""
        self.ids[row] += self.tokenizer.encode(agent) if isinstance(agent, str) else agent

    def hear(self, row: int, partner: str) -> None:
        """End the agent's turn, if it had one, and append what the partner says."""
        ids = self.ids[row]
        if ids:
            ids += self._close
        ids += [*self._user, *self.tokenizer.encode(partner), *self._close, *self._assistant]

    def observe(self) -> dict[str, npt.NDArray[Any]]:
        """Return ``ids`` int64[B, `CONTEXT`] and ``mask`` int8[B, `CONTEXT`], padded on the left with 0."""
        ids = np.zeros((len(self.ids), CONTEXT), np.int64)
        mask = np.zeros((len(self.ids), CONTEXT), np.int8)
        for i, row in enumerate(self.ids):
            last = row[-CONTEXT:]
            ids[i, CONTEXT - len(last) :] = last
            mask[i, CONTEXT - len(last) :] = 1
        return {"ids": ids, "mask": mask}
