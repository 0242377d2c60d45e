"""Errors: each message names the value, what is allowed, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ChatGymError(Exception):
    """Base of all errors that ChatGym raises."""


class InvalidValue(ChatGymError, ValueError):
    """A user's value is not allowed."""


class Unavailable(ChatGymError, RuntimeError):
    """Something needed (a model, a plugin, a server) is not available."""


class Unfinished(Unavailable):
    """A server left prompts of a batch unanswered; the engine keeps the answers it has for the next call.

    Attributes:
        answered: Row of the batch to its `chatgym.engines.Completion`, for the answered prompts.
    """

    def __init__(self, message: str) -> None:
        """Make the error without answers."""
        super().__init__(message)
        self.answered: dict[int, Any] = {}


class BudgetSpent(Unfinished):
    """A limit on requests, tokens or cost is reached; raise the limit and repeat the call to continue."""


class AgentFailed(ChatGymError, RuntimeError):
    """An agent's own code raised an exception, which is the ``__cause__``.

    Attributes:
        trace: The lines of its traceback that are in the agent's code, with the exception.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        """Make the error with a part of the traceback."""
        super().__init__(message)
        self.trace = trace


class Corrupted(ChatGymError, RuntimeError):
    """A file differs from what was written."""


class ReplayMismatch(ChatGymError, RuntimeError):
    """A replay differs from its trace."""


def unknown(what: str, value: object, allowed: Iterable[str], remedy: str = "") -> InvalidValue:
    """Return an `InvalidValue` for an unknown name, with the nearest known name."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listing = ", ".join(repr(name) for name in names) or "none"
    return InvalidValue(f"unknown {what} {value!r}; known: {listing}.{hint}{' ' + remedy if remedy else ''}")
