"""The budget of a command on model servers: options for its limits, and a report of its usage."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatgym.errors import BudgetSpent, InvalidValue, Unfinished

if TYPE_CHECKING:
    from chatgym.engines import Engine
    from chatgym.engines.budget import Limits

PROMPT, COMPLETION = "prompt_price", "completion_price"

MaxRequests = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Most requests to a server.", show_default="none")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Most tokens of prompts and replies together.", show_default="none"),
]
MaxCost = Annotated[
    float | None, typer.Option(min=0.0, metavar="X", help="Highest cost; needs a price.", show_default="none")
]
PromptPrice = Annotated[
    float | None, typer.Option(min=0.0, metavar="X", help="Price of a million prompt tokens.", show_default="0")
]
CompletionPrice = Annotated[
    float | None, typer.Option(min=0.0, metavar="X", help="Price of a million reply tokens.", show_default="0")
]


def open_engine(llm: str | None, **limits: float | None) -> Engine | None:
    """Open the engine that `llm` names, with `limits` of `chatgym.engines.budget.Limits`.

    Limits that are None keep the value of the environment variable ``CHATGYM_OPENAI_<NAME>``.

    Raises:
        InvalidValue: Limits are given, but the engine uses no server.
    """
    from chatgym.engines import make_engine

    engine = None if llm is None else make_engine(llm)
    limit(engine, **limits)
    return engine


def limit(engine: Any, **limits: float | None) -> None:
    """Set the limits of an engine, see `open_engine`."""
    given = {name: value for name, value in limits.items() if value is not None}
    if not given:
        return
    server = _server(engine)
    if server is None:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidValue(f"{options}: only a server has limits; name one, openai:URL#MODEL")
    server.settings = dataclasses.replace(server.settings, **given)


def print_usage(engine: Any) -> None:
    """Print the usage of the engine's server, if it has one, on stderr."""
    found = usage(engine)
    if found is not None:
        cost = f", cost {found['cost']:.4g}" if found["cost"] else ""
        retries = f" ({found['retries']:,} repeated)" if found["retries"] else ""
        tokens = f"{found['prompt_tokens']:,} tokens of prompts and {found['completion_tokens']:,} of replies"
        typer.echo(f"Usage of the server: {found['requests']:,} requests{retries}, {tokens}{cost}", err=True)


def usage(engine: Any) -> dict[str, Any] | None:
    """Return this process's usage of the engine's server; None if it has none."""
    server = _server(engine)
    return None if server is None else dataclasses.asdict(server.usage)


def take_prices(engine: Any, **limits: float | None) -> Limits:
    """Set the limits of an engine, as `limit`, but let a model without a server have prices, too.

    Returns:
        The prices of the engine's tokens: those of its server, else those among `limits`.
    """
    from chatgym.engines.budget import Limits

    server = _server(engine)
    if server is not None:
        limit(engine, **limits)
        return server.settings  # type: ignore[no-any-return]
    prices = Limits(prompt_price=limits.pop(PROMPT, None) or 0.0, completion_price=limits.pop(COMPLETION, None) or 0.0)
    limit(engine, **limits)
    return prices


@contextlib.contextmanager
def explain_interruption(engine: Any, kept: str, then: str = "goes on") -> Iterator[None]:
    """Print the usage of an engine after the block and close it; if the block is interrupted, say how to continue.

    Args:
        engine: The engine that the block uses, or None.
        kept: What is kept, and where, such as ``"the replies are kept in FOLDER"``.
        then: What the same command does with it.
    """
    try:
        yield
    except KeyboardInterrupt:
        if engine is not None:
            typer.echo(f"Interrupted; {kept}: the same command {then}", err=True)
        raise
    except BudgetSpent as error:
        raise _name_option(error, kept, then) from None
    except Unfinished as error:
        raise Unfinished(f"{error}; {kept}: the same command {then}") from None
    finally:
        print_usage(engine)
        if engine is not None:
            engine.close()


def _name_option(error: BudgetSpent, kept: str, then: str) -> BudgetSpent:
    """Return the error of a spent budget with the option that raises the limit."""
    reason = str(error).partition(";")[0]
    for name in ("max_requests", "max_tokens", "max_cost"):
        if f"{name}=" in reason:
            higher = f"a higher --{name.replace('_', '-')}"
            return BudgetSpent(f"{reason}; {kept}: the same command with {higher} {then}")
    return error


def _server(engine: Any) -> Any:
    """Return the engine that uses a server: this one, or the one it records; None if there is none."""
    inner = getattr(engine, "engine", None)
    return engine if hasattr(engine, "settings") and hasattr(engine, "usage") else inner and _server(inner)
