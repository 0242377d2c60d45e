"""Hash the code that decides the course of a conversation."""

from __future__ import annotations

import hashlib
import io
import tokenize


def code_digest(*sources: str) -> str:
    """SHA-256 over the tokens of Python sources, blind to comments, docstrings and layout."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.ENDMARKER}
    digest = hashlib.sha256()
    for source in sources:
        statement_starts = True
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            docstring = token.type == tokenize.STRING and statement_starts
            statement_starts = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT) or (
                statement_starts and token.type in skip
            )
            if token.type in skip or docstring:
                continue
            text = {tokenize.INDENT: "{", tokenize.DEDENT: "}"}.get(token.type, token.string)
            digest.update(text.encode() + b"\n")
    return digest.hexdigest()
