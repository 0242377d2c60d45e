"""``chatgym replay``: play a trace again and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chatgym.cli.options import AsJson, print_json
from chatgym.cli.terminal import console


def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", exists=True, dir_okay=False, help="A file that `evaluate --trace` wrote.")
    ],
    as_json: AsJson = False,
) -> None:
    """Replay a trace and compare every word with it.

    The same acts are taken again; observations, rewards, outcomes and utterances must be as in the trace. No model is
    needed: the trace holds the generated utterances. At the first difference the command prints the line, the field
    and both values, and exits with 1.

    \b
    Example:
      chatgym evaluate expert --conversations 20 --trace t.jsonl && chatgym replay t.jsonl
    """
    from chatgym.envs.replay import replay as play_again

    found = play_again(trace)
    if as_json:
        print_json({"conversations": found.conversations, "turns": found.turns, "sha256": found.sha256})
        return
    console().print(f"Replayed {found.conversations:,} conversations, {found.turns:,} turns, all as before")
    console().print(f"SHA-256 {found.sha256}")
