"""Generation of whole turns in B conversations: by a model of this process with a kept cache, or by a server.

A conversation is a growing list of token ids. The tokens that were sampled stay in it as they are; text is decoded from
them and is never encoded again. The cache keeps the keys and values of all that was read from one turn to the next.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from chatgym.dynamics import rng
from chatgym.engines.columns import Columns, new_cache
from chatgym.engines.openai import OpenAIEngine
from chatgym.engines.sampling import choose, nucleus
from chatgym.engines.spoken import without_thoughts
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.tokens import TokenHistory
from chatgym.errors import InvalidValue
from chatgym.words.charset import MAX_CHARS, clean

from .config import Config
from .policy import Policy

Supports = npt.NDArray[np.uint8]
"""uint8[N, ceil(V / 8)]: which tokens top-k and top-p left to sample from, one bit each."""
SPEECH = rng.PURPOSES - 4
"""Purpose of the draw that seeds an agent's turn."""


def speech_seeds(
    keys: npt.NDArray[np.uint64], turns: npt.NDArray[np.int64], salt: Sequence[int]
) -> npt.NDArray[np.uint64]:
    """Return the seeds of the agents' next turns, uint64[B].

    Args:
        keys: uint64[B], of the conversations.
        turns: int64[B], how many turns each agent has taken.
        salt: B numbers that tell conversations with the same key apart.
    """
    found = zip(keys.tolist(), turns.tolist(), salt, strict=True)
    return np.array([rng.bits(rng.bits(key, turn, SPEECH), other, SPEECH) for key, turn, other in found], np.uint64)


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled; `equations.log_probabilities` is the same distribution when they are learned from.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: Sample among the most likely tokens that together have this probability.
        top_k: Sample among this many of the most likely tokens; 0: all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, config: Config) -> Sampling:
        """Return the sampling of an agent's settings."""
        return cls(config.temperature, config.top_p, config.top_k)

    def draw(
        self, logits: torch.Tensor, seeds: npt.NDArray[np.uint64], position: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], Supports | None]:
        """Draw a token for each row.

        Args:
            logits: float32[B, V].
            seeds: uint64[B]; the token is a function of (seed, position).
            position: Of the token in its turn.

        Returns:
            Tokens int64[B], their log-probabilities float32[B], and `Supports` uint8[B, ceil(V / 8)], or None where all
            tokens could be sampled.
        """
        size, supports = len(logits), None
        if self.temperature > 0:
            logits = logits / self.temperature
            if self.top_p < 1 or self.top_k > 0:
                kept = self._kept(logits)
                supports = np.packbits(kept.cpu().numpy(), axis=1)
                logits = logits.masked_fill(~kept, -torch.inf)
        ones = np.ones(size)
        tokens, logprobs = choose(
            logits, seeds=seeds, positions=np.full(size, position), temperatures=ones * (self.temperature > 0),
            top_ps=ones,
        )  # fmt: skip
        return tokens.cpu().numpy(), logprobs.cpu().numpy(), supports

    def _kept(self, logits: torch.Tensor) -> torch.Tensor:
        """Return which tokens may be sampled, bool[B, V], by logits float32[B, V]: top-k, then top-p of the rest."""
        if 0 < self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return nucleus(logits.softmax(-1), self.top_p)


@dataclass(eq=False)
class Turn:
    """One turn of the model: n sampled tokens.

    Attributes:
        start: Index of its first token in the conversation's ids.
        tokens: n ids, including the one that ended the turn.
        logprobs: n numbers, log-probabilities in the distribution that the tokens were sampled from.
        values: n numbers, values of the states that they were sampled in; 0 where the policy computes none.
        supports: n arrays uint8[ceil(V / 8)], see `Supports`; empty where all tokens could be sampled.
    """

    start: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    supports: list[Supports] = field(default_factory=list)


@dataclass(eq=False)
class _Part:
    """The cache of b of the conversations.

    Attributes:
        rows: int64[b], which conversations.
        cache: Keys and values of T columns.
        mask: int64[b, T], 0 for padding.
    """

    rows: npt.NDArray[np.int64]
    cache: Any
    mask: torch.Tensor

    def select(self, keep: npt.NDArray[np.int64]) -> _Part:
        """Return the cache of some of its rows, int64[k]."""
        at = torch.from_numpy(keep).to(self.mask.device)
        cache = DynamicCache()
        cache.layers = [Columns() for _ in self.cache.layers]
        for mine, layer in zip(cache.layers, self.cache.layers, strict=True):
            mine.take(layer, at)
        return _Part(self.rows[keep], cache, self.mask[at])


