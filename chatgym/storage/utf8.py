"""Texts that come from outside, as valid Unicode: files, JSON, and answers of servers and models.

Two things make a Python text unfit for a file or a tokenizer, or make it differ from what a person sees: half of a
surrogate pair, which JSON can write as an escape (``"\\ud83d"``), and a byte order mark, which Windows editors write at
the beginning of a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MARK = "\ufeff"
"""The byte order mark."""


def valid(text: str) -> str:
    """Return a text with each lone surrogate replaced by U+FFFD; the two halves of a pair become one character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def valid_json(value: Any) -> Any:
    """Return a JSON value with every text in it made `valid`, keys included."""
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, dict):
        return {valid_json(name): valid_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [valid_json(one) for one in value]
    return value


def decoded(data: bytes) -> str:
    """Return the text in UTF-8, or in UTF-16 if it begins with that mark, without a byte order mark.

    Raises:
        UnicodeDecodeError: It is neither.
    """
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if utf16 else "utf-8").removeprefix(MARK)


def parsed(text: str | bytes) -> Any:
    """Return the value of a JSON text, without a byte order mark, its texts made `valid`.

    Raises:
        ValueError: It is no JSON (`json.JSONDecodeError`), nested too deeply, or its bytes are no text
            (`UnicodeDecodeError`).
    """
    text = decoded(text) if isinstance(text, bytes) else text.removeprefix(MARK)
    try:
        value = json.loads(text)
        return valid_json(value) if "\\u" in text or not text.isascii() else value  # else there are no surrogates
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_text(path: Path) -> str:
    r"""Return the text of a file, see `decoded`, with ``\n`` as line ends.

    Raises:
        OSError: It can't be read.
        UnicodeDecodeError: It is no text in UTF-8.
    """
    return decoded(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[Any]:
    """Return the values of a file of JSON lines without one that was cut off; none if there is no file.

    Raises:
        OSError: It can't be read.
        ValueError: A line is no JSON, or no text.
    """
    return [parsed(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.is_file() else []


def read_json(path: Path) -> Any:
    """Return the value of a JSON file, see `parsed`.

    Raises:
        OSError: It can't be read.
        ValueError: It is no JSON, or no text.
    """
    return parsed(path.read_bytes())
