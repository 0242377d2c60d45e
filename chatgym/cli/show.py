"""``chatgym show``: list recorded conversations, or print one with what was heard, believed and done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli.options import AsJson, print_json
from chatgym.cli.terminal import console, table
from chatgym.errors import InvalidValue, unknown

if TYPE_CHECKING:
    from chatgym.evaluation.recordings import Recording, Recordings, Turn

WIDTH = 100
"""Most columns of a printed conversation."""


def show(
    trace: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            help="A file that `evaluate --trace` wrote, a run folder, or a folder that `evaluate --out` wrote.",
        ),
    ],
    number: Annotated[
        int | None,
        typer.Argument(metavar="N", help="Number of the conversation to print; without it, they are listed."),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="List those that failed.")] = False,
    outcome: Annotated[str | None, typer.Option(metavar="NAME", help="List those with an outcome.")] = None,
    cause: Annotated[
        str | None, typer.Option(metavar="NAME", help="List those that failed by garbled, policy or patience.")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show recorded conversations, and why they failed.

    Without N it lists them: seed, outcome, what they failed by, turns, how many utterances the agent misheard
    (garbled), in how many turns it did something else than the expert, and the return.

    With N it prints one, turn by turn: what the agent said, beside the expert's act if that is another one; what the
    partner answered, and what the agent heard if that was garbled; what the agent believes, where it has changed; the
    terms of the reward. At the end it prints the partner's hidden goal, the outcome, and why the conversation failed:

    \b
      garbled   the agent was misled by what it had misheard
      policy    the agent ended it wrongly, and wasn't misled
      patience  the partner left, or the turns ran out

    \b
    Examples:
      chatgym evaluate runs/qlearning --conversations 100 --trace t.jsonl
      chatgym show t.jsonl --failed
      chatgym show t.jsonl --cause garbled
      chatgym show t.jsonl 7
      chatgym show runs/qlearning 10
    """
    from chatgym.evaluation.recordings import open_recordings, to_json

    found = open_recordings(trace)
    if number is not None:
        if failed or outcome is not None or cause is not None:
            raise InvalidValue(f"--failed, --outcome and --cause choose what is listed; leave them out with N={number}")
        held = found[number]
        if as_json:
            print_json({"file": found.path, "scenario": found.scenario, **to_json(held, found.roles[1])})
            return
        _print_one(found, held)
        return
    listed = _chosen(found, failed, outcome, cause)
    if as_json:
        print_json({"file": found.path, "scenario": found.scenario, "conversations": [_figures(one) for one in listed]})
        return
    _print_list(found, listed)


def _chosen(found: Recordings, failed: bool, outcome: str | None, cause: str | None) -> list[Recording]:
    """Return the conversations to list.

    Raises:
        InvalidValue: There is no such outcome or cause, or the file doesn't tell causes.
    """
    from chatgym.dynamics.hearing import CAUSES

    outcomes = {one.outcome for one in found.conversations}
    if outcome is not None and outcome not in outcomes:
        raise unknown("outcome", outcome, outcomes, f"These are the outcomes in {found.path}.")
    if cause is not None and cause not in CAUSES:
        raise unknown("--cause", cause, CAUSES)
    if (failed or cause is not None) and found.lacks:
        raise InvalidValue(f"{found.lacks}; --outcome chooses by outcomes")
    return [
        one
        for one in found.conversations
        if (not failed or one.failure) and outcome in (None, one.outcome) and cause in (None, one.failure)
    ]


def _figures(held: Recording) -> dict[str, Any]:
    """Return the figures of a conversation in a list."""
    own = held.own_ways
    trained = {} if held.trained_for is None else {"trained_for": held.trained_for}
    return {
        "number": held.number, "seed": held.seed, "key": held.key, **trained, "outcome": held.outcome,
        "failure": held.failure, "turns": held.length, "garbled": held.garbled,
        "unlike_expert": None if own is None else len(own), "return": held.total,
    }  # fmt: skip


def _print_list(found: Recordings, listed: list[Recording]) -> None:
    """Print the table of conversations."""
    out, rows = console(), []
    trained = any(one.trained_for is not None for one in listed)
    for one in listed:
        figures = _figures(one)
        counts = ("" if figures[name] is None else str(figures[name]) for name in ("garbled", "unlike_expert"))
        rows.append((
            str(one.number), *((f"{one.trained_for:,}",) if trained else ()),
            str(one.key if one.seed is None else one.seed), one.outcome or "goes on", one.failure or "",
            str(one.length), *counts, f"{one.total:.2f}",
        ))  # fmt: skip
    columns = (
        "N", *(("trained for",) if trained else ()), "seed", "outcome", "failed by", "turns", "garbled",
        "unlike expert", "return",
    )  # fmt: skip
    numbers = [index for index, name in enumerate(columns) if name not in ("seed", "outcome", "failed by")]
    out.print(table(columns, rows, numbers))
    out.print(
        f"\n{len(listed):,} of {len(found.conversations):,} conversations of {found.scenario or 'a scenario'}; "
        f"`chatgym show {found.path} N` prints one"
    )
    if found.lacks:
        out.print(f"Beliefs are missing: {found.lacks}")


