"""``chatgym sft``: supervised fine-tuning of a language model on conversations."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli import options
from chatgym.cli.terminal import console, percent, progress_bar
from chatgym.errors import InvalidValue
from chatgym.storage.utf8 import read_json

if TYPE_CHECKING:
    from chatgym.finetuning.sft import SFT

WITH_RESUME = {"run", "resume", "processes"}


def sft(
    ctx: typer.Context,
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder.")] = Path("runs/sft"),
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Model to train: smollm2-135m, or a folder with safetensors.")
    ] = "smollm2-135m",
    from_scratch: Annotated[
        str, typer.Option(metavar="tiny", help="Train a new model of 1.7 million weights, with its own tokenizer.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help='Conversations, lines of {"messages": [...]}.'),
    ] = None,
    teacher: Annotated[
        str, typer.Option(metavar="AGENT", help="Without --data: agent or run folder whose conversations to learn.")
    ] = "expert",
    scenario: options.ScenarioName = "customer_service",
    conversations: Annotated[int, typer.Option(min=2, metavar="N", help="Conversations of the teacher.")] = 1000,
    wander: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="Probability that the teacher takes a random act.")
    ] = 0.0,
    error_rate: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="X", help="Probability that the teacher misunderstands an act."),
    ] = 0.0,
    epochs: Annotated[float, typer.Option(min=0.01, metavar="X", help="Passes over the conversations.")] = 3.0,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Rows in a step, over all processes.")] = 8,
    micro_batch: Annotated[int, typer.Option(min=1, metavar="N", help="Most rows in a forward pass.")] = 4,
    length: Annotated[int, typer.Option(min=16, metavar="N", help="Tokens in a row.")] = 512,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="X", help="Peak learning rate.", show_default="3e-3 from scratch, LoRA 5e-4, else 5e-5"
        ),
    ] = None,
    warmup: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="X", help="Share of steps with a rising learning rate.")
    ] = 0.05,
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.9, metavar="X", help="Share of conversations held out for the perplexity.")
    ] = 0.05,
    lora: options.Lora = 0,
    zero: options.Zero = 1,
    bf16: options.Bf16 = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Save memory: compute activations twice.")
    ] = False,
    deepspeed: options.DeepSpeed = None,
    processes: options.Processes = 1,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Fine-tune a language model on conversations: the first step of RLHF.

    The model learns the assistant's messages; the others are context. Conversations are packed into rows, where none
    attends to another. The perplexity on held-out conversations is measured during training. At the end the model holds
    a few conversations, one of which is shown; a warning says if it is undertrained.

    \b
    Examples:
      chatgym sft --from-scratch tiny               a new small model, in two minutes on two cores
      chatgym sft --lora 8 --data mine.jsonl        LoRA on SmolLM2; needs pip install 'chatgym[lora]'
      chatgym sft --model hf:FOLDER --zero 3 --bf16 --processes 8 --deepspeed offload.json
      chatgym sft --resume                          after Ctrl-C or a kill

    The run folder holds config.json, metrics.jsonl and, at the end, report.json and model/, for --llm hf:FOLDER/model
    and `chatgym serve`. A resumed run ends with the same model as an uninterrupted one.
    """
    given = options.given_options(ctx)
    prepared = _open(run, given) if resume else _prepare(given, ctx.params)
    with options.interruptible(lambda: f"go on with `{prepared.resume_command()}`"):
        if processes > 1:
            from chatgym.finetuning.launch import launch

            launch("sft", run, processes)
        else:
            train_run(prepared)
    _print_result(prepared, as_json)


def train_run(run: SFT) -> None:
    """Train with a progress bar."""
    with contextlib.ExitStack() as stack:
        run.train(lambda done, total: stack.enter_context(progress_bar("sft", total, "steps", done)))


def _open(run: Path, given: set[str]) -> SFT:
    """Open the run that --resume continues."""
    from chatgym.finetuning.sft import SFT

    options.check_resume(given, WITH_RESUME)
    return SFT.open(run)


