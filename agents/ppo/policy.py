"""The network: a causal language model, a value head on its trunk or on one of its own, and PPO's loss."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .losses import entropies, policy_loss, value_loss
from .packing import Packed
from .sampling import Sampling


@dataclass(frozen=True)
class Coefficients:
    """What the loss is made of.

    Attributes:
        clip_ratio: ε of the policy's loss.
        clip_value: How far a value may move in an iteration.
        value: Weight of the value loss; 0 where advantages need no values.
        entropy: Weight of the entropy bonus.
    """

    clip_ratio: float
    clip_value: float
    value: float
    entropy: float


class Policy(torch.nn.Module):
    """A language model as policy and value function.

    Attributes:
        model: The causal language model, perhaps peft's around it.
        value_head: From a hidden state to the return expected; 0 everywhere at first.
        critic: A trunk of its own for the values, or None: they come from the model's.
        warming: Whether only the value function learns for now.
        sums: Of the last calls of `forward`, over tokens: ``tokens``, ``clipped``, ``kl`` (from the policy that
            sampled them), and ``gap``, the largest change of a log-probability.
    """

    def __init__(self, model: Any, sampling: Sampling, coefficients: Coefficients, *, separate_critic: bool) -> None:
        super().__init__()
        self.model, self.sampling, self.coefficients = model, sampling, coefficients
        causal = self.causal
        self.value_head = torch.nn.Linear(causal.config.hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.value_head.requires_grad_(coefficients.value > 0)  # what has no gradient has no moments to save either
        self.critic: Any = copy.deepcopy(self.trunk).requires_grad_(True) if separate_critic else None
        # Releases of transformers before 5.24 know the cache by another name.
        names = inspect.signature(type(self.trunk).forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self.warming = False
        self.sums: dict[str, float] = {}
        self.forget()

    @property
    def values_tokens(self) -> bool:
        """Whether values come with the tokens; else they are known, if at all, once a conversation is there whole."""
        return self.coefficients.value > 0 and self.critic is None

    @property
    def causal(self) -> Any:
        """The language model without peft around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def trunk(self) -> Any:
        """The language model without its output layer."""
        return getattr(self.causal, self.causal.base_model_prefix)

    def read(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """Append tokens to a cache, and return the hidden state after the last of them, [B, H].

        Args:
            ids: int64[B, N].
            mask: int64[B, T], 0 where nothing stands, for all tokens with those appended.
            cache: Of the T - N columns before.
        """
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        more = {self._cache_name: cache}
        out = self.trunk(ids, attention_mask=mask, position_ids=positions, use_cache=True, **more)
        last: torch.Tensor = out.last_hidden_state[:, -1]
        return last

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits float32[N, V] of hidden states [N, H]."""
        logits: torch.Tensor = self.causal.get_output_embeddings()(hidden).float()
        return logits

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return values float32[N] of hidden states [N, H]."""
        values: torch.Tensor = self.value_head(hidden)[:, 0].float()
        return values

    def states(self, packed: Packed, trunk: Any = None) -> torch.Tensor:
        """Return the hidden states of whole conversations, [R, T, H].

        Args:
            packed: The conversations.
            trunk: Whose states; the model's own when None.
        """
        more = {} if packed.mask is None else {"attention_mask": packed.mask, "position_ids": packed.positions}
        states: torch.Tensor = (self.trunk if trunk is None else trunk)(
            packed.ids, use_cache=False, **more
        ).last_hidden_state
        return states

    def hidden(self, packed: Packed, trunk: Any = None) -> torch.Tensor:
        """Return the hidden states that the agents' tokens were sampled from, [N, H], see `states`."""
        return self.states(packed, trunk)[packed.before[0], packed.before[1]]

    def forward(self, rows: dict[str, Any]) -> torch.Tensor:
        """Return PPO's loss, summed over the tokens that the agent sampled.

        Args:
            rows: ``packed``, the conversations; of their N tokens ``tokens`` int64, ``logprobs``, ``advantages``,
                ``values``, ``returns`` float32, and perhaps ``supports``, see `Sampling.draw`.
        """
        hidden = self.hidden(rows["packed"])
        everything = self.sampling.log_probabilities(self.logits(hidden), rows.get("supports"))
        logprobs = everything.gather(1, rows["tokens"][:, None])[:, 0]
        weights = self.coefficients
        per_token = policy_loss(logprobs, rows["logprobs"], rows["advantages"], weights.clip_ratio)
        loss = per_token.sum() * (0.0 if self.warming else 1.0)
        if weights.entropy and not self.warming:
            loss = loss - weights.entropy * entropies(everything).sum()
        if weights.value:
            if self.critic is not None:
                seen = self.hidden(rows["packed"], self.critic)
            else:
                seen = hidden.detach() if self.warming else hidden
            values = self.values(seen)
            loss = loss + weights.value * value_loss(values, rows["values"], rows["returns"], weights.clip_value).sum()
        self._note(logprobs.detach(), rows["logprobs"])
        return loss

    def forget(self) -> None:
        """Begin `sums` anew."""
        self.sums = dict.fromkeys(("tokens", "clipped", "kl", "gap"), 0.0)

    def _note(self, logprobs: torch.Tensor, before: torch.Tensor) -> None:
        change = logprobs - before
        ratio = change.exp()
        self.sums["tokens"] += len(logprobs)
        self.sums["clipped"] += float(((ratio - 1).abs() > self.coefficients.clip_ratio).sum())
        self.sums["kl"] += float((ratio - 1 - change).sum())
        self.sums["gap"] = max(self.sums["gap"], float(change.abs().max()) if len(change) else 0.0)


class Reference:
    """The frozen model that the policy is to stay near: a copy, or the policy's own model with LoRA left out."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._copy: Any = None
        if not hasattr(policy.model, "disable_adapter"):
            self._copy = copy.deepcopy(policy.model).requires_grad_(False).eval()

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the copy, if it is one."""
        if self._copy is not None:
            self._copy.to(device, dtype)

    @torch.no_grad()
    def logprobs(self, packed: Packed, tokens: torch.Tensor, supports: torch.Tensor | None) -> torch.Tensor:
        """Return the log-probabilities of tokens float32[N], of the distribution limited as the policy's was."""
        policy = self._policy
        with self._alone() as trunk:
            hidden = policy.hidden(packed, trunk)
            model = policy.causal if self._copy is None else self._copy
            logits = model.get_output_embeddings()(hidden).float()
        return policy.sampling.logprobs(logits, tokens, supports)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Any]:
        if self._copy is not None:
            yield getattr(self._copy, self._copy.base_model_prefix)
            return
        with self._policy.model.disable_adapter():
            yield self._policy.trunk
