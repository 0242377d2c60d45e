"""``chatgym voice``: train the adapter with which SmolLM2 generates the partner's utterances."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from chatgym.cli.options import AsJson, Overwrite, Seed, print_json
from chatgym.cli.terminal import console, progress_bar
from chatgym.errors import InvalidValue
from chatgym.scenarios import Scenario


def voice(
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder.")] = Path("runs/voice"),
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the adapter.", show_default="the default voice's")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Scenario; can be repeated.", show_default="all with wordings"),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Passes over the wordings in the first training; twice as many after the first practice, then fewer.",
        ),
    ] = 2,
    practices: Annotated[int, typer.Option(min=0, metavar="N", help="Rounds of practice and further training.")] = 2,
    lists: Annotated[int, typer.Option(min=1, metavar="N", help="Lists that it generates of each thing to say.")] = 6,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after Ctrl-C or a kill; needs the same options.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train the partner's voice: a LoRA adapter for SmolLM2.

    A scenario's voice.json holds hand-written wordings for each thing that the partner says, by tone, and answers to
    acts of the agent. The model learns to list them. Then it practises: it generates lists, and is trained again on
    the hand-written wordings and on those of its own that the wording guard accepts beyond doubt. This takes about
    three hours on two cores and needs pip install 'chatgym[lora]'; see docs/voice.md.

    \b
    Examples:
      chatgym voice --overwrite              trains smollm2-135m-partner, the default voice, again
      chatgym voice --scenario restaurant --out restaurant-voice
    """
    from chatgym.cli.sft import train_run
    from chatgym.engines.adapter import pack
    from chatgym.engines.choose import ADAPTER
    from chatgym.finetuning.sft import SFT
    from chatgym.finetuning.voice import prepare, scenarios_of
    from chatgym.finetuning.voice_practice import passed

    scenarios = scenarios_of(scenario)
    hand = run / "hand"
    target = out or ADAPTER
    if target.exists() and not overwrite:
        remedy = "replace it (--overwrite) or name another folder (--out)"
        raise InvalidValue(f"{target} already holds an adapter; {remedy}")
    said = [run / f"practice-{i}.jsonl" for i in range(1, practices + 1)]
    try:
        if not resume:
            training = prepare(hand, scenarios, rounds=rounds, seed=seed, overwrite=overwrite)
            for old in run.glob("practice-*.jsonl"):
                old.unlink()
            for old in run.glob("practised-*"):
                shutil.rmtree(old)
        else:
            training = SFT.open(hand)
        train_run(training)
        for i, path in enumerate(said, 1):
            practised = run / f"practised-{i}"
            if not practised.is_dir():
                _practise(path, training.model, scenarios, lists, seed)
                own = {one.name: passed(said[:i], one) for one in scenarios}
                more = max(2 * rounds + 1 - i, 1)  # each practice adds wordings
                prepare(practised, scenarios, rounds=more, practised=own, seed=seed)
            training = SFT.open(practised)
            train_run(training)
    except KeyboardInterrupt:
        typer.echo("Interrupted; go on with the same command and --resume", err=True)
        raise typer.Exit(130) from None
    pack(training.model / "adapter", target)
    found = [line["perplexity"] for line in training.metrics() if "perplexity" in line]
    before, after = found[0], found[-1]
    if as_json:
        print_json({"run": run, "adapter": target, "perplexity": {"before": before, "after": after}})
        return
    console().print(f"Perplexity on held-out lists: {before:.2f} before, {after:.2f} after\nAdapter: {target}")


def _practise(path: Path, model: Path, scenarios: Sequence[Scenario], lists: int, seed: int) -> None:
    """Let the model generate its lists, with a progress bar."""
    from chatgym.engines import make_engine
    from chatgym.finetuning.voice_practice import practise
    from chatgym.words.voice.wordings import banks_of

    engine = make_engine(f"hf:{model}")
    assert engine is not None
    try:
        with progress_bar("practice", sum(len(banks_of(one)) for one in scenarios), "banks") as progress:
            practise(path, scenarios, engine, lists, seed, lambda done: progress(done, {}))
    finally:
        engine.close()
