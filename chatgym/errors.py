"""Errors that name the value, what was allowed, and what mends it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ChatGymError(Exception):
    """Root of every error that ChatGym raises on purpose."""


class InvalidValue(ChatGymError, ValueError):
    """A value that a user handed over is not one of those allowed."""


class Unavailable(ChatGymError, RuntimeError):
    """Something that is needed (a model, a plugin, a server) is not here."""


class Unfinished(Unavailable):
    """A server left prompts of a batch without an answer; the engine keeps the others' for when it is asked again.

    Attributes:
        answered: Row of the batch to its `chatgym.engines.Completion`, of those that were answered.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.answered: dict[int, Any] = {}


class BudgetSpent(Unfinished):
    """A limit on requests, tokens or cost is reached; raise it, and the same call goes on where it stopped."""


class Corrupted(ChatGymError, RuntimeError):
    """A file is not what it was when it was written."""


class ReplayMismatch(ChatGymError, RuntimeError):
    """A replay did something else than its trace."""


def unknown(what: str, value: object, allowed: Iterable[str], remedy: str = "") -> InvalidValue:
    """An `InvalidValue` for a name that is not known, with the nearest known name."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listing = ", ".join(repr(name) for name in names) or "none"
    return InvalidValue(f"unknown {what} {value!r}; known: {listing}.{hint}{' ' + remedy if remedy else ''}")
