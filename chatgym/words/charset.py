"""The characters of texts in observations and actions, and their longest length."""

from __future__ import annotations

import string

from chatgym.storage.utf8 import valid

MAX_CHARS = 2000
"""Longest text of an observation or an action, in characters."""

CHARSET = frozenset(string.ascii_letters + string.digits + string.punctuation + " \n€£’‘“”…–—éèêëàâäáíìîïóòôöúùûüñç")
"""Characters of an observed text; NLG uses no others."""


def clean(text: str) -> str:
    """Return a text that can be stored and printed: without lone surrogates and control characters."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in valid(text)).strip()
