"""What one request may ask for, and how many are held at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """Bounds of the server.

    Attributes:
        rows: Most continuations that are computed together.
        queue: Most requests that wait; the next one is refused with 429.
        max_tokens: Most new tokens of a continuation.
        max_prompt: Most tokens of a prompt; None for what the model's context holds.
        max_rows: Most continuations of one request, prompts times n.
        max_body: Most bytes of a request.
        patience: Seconds that a client may take to send a request.
        adapters: Folder in which LoRA adapters lie that clients may have the model take; None: none.
    """

    rows: int = 64
    queue: int = 256
    max_tokens: int = 1024
    max_prompt: int | None = None
    max_rows: int = 64
    max_body: int = 1_000_000
    patience: float = 30.0
    adapters: Path | None = None
