"""``chatgym voice``: teach a model to word the partners of scenarios."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from chatgym.cli.terminal import console, progress_bar
from chatgym.scenarios import Scenario


def voice(
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder of the training.")] = Path("runs/voice"),
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the adapter goes.", show_default="the one in use")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whose partners; can be given again.", show_default="all with wordings"),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How often it sees each wording at first; twice that after a practice, less after each further one.",
        ),
    ] = 2,
    practices: Annotated[int, typer.Option(min=0, metavar="N", help="How often it practises and is trained anew.")] = 2,
    lists: Annotated[int, typer.Option(min=1, metavar="N", help="Lists that it says of each thing in a practice.")] = 6,
    seed: Annotated[int, typer.Option(min=0, max=999_999, metavar="N", help="Of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after Ctrl-C or a kill, with the same options.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
) -> None:
    """Make the voice of the partners: a LoRA adapter to SmolLM2.

    A scenario's voice.json holds wordings by hand, for each thing that its partner says, in each tone, and those that
    answer an act of the agent's. The model learns to list them. Then it says lists itself, and is trained anew by the
    wordings by hand and those of its own that the wording guard lets pass beyond doubt; then once more. Takes about
    three hours on two cores, and needs pip install 'chatgym[lora]'. docs/voice.md says more.

    \b
    Examples:
      chatgym voice                          makes smollm2-135m-partner, the default partner, anew
      chatgym voice --scenario restaurant --out restaurant-voice
    """
    from chatgym.cli.sft import watched
    from chatgym.engines.adapter import pack
    from chatgym.engines.choose import ADAPTER
    from chatgym.finetuning.sft import SFT
    from chatgym.finetuning.voice import prepare, scenarios_of
    from chatgym.finetuning.voice_practice import passed

    scenarios = scenarios_of(scenario)
    hand = run / "hand"
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
        watched(training)
        for i, path in enumerate(said, 1):
            practised = run / f"practised-{i}"
            if not practised.is_dir():
                _practise(path, training.model, scenarios, lists, seed)
                own = {one.name: passed(said[:i], one) for one in scenarios}
                more = max(2 * rounds + 1 - i, 1)  # each practice adds wordings
                prepare(practised, scenarios, rounds=more, practised=own, seed=seed)
            training = SFT.open(practised)
            watched(training)
    except KeyboardInterrupt:
        typer.echo("Interrupted; go on with the same command and --resume", err=True)
        raise typer.Exit(130) from None
    target = out or ADAPTER
    pack(training.model / "adapter", target)
    found = [line["perplexity"] for line in training.metrics() if "perplexity" in line]
    console().print(f"Perplexity on lists kept apart: {found[0]:.2f} before, {found[-1]:.2f} after\nAdapter: {target}")


def _practise(path: Path, model: Path, scenarios: Sequence[Scenario], lists: int, seed: int) -> None:
    """Have a voice say its lists, with a progress bar."""
    from chatgym.engines import make_engine
    from chatgym.finetuning.voice_practice import practise
    from chatgym.words.voice.wordings import banks_of

    engine = make_engine(f"hf:{model}")
    assert engine is not None
    try:
        with progress_bar("practice", sum(len(banks_of(one)) for one in scenarios), "banks") as progress:
            practise(path, scenarios, engine, lists, seed, progress and (lambda done: progress(done, {})))
    finally:
        engine.close()
