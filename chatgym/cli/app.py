"""The command itself: its groups, its version, and how an error looks."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from chatgym import __version__
from chatgym.cli import audit, evaluate, inventory, play, replay, reward, rlhf, serve, sft, train, tune, voice
from chatgym.cli.terminal import print_error
from chatgym.errors import ChatGymError, InvalidValue

INTERRUPTED = 130


ORDER = (
    "train",
    "tune",
    "evaluate",
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


class Root(TyperGroup):
    """The group of all commands: turns ChatGym's errors into one line, and warnings too."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names in the order of use."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; exit codes: 2 a value that isn't allowed, 1 another error, 130 Ctrl-C."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except ChatGymError as error:
                print_error(str(error))
                raise typer.Exit(2 if isinstance(error, InvalidValue) else 1) from None
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise  # whoever read our output has enough of it: typer ends quietly
                print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    typer.secho(f"Warning: {message}", err=True, fg="yellow")


def _version(wanted: bool) -> None:
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
    """Train conversation agents against simulated partners, measure them, and talk to them.

    \b
    Begin with:
      chatgym train qlearning           train an agent into runs/qlearning
      chatgym evaluate runs/qlearning   measure it
      chatgym play                      be the agent yourself
    """


app.add_typer(train.app, name="train")
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
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
