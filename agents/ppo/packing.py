"""Conversations side by side as one batch of token ids; what several of them begin with is there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from .rollout import Conversation

WORTH = 0.1
"""Share of the tokens that must be saved by sharing: it needs a mask, which costs the fastest way of attention."""


@dataclass(frozen=True, eq=False)
class Packed:
    """B conversations in R rows; N is the number of tokens that their agents sampled.

    Attributes:
        ids: int64[R, T], padded on the right.
        before: int64[2, N], row and column of the token that stands before each sampled one, in the order of the
            conversations.
        last: int64[2, B], row and column of each conversation's last token.
        mask: bool[R, 1, T, T], which tokens each one attends to; None: all those before it in its row.
        positions: int64[R, T], a token's place in its conversation; None: its column.
    """

    ids: torch.Tensor
    before: torch.Tensor
    last: torch.Tensor
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def to(self, device: torch.device) -> Packed:
        """Return it on a device."""
        tensors = (self.ids, self.before, self.last, self.mask, self.positions)
        return Packed(*(None if one is None else one.to(device) for one in tensors))  # type: ignore[arg-type]


def pack(conversations: Sequence[Conversation]) -> Packed:
    """Put conversations into rows, those that begin alike into one where that is worth it."""
    heads = [tuple(one.ids[: one.places[0]]) for one in conversations]
    total = sum(len(one.ids) for one in conversations)
    saved = sum(map(len, heads)) - sum(map(len, set(heads)))
    if saved < WORTH * total:
        return _plain(conversations)
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, head in enumerate(heads):
        rows.setdefault(head, []).append(i)
    return _shared(conversations, rows)


def _plain(conversations: Sequence[Conversation]) -> Packed:
    ids = np.zeros((len(conversations), max(len(one.ids) for one in conversations)), np.int64)
    for row, one in zip(ids, conversations, strict=True):
        row[: len(one.ids)] = one.ids
    rows = np.concatenate([np.full(len(one.places), i) for i, one in enumerate(conversations)])
    columns = np.concatenate([one.places for one in conversations]) - 1
    ends = np.array([len(one.ids) - 1 for one in conversations])
    last = np.stack([np.arange(len(conversations)), ends])
    return Packed(*(torch.from_numpy(array) for array in (ids, np.stack([rows, columns]), last)))


def _shared(conversations: Sequence[Conversation], rows: dict[tuple[int, ...], list[int]]) -> Packed:
    """Let each row be what its conversations begin with, and then what each goes on with, which see no other."""
    lengths = [
        len(head) + sum(len(conversations[i].ids) - len(head) for i in members) for head, members in rows.items()
    ]
    size = len(rows), max(lengths)
    ids, positions = np.zeros((2, *size), np.int64)
    branch = np.full(size, -1)  # 0: what all begin with, k: what the k-th goes on with, -1: padding
    before = [np.zeros((2, 0), np.int64)] * len(conversations)
    last = np.zeros((2, len(conversations)), np.int64)
    for row, (head, members) in enumerate(rows.items()):
        at = shared = len(head)
        ids[row, :at], positions[row, :at], branch[row, :at] = head, np.arange(at), 0
        for number, i in enumerate(members, 1):
            tail = conversations[i].ids[shared:]
            span = slice(at, at + len(tail))
            ids[row, span], positions[row, span], branch[row, span] = tail, shared + np.arange(len(tail)), number
            columns = at + conversations[i].places - shared - 1
            columns[conversations[i].places == shared] = shared - 1
            before[i] = np.stack([np.full(len(columns), row), columns])
            at += len(tail)
            last[:, i] = row, at - 1
    same = branch[:, :, None] == branch[:, None, :]
    sees = (same | (branch[:, None, :] == 0)) & np.tri(size[1], dtype=bool)
    arrays = ids, np.concatenate(before, 1), last, sees[:, None], positions
    return Packed(*(torch.from_numpy(array) for array in arrays))
