"""``chatgym reward``: preference pairs, and reward models trained on them: the second step of RLHF."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.cli.terminal import Progress, console, percent, progress_bar, table
from chatgym.errors import InvalidValue, unknown

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
    """Learn what a good reply is from pairs of a better and a worse one: the second step of RLHF.

    \b
    Examples:
      chatgym reward pairs --scenario social --out pairs.jsonl   make pairs, or write your own
      chatgym reward train --pairs pairs.jsonl --out judge       learn from them, a minute on a CPU
      chatgym evaluate llm --llm MODEL ...                       agents are measured by the task's reward alone

    A trained one is used by its folder: gym.make("ChatEnv-v0", action="text", reward_model="judge").
    """


@app.command("pairs")
def pairs(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the pairs go, as JSON lines.")],
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="scenario, or chitchat: people's ratings of chats.")
    ] = "scenario",
    scenario: Annotated[str, typer.Option(metavar="NAME", help="What is talked about.")] = "customer_service",
    conversations: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many are held (300), or taken (all of chitchat).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=999_999, metavar="N", help="Seed of the first.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Make preference pairs.

    From a scenario: its expert's replies, and worse ones to the same: off topic, rude, with wrong facts, against the
    policy, said before, the partner's words, no reply at all; and whole conversations, well and badly held.
    From chitchat: whole chats of people, whose ratings differ; ratings that nobody touched and ties are left out.
    A line is {"prompt": [...], "chosen": [...], "rejected": [...], "kind": "rude", "group": "17"}: ChatML messages, of
    which the agent says the assistant's, and two ways to go on. Pairs of one group are learned from or held out whole.

    \b
    Examples:
      chatgym reward pairs --scenario education --out pairs.jsonl
      chatgym reward pairs --from chitchat --out people.jsonl    needs pip install 'chatgym[chitchat]'
    """
    from chatgym.rewards.pairs import write_pairs

    if out.exists() and not overwrite:
        raise InvalidValue(f"{out} is already there; replace it (--overwrite) or name another file (--out)")
    if not out.parent.is_dir():
        raise InvalidValue(f"there is no folder {out.parent}; make it, or name another file (--out)")
    if source == "scenario":
        made = _of_scenario(scenario, conversations or 300, seed)
    elif source == "chitchat":
        from chatgym.rewards import chitchat

        made = chitchat.pairs_of(None if conversations is None else conversations // 2, seed=seed)
    else:
        raise unknown("source", source, SOURCES)
    write_pairs(out, made)
    _print_pairs(made, out)


def _of_scenario(name: str, conversations: int, seed: int) -> list[Pair]:
    from chatgym.finetuning.preferences import pairs_of
    from chatgym.scenarios import find_scenario

    found = find_scenario(name)
    with progress_bar("pairs", conversations, "conversations") as progress:
        done = None if progress is None else (lambda n: progress(n, {}))
        return pairs_of(found, conversations, seed=seed, progress=done)


def _print_pairs(made: list[Pair], out: Path) -> None:
    counts = Counter(pair.kind for pair in made)
    console().print(table(("kind of badness", "pairs"), ((kind, f"{n:,}") for kind, n in sorted(counts.items())), (1,)))
    groups = len({pair.group for pair in made})
    console().print(f"\n{len(made):,} pairs from {groups:,} conversations: {out}")


@app.command("train")
def train(
    pairs: Annotated[list[Path], typer.Option(metavar="FILE", help="Pairs to learn from; can be given again.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the reward model goes.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help="encoder, or llm: a language model with a head.")] = ENCODER,
    ensemble: Annotated[
        int, typer.Option(min=1, max=64, metavar="K", help="Heads; several show where the pairs don't decide.")
    ] = 1,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Of llm: smollm2-135m, a folder with safetensors, or tiny: a new one.")
    ] = "smollm2-135m",
    epochs: Annotated[float, typer.Option(min=0.01, metavar="X", help="Of llm: how often a pair is seen.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Of llm: pairs of a step.")] = 16,
    micro_batch: Annotated[int, typer.Option(min=1, metavar="N", help="Of llm: pairs of a forward pass at most.")] = 4,
    length: Annotated[int, typer.Option(min=16, metavar="N", help="Of llm: tokens read, the last ones.")] = 512,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="X", help="Of llm: at its highest.", show_default="tiny 1e-3, with --lora 3e-4, else 3e-5"
        ),
    ] = None,
    lora: Annotated[
        int, typer.Option(min=0, metavar="RANK", help="Of llm: train the head and LoRA's matrices of that rank only.")
    ] = 0,
    zero: Annotated[int, typer.Option(min=0, max=3, metavar="STAGE", help="Of llm: ZeRO stage.")] = 1,
    bf16: Annotated[bool, typer.Option("--bf16/--fp32", help="Of llm: compute in bfloat16 (pays on GPUs).")] = False,
    deepspeed: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Of llm: more, in DeepSpeed's JSON form."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Of llm: processes on this machine.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=999_999, metavar="N", help="Of everything random.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the reward model in the folder.")] = False,
) -> None:  # fmt: skip
    """Train a reward model on preference pairs, and measure it on those held out.

    Of the groups one in five is held out. The encoder kind is a Bradley-Terry head over features of a sentence encoder
    and takes a minute on a CPU; with --ensemble it also tells by how much its heads differ. The llm kind is a whole
    language model with a head, trained by DeepSpeed; after Ctrl-C or a kill the same command goes on, from what is in
    OUT.training until it is done.

    \b
    Examples:
      chatgym reward train --pairs pairs.jsonl --out judge
      chatgym reward train --pairs pairs.jsonl --pairs people.jsonl --out judge --ensemble 5
      chatgym reward train --pairs pairs.jsonl --out judge --kind llm --model hf:runs/sft/model --bf16
      chatgym reward train --pairs pairs.jsonl --out judge --kind llm --lora 8 --processes 2 --zero 2

    The folder holds the model, config.json and report.json.
    """
    from chatgym.evaluation.reward_report import measure
    from chatgym.finetuning.loop import Optimization, deepspeed_config, read_deepspeed
    from chatgym.finetuning.reward_model import SCRATCH, Settings
    from chatgym.rewards import folder
    from chatgym.rewards.pairs import read_pairs, split
    from chatgym.rewards.training import digest_of
    from chatgym.storage import atomic

    if kind not in folder.KINDS:
        raise unknown("kind", kind, folder.KINDS)
    folder.check_free(out, overwrite)
    learned, tested = split([pair for path in pairs for pair in read_pairs(path)])
    if learning_rate is None:
        learning_rate = 1e-3 if model == SCRATCH else 3e-4 if lora else 3e-5
    settings = Settings(model, epochs, length, lora, seed)
    optimization = Optimization(
        batch, micro_batch, learning_rate, zero=zero, bf16=bf16, deepspeed=read_deepspeed(deepspeed)
    )
    deepspeed_config(optimization, processes)  # refuses what doesn't fit before anything is made

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
            _train_llm(training, learned, settings, optimization, processes)
        atomic.replace_folder(out, fill)
        if kind != ENCODER:
            shutil.rmtree(training)
    print_report(reports[0])
    console().print(f"\nReward model: {out} (learned from {len(learned):,} pairs), reward_model={str(out)!r}")


