"""``chatgym audit``: look for contradictions of a simulated partner."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatgym.cli import budget
from chatgym.cli.options import AsJson, ErrorRate, Overwrite, PartnerLLM, print_json
from chatgym.cli.terminal import console, progress_bar, table
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from chatgym.evaluation.audit import Audit
    from chatgym.evaluation.intervals import Interval

SEED = 5_000_000  # chatgym.evaluation.audit.AUDIT_SEED, which isn't imported for --help
SHOWN = 10
"""Most frequent findings in the table."""


def audit(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="Scenario; `chatgym scenarios` lists them.")],
    conversations: Annotated[
        int, typer.Option(min=1, metavar="N", help="Conversations with each kind of agent, without words.")
    ] = 1000,
    worded: Annotated[int, typer.Option(min=0, metavar="N", help="Conversations in words, over all agents.")] = 300,
    llm: PartnerLLM = "template",
    error_rate: ErrorRate = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the first conversation; the i-th has seed N + i.")
    ] = SEED,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Folder for audit.json and the traces.",
            show_default="audits/SCENARIO",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if there are contradictions; misheard words don't count.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    max_requests: budget.MaxRequests = None,
    max_tokens: budget.MaxTokens = None,
    max_cost: budget.MaxCost = None,
    prompt_price: budget.PromptPrice = None,
    completion_price: budget.CompletionPrice = None,
) -> None:  # fmt: skip
    """Look for contradictions of a simulated partner.

    Agents of several kinds (random, expert, disturbed, ...) talk to the partner. The audit counts where the partner
    contradicts its hidden goal, answers what wasn't asked, repeats itself, leaves too early or never. In the
    conversations in words it also counts the utterances that NLU reads as another act or value than was meant.

    The folder gets audit.json and, for each kind of contradiction, a trace for `chatgym replay`. Ctrl-C keeps what was
    found so far.

    \b
    Examples:
      chatgym audit customer_service
      chatgym audit social --conversations 10000 --strict
      chatgym audit education --conversations 100 --worded 1000 --llm smollm2-135m-partner
      chatgym replay audits/education/wording.jsonl
    """
    from chatgym.envs.interfaces import ERROR_RATE
    from chatgym.evaluation.audit import Audit

    engine = budget.open_engine(
        llm, max_requests=max_requests, max_tokens=max_tokens, max_cost=max_cost, prompt_price=prompt_price,
        completion_price=completion_price,
    )  # fmt: skip
    result = Audit(scenario, error_rate=ERROR_RATE if error_rate is None else error_rate, llm=engine or llm)
    folder = out or Path("audits") / result.scenario.name
    _check_free(folder, overwrite)
    interrupted = False
    try:
        kept = "the utterances generated so far are kept"
        with budget.explain_interruption(engine, kept, "begins anew with them, with --overwrite"):
            _run(result, conversations, worded, seed)
    except KeyboardInterrupt:
        interrupted = True
    report = {**result.to_json(), "seed": seed, "interrupted": interrupted}
    _write(result, folder, json.dumps(report, indent=2, ensure_ascii=False))
    if as_json:
        print_json(report)
    else:
        _print(result, folder, interrupted)
    if interrupted:
        raise KeyboardInterrupt
    if strict and result.contradictions():
        raise typer.Exit(1)


def _run(result: Audit, conversations: int, worded: int, seed: int) -> None:
    """Hold all conversations, those in words first: they may lack a model that the others don't need."""
    from chatgym.evaluation.audit_policies import AGENTS

    shares = [worded // len(AGENTS) + (i < worded % len(AGENTS)) for i in range(len(AGENTS))]
    label, total = f"audit {result.scenario.name}", worded + conversations * len(AGENTS)
    with progress_bar(label, total, "conversations") as progress:
        done = 0

        def show(count: int, **metrics: float) -> None:
            progress(done + count, metrics)

        result.wording_progress = lambda banks: show(0, wordings=banks)
        for hold, counts in ((result.audit_words, shares), (result.audit_acts, [conversations] * len(AGENTS))):
            for agent, count in zip(AGENTS, counts, strict=True):
                hold(agent, count, seed=seed, progress=show)
                done += count


def _files(folder: Path) -> list[Path]:
    """Return the files that an audit writes, or may write, into a folder."""
    from chatgym.scenarios.contradictions import KINDS, WORDING

    return [folder / "audit.json", *(folder / f"{kind}.jsonl" for kind in (*KINDS, WORDING))]


def _check_free(folder: Path, overwrite: bool) -> None:
    """Check that a folder holds no audit, or `overwrite` is true.

    Raises:
        InvalidValue: It holds one.
    """
    if not overwrite and (there := [path.name for path in _files(folder) if path.exists()]):
        raise InvalidValue(
            f"{folder} already holds an audit ({there[0]}); replace it (--overwrite) or name another folder (--out)"
        )


def _write(result: Audit, folder: Path, text: str) -> None:
    """Write audit.json and the traces, and delete those of an earlier audit."""
    from chatgym.storage.atomic import write_text

    folder.mkdir(parents=True, exist_ok=True)
    for path in _files(folder):
        path.unlink(missing_ok=True)
    result.write_traces(folder)
    write_text(folder / "audit.json", text + "\n")


def _print(result: Audit, folder: Path, interrupted: bool) -> None:
    """Print the rates, the agents and the most frequent findings as tables."""
    from chatgym.evaluation.audit_policies import AGENTS

    out = console()
    if rates := list(_rates(result)):
        out.print(table(("the partner", "found in", "share", "95 % interval"), rates, (1, 2, 3)))
    agents = [
        (name, f"{result.conversations[name]:,}", f"{result.contradictions(name):,}", AGENTS[name])
        for name in AGENTS if result.conversations[name]
    ]  # fmt: skip
    if agents:
        out.print()
        out.print(table(("agent", "conversations", "contradictions", "what it does"), agents, (1, 2)))
    frequent = Counter((one.finding.kind, one.finding.what) for one in result.findings).most_common(SHOWN)
    if frequent:
        out.print()
        rows = [(kind, what, f"{times:,}") for (kind, what), times in frequent]
        out.print(table(("kind", "most frequent", "times"), rows, (2,)))
    if result.scenario.audit is None:
        out.print(f"\n{result.scenario.name} has no checks of its own (Scenario.audit): only repetitions and "
                  "conversations that never end are found")  # fmt: skip
    out.print(f"\n{result.turns:,} turns; error rate {result.error_rate}; {folder / 'audit.json'}", end="")
    out.print(f"; `chatgym replay {folder}/KIND.jsonl` replays the findings" if frequent else "")
    if interrupted:
        out.print("Interrupted: these are the findings so far")


def _rates(result: Audit) -> Iterator[tuple[str, str, str, str]]:
    """Return the rows of the table of rates: contradictions by kind, then misheard utterances."""
    from chatgym.scenarios.contradictions import KINDS

    if held := result.conversations.total():
        for kind, what in KINDS.items():
            rate = result.rate(kind)
            yield what, f"{rate.value * held:,.0f} of {held:,} conversations", *_percent(rate)
    for what, counts in (("one thing", result.simple), ("several things", result.joined)):
        if counts.utterances:
            misheard = f"{counts.missed.total():,} of {counts.utterances:,} utterances"
            yield f"is misheard, saying {what}", misheard, *_percent(counts.rate)


def _percent(rate: Interval) -> tuple[str, str]:
    """Write a share and its interval in percent."""
    share = rate.scaled(0.0, 0.01)
    return f"{share.value:.3f} %", f"{share.low:.3f} to {share.high:.3f} %"
