"""Limits on the requests, tokens and cost of a server, which hold with many requests under way at once."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import Any

from chatgym.errors import BudgetSpent, InvalidValue


@dataclass(frozen=True)
class Limits:
    """Limits of an engine; None is no limit.

    Attributes:
        max_requests: Requests for completions, repeated ones included.
        max_tokens: Tokens of prompts and completions together.
        max_cost: Cost in the currency of the prices.
        prompt_price: Price of a million tokens of prompts.
        completion_price: Price of a million tokens of completions.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_tokens", "max_cost", "prompt_price", "completion_price"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InvalidValue(f"{name} is {value}; set it to a finite number, 0 or more")
        if self.max_cost is not None and not self.prompt_price and not self.completion_price:
            raise InvalidValue("max_cost needs prompt_price or completion_price, the price of a million tokens")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of some tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


@dataclass(frozen=True)
class Usage:
    """Requests, tokens and cost so far.

    Attributes:
        requests: Requests for completions that were sent, repeated ones included.
        retries: Requests among them that repeated another one.
        prompt_tokens: Tokens of the prompts, as the server counts them.
        completion_tokens: Tokens of the completions, as the server counts them.
        cost: Cost at the prices of the time, in their currency.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Budget:
    """The usage of one engine; several threads can use it.

    A request is reserved at the most that it can use. It is sent only if that fits in the limits beside the usage so
    far and all other reservations, so a limit is never exceeded. When it is answered, the actual usage is counted.
    """

    def __init__(self) -> None:
        self.usage = Usage()
        self._begin()

    def _begin(self) -> None:
        """Begin without reservations."""
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._under_way = (0, 0)  # reserved tokens of prompts and of completions
        self._pending = 0

    def _leave_parent(self) -> None:
        """In a forked child, drop the reservations of the parent, which nobody here will settle, and its lock."""
        if self._pid != os.getpid():
            self._begin()

    def reserve(self, limits: Limits, prompt_tokens: int, completion_tokens: int, *, again: bool = False) -> None:
        """Reserve a request of at most so many tokens; waits while only other reservations are in its way.

        Args:
            limits: The limits.
            prompt_tokens, completion_tokens: The most tokens that it can use.
            again: Whether it repeats a request.

        Raises:
            BudgetSpent: It doesn't fit, even without the other reservations.
        """
        self._leave_parent()
        with self._changed:
            while reason := self._too_much(limits, prompt_tokens, completion_tokens):
                if not self._pending:
                    raise BudgetSpent(
                        f"the budget is used up: {reason}; what was answered is kept, so raise the limit and go on"
                    )
                self._changed.wait()
            self._move(1, prompt_tokens, completion_tokens)
            self.usage = replace(
                self.usage, requests=self.usage.requests + 1, retries=self.usage.retries + int(again)
            )  # fmt: skip

    def settle(self, limits: Limits, prompt_tokens: int, completion_tokens: int, used: tuple[int, int]) -> None:
        """Replace a reservation by the actual usage: `used`, tokens of the prompt and of the completion."""
        with self._changed:
            self._move(-1, -prompt_tokens, -completion_tokens)
            now = self.usage
            self.usage = replace(
                now,
                prompt_tokens=now.prompt_tokens + used[0],
                completion_tokens=now.completion_tokens + used[1],
                cost=now.cost + limits.cost(*used),
            )
            self._changed.notify_all()

    def _move(self, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Add to the reservations."""
        self._pending += requests
        self._under_way = (self._under_way[0] + prompt_tokens, self._under_way[1] + completion_tokens)

    def _too_much(self, limits: Limits, prompt_tokens: int, completion_tokens: int) -> str:
        """Return which limit one more request could exceed, or an empty text."""
        used = self.usage
        most = prompt_tokens + completion_tokens
        if limits.max_requests is not None and used.requests >= limits.max_requests:
            return f"{used.requests} requests of max_requests={limits.max_requests}"
        tokens = used.prompt_tokens + used.completion_tokens
        if limits.max_tokens is not None and tokens + sum(self._under_way) + most > limits.max_tokens:
            return f"{tokens} tokens of max_tokens={limits.max_tokens}, and the next request may take {most}"
        if limits.max_cost is not None:
            cost = limits.cost(prompt_tokens, completion_tokens)
            if used.cost + limits.cost(*self._under_way) + cost > limits.max_cost:
                return f"{used.cost:.4g} of max_cost={limits.max_cost}, and the next request may cost {cost:.2g}"
        return ""


def tokens_used(answer: Any, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return the tokens of prompt and completion that a server's answer reports, or `otherwise` if it doesn't."""
    prompt, completion = stated_tokens(answer)
    return otherwise if prompt is None or completion is None else (prompt, completion)


def stated_tokens(answer: Any) -> tuple[int, int] | tuple[None, None]:
    """Return the tokens of prompt and completion that a server's answer reports; (None, None) if it doesn't."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if isinstance(usage, dict):
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(completion, int):
            return prompt, completion
    return None, None