def _prepare(given: set[str], values: Mapping[str, Any]) -> SFT:
    """Check the options and create the run folder."""
    from chatgym.finetuning import models
    from chatgym.finetuning.loop import Optimization, deepspeed_config, read_deepspeed
    from chatgym.finetuning.sft import SFT, Settings, check_free, default_rate

    scratch = values["from_scratch"]
    check_scratch(scratch, given)
    if values["data"] and (wrong := sorted(given & {"teacher", "scenario", "conversations", "wander", "error_rate"})):
        raise InvalidValue(f"--data holds the conversations, without a teacher: leave out {options.flags(wrong)}")
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
    said, about = ((), {"data": settings.data}) if settings.data else _dialogues(values)
    return SFT.prepare(values["run"], settings, optimization, said=said, about=about, overwrite=values["overwrite"])


def check_scratch(scratch: str, given: set[str]) -> None:
    """Check --from-scratch, and that no option of an existing model is given with it.

    Raises:
        InvalidValue: One is, or the name isn't ``"tiny"``.
    """
    if scratch not in ("", "tiny"):
        raise InvalidValue(f"--from-scratch {scratch}: the only new model is tiny")
    if scratch and (wrong := sorted(given & {"model", "lora"})):
        raise InvalidValue(f"--from-scratch trains all weights of a new model: leave out --{wrong[0]}")


def _dialogues(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let the teacher hold conversations; return them, and their description for config.json."""
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
        said = held_by(
            agent, task, count, seed=values["seed"], wander=values["wander"], progress=lambda n: progress(n, {})
        )
    about = {name: values[name] for name in ("teacher", "scenario", "conversations", "wander", "error_rate")}
    return said, about


def report_of(run: SFT) -> dict[str, Any]:
    """Return how the model of a finished run speaks, see `chatgym.evaluation.speech.Speech`; measured once."""
    from chatgym.agent import make_config
    from chatgym.envs.task import Task
    from chatgym.evaluation.speech import speech_about, speech_in
    from chatgym.storage import atomic
    from chatgym.training.run import find_agent

    path = run.folder / "report.json"
    if path.is_file():
        return dict(read_json(path))
    scenario = read_json(run.folder / "config.json")["from"].get("scenario")
    task, ppo = Task(scenario or "customer_service"), find_agent("ppo")
    agent = ppo(task.find_scenario(), make_config(ppo.Config, {"model": str(run.model)}))
    found = (speech_in(agent, task) if scenario else speech_about(agent, run.parts()[1])).to_json()
    with atomic.disk_space(run.folder, f"free some, then go on with `{run.resume_command()}`"):
        atomic.write_text(path, json.dumps(found, indent=2) + "\n")
    return found


def warn_if_undertrained(report: Mapping[str, Any]) -> None:
    """Say on stderr if a model, given by `report_of`, needs more training."""
    if report["undertrained"]:
        understood = "" if report["understood"] is None else f", NLU understands {percent(report['understood'])}"
        typer.echo(
            f"Warning: the model is undertrained: {percent(report['degenerate'])} of its replies repeat words or have "
            f"none{understood}. Train it for longer (--epochs), on more conversations, or at another --learning-rate",
            err=True,
        )


def _print_result(run: SFT, as_json: bool) -> None:
    """Print perplexity, how the model speaks, one conversation, and the next command."""
    found, report = [line for line in run.metrics() if "perplexity" in line], report_of(run)
    before, after = found[0], found[-1]
    warn_if_undertrained(report)
    if as_json:
        perplexity = {"before": before["perplexity"], "after": after["perplexity"]}
        options.print_json({
            "run": run.folder, "model": run.model, "steps": after["step"], "perplexity": perplexity, "speech": report,
        })  # fmt: skip
        return
    out, model = console(), shlex.quote(str(run.model))
    out.print(
        f"Perplexity on held-out conversations: {before['perplexity']:.2f} before, "
        f"{after['perplexity']:.2f} after {after['step']:,} steps"
    )
    if report["understood"] is not None:
        out.print(f"Replies that NLU understands: {percent(report['understood'])} of {report['replies']:,}")
    out.print(f"Replies that repeat words or have none: {percent(report['degenerate'])} of {report['replies']:,}\n")
    for message in report["conversation"]:
        out.print(f"{'model' if message['role'] == 'assistant' else 'user'}: {message['content']}")
    out.print(f"\nRun folder: {run.folder} (model/, metrics.jsonl, report.json, config.json)")
    out.print(f"Next: `chatgym serve --llm hf:{model}` serves it")
