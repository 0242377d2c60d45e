"""Decode a batch of rows, one token a step; rows can join a running batch, and leave it when they are done.

This module knows tokens, not texts or prompts. Rows of different lengths are right-aligned in one cache, with padding
on the left that is cut off once the longest rows have left. The random draw of a row is a function of (seed, position),
so it depends neither on the other rows nor on when the row joined. The probabilities do depend on the batch size, by
rounding: a few units in the last place of float32. That changes a token only where the draw falls as near as that to
the border between two tokens, which is rare in float32 but not in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from transformers import DynamicCache

from chatgym.engines.columns import Columns
from chatgym.engines.loaded import LoadedModel
from chatgym.engines.logits import Constraint, LogitRules
from chatgym.engines.prefixes import Prefixes, widen
from chatgym.engines.sampling import choose
from chatgym.errors import InvalidValue


class DecodingModel(LoadedModel, Protocol):
    """A loaded model that keeps the prompts that it read last."""

    prefixes: Prefixes

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a continuation's token ids, without end-of-text tokens."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt to continue, and the sampling settings.

    Attributes:
        prompt: Token ids, at least one.
        max_new_tokens: Most tokens of the continuation.
        temperature: 0 takes the likeliest token.
        top_p: Sample among the likeliest tokens that have this probability together.
        top_k: Sample among this many of the likeliest tokens; 0: all.
        min_p: Sample among tokens with at least this share of the likeliest one's probability.
        seed: Seed of the draws, below 2**64.
        stop: The continuation ends with the first of these that it contains.
        alternatives: How many of the likeliest tokens to report at each position; None reports nothing.
        rules: Changes to the logits before each token; None to sample from the model's own.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    alternatives: int | None = None
    rules: LogitRules | None = None
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True)
class Alternatives:
    """The log-probability of a token and of the likeliest ones, at temperature 1 after the row's `LogitRules`."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Row:
    """The state of a request in a batch. Lists are only appended to, and `finish_reason` is set last.

    Attributes:
        request: The request.
        tokens: Token ids sampled so far, with the end-of-text token and those of a stop string.
        logprobs: Log-probability of each token under the distribution it was sampled from.
        alternatives: Reports on each token, if the request asks for them.
        finish_reason: ``"stop"`` or ``"length"``, see `Completion`; None while the row is unfinished.
        constraint: The state of the request's grammar, if it has one.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    finish_reason: str | None = None
    constraint: Constraint | None = None


class Batch:
    """Rows that one model continues together, in one thread."""

    def __init__(self, engine: DecodingModel) -> None:
        self.engine = engine
        self.rows: list[Row] = []
        self._cache: DynamicCache = engine.new_cache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=engine.device)  # (B, T)
        self._last = torch.zeros(0, 0, device=engine.device)  # (B, V): logits of each row's next token

    @property
    def joinable(self) -> bool:
        """Whether rows can join now: always, except with layers that forget positions (sliding windows, recurrent)."""
        return not self.rows or all(isinstance(layer, Columns) for layer in self._cache.layers)

    @torch.inference_mode()
    def join(self, requests: Sequence[Request]) -> list[Row]:
        """Add a row for each request, and compute its prompt.

        Equal prompts are computed once; of a prompt with a known beginning (`Prefixes`), only the rest is.

        Returns:
            The rows, in the order of the requests.

        Raises:
            InvalidValue: A prompt leaves no room in the model's context; then no row has joined.
            RuntimeError: The batch isn't `joinable`.
        """
        if not self.joinable:
            raise RuntimeError("rows of this model can't join others that are under way; wait until those are done")
        for request in requests:
            self._check(request)
        if not requests:
            return []
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(request.prompt for request in requests))}
        cache, mask, last = self.engine.prefixes.read(list(distinct))
        copies = torch.tensor([distinct[request.prompt] for request in requests], device=self.engine.device)
        if len(distinct) < len(requests):
            cache.batch_select_indices(copies)
            last, mask = last[copies], mask[copies]
        if self.rows:
            longest = max(self._mask.shape[1], mask.shape[1])
            mask = torch.cat([widen(self._mask, longest), widen(mask, longest)])
            last = torch.cat([self._last, last])
            for layer, other in zip(self._cache.layers, cache.layers, strict=True):
                layer.append(other, longest)
        else:
            self._cache = cache
        self._mask, self._last = mask, last
        joined = [
            Row(request, constraint=request.rules.constraint() if request.rules and request.rules.constraint else None)
            for request in requests
        ]
        self.rows += joined
        return joined

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Sample one token for each row; returns the rows that finished, which are removed from the batch."""
        if not self.rows:
            return []
        logits = self._ruled()
        tokens, logprobs = choose(
            logits,
            seeds=np.array([row.request.seed for row in self.rows], np.uint64),
            positions=np.array([len(row.tokens) for row in self.rows]),
            temperatures=np.array([row.request.temperature for row in self.rows]),
            top_ps=np.array([row.request.top_p for row in self.rows]),
            top_ks=np.array([row.request.top_k for row in self.rows]),
            min_ps=np.array([row.request.min_p for row in self.rows]),
        )
        self._report(logits, tokens)
        done = []
        for row, token, logprob in zip(self.rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if why := self._end(row):
                row.finish_reason = why
                done.append(row)
        if done:
            keep = self._keep([row.finish_reason is None for row in self.rows], 1)
            tokens = tokens[keep]
        if self.rows:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], 1)
            self._last = self.engine.forward(tokens[:, None], self._mask, self._cache)
        return done

    @torch.inference_mode()
    def leave(self, rows: Sequence[Row]) -> None:
        """Remove rows that nobody waits for any more; rows that aren't in the batch are ignored."""
        going = {id(row) for row in rows}
        if any(id(row) in going for row in self.rows):
            self._last = self._last[self._keep([id(row) not in going for row in self.rows], 0)]

    def _check(self, request: Request) -> None:
        prompt, context = len(request.prompt), self.engine.context
        if prompt + request.max_new_tokens > context:
            raise InvalidValue(
                f"a prompt of {prompt} tokens leaves no room for {request.max_new_tokens} more in the model's context "
                f"of {context}; shorten it, or lower max_new_tokens"
            )

    def _end(self, row: Row) -> str | None:
        """Return the finish reason if the row ends with its last token, else None."""
        if row.tokens[-1] in self.engine.ends:
            return "stop"
        if row.constraint is not None and (why := row.constraint.accept(row.tokens[-1])):
            return why
        stop = row.request.stop
        if stop:
            text = self.engine.text(row.tokens)
            if any(s in text for s in stop):
                return "stop"
        return "length" if len(row.tokens) >= row.request.max_new_tokens else None

    def _ruled(self) -> torch.Tensor:
        """Return the logits to sample from, float32[B, V]: a copy where a row has rules, since a prompt's are kept."""
        ruled = [i for i, row in enumerate(self.rows) if row.request.rules is not None]
        if not ruled:
            return self._last
        logits = self._last.clone()
        for i in ruled:
            row = self.rows[i]
            assert row.request.rules is not None
            row.request.rules.apply(logits[i], row.tokens, row.constraint)
        return logits

    def _report(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        """Note the log-probabilities of the tokens chosen, int64[B], where a row asks for them."""
        asking = [i for i, row in enumerate(self.rows) if row.request.alternatives is not None]
        if not asking:
            return
        most = max(self.rows[i].request.alternatives or 0 for i in asking)
        index = torch.tensor(asking, device=tokens.device)
        for i, found in zip(asking, report(logits[index], tokens[index], most), strict=True):
            wanted = self.rows[i].request.alternatives or 0
            possible = tuple(one for one in found.likeliest[:wanted] if one[1] > -math.inf)  # JSON has no infinity
            self.rows[i].alternatives.append(Alternatives(found.logprob, possible))

    def _keep(self, going: list[bool], ahead: int) -> torch.Tensor:
        """Keep some rows, and only the columns of the cache that these need.

        Args:
            going: Whether each of the B rows stays.
            ahead: 1 if the rows' last tokens aren't in the cache yet, else 0.

        Returns:
            Indices of the rows kept, int64[K].
        """
        keep = torch.from_numpy(np.flatnonzero(going)).to(self._mask.device)
        self.rows = [row for row, stays in zip(self.rows, going, strict=True) if stays]
        if not self.rows:
            self._cache, self._mask = self.engine.new_cache(), self._mask[:0, :0]
            return keep
        if self.joinable:
            # The token of this step is not in the cache yet.
            longest = max(len(row.request.prompt) + len(row.tokens) for row in self.rows) - ahead
            cut = self._mask.shape[1] - longest
            for layer in self._cache.layers:
                layer.keep(keep, cut)
            self._mask = self._mask[keep, cut:]
        else:
            self._cache.batch_select_indices(keep)
            self._mask = self._mask[keep]
        return keep


def report(logits: torch.Tensor, tokens: torch.Tensor, most: int) -> list[Alternatives]:
    """Report tokens' log-probabilities at temperature 1, and the likeliest tokens in their place.

    Args:
        logits: float32[B, V].
        tokens: int64[B].
        most: How many of the likeliest tokens to report.

    Returns:
        B reports.
    """
    everything = logits.log_softmax(-1)
    own = everything.gather(-1, tokens[:, None])[:, 0].tolist()
    values, order = everything.topk(most, -1)
    return [
        Alternatives(logprob, tuple(zip(ids, these, strict=True)))
        for logprob, ids, these in zip(own, order.tolist(), values.tolist(), strict=True)
    ]
