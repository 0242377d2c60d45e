"""``chatgym replay``: a trace, played again and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chatgym.cli.terminal import console


def replay(
    trace: Annotated[
        Path,
        typer.Argument(metavar="TRACE", exists=True, dir_okay=False, help="What `evaluate --trace` wrote."),
    ],
) -> None:
    """Play a trace again and compare every word.

    Observations, rewards and acts are compared, too. Needs no model: the wordings that one made are part of the trace.
    At the first difference it names line, field and both values, and exits with 1.
    """
    from chatgym.envs.replay import replay as play_again

    found = play_again(trace)
    console().print(f"Replayed {found.conversations:,} conversations, {found.turns:,} turns, all as before")
    console().print(f"SHA-256 {found.sha256}")
