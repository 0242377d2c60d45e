"""Who may ask: bearer tokens, from the environment or a file, of which only digests are kept."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from chatgym.errors import InvalidValue
from chatgym.storage.utf8 import MARK, read_text

VARIABLE = "CHATGYM_SERVE_TOKENS"
SHORTEST = 8


class Access:
    """Bearer tokens that open the server; without any it is open to all who reach it."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = [hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest() for token in tokens]

    @property
    def open(self) -> bool:
        """Whether no token is needed."""
        return not self._digests

    def allows(self, header: str) -> bool:
        """Look whether a request's ``Authorization`` carries one of the tokens, in a time that doesn't tell."""
        if self.open:
            return True
        scheme, _, token = header.partition(" ")
        given = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()  # the bytes that were sent
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(given, digest)
        return known and scheme.lower() == "bearer"


def read_tokens(file: Path | None) -> list[str]:
    """Return the tokens of a file, one a line, or else those of the environment, separated by commas or spaces.

    Raises:
        InvalidValue: There is a file or a variable, but no token in it, or one that is too short, or it is no text.
    """
    if file is not None:
        try:
            lines = read_text(file).splitlines()
        except UnicodeDecodeError:
            raise InvalidValue(f"token file {str(file)!r} isn't text in UTF-8; save it as such") from None
        tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        where = f"token file {str(file)!r}"
    elif VARIABLE in os.environ:
        tokens, where = os.environ[VARIABLE].removeprefix(MARK).replace(",", " ").split(), VARIABLE
    else:
        return []
    if not tokens:
        raise InvalidValue(f"{where} holds no token, which would leave the server open; write one, or leave it away")
    if any(len(token) < SHORTEST for token in tokens):
        raise InvalidValue(f"{where} holds a token of fewer than {SHORTEST} characters, which is guessed soon")
    return tokens
