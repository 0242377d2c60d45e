"""``chatgym audit``: does the simulated partner contradict itself?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatgym.cli.budget import (
    CompletionPrice,
    MaxCost,
    MaxRequests,
    MaxTokens,
    PromptPrice,
    open_engine,
    explain_interruption,
)
from chatgym.cli.terminal import console, progress_bar, table

if TYPE_CHECKING:
    from chatgym.evaluation.audit import Audit
    from chatgym.evaluation.intervals import Interval

SEED = 5_000_000  # chatgym.evaluation.audit.AUDIT_SEED, which isn't imported for --help
SHOWN = 10


def audit(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="Whose partner: `chatgym scenarios` lists them.")],
    conversations: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many to hold with each kind of agent.")
    ] = 1000,
    worded: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many to hold in words, all agents together.")
    ] = 300,
    llm: Annotated[
        str,
        typer.Option(
            metavar="LLM", help="Who words the partner: template, smollm2-135m-partner, hf:ID-or-folder, ..."
        ),
    ] = "template",
    error_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="How often agents misunderstand.")
    ] = 0.1,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the first conversation; the next ones count on from it.")
    ] = SEED,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Where audit.json and the traces go.",
            show_default="audits/SCENARIO",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there are contradictions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json.")] = False,
    max_requests: MaxRequests = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    prompt_price: PromptPrice = None,
    completion_price: CompletionPrice = None,
) -> None:  # fmt: skip
    """Look for contradictions of a simulated partner.

    Random, expert and disturbed agents hold conversations. Counted is where the partner says what its hidden goal
    denies, answers what wasn't asked, repeats itself, leaves too early or never; and, of the conversations in words,
    how many utterances NLU takes for another act or value than was meant. Ctrl-C keeps what was found so far.

    The conversations behind each kind are written for `chatgym replay`. --strict looks at contradictions, not at words.

    \b
    Examples:
      chatgym audit customer_service
      chatgym audit social --conversations 10000 --strict
      chatgym audit education --conversations 100 --worded 1000 --llm smollm2-135m-partner
      chatgym replay audits/education/wording.jsonl
    """
    from chatgym.evaluation.audit import Audit

    words = open_engine(
        llm, max_requests=max_requests, max_tokens=max_tokens, max_cost=max_cost, prompt_price=prompt_price,
        completion_price=completion_price,
    )  # fmt: skip
    found = Audit(scenario, error_rate=error_rate, llm=words or llm)
    interrupted = False
    try:
        with explain_interruption(words, "the words made so far are kept"):
            _run(found, conversations, worded, seed)
    except KeyboardInterrupt:
        interrupted = True
    folder = out or Path("audits") / found.scenario.name
    report = {**found.to_json(), "seed": seed, "interrupted": interrupted}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    _write(found, folder, text)
    if as_json:
        typer.echo(text)
    else:
        _print(found, folder, interrupted)
    if interrupted:
        raise KeyboardInterrupt
    if strict and found.contradictions():
        raise typer.Exit(1)


def _run(found: Audit, conversations: int, worded: int, seed: int) -> None:
    """Hold all conversations: those in words first, where something may be missing that the others don't need."""
    from chatgym.evaluation.audit_policies import AGENTS

    shares = [worded // len(AGENTS) + (i < worded % len(AGENTS)) for i in range(len(AGENTS))]
    with progress_bar(
        f"audit {found.scenario.name}", worded + conversations * len(AGENTS), "conversations"
    ) as progress:
        done = 0

        def show(count: int, **metrics: float) -> None:
            if progress is not None:
                progress(done + count, metrics)

        found.wording_progress = lambda banks: show(0, wordings=banks)
        for hold, counts in ((found.listen, shares), (found.play, [conversations] * len(AGENTS))):
            for agent, count in zip(AGENTS, counts, strict=True):
                hold(agent, count, seed=seed, progress=show)
                done += count


def _write(found: Audit, folder: Path, text: str) -> None:
    """Write audit.json and the traces in the place of those of an earlier audit."""
    from chatgym.scenarios.contradictions import KINDS, WORDING
    from chatgym.storage.atomic import write_text

    folder.mkdir(parents=True, exist_ok=True)
    for kind in (*KINDS, WORDING):
        (folder / f"{kind}.jsonl").unlink(missing_ok=True)
    found.write_traces(folder)
    write_text(folder / "audit.json", text + "\n")


def _print(found: Audit, folder: Path, interrupted: bool) -> None:
    from chatgym.evaluation.audit_policies import AGENTS

    out = console()
    if rates := list(_rates(found)):
        out.print(table(("the partner", "found in", "share", "95 % interval"), rates, (1, 2, 3)))
    agents = [
        (name, f"{found.played[name]:,}", f"{found.contradictions(name):,}", AGENTS[name])
        for name in AGENTS if found.played[name]
    ]  # fmt: skip
    if agents:
        out.print()
        out.print(table(("agent", "conversations", "contradictions", "which"), agents, (1, 2)))
    whats = Counter((one.finding.kind, one.finding.what) for one in found.found).most_common(SHOWN)
    if whats:
        out.print()
        rows = [(kind, what, f"{times:,}") for (kind, what), times in whats]
        out.print(table(("kind", "most frequent", "times"), rows, (2,)))
    if found.scenario.audit is None:
        out.print(f"\n{found.scenario.name} has no checks of its own (Scenario.audit): only repetitions, and "
                  "conversations that never end, are found")  # fmt: skip
    out.print(f"\n{found.turns:,} turns; error rate {found.error_rate}; {folder / 'audit.json'}", end="")
    out.print(f"; `chatgym replay {folder}/KIND.jsonl` plays what was found" if whats else "")
    if interrupted:
        out.print("Interrupted: this is what was found until then")


def _rates(found: Audit) -> Iterator[tuple[str, str, str, str]]:
    from chatgym.scenarios.contradictions import KINDS

    held = found.played.total()
    if held:
        for kind, what in KINDS.items():
            rate = found.rate(kind)
            yield what, f"{rate.value * held:,.0f} of {held:,} conversations", *_percent(rate)
    for what, wording in (("one thing", found.simple), ("several things", found.joined)):
        if wording.utterances:
            count = f"{wording.missed.total():,} of {wording.utterances:,} utterances"
            yield f"is misheard, saying {what}", count, *_percent(wording.rate)


def _percent(rate: Interval) -> tuple[str, str]:
    share = rate.scaled(0.0, 0.01)
    return f"{share.value:.3f} %", f"{share.low:.3f} to {share.high:.3f} %"
