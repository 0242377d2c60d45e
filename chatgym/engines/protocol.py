"""The `Engine` protocol: a language model that continues prompts and scores continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chatgym.errors import InvalidValue
from chatgym.storage.utf8 import valid

UNKNOWN_TOKEN = -1
"""The id in `Completion.tokens` of a token whose id a server doesn't report."""


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
        text: The continuation, without the stop string; lone surrogates are replaced.
        tokens: Ids of all sampled tokens, with the end-of-text token and those of the stop string.
        logprobs: Log-probability of each token under the distribution it was sampled from (after temperature and
            top-p); None if not asked for, or if a server reports none.
        finish_reason: ``"stop"`` (end of text or a stop string) or ``"length"`` (`max_new_tokens` reached).
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InvalidValue(f"the text of a Completion is {self.text!r}; write a str, empty if there are no words")
        object.__setattr__(self, "text", valid(self.text))


class Engine(Protocol):
    """A language model that continues and scores texts; it knows nothing about conversations."""

    @property
    def identity(self) -> str:
        """Name and revision of the model; part of the key that completions are stored under."""
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
        """Return a completion of each prompt; prompts can be equal, with different seeds."""
        ...

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Return the log-probabilities of each continuation's tokens after its prompt, at temperature 1.

        Both are tokenised as one text; see `continues` for the token at the border.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


def checked_engine(engine: Any, whose: str) -> Engine:
    """Return what somebody handed over as an engine, after a look at its members.

    Args:
        engine: Any object.
        whose: Where it comes from, for the message.

    Raises:
        InvalidValue: It has no `generate` or `score`, or its identity is no text.
    """
    if missing := [name for name in ("generate", "score") if not callable(getattr(engine, name, None))]:
        raise InvalidValue(f"{whose} is no engine but {engine!r}: it has no {' and no '.join(missing)}")
    identity = getattr(engine, "identity", None)
    if not isinstance(identity, str) or not identity:
        raise InvalidValue(
            f"{whose} has the identity {identity!r}; give it the model's name and revision as a str: completions are "
            "stored under it"
        )
    made: Engine = engine
    return made


def generated(engine: Engine, prompts: Sequence[Any], **sampling: Any) -> list[Completion]:
    """Return `Engine.generate` of B prompts, after a check that it gave B completions.

    Raises:
        InvalidValue: It gave something else.
    """
    made: Any = engine.generate(prompts, **sampling)
    return checked_rows(engine, "generate", made, len(prompts), Completion)


def checked_rows(engine: Engine, method: str, made: Any, size: int, kind: type) -> list[Any]:
    """Return what a method of an engine gave for a batch, after a check that it is `size` objects of a type.

    Raises:
        InvalidValue: It isn't.
    """
    if isinstance(made, (list, tuple)) and len(made) == size and all(isinstance(row, kind) for row in made):
        return list(made)
    got = repr(made)[:60] if not isinstance(made, (list, tuple)) else (
        f"{len(made)} of {', '.join(sorted({type(row).__name__ for row in made})) or 'nothing'}"
    )  # fmt: skip
    raise InvalidValue(
        f"{method}() of the engine {engine.identity} returns {got} for {size} prompts; let it return a list with a "
        f"{kind.__name__} for each, and test it with `chatgym.testing.check_engine`"
    )


def continues(begins: Sequence[int], prompt: int, whole: int) -> list[int]:
    """Return the places of the tokens that belong to a continuation, the one that begins in the prompt included.

    Args:
        begins: The characters at which the tokens of the whole text begin; of one that is a part of a character, the
            place of that.
        prompt: Characters of the prompt.
        whole: Characters of prompt and continuation.
    """
    ends = [*begins[1:], whole]
    spans = enumerate(zip(begins, ends, strict=True))
    return [i for i, (begin, end) in spans if (begin >= prompt or end > prompt) and begin < whole]


def check_sampling(
    prompts: Sequence[object], max_new_tokens: int, temperature: float, top_p: float, seeds: Sequence[int] | None
) -> None:
    """Check the arguments of `Engine.generate`.

    Raises:
        InvalidValue: A number is out of range, or there aren't as many seeds as prompts.
    """
    if max_new_tokens < 1 or not temperature >= 0.0 or not 0.0 < top_p <= 1.0:
        raise InvalidValue(
            "generate needs max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, not "
            f"{max_new_tokens}, {temperature}, {top_p}"
        )
    check_each("seeds", seeds, prompts)


def check_each(what: str, given: Sequence[object] | None, prompts: Sequence[object]) -> None:
    """Check that a sequence, unless it is None, has one item for each prompt.

    Args:
        what: Name of the items, for the message.
        given: The sequence.
        prompts: The prompts.

    Raises:
        InvalidValue: It has more or fewer.
    """
    if given is not None and len(given) != len(prompts):
        raise InvalidValue(f"got {len(given)} {what} for {len(prompts)} prompts; give one each")


class LazyEngine:
    """An engine that opens another one at the first `generate` or `score`; its identity is known before that."""

    def __init__(self, identity: str, opener: Callable[[], Engine]) -> None:
        self.identity = identity
        self._open = opener
        self._engine: Engine | None = None

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._engine is not None

    def opened(self) -> Engine:
        """Return the engine; opens it the first time."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[Completion]:
        """See `Engine.generate`."""
        return self.opened().generate(prompts, **sampling) if prompts else []

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """See `Engine.score`."""
        return self.opened().score(prompts, continuations) if prompts else []

    def close(self) -> None:
        """Free the model's memory; the next use opens it again."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
