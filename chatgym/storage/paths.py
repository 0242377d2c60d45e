"""Paths as users give them, and whether there is a home to keep files in."""

from __future__ import annotations

import os
from pathlib import Path

from chatgym.errors import InvalidValue


def has_home() -> bool:
    """Tell whether the user has a home: there may be neither HOME nor an entry in the password file."""
    return os.path.isabs(os.path.expanduser("~"))


def given(path: str | bytes | os.PathLike[str]) -> Path:
    """Return a path that a user gave, with ``~`` and the ``~name`` of another user replaced by the home.

    A shell does so only at the beginning of a word, not in ``--run=~/mine``, and Python never does.

    Raises:
        InvalidValue: There is no home.
    """
    expanded = os.path.expanduser(os.fsdecode(path))
    if expanded == "~" or expanded.startswith(("~/", f"~{os.sep}")):
        raise InvalidValue(f"{str(path)!r} is below a home folder, and this user has none; write the whole path")
    return Path(expanded)
