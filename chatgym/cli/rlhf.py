"""``chatgym rlhf``: supervised fine-tuning, reward model and PPO, one after the other."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from chatgym.cli.terminal import console, progress_bar
from chatgym.errors import InvalidValue

RUN = Path("runs/rlhf")
WITH_RESUME = {"run", "resume", "serve"}


def rlhf(
    ctx: typer.Context,
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of it all.")] = RUN,
    from_scratch: Annotated[
        str, typer.Option(metavar="tiny", help="Train a new model of 1.7 million weights, on a laptop.")
    ] = "",
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="What to start from: smollm2-135m, or a folder with safetensors.")
    ] = "smollm2-135m",
    scenario: Annotated[str, typer.Option(metavar="NAME", help="What is talked about.")] = "customer_service",
    conversations: Annotated[
        int, typer.Option(min=2, metavar="N", help="Conversations of the expert that are learned from first.")
    ] = 1000,
    wander: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="Share of turns in which that expert acts at random.")
    ] = 0.3,
    epochs: Annotated[float, typer.Option(min=0.01, metavar="X", help="How often those are seen.")] = 3.0,
    pairs: Annotated[
        int, typer.Option(min=20, metavar="N", help="Conversations that a reward model's pairs are made of.")
    ] = 300,
    turns: Annotated[int, typer.Option(min=1, metavar="N", help="Turns that PPO trains for.")] = 50_000,
    evaluation: Annotated[int, typer.Option(min=1, metavar="N", help="Conversations of an evaluation.")] = 200,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A setting of `chatgym train ppo`; can be given again."),
    ] = None,
    lora: Annotated[int, typer.Option(min=0, metavar="RANK", help="Train LoRA's matrices of that rank only.")] = 0,
    zero: Annotated[int, typer.Option(min=0, max=3, metavar="STAGE", help="ZeRO stage.")] = 1,
    bf16: Annotated[bool, typer.Option("--bf16/--fp32", help="Compute in bfloat16 (pays on GPUs).")] = False,
    seed: Annotated[int, typer.Option(min=0, max=99_999, metavar="N", help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after Ctrl-C or a kill.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the policy in the end, as `chatgym serve`.")] = False,
) -> None:  # fmt: skip
    """Make a conversation agent by RLHF: its three steps, one after the other.

    The model first learns what the scenario's expert says (`chatgym sft`), then two reward models learn what good
    replies are (`chatgym reward`), and at last it learns by PPO from conversations that it holds itself (`chatgym train
    ppo`): from their outcomes and from one of the reward models, while the other one watches.

    \b
    Examples:
      chatgym rlhf --from-scratch tiny               from nothing, on a laptop
      chatgym rlhf --from-scratch tiny --serve       and serve it
      chatgym rlhf --lora 8 --scenario social        SmolLM2 with LoRA, needs pip install 'chatgym[lora]'
      chatgym rlhf --resume                          after Ctrl-C or a kill; ends in the same model

    The folder holds sft/, reward/, held-out/ and ppo/, whose model/ is what it was all for.
    """
    from chatgym.training import rlhf as steps

    given = {key for key in ctx.params if str(ctx.get_parameter_source(key)).endswith("COMMANDLINE")}
    if resume:
        if extra := sorted(given - WITH_RESUME):
            raise InvalidValue(f"--resume goes on with what was begun: leave out --{extra[0].replace('_', '-')}")
        plan = steps.read(run)
    else:
        plan = steps.begin(run, _plan(dict(ctx.params), given))
    try:
        model_folder = steps.sft(run, plan, progress_bar)
        steps.rewards(run, plan, progress_bar)
        finished = steps.ppo(run, plan, model_folder, progress_bar)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; go on with `chatgym rlhf --run {shlex.quote(str(run))} --resume`", err=True)
        raise typer.Exit(130) from None
    _print_result(run, finished)
    if serve:
        from chatgym.cli.serve import serve as serve_model

        serve_model(llm=f"hf:{finished.folder / 'model'}")


def _plan(values: dict[str, Any], given: set[str]) -> Any:
    """Check the options."""
    from chatgym.agent import make_config
    from chatgym.cli.sft import check_scratch
    from chatgym.finetuning import models
    from chatgym.scenarios import find_scenario
    from chatgym.training.rlhf import Plan
    from chatgym.training.run import find_agent
    from chatgym.training.search_space import read_settings

    scratch = values["from_scratch"]
    check_scratch(scratch, given)
    find_scenario(values["scenario"])
    if not scratch:
        models.folder_of(values["model"])
    config = find_agent("ppo").Config
    settings = read_settings(config, values["setting"] or ())
    make_config(config, settings)
    names = (
        "scenario",
        "conversations",
        "wander",
        "epochs",
        "pairs",
        "turns",
        "evaluation",
        "lora",
        "zero",
        "bf16",
        "seed",
    )
    chosen = {name: values[name] for name in names}
    return Plan(model="" if scratch else values["model"], settings=settings, **chosen)


def _print_result(run: Path, finished: Any) -> None:
    import json

    from chatgym.cli.train import print_result

    print_result(finished)
    accuracy = json.loads((run / "reward" / "report.json").read_text(encoding="utf-8"))["accuracy"]["value"]
    model = shlex.quote(str(finished.folder / "model"))
    console().print(f"Reward model: {accuracy:.1%} of the pairs held out right ({run / 'reward' / 'report.json'})")
    console().print(f"      `chatgym serve --llm hf:{model}` serves it")
