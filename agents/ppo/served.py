"""Conversations that a server's model holds, so that generation has a machine of its own (vLLM, or `chatgym serve`).

Only tokens come back from it. What they are worth is computed by the network that learns, and after each iteration the
server is given the adapter that was learned.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.engines.adapter import WEIGHTS
from chatgym.engines.openai import OpenAIEngine
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.errors import InvalidValue
from chatgym.storage import atomic, model_store

from .turns import Turn, Turns


class ServedTurns(Turns):
    """B conversations in which a server's model takes its turns, the beginnings being its to remember."""

    def __init__(
        self, engine: OpenAIEngine, tokenizer: ChatTokenizer, size: int, temperature: float, max_new_tokens: int
    ) -> None:
        super().__init__(tokenizer, size, max_new_tokens)
        self._engine, self._temperature = engine, temperature

    def speak(self, rows: Sequence[int], seeds: npt.NDArray[np.uint64]) -> list[Turn]:
        """Take a turn in some conversations, see `Turns.speak`; their log-probabilities are those the server states."""
        asked = [self.history.ids[row] for row in rows]
        said = self._engine.sample(
            asked, max_new_tokens=self.max_new_tokens, temperature=self._temperature, seeds=seeds.tolist()
        )
        turns = [
            Turn(len(ids), tokens, logprobs, [0.0] * len(tokens))
            for ids, (tokens, logprobs) in zip(asked, said, strict=True)
        ]
        for row, turn in zip(rows, turns, strict=True):
            self.note(row, turn)
        return turns

    def peek(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return zeros: a server knows no values."""
        return np.zeros(len(rows), np.float32)


class Rollouts:
    """The server, and the folder in which it finds the adapter."""

    def __init__(self, llm: str, folder: Path) -> None:
        """Name the server; it isn't asked yet.

        Raises:
            InvalidValue: `llm` is no server.
        """
        from chatgym.engines import make_engine

        engine = make_engine(llm)
        if not isinstance(engine, OpenAIEngine):
            raise InvalidValue(f"rollout_llm {llm!r} is no server; write openai:URL#NAME, as `chatgym serve` says it")
        self.engine, self.folder = engine, folder

    def turns(self, tokenizer: ChatTokenizer, size: int, config: Any) -> ServedTurns:
        """Return B conversations in which nothing was said."""
        return ServedTurns(self.engine, tokenizer, size, config.temperature, config.max_new_tokens)

    def publish(self, model: Any) -> None:
        """Write peft's adapter into the folder, and have the server take it."""
        with atomic.disk_space(self.folder, "free some, or name another folder (--rollout-folder)"):
            self.folder.mkdir(parents=True, exist_ok=True)
            new = self.folder / "adapter"
            atomic.replace_folder(new, model.save_pretrained)
            # Named by content: vLLM would reuse what it read with another adapter of the same path.
            target = self.folder / f"adapter-{model_store.sha256(new / WEIGHTS)[:16]}"
            if not target.is_dir():
                new.rename(target)
        self.engine.take_adapter(target)
        for other in {*self.folder.glob("adapter*")} - {target}:
            shutil.rmtree(other, ignore_errors=True)
