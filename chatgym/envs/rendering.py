"""How a conversation looks in a terminal: a colour for each role, the act and the reward beside the words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from chatgym.scenarios import Scenario


def print_turns(turns: Sequence[dict[str, Any]], scenario: Scenario) -> None:
    """Print turns (see `ChatEnv.transcript`) to the terminal."""
    from rich.console import Console

    _write(Console(highlight=False), turns, scenario)


def to_ansi(turns: Sequence[dict[str, Any]], scenario: Scenario) -> str:
    """Return turns as text with ANSI colours."""
    from rich.console import Console

    out = io.StringIO()
    _write(Console(file=out, force_terminal=True, width=100, highlight=False), turns, scenario)
    return out.getvalue()


def _write(console: Any, turns: Sequence[dict[str, Any]], scenario: Scenario) -> None:
    from rich.text import Text

    colours = {scenario.partner_role: "bold cyan", scenario.agent_role: "bold green"}
    for turn in turns:
        line = Text(f"{turn['role']:>9}  ", style=colours.get(turn["role"], "bold yellow"))
        line.append(turn["text"], style="default")
        line.append(f"  ({note(turn)})", style="dim")
        console.print(line)


def note(turn: dict[str, Any]) -> str:
    """Return what stands beside a turn's words: its act, its reward, and what was heard in words of the agent's own."""
    reward = f", reward {turn['reward']:+.2f}" if "reward" in turn else ""
    heard = f', heard as "{turn["heard"]}"' if turn.get("heard") not in (None, turn["text"]) else ""
    return f"{turn['act']}{reward}{heard}"
