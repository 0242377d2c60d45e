"""Conversations as growing lists of token ids, and a model that takes its turns in them.

The tokens that were sampled are the ones that stay in the list; text is made from it, and it is never made from text
again. A conversation's keys and values are kept from turn to turn: what was read once is not read again.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chatgym.engines.columns import Columns, new_cache
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.tokens import TokenHistory
from chatgym.errors import InvalidValue

from .policy import Policy
from .sampling import Sampling, Supports


@dataclass(eq=False)
class Turn:
    """What the model said in a turn.

    Attributes:
        start: Where its first token stands in the conversation's ids.
        tokens: Those sampled, the one that ended the turn included.
        logprobs: Of the tokens, under what they were sampled from.
        values: Of the states that they were sampled in.
        supports: For each token what might have been sampled, where not all might.
    """

    start: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    supports: list[Supports] = field(default_factory=list)


@dataclass(eq=False)
class _Part:
    """Conversations side by side in one cache.

    Attributes:
        rows: Their numbers.
        cache: Keys and values of T columns.
        mask: int64[b, T], 0 where nothing stands.
    """

    rows: npt.NDArray[np.int64]
    cache: Any
    mask: torch.Tensor

    def select(self, keep: npt.NDArray[np.int64]) -> _Part:
        """Return a part with some of its conversations."""
        at = torch.from_numpy(keep).to(self.mask.device)
        cache = new_cache_like(self.cache)
        for mine, layer in zip(cache.layers, self.cache.layers, strict=True):
            mine.take(layer, at)
        return _Part(self.rows[keep], cache, self.mask[at])


class Turns(abc.ABC):
    """B conversations between a partner and a model that takes its turns in them.

    Attributes:
        history: Their ids.
        max_new_tokens: Most tokens of a turn.
    """

    def __init__(self, tokenizer: ChatTokenizer, size: int, max_new_tokens: int) -> None:
        """Begin with B conversations in which nothing was said."""
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        self.history = TokenHistory(size, tokenizer)

    def hear(self, row: int, text: str) -> None:
        """Append what the partner says."""
        if self.history.ids[row]:
            self.history.hear(row, text)
        else:
            self.history.begin(row, text)

    def note(self, row: int, turn: Turn) -> None:
        """Append what the model says."""
        ended = turn.tokens[-1] == self.tokenizer.end
        self.history.say(row, turn.tokens[:-1] if ended else turn.tokens)

    def text(self, turn: Turn) -> str:
        """Return the words of a turn."""
        return self.tokenizer.decode([token for token in turn.tokens if token != self.tokenizer.end])

    @abc.abstractmethod
    def speak(self, rows: Sequence[int], seeds: npt.NDArray[np.uint64]) -> list[Turn]:
        """Take a turn in some conversations; those left out can't be gone on with.

        Args:
            rows: n of them.
            seeds: uint64[n]; a token is a function of (seed, position), so it doesn't depend on the other rows.

        Returns:
            n turns.
        """

    @abc.abstractmethod
    def peek(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the values of the states that some conversations are in, float32[n]; all can be gone on with."""


