"""What a command may spend on servers: its limits as options, and what was spent, said at the end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.errors import BudgetSpent, InvalidValue, Unfinished

if TYPE_CHECKING:
    from chatgym.engines import Engine

MaxRequests = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Most requests to a server.", show_default="none")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Most tokens of prompts and answers together.", show_default="none"),
]
MaxCost = Annotated[
    float | None, typer.Option(min=0.0, metavar="X", help="Most cost; needs a price.", show_default="none")
]
PromptPrice = Annotated[
    float | None, typer.Option(min=0.0, metavar="X", help="Price of a million tokens of prompts.", show_default="0")
]
CompletionPrice = Annotated[
    float | None, typer.Option(min=0.0, metavar="X", help="Price of a million tokens of answers.", show_default="0")
]


def open_engine(llm: str | None, **limits: float | None) -> Engine | None:
    """Make the engine that `llm` names, and set limits (`chatgym.engines.budget.Limits`) to what it may use up.

    Limits that aren't given stay those of the environment, ``CHATGYM_OPENAI_<NAME>``.

    Raises:
        InvalidValue: Limits are given, and the engine asks no server.
    """
    from chatgym.engines import make_engine

    engine = None if llm is None else make_engine(llm)
    limit(engine, **limits)
    return engine


def limit(engine: Any, **limits: float | None) -> None:
    """Set limits to what an engine may use up, see `open_engine`."""
    given = {name: value for name, value in limits.items() if value is not None}
    if not given:
        return
    server = _server(engine)
    if server is None:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidValue(f"{options}: only a server is paid by requests and tokens; name one, openai:URL#MODEL")
    server.settings = dataclasses.replace(server.settings, **given)


def print_usage(engine: Any) -> None:
    """Write to stderr what was asked of a server, if it was one."""
    found = usage(engine)
    if found is not None:
        cost = f", cost {found['cost']:.4g}" if found["cost"] else ""
        retries = f" ({found['retries']:,} repeated)" if found["retries"] else ""
        tokens = f"{found['prompt_tokens']:,} tokens of prompts and {found['completion_tokens']:,} of answers"
        typer.echo(f"Asked of the server: {found['requests']:,} requests{retries}, {tokens}{cost}", err=True)


def usage(engine: Any) -> dict[str, Any] | None:
    """Return what this process asked of the server behind an engine; None when there is none."""
    server = _server(engine)
    return None if server is None else dataclasses.asdict(server.usage)


@contextlib.contextmanager
def explain_interruption(engine: Any, kept: str) -> Iterator[None]:
    """Say in the end what an engine's server was asked; and where the block breaks off, how to go on.

    Args:
        engine: What is asked in the block, or None.
        kept: What remains, and where, such as ``"all is kept in FOLDER"``.
    """
    try:
        yield
    except KeyboardInterrupt:
        if engine is not None:
            typer.echo(f"Interrupted; {kept}: the same command goes on", err=True)
        raise
    except BudgetSpent as error:
        raise _name_option(error, kept) from None
    except Unfinished as error:
        raise Unfinished(f"{error}; {kept}: the same command goes on") from None
    finally:
        print_usage(engine)
        if engine is not None:
            engine.close()


def _name_option(error: BudgetSpent, kept: str) -> BudgetSpent:
    """Return a spent budget's error with the option that raises it."""
    reason = str(error).partition(";")[0]
    for name in ("max_requests", "max_tokens", "max_cost"):
        if f"{name}=" in reason:
            return BudgetSpent(f"{reason}; {kept}: the same command with a higher --{name.replace('_', '-')} goes on")
    return error


def _server(engine: Any) -> Any:
    """Return the engine that asks a server, itself or the one that is recorded; None when there is none."""
    inner = getattr(engine, "engine", None)
    return engine if hasattr(engine, "settings") and hasattr(engine, "usage") else inner and _server(inner)
