"""``chatgym serve``: one model for many processes, behind OpenAI's API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatgym.errors import InvalidValue

if TYPE_CHECKING:
    from chatgym.engines.transformers import TransformersEngine


def serve(
    llm: Annotated[
        str,
        typer.Option(
            metavar="LLM",
            help="The model: smollm2-135m-partner, smollm2-135m, hf:ID-or-folder, deepspeed:ID-or-folder.",
        ),
    ] = "smollm2-135m-partner",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0 takes any that is free.")] = 8000,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What clients call the model.", show_default="its own")
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False,
            help="Bearer tokens that clients need, one a line; else those in CHATGYM_SERVE_TOKENS.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Most continuations computed together.")] = 64,
    queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most requests that wait; the next one is told to come back.")
    ] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Most new tokens of a continuation.")] = 1024,
    max_prompt: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Most tokens of a prompt.", show_default="the model's context"),
    ] = None,
    max_rows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most continuations of one request, prompts times n.")
    ] = 64,
    max_body: Annotated[int, typer.Option(min=1000, metavar="BYTES", help="Largest request.")] = 1_000_000,
    patience: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long a client may take to send a request.")
    ] = 30.0,
    adapters: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", file_okay=False, show_default="none",
            help="Where LoRA adapters lie that clients may have the model take (POST /v1/load_lora_adapter).",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", show_default="none",
            help="Let pages of this origin ask from a browser, such as https://example.org; repeat it for more, "
            "'*' is every page.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Serve a model to many processes, as OpenAI's API does.

    Endpoints: /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics (Prometheus). Penalties,
    logit_bias, JSON schemas (response_format) and function calls (tools) work as OpenAI documents them; a field that
    can't be served is refused with the reason. docs/serving.md lists every field.

    A new request joins the running ones at the next token. The first line of output is the server's address. Ctrl-C or
    SIGTERM finishes running requests and refuses new ones (503); a second signal stops at once.

    Needs pip install 'chatgym[serve]'. Bearer tokens are never given on the command line, where others would see them.

    \b
    Examples:
      chatgym serve
      chatgym serve --llm hf:runs/sft/model --name mine --port 0
      CHATGYM_SERVE_TOKENS=$(cat secret) chatgym serve --host 0.0.0.0
      chatgym serve --llm smollm2-135m --adapters runs/rollout
      chatgym serve --cors-origin http://localhost:3000
      chatgym evaluate runs/qlearning --partner openai:http://127.0.0.1:8000/v1#smollm2-135m-partner
    """
    from chatgym.serving import check_installed

    check_installed()
    from chatgym.serving.access import Access, read_tokens
    from chatgym.serving.app import check_origins
    from chatgym.serving.limits import Limits
    from chatgym.serving.server import bind, make_server

    origins = cors_origin or []
    check_origins(origins)
    access = Access(read_tokens(token_file))
    listener = bind(host, port)
    address, port = listener.getsockname()[:2]
    if access.open and not address.startswith("127.") and address != "::1":
        typer.secho(
            f"Warning: anyone who reaches {address}:{port} may use the model; set CHATGYM_SERVE_TOKENS or --token-file",
            err=True, fg="yellow",
        )  # fmt: skip
    engine = _opened(llm)
    model = name or engine.identity.partition("@")[0]
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    server = make_server(
        engine,
        name=model,
        limits=Limits(rows, queue, max_tokens, max_prompt, max_rows, max_body, patience, adapters),
        access=access,
        origins=origins,
        ready=lambda: typer.echo(f"Serving {model} at http://{place}/v1 (Ctrl-C ends it)"),
    )
    server.run([listener])


def _opened(llm: str) -> TransformersEngine:
    """Load the model that `llm` names."""
    from chatgym.engines import LazyEngine, make_engine
    from chatgym.engines.transformers import TransformersEngine

    engine = make_engine(llm)
    opened = engine.opened() if isinstance(engine, LazyEngine) else engine
    if not isinstance(opened, TransformersEngine):
        raise InvalidValue(
            f"llm {llm!r} is no model in this process, which is what can be served: smollm2-135m-partner, "
            "smollm2-135m, hf:ID-or-folder, deepspeed:ID-or-folder"
        )
    return opened