class OwnTurns(Turns):
    """B conversations in which a model of this process takes its turns."""

    def __init__(
        self, policy: Policy, tokenizer: ChatTokenizer, size: int, sampling: Sampling, max_new_tokens: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        """Begin with B conversations in which nothing was said.

        Raises:
            InvalidValue: The model's layers forget positions (sliding windows, recurrent ones), so that a
                conversation can't be kept in them.
        """
        super().__init__(tokenizer, size, max_new_tokens)
        self.policy, self.sampling, self._device = policy, sampling, device
        self._cached = np.zeros(size, np.int64)  # how many ids of each are in the cache
        self._part = self._empty()
        if not all(isinstance(layer, Columns) for layer in self._part.cache.layers):
            raise InvalidValue("this model's layers forget positions; choose one with full attention in every layer")

    @torch.no_grad()
    def speak(self, rows: Sequence[int], seeds: npt.NDArray[np.uint64]) -> list[Turn]:
        """See `Turns.speak`."""
        hidden = self._read(rows)
        turns = [Turn(len(self.history.ids[row])) for row in rows]
        parked, live = [], np.ones(len(rows), bool)
        part, order = self._part, np.arange(len(rows))  # order: which of the turns each row of the part is
        for position in range(self.max_new_tokens):
            tokens, logprobs, supports = self.sampling.draw(self.policy.logits(hidden), seeds[order], position)
            values = self._values(hidden)
            for at in np.flatnonzero(live).tolist():
                turn = turns[order[at]]
                turn.tokens.append(int(tokens[at]))
                turn.logprobs.append(float(logprobs[at]))
                turn.values.append(float(values[at]))
                if supports is not None:
                    turn.supports.append(supports[at])
            live &= tokens != self.tokenizer.end
            if not live.any() or position == self.max_new_tokens - 1:
                break
            if live.sum() <= len(live) // 2:  # the others needn't be computed any more
                going, done = np.flatnonzero(live), np.flatnonzero(~live)
                parked.append(part.select(done))
                part, tokens, order, live = part.select(going), tokens[going], order[going], live[going]
            more = torch.from_numpy(live.astype(np.int64)).to(part.mask)
            part.mask = torch.cat([part.mask, more[:, None]], 1)
            hidden = self.policy.read(torch.from_numpy(tokens)[:, None].to(self._device), part.mask, part.cache)
        self._part = merged([*parked, part])
        for row, turn in zip(rows, turns, strict=True):
            self._cached[row] += len(turn.tokens) - 1
            self.note(row, turn)
        return turns

    @torch.no_grad()
    def peek(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `Turns.peek`."""
        if not self.policy.values_tokens:
            return np.zeros(len(rows), np.float32)
        part, cached = self._part, self._cached.copy()
        self._part = part.select(np.flatnonzero(np.isin(part.rows, rows)))
        values = self._values(self._read(rows))
        self._part, self._cached = part, cached
        return values

    def fits(self, row: int) -> bool:
        """Tell whether a conversation leaves room for a turn in the model's context."""
        context: int = self.policy.causal.config.max_position_embeddings
        return len(self.history.ids[row]) + self.max_new_tokens <= context

    def forget(self) -> None:
        """Let go of keys and values; all will be read again."""
        self._part = self._empty()

    def _values(self, hidden: torch.Tensor) -> npt.NDArray[np.float32]:
        if not self.policy.values_tokens:
            return np.zeros(len(hidden), np.float32)
        values: npt.NDArray[np.float32] = self.policy.values(hidden).cpu().numpy()
        return values

    def _read(self, rows: Sequence[int]) -> torch.Tensor:
        """Read what was said since the last turn; returns the hidden states that the next tokens follow from."""
        places = {row: at for at, row in enumerate(self._part.rows.tolist())}
        if all(row in places for row in rows):
            if list(places) != list(rows):
                self._part = self._part.select(np.array([places[row] for row in rows]))
        else:
            self._part = self._empty(rows)
            self._cached[list(rows)] = 0
        new = [tuple(self.history.ids[row][self._cached[row] :]) for row in rows]
        begun = self._part.mask.shape[1] > 0
        distinct = new if begun else list(dict.fromkeys(new))  # who begins alike is read once
        longest = max(map(len, distinct))
        ids, mask = np.zeros((2, len(distinct), longest), np.int64)
        for i, tokens in enumerate(distinct):
            ids[i, longest - len(tokens) :] = tokens
            mask[i, longest - len(tokens) :] = 1
        part = self._part
        before = part.mask if begun else part.mask[: len(distinct)]
        part.mask = torch.cat([before, torch.from_numpy(mask).to(self._device)], 1)
        self._cached[list(rows)] = [len(self.history.ids[row]) for row in rows]
        hidden = self.policy.read(torch.from_numpy(ids).to(self._device), part.mask, part.cache)
        if len(distinct) == len(new):
            return hidden
        places = {tokens: i for i, tokens in enumerate(distinct)}
        copies = np.array([places[tokens] for tokens in new])
        self._part = part.select(copies)
        self._part.rows = np.array(rows, np.int64)
        return hidden[torch.from_numpy(copies).to(self._device)]

    def _empty(self, rows: Sequence[int] = ()) -> _Part:
        mask = torch.zeros(len(rows), 0, dtype=torch.long, device=self._device)
        return _Part(np.array(rows, np.int64), new_cache(self.policy.causal.config), mask)


def new_cache_like(cache: Any) -> Any:
    """Return a cache of as many layers, without rows."""
    from transformers import DynamicCache

    made = DynamicCache()
    made.layers = [Columns() for _ in cache.layers]
    return made


def merged(parts: Sequence[_Part]) -> _Part:
    """Put parts into one, without columns in which nothing stands but for padding on the left."""
    longest = max(int(part.mask.sum(1).max()) for part in parts)
    for part in parts:
        order = part.mask.argsort(dim=1, stable=True)[:, -longest:]  # what stands there goes to the right
        part.mask = part.mask.gather(1, order)
        for layer in part.cache.layers:
            layer.gather(order)
    first = parts[0]
    for part in parts[1:]:
        for mine, other in zip(first.cache.layers, part.cache.layers, strict=True):
            mine.append(other, longest)
    rows = np.concatenate([part.rows for part in parts])
    padded = [torch.nn.functional.pad(part.mask, (longest - part.mask.shape[1], 0)) for part in parts]
    return _Part(rows, first.cache, torch.cat(padded))
