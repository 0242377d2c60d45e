"""``chatgym reward``: make preference pairs and train reward models on them, the second step of RLHF."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli import options
from chatgym.cli.terminal import Progress, console, percent, progress_bar, table
from chatgym.errors import unknown

if TYPE_CHECKING:
    from chatgym.evaluation.reward_report import Report, Share
    from chatgym.finetuning.loop import Optimization
    from chatgym.finetuning.reward_model import Settings
    from chatgym.rewards.pairs import Pair

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

SOURCES = ("scenario", "chitchat")
ENCODER = "encoder"


@app.callback()
def reward() -> None:
    """Make preference pairs, and train reward models on them: the second step of RLHF.

    \b
    Examples:
      chatgym reward pairs --scenario social --out pairs.jsonl   make pairs, or write your own
      chatgym reward train --pairs pairs.jsonl --out judge       train on them, a minute on a CPU

    Use a trained model by its folder: gym.make("ChatEnv-v0", action="text", reward_model="judge"). Evaluations don't
    use it: `chatgym evaluate` measures agents by the task's own reward.
    """


@app.command("pairs")
def pairs(
    out: Annotated[Path, typer.Option(metavar="FILE", help="File for the pairs, as JSON lines.")],
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="scenario, or chitchat: human ratings of chats.")
    ] = "scenario",
    scenario: options.ScenarioName = "customer_service",
    conversations: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Conversations.", show_default="300, or all of chitchat")
    ] = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Make preference pairs: a better and a worse continuation of the same conversation.

    From a scenario: the expert's replies, and worse ones: off topic, rude, with wrong facts, against the policy,
    repeated, copied from the partner, or empty; also whole conversations, good and bad ones. From chitchat: whole
    chats between people with different ratings; default ratings and ties are left out.

    A line is {"prompt": [...], "chosen": [...], "rejected": [...], "kind": "rude", "group": "17"}: ChatML messages (the
    agent is the assistant) and two continuations. All pairs of a group are either trained on or held out.

    \b
    Examples:
      chatgym reward pairs --scenario education --out pairs.jsonl
      chatgym reward pairs --from chitchat --out people.jsonl    needs pip install 'chatgym[chitchat]'
    """
    from chatgym.rewards.pairs import write_pairs

    options.check_output(out, "--out", overwrite)
    if source == "scenario":
        made = _of_scenario(scenario, conversations or 300, seed)
    elif source == "chitchat":
        from chatgym.rewards import chitchat

        made = chitchat.pairs_of(None if conversations is None else conversations // 2, seed=seed)
    else:
        raise unknown("source", source, SOURCES)
    write_pairs(out, made)
    _print_pairs(made, out, as_json)


def _of_scenario(name: str, conversations: int, seed: int) -> list[Pair]:
    """Make pairs from a scenario's expert, with a progress bar."""
    from chatgym.finetuning.preferences import pairs_of
    from chatgym.scenarios import find_scenario

    found = find_scenario(name)
    with progress_bar("pairs", conversations, "conversations") as progress:
        return pairs_of(found, conversations, seed=seed, progress=lambda n: progress(n, {}))


def _print_pairs(made: list[Pair], out: Path, as_json: bool) -> None:
    """Print how many pairs of each kind were made."""
    counts, groups = sorted(Counter(pair.kind for pair in made).items()), len({pair.group for pair in made})
    if as_json:
        options.print_json({"file": out, "pairs": len(made), "conversations": groups, "kinds": dict(counts)})
        return
    console().print(table(("kind of badness", "pairs"), ((kind, f"{n:,}") for kind, n in counts), (1,)))
    console().print(f"\n{len(made):,} pairs from {groups:,} conversations: {out}")


@app.command("train")
def train(
    pairs: Annotated[list[Path], typer.Option(metavar="FILE", help="Pairs to train on; can be repeated.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the reward model.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help="encoder or llm.")] = ENCODER,
    ensemble: Annotated[
        int, typer.Option(min=1, max=64, metavar="K", help="Number of heads; several also give an uncertainty.")
    ] = 1,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="llm: smollm2-135m, a folder with safetensors, or tiny (a new model).")
    ] = "smollm2-135m",
    epochs: Annotated[float, typer.Option(min=0.01, metavar="X", help="llm: passes over the pairs.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="llm: pairs in a step.")] = 16,
    micro_batch: Annotated[int, typer.Option(min=1, metavar="N", help="llm: most pairs in a forward pass.")] = 4,
    length: Annotated[int, typer.Option(min=16, metavar="N", help="llm: last tokens to read.")] = 512,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="X", help="llm: peak learning rate.",
            show_default="1e-3 below 10 million weights, with --lora 3e-4, else 3e-5",
        ),
    ] = None,
    lora: options.Lora = 0,
    zero: options.Zero = 1,
    bf16: options.Bf16 = False,
    deepspeed: options.DeepSpeed = None,
    processes: options.Processes = 1,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Train a reward model on preference pairs, and measure it on held-out ones.

    One group of pairs in five is held out. Kind encoder is a Bradley-Terry head on a sentence encoder; it takes a
    minute on a CPU, and with --ensemble it also reports the disagreement of its heads. Kind llm is a language model
    with a head, trained by DeepSpeed (options --model to --processes); after Ctrl-C or a kill the same command
    continues from the folder OUT.training.

    \b
    Examples:
      chatgym reward train --pairs pairs.jsonl --out judge
      chatgym reward train --pairs pairs.jsonl --pairs people.jsonl --out judge --ensemble 5
      chatgym reward train --pairs pairs.jsonl --out judge --kind llm --model hf:runs/sft/model --bf16
      chatgym reward train --pairs pairs.jsonl --out judge --kind llm --lora 8 --processes 2 --zero 2

    The folder holds the model, config.json and report.json; of kind llm also metrics.jsonl (a line a step, and the
    held-out accuracy over the training) and curve.png.
    """
    from chatgym.evaluation.reward_report import measure
    from chatgym.finetuning.loop import Optimization, deepspeed_config, read_deepspeed
    from chatgym.finetuning.reward_model import Settings, default_rate
    from chatgym.rewards import folder
    from chatgym.rewards.pairs import read_pairs, split
    from chatgym.rewards.training import digest_of
    from chatgym.storage import atomic

    if kind not in folder.KINDS:
        raise unknown("kind", kind, folder.KINDS)
    folder.check_free(out, overwrite)
    learned, tested = split([pair for path in pairs for pair in read_pairs(path)])
    if learning_rate is None:
        learning_rate = default_rate(model, lora) if kind != ENCODER else 0.0
    settings = Settings(model, epochs, length, lora, seed)
    optimization = Optimization(
        batch, micro_batch, learning_rate, zero=zero, bf16=bf16, deepspeed=read_deepspeed(deepspeed)
    )
    deepspeed_config(optimization, processes)  # refuses what doesn't fit before anything is written

    reports: list[Report] = []

    def fill(new: Path) -> None:
        about = {"pairs": [str(path) for path in pairs], "learned": len(learned), "sha256": digest_of(learned)}
        if kind == ENCODER:
            _fill_encoder(new, learned, about, ensemble, seed)
        else:
            _fill_llm(new, training, about, settings, optimization)
        reports.append(measure(folder.load(new), tested))
        reports[0].save(new / "report.json")

    training = out.with_name(f"{out.name}.training")
    with atomic.disk_space(out, "free some, or name another folder (--out)"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if kind != ENCODER:
            _train_llm(training, learned, tested, settings, optimization, processes)
        atomic.replace_folder(out, fill)
        if kind != ENCODER:
            shutil.rmtree(training)
    if as_json:
        options.print_json({"folder": out, "kind": kind, "trained_on": len(learned), "report": reports[0]})
        return
    print_report(reports[0])
    if reports[0].accuracy.low <= 0.5:
        remedy = "have more pairs" if kind == ENCODER else "have more pairs, or raise --epochs or --learning-rate"
        console().print(f"\nOn held-out pairs it is no better than a coin: {remedy}")
    console().print(f"\nReward model: {out} (trained on {len(learned):,} pairs), reward_model={str(out)!r}")


def _fill_encoder(new: Path, learned: list[Pair], about: dict[str, Any], ensemble: int, seed: int) -> None:
    """Train a reward model of kind encoder and write it into the folder `new`."""
    from chatgym.rewards import folder, training

    with progress_callback("reading", "texts") as progress:
        model = training.train(learned, ensemble=ensemble, seed=seed, progress=progress)
    folder.write_encoder(new, model, {**about, "ensemble": ensemble, "seed": seed})


def _fill_llm(new: Path, training: Path, about: dict[str, Any], settings: Settings, optimization: Optimization) -> None:
    """Move the model trained in `training` into the folder `new`, and describe it there."""
    import dataclasses

    from chatgym.evaluation.reward_report import draw_training
    from chatgym.finetuning.loop import METRICS, read_metrics
    from chatgym.rewards import folder

    (training / folder.MODEL).rename(new / folder.MODEL)
    shutil.copyfile(training / METRICS, new / METRICS)
    draw_training(read_metrics(new), f"reward model, from {settings.model}", new / "curve.png")
    how = {"settings": dataclasses.asdict(settings), "optimization": dataclasses.asdict(optimization)}
    folder.write_config(new, "llm", {**about, **how})


def _train_llm(
    training: Path,
    learned: list[Pair],
    tested: list[Pair],
    settings: Settings,
    optimization: Optimization,
    processes: int,
) -> None:
    """Train a reward model of kind llm in the folder `training`, or resume there."""
    from chatgym.finetuning import reward_model

    reward_model.prepare(training, learned, settings, optimization, tested)
    with options.interruptible(lambda: "go on with the same command"):
        if processes > 1:
            from chatgym.finetuning.launch import launch

            launch("reward", training, processes)
        else:
            train_llm(training)


def train_llm(training: Path) -> None:
    """Train a reward model of kind llm with a progress bar."""
    from chatgym.finetuning import reward_model

    with progress_callback("training", "steps") as progress:
        reward_model.train(training, progress)


@contextlib.contextmanager
def progress_callback(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """Yield a function (done, total, metrics) whose first call opens a progress bar."""
    with contextlib.ExitStack() as stack:
        bar: list[Progress] = []

        def progress(done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
            if not bar:
                bar.append(stack.enter_context(progress_bar(what, total, unit)))
            bar[0](done, figures or {})

        yield progress


def print_report(report: Report) -> None:
    """Print a reward model's results on held-out pairs."""
    out = console()
    named = [("all", report.accuracy), *((kind or "without a kind", share) for kind, share in report.by_kind.items())]
    shorter, longer = report.chosen_shorter, report.chosen_longer
    named += [(f"the better one is {how}", share) for how, share in (("shorter", shorter), ("longer", longer)) if share]
    out.print(table(("held-out pairs", "accuracy", "95 % interval", "pairs"), map(_row, named), (1, 2, 3)))
    out.print()
    bins = [
        (f"{percent(one.low)} to {percent(one.high)}", percent(one.confidence), percent(one.accuracy), str(one.pairs))
        for one in report.calibration
    ]
    out.print(table(("probability", "mean", "accuracy", "pairs"), bins, (1, 2, 3)))
    out.print(f"\nCalibration error {report.calibration_error:.3f}, loss {report.loss:.3f}; "
              f"correlation of score and length {report.length_correlation:+.2f}")  # fmt: skip
    if report.disagreement is not None:
        right, wrong = report.disagreement
        out.print(f"Disagreement of the heads: {right:.3f} on correct pairs, {wrong:.3f} on wrong ones")


def _row(named: tuple[str, Share]) -> tuple[str, str, str, str]:
    """Return a share as a row of the table."""
    name, share = named
    return name, percent(share.value), f"{percent(share.low)} to {percent(share.high)}", str(share.pairs)
