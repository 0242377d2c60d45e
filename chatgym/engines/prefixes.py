"""Beginnings of prompts that were read before: their keys and values are kept, and only the rest of a prompt is read.

A conversation with a language model sends the same long instructions and all that was said so far with every turn.
What a model makes of a prompt doesn't depend on what it remembers but for rounding: the same numbers are added up in
another order.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from chatgym.engines.columns import Columns
from chatgym.engines.loaded import LoadedModel

Tokens = tuple[int, ...]

LEAST = 128
"""Tokens that a beginning has at least; shorter ones are read faster than looked for."""
LEAST_WHOLE = 16
"""The same of a whole prompt that is read again; it has the same bits as the first time."""
WHOLE = -1
MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Read:
    """A prompt of T tokens that was read.

    Attributes:
        ids: int64[T].
        states: Keys and values of each layer, [heads, T, D].
        logits: Of the token after it, float32[V].
    """

    ids: npt.NDArray[np.int64]
    states: list[tuple[torch.Tensor, torch.Tensor]]
    logits: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.logits.nbytes + sum(state.nbytes for pair in self.states for state in pair)


class Prefixes:
    """The prompts that a model read last, the least recently used ones forgotten first."""

    def __init__(self, model: LoadedModel, most_bytes: int = MOST_BYTES) -> None:
        self._model, self._most = model, most_bytes
        self._kept: OrderedDict[Tokens, _Read] = OrderedDict()
        self._bytes = 0

    def read(self, prompts: Sequence[Tokens]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Read prompts.

        Args:
            prompts: B of them, all different.

        Returns:
            A cache of B rows, right-aligned; its mask int64[B, T]; the logits of each row's next token, float32[B, V].
        """
        self._begin_together(prompts)
        groups: dict[tuple[Tokens, int], list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(self._find(prompt), []).append(i)
        parts = [self._extend(known, [prompts[i] for i in rows]) for known, rows in groups.items()]
        cache, mask, last = parts[0]
        for other, more, logits in parts[1:]:
            longest = max(mask.shape[1], more.shape[1])
            for layer, layer_of_other in zip(cache.layers, other.layers, strict=True):
                layer.append(layer_of_other, longest)
            mask, last = torch.cat([widen(mask, longest), widen(more, longest)]), torch.cat([last, logits])
        if len(parts) > 1:
            order = np.argsort([i for rows in groups.values() for i in rows])
            index = torch.from_numpy(order).to(mask.device)
            cache.batch_select_indices(index)
            mask, last = mask[index], last[index]
        self._keep(prompts, cache, last)
        return cache, mask, last

    def _begin_together(self, prompts: Sequence[Tokens]) -> None:
        """Read the beginning that new prompts have in common once, ahead of them."""
        new = [np.asarray(prompt, np.int64) for prompt in prompts if not self._find(prompt)[1]]
        if len(new) > 1:
            common = min(_common(new[0], array) for array in new[1:])
            if common >= LEAST and self._usable:
                shared = tuple(new[0][:common].tolist())
                cache, _, last = self._extend(((), 0), [shared])
                self._keep([shared], cache, last)

    def _find(self, prompt: Tokens) -> tuple[Tokens, int]:
        """Return the kept prompt that begins most like this one, and how many tokens of it serve, or `WHOLE`."""
        if prompt in self._kept:
            return prompt, WHOLE
        best: tuple[Tokens, int] = ((), 0)
        if len(prompt) <= LEAST:  # too short to begin like another one
            return best
        array = np.asarray(prompt, np.int64)
        for tokens, kept in self._kept.items():
            common = min(_common(kept.ids, array), len(prompt) - 1)
            if common >= LEAST and common > best[1]:
                best = tokens, common
        return best

    def _extend(
        self, known: tuple[Tokens, int], prompts: Sequence[Tokens]
    ) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Read the rest of prompts that begin alike; see `read`."""
        tokens, length = known
        cache = self._model.new_cache()
        if length:
            self._kept.move_to_end(tokens)
            kept = self._kept[tokens]
        if length == WHOLE:
            for layer, states in zip(cache.layers, kept.states, strict=True):
                layer.update(*(state[None] for state in states))
            logits = kept.logits[None]
            return cache, torch.ones(1, len(tokens), dtype=torch.long, device=logits.device), logits
        ids, mask = self._model.pad([prompt[length:] for prompt in prompts])
        if length:
            for layer, states in zip(cache.layers, kept.states, strict=True):
                layer.update(*(state[None, :, :length].expand(len(prompts), -1, -1, -1) for state in states))
            mask = torch.cat([mask.new_ones(len(prompts), length), mask], 1)
        last = self._model.forward(ids, mask, cache)
        if length and len(set(map(len, prompts))) > 1:  # padding stands in the middle; it goes to the left
            order = mask.argsort(dim=1, stable=True)
            mask = mask.gather(1, order)
            for layer in cache.layers:
                layer.gather(order)
        return cache, mask, last

    def _keep(self, prompts: Sequence[Tokens], cache: DynamicCache, last: torch.Tensor) -> None:
        if not self._usable:
            return
        for row, prompt in enumerate(prompts):
            if len(prompt) < LEAST_WHOLE or prompt in self._kept:
                continue
            states = [
                (layer.keys[row, :, -len(prompt) :].clone(), layer.values[row, :, -len(prompt) :].clone())
                for layer in cache.layers
            ]
            self._kept[prompt] = _Read(np.asarray(prompt, np.int64), states, last[row].clone())
            self._bytes += self._kept[prompt].nbytes
            while self._bytes > self._most:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes

    @functools.cached_property
    def _usable(self) -> bool:
        """Whether anything is kept: not of a model that forgets positions (sliding windows, a recurrent one)."""
        return self._most > 0 and all(isinstance(layer, Columns) for layer in self._model.new_cache().layers)


def widen(mask: torch.Tensor, longest: int) -> torch.Tensor:
    """Pad a mask, int64[B, T], with zeros on the left."""
    return torch.nn.functional.pad(mask, (longest - mask.shape[1], 0))


def _common(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    """Return how many tokens two prompts begin with alike."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length
