"""``chatgym voice``: teach a model to word the partners of scenarios."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from chatgym.cli.terminal import console, progress_bar


def voice(
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder of the training.")] = Path("runs/voice"),
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the adapter goes.", show_default="the one in use")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whose partners; can be given again.", show_default="all with wordings"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="How often each wording by hand is seen.")] = 2,
    practice: Annotated[
        int, typer.Option(min=0, metavar="N", help="Lists that it says of each thing to learn from; 0: none.")
    ] = 6,
    seed: Annotated[int, typer.Option(min=0, max=999_999, metavar="N", help="Of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after Ctrl-C or a kill, with the same options.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
) -> None:
    """Make the voice of the partners: a LoRA adapter to SmolLM2.

    A scenario's voice.json holds wordings by hand, for each thing that its partner says, in each tone, and those that
    answer an act of the agent's. The model learns to list them. Then it says lists itself, and is trained anew by the
    wordings by hand and those of its own that the wording guard lets pass. Takes about an hour on two cores, and needs
    pip install 'chatgym[lora]'. docs/voice.md says more.

    \b
    Examples:
      chatgym voice                          makes smollm2-135m-partner, the default partner, anew
      chatgym voice --scenario restaurant --out restaurant-voice
    """
    from chatgym.cli.sft import watched
    from chatgym.finetuning.sft import SFT
    from chatgym.voice import ADAPTER
    from chatgym.voice.adapter import pack
    from chatgym.voice.training import prepare

    hand, practised = run / "hand", run / "practised"
    try:
        if not resume:
            training = prepare(hand, scenario, rounds=rounds, seed=seed, overwrite=overwrite)
            shutil.rmtree(practised, ignore_errors=True)
        else:
            training = SFT.open(hand)
        watched(training)
        if practice:
            if not practised.is_dir():
                own = _practise(training.model, scenario, practice, seed)
                prepare(practised, scenario, rounds=1, practised=own, seed=seed)
            training = SFT.open(practised)
            watched(training)
    except KeyboardInterrupt:
        typer.echo("Interrupted; go on with the same command and --resume", err=True)
        raise typer.Exit(130) from None
    target = out or ADAPTER
    pack(training.model / "adapter", target)
    found = [line["perplexity"] for line in training.metrics() if "perplexity" in line]
    console().print(f"Perplexity on lists kept apart: {found[0]:.2f} before, {found[-1]:.2f} after\nAdapter: {target}")


def _practise(model: Path, names: list[str] | None, lists: int, seed: int) -> dict[str, Any]:
    """Have a voice say lists for each scenario; returns what the guard let pass."""
    from chatgym.engines import make_engine
    from chatgym.voice.training import banks_of, passed, scenarios_of

    engine = make_engine(f"hf:{model}")
    assert engine is not None
    scenarios = scenarios_of(names)
    done, own = 0, {}
    try:
        with progress_bar("practice", sum(len(banks_of(scenario)) for scenario in scenarios), "banks") as progress:
            for scenario in scenarios:

                def report(count: int, before: int = done) -> None:
                    if progress is not None:
                        progress(before + count, {})

                own[scenario.name] = passed(scenario, engine, lists, seed, report)
                done += len(banks_of(scenario))
    finally:
        engine.close()
    return own
