"""A cache of prompts' keys and values: of a prompt that begins like an earlier one, only the rest is computed.

A conversation with a language model sends the same long instructions, and everything said so far, with every turn. A
cached beginning changes the logits only by rounding, because the same numbers are summed in another order.
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
"""Least tokens of a common beginning; shorter ones are computed faster than they are looked up."""
LEAST_WHOLE = 16
"""Least tokens of a whole prompt to keep; when it comes again, its logits have the same bits."""

WHOLE = -1
MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Read:
    """Keys, values and logits of a prompt of T tokens.

    Attributes:
        ids: int64[T].
        states: Keys and values of each layer, float[heads, T, D] in the model's dtype.
        logits: float32[V], for the token after the prompt.
    """

    ids: npt.NDArray[np.int64]
    states: list[tuple[torch.Tensor, torch.Tensor]]
    logits: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.logits.nbytes + sum(state.nbytes for pair in self.states for state in pair)


class Prefixes:
    """The last prompts that a model computed, up to `most_bytes`; the least recently used are dropped first."""

    def __init__(self, model: LoadedModel, most_bytes: int = MOST_BYTES) -> None:
        self._model, self._most = model, most_bytes
        self._kept: OrderedDict[Tokens, _Read] = OrderedDict()
        self._bytes = 0

    def read(self, prompts: Sequence[Tokens]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Compute prompts, and keep them.

        Args:
            prompts: B tuples of token ids, all different.

        Returns:
            A cache of B rows, right-aligned; its mask, int64[B, T]; the logits of each row's next token, float32[B, V].
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
        """Compute the common beginning of new prompts once, and keep it for them."""
        new = [np.asarray(prompt, np.int64) for prompt in prompts if not self._find(prompt)[1]]
        if len(new) > 1:
            common = min(_common(new[0], array) for array in new[1:])
            if common >= LEAST and self._usable:
                shared = tuple(new[0][:common].tolist())
                cache, _, last = self._extend(((), 0), [shared])
                self._keep([shared], cache, last)

    def _find(self, prompt: Tokens) -> tuple[Tokens, int]:
        """Return the kept prompt with the longest common beginning, and its length in tokens, or `WHOLE` if equal."""
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
        """Compute the rest of prompts that have one beginning.

        Args:
            known: The kept prompt, and how many tokens of it to use, see `_find`.
            prompts: B tuples of token ids.

        Returns:
            Cache, mask int64[B, T] and logits float32[B, V], see `read`.
        """
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
        """Keep B prompts: their rows of the cache, and of the next tokens' logits `last`, float32[B, V]."""
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
        """Whether prompts are kept: not with layers that forget positions (sliding windows, recurrent)."""
        return self._most > 0 and all(isinstance(layer, Columns) for layer in self._model.new_cache().layers)


def widen(mask: torch.Tensor, longest: int) -> torch.Tensor:
    """Pad a mask, int64[B, T], with zeros on the left to int64[B, longest]."""
    return torch.nn.functional.pad(mask, (longest - mask.shape[1], 0))


def _common(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    """Return the length of the common beginning of two prompts, int64[T] and int64[U]."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length