class Turns(abc.ABC):
    """B conversations between a partner and a model that takes the agent's turns.

    Attributes:
        history: The token ids of the conversations.
        max_new_tokens: Most tokens of a turn.
    """

    def __init__(self, tokenizer: ChatTokenizer, size: int, max_new_tokens: int) -> None:
        """Begin with B empty conversations."""
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        self.history = TokenHistory(size, tokenizer)

    def hear(self, row: int, text: str) -> None:
        """Append the partner's words to a conversation."""
        if self.history.ids[row]:
            self.history.step(row, text)
        else:
            self.history.begin(row, text)

    def note(self, row: int, turn: Turn) -> None:
        """Append a turn of the model to a conversation."""
        ended = turn.tokens[-1] == self.tokenizer.end
        self.history.say(row, turn.tokens[:-1] if ended else turn.tokens)

    def text(self, turn: Turn) -> str:
        """Return the words of a turn as an environment takes them, without the model's thoughts."""
        written = self.tokenizer.decode([token for token in turn.tokens if token != self.tokenizer.end])
        return clean(without_thoughts(written)[0])[:MAX_CHARS]

    @abc.abstractmethod
    def speak(self, rows: Sequence[int], seeds: npt.NDArray[np.uint64]) -> list[Turn]:
        """Take a turn in some conversations; the cache forgets the others.

        Args:
            rows: Their n numbers.
            seeds: uint64[n]; a token is a function of (seed, position), so it doesn't depend on the other rows.

        Returns:
            n turns.
        """

    @abc.abstractmethod
    def peek(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the values float32[n] of the present states of n conversations, and change nothing."""


class OwnTurns(Turns):
    """B conversations in which a policy of this process takes the agent's turns."""

    def __init__(self, policy: Policy, tokenizer: ChatTokenizer, size: int, *, greedy: bool = False) -> None:
        """Begin with B empty conversations; `greedy` takes the most likely tokens instead of sampling.

        Raises:
            InvalidValue: The model has layers that forget positions (sliding windows, recurrent layers), which can't
                keep a conversation.
        """
        super().__init__(tokenizer, size, policy.settings.max_new_tokens)
        self.policy, self._device = policy, next(policy.parameters()).device
        self.sampling = Sampling(0.0) if greedy else Sampling.of(policy.settings)
        self._cached = np.zeros(size, np.int64)  # int64[B], how many ids of each are in the cache
        self._part = self._empty()
        if not all(isinstance(layer, Columns) for layer in self._part.cache.layers):
            raise InvalidValue("this model's layers forget positions; choose one with full attention in every layer")

    @torch.no_grad()
    def speak(self, rows: Sequence[int], seeds: npt.NDArray[np.uint64]) -> list[Turn]:
        """See `Turns.speak`."""
        hidden = self._read(rows)
        turns = [Turn(len(self.history.ids[row])) for row in rows]
        parked, live = [], np.ones(len(rows), bool)
        part, order = self._part, np.arange(len(rows))  # order: int64[b], the turn that each row of the part is
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
        self._part = _merged([*parked, part])
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
        """Return whether the model's context has room for another turn of a conversation."""
        context: int = self.policy.causal.config.max_position_embeddings
        return len(self.history.ids[row]) + self.max_new_tokens <= context

    def forget(self) -> None:
        """Free the cache; all conversations will be read again."""
        self._part = self._empty()

    def _values(self, hidden: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return the values float32[n] of hidden states float[n, H]; zeros where the policy computes none."""
        if not self.policy.values_tokens:
            return np.zeros(len(hidden), np.float32)
        return self.policy.values(hidden).cpu().numpy()

    def _read(self, rows: Sequence[int]) -> torch.Tensor:
        """Read what n conversations have new since the last turn; return their last hidden states, float[n, H]."""
        places = {row: at for at, row in enumerate(self._part.rows.tolist())}
        if all(row in places for row in rows):
            if list(places) != list(rows):
                self._part = self._part.select(np.array([places[row] for row in rows]))
        else:
            self._part = self._empty(rows)
            self._cached[list(rows)] = 0
        new = [tuple(self.history.ids[row][self._cached[row] :]) for row in rows]
        begun = self._part.mask.shape[1] > 0
        distinct = new if begun else list(dict.fromkeys(new))  # the same beginning is read once
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
        """Return a cache of some rows without columns."""
        mask = torch.zeros(len(rows), 0, dtype=torch.long, device=self._device)
        return _Part(np.array(rows, np.int64), new_cache(self.policy.causal.config), mask)


def _merged(parts: Sequence[_Part]) -> _Part:
    """Put parts into one, and remove the padding between tokens: all of it goes to the left."""
    longest = max(int(part.mask.sum(1).max()) for part in parts)
    for part in parts:
        order = part.mask.argsort(dim=1, stable=True)[:, -longest:]  # int64[b, T'], tokens go to the right
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


class ServedTurns(Turns):
    """B conversations in which a server's model takes the agent's turns; caching prefixes is left to the server."""

    def __init__(
        self, engine: OpenAIEngine, tokenizer: ChatTokenizer, size: int, temperature: float, max_new_tokens: int
    ) -> None:
        """Begin with B empty conversations."""
        super().__init__(tokenizer, size, max_new_tokens)
        self._engine, self._temperature = engine, temperature

    def speak(self, rows: Sequence[int], seeds: npt.NDArray[np.uint64]) -> list[Turn]:
        """See `Turns.speak`; log-probabilities are those that the server states."""
        asked = [self.history.ids[row] for row in rows]
        said = self._engine.sample(
            asked, max_new_tokens=self.max_new_tokens, temperature=self._temperature, seeds=seeds.tolist()
        )
        turns = [
            Turn(len(ids), tokens, logprobs, [0.0] * len(tokens))
            for ids, (tokens, logprobs) in zip(asked, said, strict=True)
        ]
        for row, turn in zip(rows, turns, strict=True):
            self.note(row, turn)
        return turns

    def peek(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return zeros float32[n]: a server computes no values."""
        return np.zeros(len(rows), np.float32)
