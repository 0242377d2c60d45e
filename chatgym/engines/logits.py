"""Changes to a row's logits before its next token is sampled: logit bias, repetition penalties and grammars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch


class Constraint(Protocol):
    """The state of a grammar in one row."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may come next, bool[V]; at least one."""
        ...

    def accept(self, token: int) -> str | None:
        """Advance by the token that was sampled.

        Returns:
            ``"stop"`` when the text is complete and nothing may follow, ``"length"`` when the grammar gave up at one
            of its limits, None when the row goes on.
        """
        ...


@dataclass(frozen=True)
class LogitRules:
    """How the logits of one row are changed before each token.

    Attributes:
        bias: Tokens and what is added to their logits.
        presence_penalty: Subtracted from the logit of each token that the continuation contains.
        frequency_penalty: Subtracted as many times as the continuation contains the token.
        constraint: Makes the grammar's state for a row; None for no grammar.
    """

    bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    constraint: Callable[[], Constraint] | None = None

    def apply(self, logits: torch.Tensor, tokens: Sequence[int], constraint: Constraint | None) -> None:
        """Change a row's logits in place.

        Args:
            logits: float32[V].
            tokens: Those of the continuation so far. The prompt's don't count: OpenAI's penalties are of tokens that
                were sampled.
            constraint: The row's, made by `constraint`.
        """
        if self.bias:
            ids, values = zip(*self.bias, strict=True)
            logits[torch.tensor(ids, device=logits.device)] += torch.tensor(values).to(logits)
        if tokens and (self.presence_penalty or self.frequency_penalty):
            found, counts = np.unique(np.asarray(tokens), return_counts=True)
            penalties = self.presence_penalty + self.frequency_penalty * counts
            logits[torch.from_numpy(found).to(logits.device)] -= torch.from_numpy(penalties).to(logits)
        if constraint is not None:
            allowed = torch.from_numpy(constraint.allowed()).to(logits.device)
            logits.masked_fill_(~allowed, -torch.inf)
