"""Errors that name the value, what was allowed, and what mends it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChatGymError(Exception):
    """Root of every error that ChatGym raises on purpose."""


class InvalidValue(ChatGymError, ValueError):
    """A value that a user handed over is not one of those allowed."""


class Unavailable(ChatGymError, RuntimeError):
    """Something that is needed (a model, a plugin, a server) is not here."""


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
