"""``chatgym sft``: a language model learns to say what a teacher said."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli.terminal import console, progress_bar
from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from chatgym.finetuning.sft import SFT

RUN = Path("runs/sft")
WITH_RESUME = {"run", "resume", "processes"}


def sft(
    ctx: typer.Context,
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder.")] = RUN,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="What to train: smollm2-135m, or a folder with safetensors.")
    ] = "smollm2-135m",
    from_scratch: Annotated[
        str, typer.Option(metavar="tiny", help="Train a new model instead, 1.7 million weights and its own tokenizer.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help='Conversations, lines of {"messages": [...]}.'),
    ] = None,
    teacher: Annotated[
        str, typer.Option(metavar="AGENT", help="Who is learned from, without --data: an agent's name or a run folder.")
    ] = "expert",
    scenario: Annotated[str, typer.Option(metavar="NAME", help="What the teacher talks about.")] = "customer_service",
    conversations: Annotated[int, typer.Option(min=2, metavar="N", help="How many the teacher holds.")] = 1000,
    wander: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="Share of turns in which the teacher acts at random.")
    ] = 0.0,
    error_rate: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="X", help="How often the teacher mishears; who reads words doesn't."),
    ] = 0.0,
    epochs: Annotated[float, typer.Option(min=0.01, metavar="X", help="How often a conversation is seen.")] = 3.0,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of a step, over all processes.")] = 8,
    micro_batch: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of a forward pass at most.")] = 4,
    length: Annotated[int, typer.Option(min=16, metavar="N", help="Tokens of a row.")] = 512,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="X", help="At its highest.", show_default="3e-3 from scratch, LoRA 5e-4, else 5e-5"
        ),
    ] = None,
    warmup: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="Share of steps in which it rises.")
    ] = 0.05,
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.9, metavar="X", help="Share kept apart for the perplexity.")
    ] = 0.05,
    lora: Annotated[int, typer.Option(min=0, metavar="RANK", help="Train LoRA's matrices of that rank only.")] = 0,
    zero: Annotated[int, typer.Option(min=0, max=3, metavar="STAGE", help="ZeRO stage.")] = 1,
    bf16: Annotated[bool, typer.Option("--bf16/--fp32", help="Compute in bfloat16 (pays on GPUs).")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice rather than keep them.")
    ] = False,
    deepspeed: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="More settings in DeepSpeed's JSON form."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Processes on this machine.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=999_999, metavar="N", help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run after Ctrl-C or a kill.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
) -> None:  # fmt: skip
    """Fine-tune a language model on conversations: the first step of RLHF.

    The assistant's words are learned, the others' only read. Conversations are packed, several to a row, none of
    which sees another. The perplexity on conversations that are kept apart is measured as it goes.

    \b
    Examples:
      chatgym sft --from-scratch tiny               a small model from nothing, in two minutes on two cores
      chatgym sft --lora 8 --data mine.jsonl        LoRA on SmolLM2, needs pip install 'chatgym[lora]'
      chatgym sft --model hf:FOLDER --zero 3 --bf16 --processes 8 --deepspeed offload.json
      chatgym sft --resume                          after Ctrl-C or a kill

    The run folder holds config.json, metrics.jsonl and, at the end, model/, which --llm hf:FOLDER/model and
    `chatgym serve` take. A resumed run ends with the same model as an undisturbed one.
    """
    given = {key for key in ctx.params if str(ctx.get_parameter_source(key)).endswith("COMMANDLINE")}
    values = dict(ctx.params)
    prepared = _resumed(run, given) if resume else _prepared(given, values)
    try:
        if processes > 1:
            from chatgym.finetuning.launch import launch

            launch("sft", run, processes)
        else:
            watched(prepared)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; go on with `{prepared.resume_command()}`", err=True)
        raise typer.Exit(130) from None
    _print_result(prepared)


def watched(run: SFT) -> None:
    """Train with a progress bar."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def begin(done: int, total: int) -> Any:
            return stack.enter_context(progress_bar("sft", total, "steps", done))

        run.train(begin)


