"""A model's tokenizer, without loading the model or the transformers library."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatgym.engines.marks import CHATML, Marks
from chatgym.errors import InvalidValue
from chatgym.storage import model_store
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json

END = CHATML[1]
"""The text that ends a turn in ChatML."""


class ChatTokenizer:
    """A model's tokenizer, and its token that ends a turn of a chat.

    Attributes:
        name: Its name, as in ``tokenizer=...``.
        sha256: SHA-256 of its file.
        size: Number of token ids.
        end: Id of the token that ends a turn.
    """

    def __init__(self, name: str) -> None:
        """Load ``tokenizer.json`` of a stored model, or of a folder ("hf:" may stand before it).

        Raises:
            InvalidValue: There is no such file, or it can't be read.
            Unavailable: A stored model isn't here and can't be fetched.
        """
        from tokenizers import Tokenizer

        folder = model_store.path(name) if name in model_store.MODELS else given(name.removeprefix("hf:"))
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InvalidValue(
                f"there is no {file} for tokenizer {name!r}; name one of {', '.join(model_store.MODELS)}, or a folder"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library's own, which is a bare Exception
            raise InvalidValue(f"{file} can't be read ({error}); save it with `tokenizer.save_pretrained`") from error
        self._tokenizer.no_truncation()
        self._marks = Marks(self._tokenizer, frame=CHATML)
        self.name, self.sha256 = name, model_store.sha256(file)
        self.size = int(self._tokenizer.get_vocab_size())
        self.end = self._end(folder)

    def encode(self, text: str) -> list[int]:
        """Return a text's token ids, without added special tokens; the texts of special tokens become these tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def words(self, text: str) -> list[int]:
        """Return the token ids of what somebody said: no turn mark or other special token, whatever the words are."""
        return self._marks.encode(self._marks.shield(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _end(self, folder: Path) -> int:
        """Return the id of the token that ends a turn: `END`, else the end-of-text token of the configuration."""
        known = self._tokenizer.token_to_id(END)
        if known is not None:
            return int(known)
        for name in ("generation_config.json", "config.json"):
            path = folder / name
            found: Any = read_json(path).get("eos_token_id") if path.is_file() else None
            if found is not None:
                return int(found[0] if isinstance(found, list) else found)
        raise InvalidValue(
            f"the tokenizer in {folder} names no token that ends a turn; set eos_token_id in its config.json"
        )


@functools.cache
def tokenizer_of(name: str) -> ChatTokenizer:
    """Return a tokenizer by name, loaded once a process."""
    return ChatTokenizer(name)
