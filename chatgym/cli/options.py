"""Options that several commands share, and the output of ``--json``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from chatgym.errors import InvalidValue

SETTING = "setting_"
"""Prefix of the parameters that are settings of an agent: they can't clash with a command's own."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document; stdout then holds nothing else.")
]
ScenarioName = Annotated[str, typer.Option(metavar="NAME", help="Scenario; `chatgym scenarios` lists them.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of all random numbers.")]
PARTNER = "the partner's utterances: template (fixed sentences), smollm2-135m-partner, hf:ID-or-folder, ..."
PartnerLLM = Annotated[str, typer.Option(metavar="LLM", help=f"Model that generates {PARTNER}")]
ErrorRate = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="X",
        help="Probability that the agent misunderstands an act or a value.",
        show_default="0.1; 0 for an agent that reads words",
    ),
]
MaxTurns = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Most turns of a conversation.", show_default="the scenario's"),
]
RewardWeight = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Weight of a reward term; can be repeated. `chatgym scenarios NAME` lists the terms and their weights.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run after Ctrl-C or a kill.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the folder or file holds.")]

Lora = Annotated[int, typer.Option(min=0, metavar="RANK", help="Train LoRA matrices of this rank; 0: all weights.")]
Zero = Annotated[int, typer.Option(min=0, max=3, metavar="STAGE", help="DeepSpeed's ZeRO stage.")]
Bf16 = Annotated[bool, typer.Option("--bf16/--fp32", help="Compute in bfloat16, which is faster on GPUs.")]
DeepSpeed = Annotated[
    Path | None,
    typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Further settings, a configuration of DeepSpeed."),
]
Processes = Annotated[int, typer.Option(min=1, metavar="N", help="Training processes on this machine, by DeepSpeed.")]


def check_output(path: Path | None, flag: str, overwrite: bool) -> None:
    """Check that a command can write a file (None: it writes none), before its work begins.

    Raises:
        InvalidValue: Its folder is missing, or the file is there and `overwrite` is false.
    """
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise InvalidValue(f"there is no folder {path.absolute().parent} to write {path.name} into; make it first")
    if path.is_file() and not overwrite:
        raise InvalidValue(f"{path} is already there; replace it (--overwrite) or name another file ({flag})")


def given_options(ctx: typer.Context) -> set[str]:
    """Return the parameters that the command line sets, ``--json`` excluded."""
    given = {key for key in ctx.params if str(ctx.get_parameter_source(key)).endswith("COMMANDLINE")}
    return given - {"as_json"}


def flags(parameters: Iterable[str]) -> str:
    """Return the options of parameters, separated by commas: ``"--seed, --num-envs"``."""
    return ", ".join("--" + key.removeprefix(SETTING).replace("_", "-") for key in parameters)


def check_resume(given: set[str], allowed: set[str]) -> None:
    """Check that no options but the `allowed` ones are given with --resume.

    Raises:
        InvalidValue: Others are.
    """
    if extra := sorted(given - allowed):
        longer = [name for name in ("steps", "turns") if name in allowed]
        can = f" only --{longer[0]} can change:" if longer else ""
        raise InvalidValue(f"--resume continues with the run's own configuration,{can} leave out {flags(extra)}")


@contextlib.contextmanager
def interruptible(remedy: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, print how to continue, by what `remedy` returns then, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; {remedy()}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def print_json(document: Any) -> None:
    """Print a document on stdout, indented, in ASCII, which every output can show."""
    typer.echo(json.dumps(_plain(document), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """Return a value of JSON's types: dataclasses become objects, paths strings, NaN and infinity null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
