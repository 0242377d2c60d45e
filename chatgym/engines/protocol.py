"""The `Engine` protocol: what turns prompts into text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chatgym.errors import InvalidValue

UNKNOWN_TOKEN = -1
"""Stands in `Completion.tokens` for a token whose id a server doesn't tell."""


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
        text: The continuation, without the stop string.
        tokens: Every token sampled, that of the end of the text and those of the stop string included.
        logprobs: Log-probability of each token under the distribution it was sampled from (after temperature and
            top-p), or None when not asked for, or when a server gives none.
        finish_reason: ``"stop"`` (end of text or a stop string) or ``"length"`` (`max_new_tokens` reached).
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: str


class Engine(Protocol):
    """A language model that is given prompts, knowing nothing of conversations."""

    @property
    def identity(self) -> str:
        """Name and revision of the model: what completions are stored under."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Continue each prompt; the same prompt may stand there many times, with different seeds."""
        ...

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of each continuation's tokens after its prompt, at temperature 1."""
        ...

    def close(self) -> None:
        """Let go of the model's memory."""
        ...


def check_sampling(
    prompts: Sequence[str], max_new_tokens: int, temperature: float, top_p: float, seeds: Sequence[int] | None
) -> None:
    """Check the arguments of `Engine.generate`.

    Raises:
        InvalidValue: A number is out of its range, or there aren't as many seeds as prompts.
    """
    if max_new_tokens < 1 or not temperature >= 0.0 or not 0.0 < top_p <= 1.0:
        raise InvalidValue(
            "generate needs max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, not "
            f"{max_new_tokens}, {temperature}, {top_p}"
        )
    check_each("seeds", seeds, prompts)


def check_each(what: str, given: Sequence[object] | None, prompts: Sequence[str]) -> None:
    """Check that there is one of something for each prompt, if it is given at all.

    Raises:
        InvalidValue: There are more or fewer.
    """
    if given is not None and len(given) != len(prompts):
        raise InvalidValue(f"got {len(given)} {what} for {len(prompts)} prompts; give one each")


class LazyEngine:
    """An engine that is opened at its first `generate` or `score`; its identity is known before."""

    def __init__(self, identity: str, opener: Callable[[], Engine]) -> None:
        self.identity = identity
        self._open = opener
        self._engine: Engine | None = None

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._engine is not None

    def opened(self) -> Engine:
        """Return the engine, opened now if it wasn't."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[Completion]:
        """Continue each prompt, as `Engine.generate`."""
        return self.opened().generate(prompts, **sampling) if prompts else []

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of continuations, as `Engine.score`."""
        return self.opened().score(prompts, continuations) if prompts else []

    def close(self) -> None:
        """Let go of the model's memory; the next use opens it again."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
