"""``chatgym rlhf``: supervised fine-tuning, reward models and PPO, one after the other."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli import options
from chatgym.cli.terminal import console, progress_bar
from chatgym.errors import InvalidValue
from chatgym.storage.utf8 import read_json

if TYPE_CHECKING:
    from chatgym.training import Run
    from chatgym.training.rlhf import Plan

WITH_RESUME = {"run", "resume", "serve", "turns"}


def rlhf(
    ctx: typer.Context,
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder.")] = Path("runs/rlhf"),
    from_scratch: Annotated[
        str, typer.Option(metavar="tiny", help="Train a new model of 1.7 million weights, on a laptop.")
    ] = "",
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Model to start from: smollm2-135m, or a folder with safetensors.")
    ] = "smollm2-135m",
    scenario: options.ScenarioName = "customer_service",
    conversations: Annotated[
        int, typer.Option(min=2, metavar="N", help="Conversations of the expert, for the fine-tuning.")
    ] = 1000,
    wander: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="Probability that the expert takes a random act.")
    ] = 0.3,
    epochs: Annotated[float, typer.Option(min=0.01, metavar="X", help="Passes over these conversations.")] = 3.0,
    pairs: Annotated[
        int, typer.Option(min=20, metavar="N", help="Conversations to make each reward model's pairs from.")
    ] = 300,
    turns: Annotated[int, typer.Option(min=1, metavar="N", help="Turns of the PPO training.")] = 50_000,
    evaluation: Annotated[int, typer.Option(min=1, metavar="N", help="Conversations in each evaluation.")] = 200,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A setting of `chatgym train ppo`; can be repeated."),
    ] = None,
    lora: options.Lora = 0,
    zero: options.Zero = 1,
    bf16: options.Bf16 = False,
    seed: Annotated[int, typer.Option(min=0, max=99_999, metavar="N", help="Seed of all random numbers.")] = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the model at the end, as `chatgym serve`.")] = False,
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Train a conversation agent by RLHF, in three steps.

    1. The model learns the replies of the scenario's expert (`chatgym sft`). 2. Two reward models learn to tell good
    replies from bad ones (`chatgym reward`). 3. PPO trains the model in conversations of its own (`chatgym train ppo`)
    on their outcomes and on the first reward model; the second one is only reported, as a check.

    \b
    Examples:
      chatgym rlhf --from-scratch tiny               a new model, on a laptop
      chatgym rlhf --from-scratch tiny --serve       and serve it
      chatgym rlhf --lora 8 --scenario social        SmolLM2 with LoRA; needs pip install 'chatgym[lora]'
      chatgym rlhf --resume                          after Ctrl-C or a kill; ends with the same model
      chatgym rlhf --resume --turns 100000           PPO goes on, also after its end

    The run folder holds sft/, reward/, held-out/ and ppo/; the trained model is ppo/model/.
    """
    from chatgym.cli.sft import report_of, warn_if_undertrained
    from chatgym.finetuning.sft import SFT
    from chatgym.training import rlhf as steps

    if as_json and serve:
        raise InvalidValue("--serve prints where it serves and goes on: leave out --json or --serve")
    given = options.given_options(ctx)
    if resume:
        options.check_resume(given, WITH_RESUME)
        plan = steps.lengthen(run, turns) if "turns" in given else steps.read(run)
    else:
        plan = steps.begin(run, _plan(ctx.params, given), overwrite=overwrite)
    with options.interruptible(lambda: f"go on with `chatgym rlhf --run {shlex.quote(str(run))} --resume`"):
        model_folder = steps.sft(run, plan, progress_bar)
        warn_if_undertrained(report_of(SFT.open(run / "sft")))
        steps.rewards(run, plan, progress_bar)
        finished = steps.ppo(run, plan, model_folder, progress_bar)
    _print_result(run, finished, as_json)
    if serve:
        from chatgym.cli.serve import serve as serve_model

        serve_model(llm=f"hf:{finished.folder / 'model'}")


def _plan(values: Mapping[str, Any], given: set[str]) -> Plan:
    """Check the options and return the plan."""
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
    names = {field.name for field in dataclasses.fields(Plan)} - {"model", "settings"}
    chosen = {name: values[name] for name in names}
    return Plan(model="" if scratch else values["model"], settings=settings, **chosen)


def _print_result(run: Path, finished: Run, as_json: bool) -> None:
    """Print the result of PPO, and the accuracy of the reward model on held-out pairs."""
    from chatgym.cli.train import print_result, result_json

    report = run / "reward" / "report.json"
    accuracy = read_json(report)["accuracy"]
    if as_json:
        options.print_json({**result_json(finished), "reward_accuracy": accuracy})
        return
    print_result(finished)
    model = shlex.quote(str(finished.folder / "model"))
    console().print(f"Reward model: ranks {accuracy['value']:.1%} of held-out pairs correctly ({report})")
    console().print(f"      `chatgym serve --llm hf:{model}` serves it")
