"""Packing: several conversations in each row of token ids, none of which attends to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.errors import InvalidValue
from chatgym.finetuning.dialogues import Dialogue


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows of T tokens.

    Attributes:
        ids: int32[N, T], token ids; padding is 0.
        learned: bool[N, T], which tokens are learned: the assistant's words and the ends of its turns.
        documents: int32[N, T], the number in its row of a token's conversation; -1 for padding.
        positions: int32[N, T], a token's position in its conversation.
        cut: Number of conversations that were longer than a row and lost their end.
    """

    ids: npt.NDArray[np.int32]
    learned: npt.NDArray[np.bool_]
    documents: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    cut: int

    def __len__(self) -> int:
        return len(self.ids)


def encode(dialogue: Dialogue, tokenizer: ChatTokenizer) -> tuple[list[int], list[bool]]:
    """Return a conversation's token ids in ChatML, and which of them are learned.

    The ids are those of ``observation="token"`` for the same conversation (`chatgym.envs.tokens`), so a model that was
    fine-tuned on files sees the same form in the environment.
    """
    ids: list[int] = []
    learned: list[bool] = []
    after = tokenizer.encode("\n")
    for message in dialogue:
        head = tokenizer.encode(f"<|im_start|>{message['role']}\n")
        body = [*tokenizer.words(message["content"]), tokenizer.end]
        ids += [*head, *body, *after]
        learned += [False] * len(head) + [message["role"] == "assistant"] * len(body) + [False] * len(after)
    return ids, learned


def pack(dialogues: Sequence[Dialogue], tokenizer: ChatTokenizer, length: int) -> Rows:
    """Pack conversations into as few rows as first-fit decreasing needs.

    Args:
        dialogues: Conversations, in any order.
        tokenizer: The model's tokenizer.
        length: T, tokens of a row.

    Raises:
        InvalidValue: The rows are too short for any word of the assistant.
    """
    encoded = [encode(dialogue, tokenizer) for dialogue in dialogues]
    cut = sum(len(ids) > length for ids, _ in encoded)
    encoded = [(ids[:length], learned[:length]) for ids, learned in encoded]
    kept = [one for one in encoded if any(one[1][1:])]
    if not kept:
        raise InvalidValue(f"no conversation has words of the assistant in its first {length} tokens; raise --length")
    kept.sort(key=lambda one: -len(one[0]))  # stable: equal ones stay in their order
    room: list[int] = []  # tokens left in each row
    placed: list[list[tuple[list[int], list[bool]]]] = []
    for one in kept:
        need = len(one[0])
        row = next((i for i, left in enumerate(room) if left >= need), len(room))
        if row == len(room):
            room.append(length)
            placed.append([])
        room[row] -= need
        placed[row].append(one)
    ids, positions = np.zeros((2, len(placed), length), np.int32)
    learned, documents = np.zeros(ids.shape, bool), np.full(ids.shape, -1, np.int32)
    for row, ones in enumerate(placed):
        at = 0
        for document, (tokens, marks) in enumerate(ones):
            span = slice(at, at + len(tokens))
            ids[row, span], learned[row, span], documents[row, span] = tokens, marks, document
            learned[row, at] = False  # nothing stands before it
            positions[row, span] = np.arange(len(tokens))
            at += len(tokens)
        positions[row, at:] = np.arange(length - at)
    return Rows(ids, learned, documents, positions, cut)
