"""Render conversations as coloured text."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

from chatgym.scenarios import Scenario


class Replacing:
    """A text stream that writes ``?`` for characters that its encoding can't show, where the stream itself would raise.

    All else is the stream's own. The stream isn't changed: it may be the user's ``sys.stdout``.
    """

    def __init__(self, stream: Any) -> None:
        """Write to a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; returns its number of characters."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)


def print_turns(turns: Sequence[dict[str, Any]], scenario: Scenario) -> None:
    """Print turns (see `ChatEnv.transcript`) to stdout."""
    from rich.console import Console

    stdout: Any = sys.stdout and Replacing(sys.stdout)  # there is none in a program without a console
    _write(Console(file=stdout, highlight=False), turns, scenario)


def to_ansi(turns: Sequence[dict[str, Any]], scenario: Scenario) -> str:
    """Return turns as text with ANSI colours."""
    from rich.console import Console

    out = io.StringIO()
    _write(Console(file=out, force_terminal=True, width=100, highlight=False), turns, scenario)
    return out.getvalue()


def _write(console: Any, turns: Sequence[dict[str, Any]], scenario: Scenario) -> None:
    """Write a line for each turn: its role in a colour, its words, and a note."""
    from rich.text import Text

    colours = {scenario.partner_role: "bold cyan", scenario.agent_role: "bold green"}
    for turn in turns:
        line = Text(f"{turn['role']:>9}  ", style=colours.get(turn["role"], "bold yellow"))
        line.append(turn["text"], style="default")
        line.append(f"  ({note(turn)})", style="dim")
        console.print(line)


def note(turn: dict[str, Any]) -> str:
    """Return a turn's act, its reward if it has one, and how the agent's own words were understood."""
    reward = f", reward {turn['reward']:+.2f}" if "reward" in turn else ""
    heard = f', heard as "{turn["heard"]}"' if turn.get("heard") not in (None, turn["text"]) else ""
    return f"{turn['act']}{reward}{heard}"
