"""Record an engine's calls in a file, and answer them from it without GPU, model or network.

A record is one SQLite file. ``llm="record:FILE,LLM"`` asks `LLM` and records its answers; calls that are in the record
aren't made again, so a run that was interrupted continues at no cost. ``llm="recorded:FILE"`` answers only from the
file. The same run gives the same conversations and traces both times, whether or not the server heeds seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatgym.engines.chat import Answered, Message, Reply, ToolCall, ask
from chatgym.engines.protocol import Completion, Engine, check_each, checked_rows, generated
from chatgym.errors import Corrupted, InvalidValue, Unavailable, Unfinished
from chatgym.storage.cache import Cache
from chatgym.storage.paths import given

VERSION = 1
IDENTITY = "engine"
"""Key in a record of the recorded engine's identity."""


class RecordedEngine:
    """Answers calls from a record, and makes those that aren't in it by another engine.

    The key of a call is made of the engine's identity, the prompt, the sampling settings and the row's seed.

    Attributes:
        cache: The record; `chatgym.words.nlg` also stores the banks of wordings made from its completions there.
        engine: The engine to record, or None.
        identity: The recorded engine's identity, so that traces name the same engine.
    """

    def __init__(self, path: str | Path, engine: Engine | None = None) -> None:
        """Open a record.

        Args:
            path: The file; created if there is an engine to record.
            engine: The engine that makes calls which aren't in the record.

        Raises:
            InvalidValue: The file is no record, or a record of another engine.
            Corrupted, Unavailable: As `chatgym.storage.cache.Cache`.
        """
        self.path, self.engine = given(path), engine
        if engine is None and not self.path.is_file():
            raise InvalidValue(f"there is no record {str(self.path)!r}; llm='record:{path},LLM' makes one")
        self.cache = Cache(self.path, lasting=engine is not None)  # answers alone are also read from a read-only file
        identity = self.cache.get(IDENTITY) if engine is None else self.cache.add(IDENTITY, engine.identity)
        if identity is None:
            raise InvalidValue(f"{str(self.path)!r} holds no record of an engine; llm='record:FILE,LLM' makes one")
        if engine is not None and identity != engine.identity:
            raise InvalidValue(
                f"{str(self.path)!r} is a record of {identity!r}, not of {engine.identity!r}; choose another file"
            )
        self.identity = identity

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Continue prompts, see `chatgym.engines.Engine.generate`; recorded calls aren't made again.

        Raises:
            InvalidValue: There aren't as many seeds as prompts.
            Unavailable: A completion isn't in the record, and there is no engine to ask.
        """
        check_each("seeds", seeds, prompts)
        seeds = range(len(prompts)) if seeds is None else [int(seed) for seed in seeds]
        sampling: dict[str, Any] = {
            "max_new_tokens": max_new_tokens, "temperature": float(temperature), "top_p": float(top_p),
            "logprobs": bool(logprobs), "stop": list(stop),
        }  # fmt: skip
        keys = [self._key("generate", p, seed, sampling) for p, seed in zip(prompts, seeds, strict=True)]
        found = self._stored(keys)
        missing = list({key: row for row, key in enumerate(keys) if key not in found}.values())
        if missing:
            engine = self._asked(prompts[missing[0]], len(missing))
            try:
                given, their_seeds = [prompts[i] for i in missing], [seeds[i] for i in missing]
                made = generated(engine, given, seeds=their_seeds, **sampling)
                answered = dict(enumerate(made))
            except Unfinished as error:  # what was answered, and paid for, is recorded
                self._write(keys, missing, error.answered)
                found = self._stored(keys)
                error.answered = {row: _completion(found[key]) for row, key in enumerate(keys) if key in found}
                raise
            found |= self._write(keys, missing, answered)
        return [_completion(found[key]) for key in keys]

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Score continuations, see `chatgym.engines.Engine.score`; recorded calls aren't made again.

        Raises:
            InvalidValue: There aren't as many continuations as prompts.
            Unavailable: A score isn't in the record, and there is no engine to ask.
        """
        check_each("continuations", continuations, prompts)
        keys = [self._key("score", *pair) for pair in zip(prompts, continuations, strict=True)]
        found = self._stored(keys)
        missing = list({key: row for row, key in enumerate(keys) if key not in found}.values())
        if missing:
            engine = self._asked(prompts[missing[0]], len(missing))
            scores: Any = engine.score([prompts[i] for i in missing], [continuations[i] for i in missing])
            scores = checked_rows(engine, "score", scores, len(missing), Iterable)
            for row, score in zip(missing, scores, strict=True):
                found[keys[row]] = json.loads(self.cache.add(keys[row], json.dumps(list(map(float, score)))))
        return [list(found[key]) for key in keys]

    def chat(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        answered: Answered | None = None,
    ) -> list[Reply]:
        """Answer chats, see `chatgym.engines.chat.chat`; each reply is recorded as soon as it comes.

        Raises:
            InvalidValue: There aren't as many seeds as chats.
            Unavailable: A reply isn't in the record, and there is no engine to ask.
        """
        check_each("seeds", seeds, [""] * len(chats))
        seeds = range(len(chats)) if seeds is None else [int(seed) for seed in seeds]
        sampling: dict[str, Any] = {
            "max_new_tokens": max_new_tokens, "temperature": float(temperature), "top_p": float(top_p),
            "tools": list(tools),
        }  # fmt: skip
        keys = [self._key("chat", list(messages), seed, sampling) for messages, seed in zip(chats, seeds, strict=True)]
        found = self._stored(keys)
        missing = list({key: row for row, key in enumerate(keys) if key not in found}.values())

        def write(i: int, reply: Reply) -> None:
            row = missing[i]
            found[keys[row]] = self._parsed(self.cache.add(keys[row], json.dumps(asdict(reply), ensure_ascii=False)))
            if answered is not None:
                answered(row, reply)

        if missing:
            engine = self._asked(str(chats[missing[0]][-1].get("content")), len(missing))
            asked, their_seeds = [chats[row] for row in missing], [seeds[row] for row in missing]
            for i, reply in enumerate(ask(engine, asked, seeds=their_seeds, answered=write, **sampling)):
                if keys[missing[i]] not in found:  # kept by the engine from a call that was interrupted
                    write(i, reply)
        return [_reply(found[key]) for key in keys]

    def close(self) -> None:
        """Close the record and the engine."""
        self.cache.close()
        if self.engine is not None:
            self.engine.close()

    def _asked(self, prompt: str, missing: int) -> Engine:
        """Return the engine that makes `missing` calls, of which one has this prompt."""
        if self.engine is None:
            raise Unavailable(
                f"the record {str(self.path)!r} has no answer to {missing} of these calls, such as the prompt "
                f"{prompt[-60:]!r}: it was made with other settings or seeds, or cut off; make it again by the same "
                f"run with llm='record:{self.path},LLM', LLM being {self.identity!r}"
            )
        return self.engine

    def _stored(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the recorded answers by key."""
        found = {}
        for key in dict.fromkeys(keys):
            if (text := self.cache.get(key)) is not None:
                found[key] = self._parsed(text)
        return found

    def _write(self, keys: Sequence[str], rows: Sequence[int], answered: dict[int, Completion]) -> dict[str, Any]:
        """Record completions; returns what is in the record now, since another process may have been first."""
        written = {}
        for i, c in answered.items():
            value = {"text": c.text, "tokens": c.tokens, "logprobs": c.logprobs, "finish_reason": c.finish_reason}
            key = keys[rows[i]]
            written[key] = self._parsed(self.cache.add(key, json.dumps(value, ensure_ascii=False)))
        return written

    def _parsed(self, text: str) -> Any:
        """Return a recorded answer from its JSON."""
        try:
            return json.loads(text)
        except ValueError as error:
            raise Corrupted(
                f"the record {str(self.path)!r} is damaged ({error}); delete it and make it again"
            ) from error

    def _key(self, *call: Any) -> str:
        """Return the key of a call: a SHA-256."""
        parts = json.dumps([VERSION, self.identity, *call], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()


def _completion(value: Any) -> Completion:
    likely = value["logprobs"]
    return Completion(
        value["text"], tuple(value["tokens"]), None if likely is None else tuple(likely), value["finish_reason"]
    )


def _reply(value: Any) -> Reply:
    tokens = value.get("prompt_tokens"), value.get("completion_tokens")  # records from before have none
    return Reply(value["text"], tuple(ToolCall(**call) for call in value["calls"]), value["finish_reason"], *tokens)
