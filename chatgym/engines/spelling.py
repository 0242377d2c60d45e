"""The bytes that tokens stand for, and where tokens begin in a text.

A token may be a part of a character, or begin with a space that decoding it alone would drop.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_level() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Spelling(dict[int, bytes]):
    """The bytes of each token of a tokenizer, by its id; empty for an id that is no token.

    Byte-level vocabularies, and those that write spaces as "▁" and single bytes as ``<0xF0>``, are read exactly; for
    tokenizers of other kinds a token's bytes are those of its text when it is decoded alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Read how a tokenizer of the transformers library writes bytes in its vocabulary."""
        super().__init__()
        self._tokenizer = tokenizer
        self._added = {token: one.content for token, one in tokenizer.added_tokens_decoder.items()}
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        steps = list(_steps(json.loads(decoder.__getstate__()))) if decoder is not None else []
        kinds = {step["type"] for step in steps}
        self._bytes = _byte_level() if "ByteLevel" in kinds else {}
        self._space = next(
            (step.get("replacement") or step["pattern"].get("String", "") for step in steps
             if step["type"] == "Metaspace" or (step["type"] == "Replace" and step["content"] == " ")),
            "",
        )  # fmt: skip
        self.exact = bool(self._bytes or self._space or "ByteFallback" in kinds)

    def __missing__(self, token: int) -> bytes:
        found = self._read(token)
        self[token] = found
        return found

    def _read(self, token: int) -> bytes:
        """Return the bytes of a token."""
        if token in self._added:
            return str(self._added[token]).encode()
        written: str | None = self._tokenizer.convert_ids_to_tokens(token) if self.exact else None
        if not self.exact:
            return str(self._tokenizer.decode([token])).encode()
        if written is None:  # the model has more logits than the tokenizer has tokens
            return b""
        if self._bytes and self._bytes.keys() >= set(written):  # else the decoder takes it as it is, too
            return bytes(self._bytes[c] for c in written)
        if byte := _BYTE.fullmatch(written):
            return bytes([int(byte[1], 16)])
        return (written.replace(self._space, " ") if self._space else written).encode()

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, as it stands after other text: with the space that it begins with."""
        if not self.exact:
            return str(self._tokenizer.decode(tokens))
        return b"".join(map(self.__getitem__, tokens)).decode("utf-8", "replace")

    def begins(self, tokens: Sequence[int], text: str | None = None) -> list[int]:
        """Return the index of the character at which each token begins, or that it is a part of.

        Args:
            tokens: N token ids.
            text: The text that the tokens were made from; `text(tokens)` when None.
        """
        pieces = [self[token] for token in tokens]
        if text is not None:
            pieces = list(self._aligned(tokens, text.encode("utf-8", "replace")))
        decoder, at, found = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
        for piece in pieces:
            found.append(at)
            at += len(decoder.decode(piece))
        return found if text is None else [min(begin, len(text)) for begin in found]

    def _aligned(self, tokens: Sequence[int], data: bytes) -> Iterator[bytes]:
        """Yield the bytes of each token that stand in a text: none of a token or space that the tokenizer added."""
        at = 0
        for token in tokens:
            piece = self[token]
            if not data.startswith(piece, at):
                if piece[:1] == b" " and data.startswith(piece[1:], at):
                    piece = piece[1:]
                elif token in self._added:
                    piece = b""
            yield piece
            at += len(piece)


def _steps(state: Any) -> Iterator[Any]:
    """Yield the steps of a decoder of the tokenizers library, given as its state."""
    if state["type"] == "Sequence":
        for one in state["decoders"]:
            yield from _steps(one)
    else:
        yield state
