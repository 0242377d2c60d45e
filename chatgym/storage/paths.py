"""Paths as users give them, and whether there is a home to keep files in."""

from __future__ import annotations

import os
from pathlib import Path

from chatgym.errors import InvalidValue


def has_home() -> bool:
    """Tell whether the user has a home: there may be neither HOME nor an entry in the password file."""
    return os.path.isabs(os.path.expanduser("~"))


def given(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, with ``~`` and ``~name`` replaced by the home.

    Raises:
        InvalidValue: There is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InvalidValue(f"{str(path)!r} is below a home folder that isn't known; write the whole path") from None
