"""The network: a causal language model with a value head, its frozen reference, and conversations as its input."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .config import Config
from .equations import entropies, log_probabilities, policy_loss, value_loss

Ints = npt.NDArray[np.int64]
WORTH = 0.1
"""Share of the tokens that sharing must save: it needs an attention mask, which rules out the fastest kernels."""


@dataclass(frozen=True, eq=False)
class Packed:
    """B conversations as R rows of token ids; N is the number of tokens that their agents sampled.

    Attributes:
        ids: int64[R, T], padded on the right.
        before: int64[2, N], row and column of the token that precedes each sampled one, in the conversations' order.
        last: int64[2, B], row and column of each conversation's last token.
        mask: bool[R, 1, T, T], which tokens each token attends to; None: all that precede it in its row.
        positions: int64[R, T], the place of each token in its conversation; None: its column.
    """

    ids: torch.Tensor
    before: torch.Tensor
    last: torch.Tensor
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    def to(self, device: torch.device) -> Packed:
        """Return a copy on a device."""
        tensors = (self.ids, self.before, self.last, self.mask, self.positions)
        return Packed(*(None if one is None else one.to(device) for one in tensors))  # type: ignore[arg-type]


def pack(ids: Sequence[list[int]], places: Sequence[Ints], *, share: bool = True) -> Packed:
    """Put B conversations into rows; those with the same beginning share a row where that saves enough.

    Args:
        ids: The token ids of each conversation.
        places: For each conversation the places of its sampled tokens, int64[n]; the n add up to N.
        share: Whether a row may be shared at all.
    """
    heads = [tuple(one[: where[0]]) for one, where in zip(ids, places, strict=True)]
    saved = sum(map(len, heads)) - sum(map(len, set(heads)))
    if not share or saved < WORTH * sum(map(len, ids)):
        return _one_a_row(ids, places)
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, head in enumerate(heads):
        rows.setdefault(head, []).append(i)
    return _shared(ids, places, rows)


def _one_a_row(ids: Sequence[list[int]], places: Sequence[Ints]) -> Packed:
    """Give each conversation a row of its own, see `pack`."""
    padded = np.zeros((len(ids), max(map(len, ids))), np.int64)
    for row, one in zip(padded, ids, strict=True):
        row[: len(one)] = one
    rows = np.concatenate([np.full(len(where), i) for i, where in enumerate(places)])
    columns = np.concatenate(places) - 1
    last = np.stack([np.arange(len(ids)), np.array([len(one) - 1 for one in ids])])
    return Packed(*(torch.from_numpy(array) for array in (padded, np.stack([rows, columns]), last)))


def _shared(ids: Sequence[list[int]], places: Sequence[Ints], rows: dict[tuple[int, ...], list[int]]) -> Packed:
    """Write each beginning once, then the continuations of its conversations, none of which attends to another.

    Args:
        ids: See `pack`.
        places: See `pack`.
        rows: For each row its beginning, and the conversations that begin so.
    """
    lengths = [len(head) + sum(len(ids[i]) - len(head) for i in members) for head, members in rows.items()]
    size = len(rows), max(lengths)
    padded, positions = np.zeros((2, *size), np.int64)  # [R, T] each
    branch = np.full(size, -1)  # int64[R, T]; 0: the beginning, k: the k-th continuation, -1: padding
    before = [np.zeros((2, 0), np.int64)] * len(ids)
    last = np.zeros((2, len(ids)), np.int64)
    for row, (head, members) in enumerate(rows.items()):
        at = shared = len(head)
        padded[row, :at], positions[row, :at], branch[row, :at] = head, np.arange(at), 0
        for number, i in enumerate(members, 1):
            tail = ids[i][shared:]
            span = slice(at, at + len(tail))
            padded[row, span], positions[row, span], branch[row, span] = tail, shared + np.arange(len(tail)), number
            columns = at + places[i] - shared - 1
            columns[places[i] == shared] = shared - 1
            before[i] = np.stack([np.full(len(columns), row), columns])
            at += len(tail)
            last[:, i] = row, at - 1
    same = branch[:, :, None] == branch[:, None, :]  # bool[R, T, T]
    sees = (same | (branch[:, None, :] == 0)) & np.tri(size[1], dtype=bool)
    arrays = padded, np.concatenate(before, 1), last, sees[:, None], positions
    return Packed(*(torch.from_numpy(array) for array in arrays))


class Policy(torch.nn.Module):
    """A language model as policy and, with a linear head, as value function; calling it returns PPO's loss.

    Attributes:
        model: The causal language model, perhaps inside peft's wrapper.
        value_head: From a hidden state to a value; its weights begin at 0.
        value_weight: Weight of the value loss; 0 where no gradient step learns values.
        critic: A second trunk that the values are computed by, or None: they use the model's trunk.
        warming: Whether only the value function learns for now.
        sums: Statistics of the calls since `forget`, over tokens: ``tokens`` (their number), ``ratio``, ``clipped``,
            ``kl`` (from the policy that sampled them), and ``gap``, the largest change of a log-probability.
    """

    def __init__(self, model: Any, config: Config, *, separate_critic: bool = False) -> None:
        super().__init__()
        self.model, self.settings = model, config
        causal = self.causal
        self.value_head = torch.nn.Linear(causal.config.hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.value_weight = config.value_weight
        self.value_head.requires_grad_(self.value_weight > 0)  # what has no gradient has no moments to save either
        self.critic: Any = copy.deepcopy(self.trunk).requires_grad_(True) if separate_critic else None
        # Releases of transformers before 5.24 know the cache by another name.
        names = inspect.signature(type(self.trunk).forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self.warming = False
        self.sums: dict[str, float] = {}
        self.forget()

    @property
    def values_tokens(self) -> bool:
        """Whether values come with the tokens; else they are computed, if at all, for whole conversations."""
        return self.value_weight > 0 and self.critic is None

    @property
    def causal(self) -> Any:
        """The language model without peft's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def trunk(self) -> Any:
        """The language model without its output layer."""
        return getattr(self.causal, self.causal.base_model_prefix)

    def read(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """Append tokens to a cache, and return the hidden state after the last of them, float[B, H].

        Args:
            ids: int64[B, N], the tokens to append.
            mask: int64[B, T], 0 for padding, over all tokens including those appended.
            cache: Keys and values of the T - N columns before.
        """
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        more = {self._cache_name: cache}
        out = self.trunk(ids, attention_mask=mask, position_ids=positions, use_cache=True, **more)
        return out.last_hidden_state[:, -1]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits float32[N, V] of hidden states float[N, H]."""
        return self.causal.get_output_embeddings()(hidden).float()

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the values float32[N] of hidden states float[N, H]."""
        return self.value_head(hidden)[:, 0].float()

    def states(self, packed: Packed, trunk: Any = None) -> torch.Tensor:
        """Return the hidden states of whole conversations, float[R, T, H], of the model's trunk or another one."""
        more = {} if packed.mask is None else {"attention_mask": packed.mask, "position_ids": packed.positions}
        return (self.trunk if trunk is None else trunk)(packed.ids, use_cache=False, **more).last_hidden_state

    def hidden(self, packed: Packed, trunk: Any = None) -> torch.Tensor:
        """Return the hidden states that the agents' tokens were sampled from, float[N, H], see `states`."""
        return self.states(packed, trunk)[packed.before[0], packed.before[1]]

    def logprobs(self, packed: Packed, tokens: torch.Tensor, supports: torch.Tensor | None) -> torch.Tensor:
        """Return the log-probabilities float32[N] of the sampled tokens, int64[N]; see `log_probabilities`."""
        return _of_tokens(self.logits(self.hidden(packed)), tokens, supports, self.settings.temperature)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return PPO's loss, float32, summed over the N tokens that the agent sampled.

        Args:
            batch: ``packed``, the conversations, see `Packed`; of their tokens ``tokens`` int64[N], ``logprobs``,
                ``advantages``, ``values``, ``returns`` float32[N]; and ``supports`` uint8[N, ceil(V / 8)] where top-k
                or top-p limited the sampling.
        """
        config, packed = self.settings, batch["packed"]
        hidden = self.hidden(packed)
        everything = log_probabilities(self.logits(hidden), config.temperature, batch.get("supports"))
        logprobs = everything.gather(1, batch["tokens"][:, None])[:, 0]
        per_token = policy_loss(logprobs, batch["logprobs"], batch["advantages"], config.clip_ratio)
        loss = per_token.sum() * (0.0 if self.warming else 1.0)
        if config.entropy_coefficient and not self.warming:
            loss = loss - config.entropy_coefficient * entropies(everything).sum()
        if self.value_weight:
            if self.critic is not None:
                seen = self.hidden(packed, self.critic)
            else:
                seen = hidden.detach() if self.warming else hidden
            per_value = value_loss(self.values(seen), batch["values"], batch["returns"], config.clip_value)
            loss = loss + self.value_weight * per_value.sum()
        self._note(logprobs.detach(), batch["logprobs"])
        return loss

    def forget(self) -> None:
        """Set `sums` back to 0."""
        self.sums = dict.fromkeys(("tokens", "ratio", "clipped", "kl", "gap"), 0.0)

    def _note(self, logprobs: torch.Tensor, before: torch.Tensor) -> None:
        """Add to `sums`: log-probabilities now and when the tokens were sampled, float32[N] each."""
        change = logprobs - before
        ratio = change.exp()
        self.sums["tokens"] += len(logprobs)
        self.sums["ratio"] += float(ratio.sum())
        self.sums["clipped"] += float(((ratio - 1).abs() > self.settings.clip_ratio).sum())
        self.sums["kl"] += float((ratio - 1 - change).sum())
        self.sums["gap"] = max(self.sums["gap"], float(change.abs().max()) if len(change) else 0.0)


class Reference:
    """The frozen starting model, for the KL penalty: a copy, or with LoRA the policy's model without its adapters."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._copy: Any = None
        if not hasattr(policy.model, "disable_adapter"):
            self._copy = copy.deepcopy(policy.model).requires_grad_(False).eval()

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the copy, if there is one."""
        if self._copy is not None:
            self._copy.to(device, dtype)

    @torch.no_grad()
    def logprobs(self, packed: Packed, tokens: torch.Tensor, supports: torch.Tensor | None) -> torch.Tensor:
        """Return the reference's log-probabilities of tokens, float32[N], see `Policy.logprobs`."""
        policy = self._policy
        with self._alone() as trunk:
            hidden = policy.hidden(packed, trunk)
            model = policy.causal if self._copy is None else self._copy
            logits = model.get_output_embeddings()(hidden).float()
        return _of_tokens(logits, tokens, supports, policy.settings.temperature)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Any]:
        """Yield the reference's trunk."""
        if self._copy is not None:
            yield getattr(self._copy, self._copy.base_model_prefix)
            return
        with self._policy.model.disable_adapter():
            yield self._policy.trunk


def _of_tokens(
    logits: torch.Tensor, tokens: torch.Tensor, supports: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Return the log-probabilities float32[N] of tokens int64[N] by logits float32[N, V], see `log_probabilities`."""
    return log_probabilities(logits, temperature, supports).gather(1, tokens[:, None])[:, 0]