def _print_one(found: Recordings, held: Recording) -> None:
    """Print a conversation."""
    from rich.table import Table

    out, (agent, partner) = console(), found.roles
    out.width = min(out.width, WIDTH)
    known = [
        f"seed {held.seed}" if held.seed is not None else "", f"key {held.key}" if held.key else "",
        f"error rate {found.error_rate:g}" if found.error_rate is not None else "",
        f"agent trained for {held.trained_for:,} turns" if held.trained_for is not None else "",
    ]  # fmt: skip
    title = f"Conversation {held.number} of {len(found.conversations)} in {found.path}"
    out.print(f"{title}: {', '.join(filter(None, (found.scenario, *known)))}\n")
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", style="dim", min_width=2)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold", ratio=1)
    believed: str | None = None
    for turn in held.turns:
        if turn.number:
            _add_agent(grid, turn, agent, found, believed)
        _add_partner(grid, turn, partner, believed)
        believed = turn.belief
    grid.add_row()
    if held.goal is not None:
        grid.add_row("", "goal", held.goal)
    grid.add_row("", "outcome", _ending(held))
    if why := held.why(partner):
        grid.add_row("", held.failure, why)
    with out.capture() as printed:
        out.print(grid)
    out.file.write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()))  # without the table's padding
    if found.lacks:
        out.print(f"\nBeliefs are missing: {found.lacks}")


def _add_agent(grid: Any, turn: Turn, role: str, found: Recordings, believed: str | None) -> None:
    """Add what the agent said to the table, how it was understood, and its reward.

    Where its words are about something that the partner told, the value that counts is the one `believed`, not theirs.
    """
    from rich.text import Text

    line = Text(turn.agent_text)
    line.append(f"  ({turn.agent_act})", style="dim")
    grid.add_row(str(turn.number), Text(role, style="bold green"), line)
    if turn.understood is not None and turn.understood != turn.agent_text:
        about = turn.understood.startswith("about ") and believed
        grid.add_row("", "understood", f"{turn.understood}, as believed: {believed}" if about else turn.understood)
    if turn.expert_act not in (None, turn.agent_act):
        grid.add_row("", Text("expert", style="yellow"), Text(f"{turn.expert_act} instead of {turn.agent_act}"))
    if turn.reward is not None:
        grid.add_row("", "reward", Text(_reward(turn, found), style="dim"))


def _reward(turn: Turn, found: Recordings) -> str:
    """Return a turn's reward and its weighted terms."""
    terms = {name: found.weights.get(name, 1.0) * value for name, value in (turn.reward_terms or {}).items()}
    shares = ", ".join(f"{name} {value:+.2f}" for name, value in terms.items() if round(value, 4))
    return f"{turn.reward:+.2f}{f': {shares}' if shares else ''}"


def _add_partner(grid: Any, turn: Turn, role: str, believed: str | None) -> None:
    """Add what the partner said to the table, and what the agent heard and believes; `believed` is as of before."""
    from rich.text import Text

    line = Text(turn.text)
    line.append(f"  ({turn.user_act})", style="dim")
    grid.add_row("" if turn.number else "0", Text(role, style="bold cyan"), line)
    if turn.garbled:
        heard = f"heard {turn.heard_act} instead of {turn.user_act}" if turn.heard_act != turn.user_act else ""
        right = f"heard right, it would believe: {turn.heard_right}" if turn.heard_right else ""
        grid.add_row("", Text("garbled", style="bold red"), "; ".join(filter(None, (heard, right))))
    if turn.belief is not None and turn.belief != believed:
        grid.add_row("", "believes", _changed(turn.belief, believed or ""))


def _changed(belief: str, before: str) -> Any:
    """Return a belief in words, with what it didn't have before in bold."""
    from rich.text import Text

    known, shown = set(re.split(r"[,;] ", before)), Text()
    for part in re.split(r"([,;] )", belief):
        shown.append(part, style="" if part in known or part in (", ", "; ") else "bold")
    return shown


def _ending(held: Recording) -> str:
    """Return how a conversation ended."""
    if not held.outcome:
        return f"none yet after {held.length} turns"
    won = ", a success" if held.failure == "" else ""
    return f"{held.outcome}{won} after {held.length} turn{'' if held.length == 1 else 's'}, return {held.total:.2f}"
