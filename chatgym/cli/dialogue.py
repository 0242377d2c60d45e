"""A conversation on the terminal: read a person's line, print who says what."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chatgym.storage.utf8 import MARK, valid

if TYPE_CHECKING:
    from rich.console import Console

QUIT = ("q", "quit")
"""Lines that end the conversation."""


def print_utterance(out: Console, role: str, text: str, note: str = "", *, partner: bool) -> None:
    """Print an utterance in the colour of its speaker (`partner` or agent), with an optional note in a dim colour."""
    from rich.text import Text

    line = Text(f"{role:>9}  ", style="bold cyan" if partner else "bold green")
    line.append(text, style="default")
    if note:
        line.append(f"  ({note})", style="dim")
    out.print(line)


def read_line(out: Console, prompt: str) -> str | None:
    """Print the prompt and read a line from stdin; return None when the person quits or the input ends."""
    out.print(prompt, end="")
    out.file.flush()
    try:
        line = valid(input().removeprefix(MARK))
    except EOFError:
        return None
    if not sys.stdin.isatty():
        out.print(line)  # a terminal echoes what is typed, a pipe doesn't
    return None if line.strip().lower() in QUIT else line.strip()
