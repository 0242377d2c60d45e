"""The command ``chatgym``: its subcommands, its version, and the form of errors."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from chatgym import __version__
from chatgym.cli import (
    audit,
    curve,
    evaluate,
    inventory,
    play,
    replay,
    reward,
    rlhf,
    serve,
    sft,
    show,
    train,
    tune,
    voice,
)  # fmt: skip
from chatgym.cli.options import INTERRUPTED
from chatgym.cli.terminal import print_error, print_failure
from chatgym.errors import ChatGymError, InvalidValue
from chatgym.storage.paths import given

ORDER = (
    "train",
    "tune",
    "evaluate",
    "curve",
    "show",
    "play",
    "replay",
    "audit",
    "sft",
    "reward",
    "rlhf",
    "voice",
    "serve",
    "scenarios",
    "plugins",
    "pull",
)
"""Order of the commands in --help."""
_HOME = re.compile(r"(--[\w-]+=)?(~.*)", re.S)


class Root(TyperGroup):
    """The group of all commands; it prints errors and warnings as one line each."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, see `ORDER`."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace the ``~`` of all paths, also in ``--run=~/mine``, where shells leave it."""
        try:
            return super().parse_args(ctx, [_with_home(arg) for arg in args])
        except InvalidValue as error:
            raise ctx.fail(str(error)) from None

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Exit codes: 2 for a value that isn't allowed, 1 for another error, 130 for Ctrl-C."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except ChatGymError as error:
                print_failure(error)
                raise typer.Exit(2 if isinstance(error, InvalidValue) else 1) from None
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise  # the reader has closed the pipe: typer ends quietly
                print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if type(error).__module__.partition(".")[0] in ("click", "typer"):
                    raise
                from chatgym.training.failure import blamed

                if (failed := blamed(error)) is None:
                    raise
                print_failure(failed)
                raise typer.Exit(1) from None


def _with_home(arg: str) -> str:
    """Return an argument of the command line; a ``~`` that its path begins with becomes the home."""
    found = _HOME.fullmatch(arg)
    return f"{found[1] or ''}{given(found[2])}" if found else arg


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Print a warning as one line on stderr."""
    typer.secho(f"Warning: {message}", err=True, fg="yellow")


def _version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"chatgym {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Root, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip


@app.callback()
def chatgym(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train conversation agents with simulated partners, evaluate them, and talk to them.

    \b
    Examples:
      chatgym train qlearning           train an agent; its run folder is runs/qlearning
      chatgym evaluate runs/qlearning   measure it on unseen conversations
      chatgym show t.jsonl              see its conversations, and why they failed
      chatgym play                      be the agent yourself
      chatgym scenarios                 list the scenarios

    `chatgym COMMAND --help` explains a command. With --json a command prints its result as one JSON document.
    """


app.add_typer(train.app, name="train")
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("curve")(curve.curve)
app.command("show")(show.show)
app.command("play")(play.play)
app.command("replay")(replay.replay)
app.command("audit")(audit.audit)
app.command("sft")(sft.sft)
app.command("rlhf")(rlhf.rlhf)
app.command("voice")(voice.voice)
app.add_typer(reward.app, name="reward")
app.command("serve")(serve.serve)
app.command("scenarios")(inventory.scenarios)
app.command("plugins")(inventory.plugins)
app.command("pull")(inventory.pull)