def _resumed(run: Path, given: set[str]) -> SFT:
    from chatgym.finetuning.sft import SFT

    if extra := sorted(given - WITH_RESUME):
        flags = ", ".join("--" + key.replace("_", "-") for key in extra)
        raise InvalidValue(f"--resume goes on with the run's own configuration: leave out {flags}")
    return SFT.open(run)


def _prepared(given: set[str], values: Mapping[str, Any]) -> SFT:
    """Check the options and begin the run."""
    from chatgym.finetuning import models
    from chatgym.finetuning.loop import Optimization, deepspeed_config, read_deepspeed
    from chatgym.finetuning.sft import SFT, Settings, check_free, default_rate

    scratch = values["from_scratch"]
    check_scratch(scratch, given)
    if values["data"] and (wrong := sorted(given & {"teacher", "scenario", "conversations", "wander", "error_rate"})):
        raise InvalidValue(f"--data is what is learned from, without a teacher: leave out --{wrong[0]}")
    rate = values["learning_rate"]
    if rate is None:
        rate = default_rate("" if scratch else values["model"], values["lora"])
    optimization = Optimization(
        batch=values["batch"], micro_batch=values["micro_batch"], learning_rate=rate, warmup=values["warmup"],
        zero=values["zero"], bf16=values["bf16"], deepspeed=read_deepspeed(values["deepspeed"]),
    )  # fmt: skip
    check_free(values["run"], values["overwrite"])
    deepspeed_config(optimization, values["processes"])  # refuses what doesn't fit before anything is made
    if not scratch:
        models.folder_of(values["model"])
    settings = Settings(
        model="" if scratch else values["model"], data=str(values["data"].resolve()) if values["data"] else "",
        data_sha256="", epochs=values["epochs"], length=values["length"], validation=values["validation"],
        lora=values["lora"], gradient_checkpointing=values["gradient_checkpointing"], seed=values["seed"],
    )  # fmt: skip
    said, about = ((), {"data": settings.data}) if settings.data else _said(values)
    return SFT.prepare(
        values["run"], settings, optimization, said=said, about=about, overwrite=values["overwrite"]
    )  # fmt: skip


def check_scratch(scratch: str, given: set[str]) -> None:
    """Check --from-scratch, and that no option is given that goes with a model that is there.

    Raises:
        InvalidValue: It isn't so.
    """
    if scratch not in ("", "tiny"):
        raise InvalidValue(f"--from-scratch {scratch}: the one that there is is called tiny")
    if scratch and (wrong := sorted(given & {"model", "lora"})):
        raise InvalidValue(f"--from-scratch trains all weights of a new model: leave out --{wrong[0]}")


def _said(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let the teacher hold the conversations."""
    from chatgym.envs.task import Task
    from chatgym.finetuning.dialogues import held_by
    from chatgym.training import Run
    from chatgym.training.run import find_agent

    task, teacher = Task(values["scenario"], {"error_rate": values["error_rate"]}), values["teacher"]
    if (Path(teacher) / "config.json").is_file():
        agent = Run.open(teacher).agent()
    else:
        agent = find_agent(teacher)(task.find_scenario())
    count = values["conversations"]
    with progress_bar(f"{teacher} talks", count, "conversations") as progress:
        done = None if progress is None else (lambda n: progress(n, {}))
        said = held_by(agent, task, count, seed=values["seed"], wander=values["wander"], progress=done)
    about = {name: values[name] for name in ("teacher", "scenario", "conversations", "wander", "error_rate")}
    return said, about


def _print_result(run: SFT) -> None:
    """Print what the training came to, and what to do with it."""
    found = [line for line in run.metrics() if "perplexity" in line]
    out, model = console(), shlex.quote(str(run.model))
    out.print(
        f"Perplexity on conversations kept apart: {found[0]['perplexity']:.2f} before, "
        f"{found[-1]['perplexity']:.2f} after {found[-1]['step']:,} steps"
    )
    out.print(f"Run folder: {run.folder} (model/, metrics.jsonl, config.json)")
    out.print(f"Next: `chatgym serve --llm hf:{model}` serves it")