def _fill_encoder(new: Path, learned: list[Pair], about: dict[str, Any], ensemble: int, seed: int) -> None:
    from chatgym.rewards import folder, training

    with watched("reading", "texts") as progress:
        model = training.train(learned, ensemble=ensemble, seed=seed, progress=progress)
    folder.write_encoder(new, model, {**about, "ensemble": ensemble, "seed": seed})


def _fill_llm(new: Path, training: Path, about: dict[str, Any], settings: Settings, optimization: Optimization) -> None:
    import dataclasses

    from chatgym.rewards import folder

    (training / folder.MODEL).rename(new / folder.MODEL)
    how = {"settings": dataclasses.asdict(settings), "optimization": dataclasses.asdict(optimization)}
    folder.write_config(new, "llm", {**about, **how})


def _train_llm(
    training: Path, learned: list[Pair], settings: Settings, optimization: Optimization, processes: int
) -> None:
    """Train in a folder, or go on there."""
    from chatgym.finetuning import reward_model

    reward_model.prepare(training, learned, settings, optimization)
    try:
        if processes > 1:
            from chatgym.finetuning.launch import launch

            launch("reward", training, processes)
        else:
            watched_training(training)
    except KeyboardInterrupt:
        typer.echo("Interrupted; go on with the same command", err=True)
        raise typer.Exit(130) from None


def watched_training(training: Path) -> None:
    """Train a reward model of the llm kind with a progress bar."""
    from chatgym.finetuning import reward_model

    with watched("training", "steps") as progress:
        reward_model.train(training, progress)


@contextlib.contextmanager
def watched(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show a bar from the first call of what is yielded on: (done, in all, what to show beside it)."""
    with contextlib.ExitStack() as stack:
        bar: list[Progress | None] = []

        def progress(done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
            if not bar:
                bar.append(stack.enter_context(progress_bar(what, total, unit)))
            if bar[0] is not None:
                bar[0](done, figures or {})

        yield progress


def print_report(report: Report) -> None:
    """Print what a model does on pairs held out."""
    out = console()
    named = [("all", report.accuracy), *((kind or "of no kind", share) for kind, share in report.by_kind.items())]
    shorter, longer = report.chosen_shorter, report.chosen_longer
    named += [(f"the better one is {how}", share) for how, share in (("shorter", shorter), ("longer", longer)) if share]
    out.print(table(("pairs held out", "right", "95 % interval", "pairs"), map(_row, named), (1, 2, 3)))
    out.print()
    bins = [
        (f"{percent(one.low)} to {percent(one.high)}", percent(one.confidence), percent(one.accuracy), str(one.pairs))
        for one in report.calibration
    ]
    out.print(table(("how sure", "in the mean", "right", "pairs"), bins, (1, 2, 3)))
    out.print(f"\nCalibration error {report.calibration_error:.3f}, loss {report.loss:.3f}; "
              f"correlation of score and length {report.length_correlation:+.2f}")  # fmt: skip
    if report.disagreement is not None:
        right, wrong = report.disagreement
        out.print(f"Disagreement of the heads: {right:.3f} where right, {wrong:.3f} where wrong")


def _row(named: tuple[str, Share]) -> tuple[str, str, str, str]:
    name, share = named
    return name, percent(share.value), f"{percent(share.low)} to {percent(share.high)}", str(share.pairs)
