"""``chatgym voice``: teach a model to word the partners of scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chatgym.cli.terminal import console


def voice(
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder of the training.")] = Path("runs/voice"),
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the adapter goes.", show_default="the one in use")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whose partners; can be given again.", show_default="all with wordings"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="How often each wording is seen.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=999_999, metavar="N", help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run after Ctrl-C or a kill.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
) -> None:
    """Make the voice of the partners: a LoRA adapter to SmolLM2.

    A scenario's voice.json holds wordings by hand, for each thing that its partner says, in each tone, and those that
    answer an act of the agent's. The model learns to list them; the wording guard looks at all that it says later.
    Takes about half an hour on two cores, and needs pip install 'chatgym[lora]'. docs/voice.md says more.

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

    training = SFT.open(run) if resume else prepare(run, scenario, rounds=rounds, seed=seed, overwrite=overwrite)
    try:
        watched(training)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; go on with `chatgym voice --run {run} --resume`", err=True)
        raise typer.Exit(130) from None
    target = out or ADAPTER
    pack(training.model / "adapter", target)
    found = [line["perplexity"] for line in training.metrics() if "perplexity" in line]
    console().print(f"Perplexity on lists kept apart: {found[0]:.2f} before, {found[-1]:.2f} after\nAdapter: {target}")
