"""How a request's body becomes tokens and rows."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatgym.engines.batch import Request
from chatgym.engines.logits import Constraint, LogitRules
from chatgym.engines.marks import marks_of
from chatgym.engines.spelling import Spelling
from chatgym.engines.transformers import TransformersEngine
from chatgym.serving.bodies import AdapterBody, Body, ChatBody, CompletionBody, read
from chatgym.serving.grammars import Grammars
from chatgym.serving.limits import Limits
from chatgym.serving.messages import render
from chatgym.serving.refusal import Refusal, invalid
from chatgym.serving.tools import WORDS_ONLY, Calling, calling

DEFAULT_TOKENS = 16
"""New tokens of a completion that doesn't say how many, as OpenAI's."""


@dataclass(frozen=True)
class Plan:
    """What is to be done for one request.

    Attributes:
        chat: Which of the two endpoints.
        prompts: Tokens of each prompt.
        echoed: Text of each prompt that stands before its continuations; empty without `echo`.
        n: Continuations of each prompt.
        requests: Rows, n for each prompt; none for a request of no new tokens.
        alternatives: How many of the likeliest tokens to name; None for no log-probabilities.
        stream: Whether to send tokens as they come.
        usage: Whether a stream ends with the counts of tokens.
        calling: What the model may call.
    """

    chat: bool
    prompts: tuple[tuple[int, ...], ...]
    echoed: tuple[str, ...]
    n: int
    requests: tuple[Request, ...]
    alternatives: int | None
    stream: bool
    usage: bool
    calling: Calling = WORDS_ONLY

    @property
    def scored(self) -> tuple[tuple[int, ...], ...]:
        """Prompts whose own tokens are scored."""
        return self.prompts if self.echoed and self.alternatives is not None else ()


class Reader:
    """Turns bodies into plans; used by one thread at a time, for its tokenizer is not made for more."""

    def __init__(self, engine: TransformersEngine, name: str, limits: Limits) -> None:
        self._tokenizer: Any = copy.deepcopy(engine.tokenizer)
        self._name, self._limits, self._context = name, limits, engine.context
        self._spelling = Spelling(self._tokenizer)
        self._first = min(engine.ends, default=0)
        self._vocabulary: int = engine.model.config.get_text_config().vocab_size
        self._grammars = Grammars(self._tokenizer, engine.ends, self._vocabulary)

    def completion(self, raw: bytes) -> Plan:
        """Read the body of ``/v1/completions``.

        Raises:
            Refusal: 400 or 404.
        """
        body = read(CompletionBody, raw)
        prompts = self._prompts(body.prompt)
        most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        if most == 0 and not body.echo:
            raise invalid("max_tokens is 0 and echo is off, so nothing would be answered", "max_tokens")
        echoed = self._echoed(body.prompt, prompts) if body.echo else ()
        return self._plan(body, prompts, most, body.logprobs, echoed, chat=False)

    def adapter(self, raw: bytes) -> Path:
        """Read the body of ``/v1/load_lora_adapter``; returns the adapter's folder.

        Raises:
            Refusal: 400, 403 or 404.
        """
        body = read(AdapterBody, raw)
        self._check_name(body.lora_name, "lora_name")
        root = self._limits.adapters
        if root is None:
            raise Refusal(403, "this server takes no adapters; start it with --adapters FOLDER", code="no_adapters")
        folder: Path = (root / body.lora_path).resolve()
        if not folder.is_relative_to(root.resolve()):
            raise Refusal(403, "the adapter lies outside of the server's --adapters folder", param="lora_path",
                          code="no_adapters")  # fmt: skip
        return folder

    def _check_name(self, named: str, param: str) -> None:
        if named != self._name:
            raise Refusal(
                404, f"there is no model {named!r} here; this server has {self._name!r}", param=param,
                code="model_not_found",
            )  # fmt: skip

    def chat(self, raw: bytes) -> Plan:
        """Read the body of ``/v1/chat/completions``.

        Raises:
            Refusal: 400 or 404.
        """
        body = read(ChatBody, raw)
        if not self._tokenizer.chat_template:
            raise invalid(
                f"model {self._name!r} has no chat template, so it can't chat; use /v1/completions", "messages",
                "no_chat_template",
            )  # fmt: skip
        called = calling(body)
        prompt = tuple(
            marks_of(self._tokenizer).encode(
                render(self._tokenizer, body.messages, called, body.chat_template_kwargs or {})
            )
        )
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        if asked == 0:
            raise invalid("max_tokens is 0, so nothing would be answered", "max_tokens")
        most = max(min(self._limits.max_tokens, self._context - len(prompt)), 1) if asked is None else asked
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
        alternatives = (body.top_logprobs or 0) if body.logprobs else None
        constraint = self._grammars.constraint(body.response_format, called)
        plan = self._plan(body, (prompt,), most, alternatives, (), chat=True, constraint=constraint)
        return replace(plan, calling=called)

    def _echoed(self, given: str | Sequence[Any] | None, prompts: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Return the texts of prompts: those that were sent as texts as they are."""
        texts = zip(_several(given), prompts, strict=True)
        return tuple(one if isinstance(one, str) else self._spelling.text(ids) for one, ids in texts)

    def _prompts(self, given: str | Sequence[Any] | None) -> tuple[tuple[int, ...], ...]:
        several = _several(given)
        if len(several) > self._limits.max_rows:
            raise self._too_many(len(several))
        prompts = []
        for prompt in several:
            ids = self._tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            if any(not 0 <= token < self._vocabulary for token in ids):
                raise invalid(f"prompt holds a number that is no token; they are 0 to {self._vocabulary - 1}", "prompt")
            prompts.append(tuple(ids) or (self._first,))
        return tuple(prompts)

    def _too_many(self, rows: int) -> Refusal:
        return invalid(
            f"prompts times n are {rows} continuations; {self._limits.max_rows} are allowed: send several requests", "n"
        )

    def _plan(
        self, body: Body, prompts: tuple[tuple[int, ...], ...], most: int, alternatives: int | None,
        echoed: tuple[str, ...], *, chat: bool, constraint: Callable[[], Constraint] | None = None,
    ) -> Plan:  # fmt: skip
        limits, n = self._limits, body.n or 1
        self._check_name(body.model, "model")
        if len(prompts) * n > limits.max_rows:
            raise self._too_many(len(prompts) * n)
        if most > limits.max_tokens:
            raise invalid(f"max_tokens is {most}; this server allows {limits.max_tokens}", "max_tokens")
        longest = max(map(len, prompts))
        allowed = min(self._context - most, limits.max_prompt or self._context)
        if longest > allowed:
            raise invalid(
                f"a prompt of {longest} tokens is too long: with {most} new ones {max(allowed, 0)} are allowed",
                "messages" if chat else "prompt", "context_length_exceeded",
            )  # fmt: skip
        seed = secrets.randbits(64) if body.seed is None else body.seed
        rules = self._rules(body, constraint)
        requests = [
            Request(
                prompt=prompt,
                max_new_tokens=most,
                temperature=1.0 if body.temperature is None else body.temperature,
                top_p=1.0 if body.top_p is None else body.top_p,
                seed=(seed + index) % 2**64,
                stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
                alternatives=alternatives,
                rules=rules,
                top_k=max(body.top_k or 0, 0),
                min_p=body.min_p or 0.0,
            )
            for index, prompt in enumerate(prompt for prompt in prompts for _ in range(n))
        ]
        usage = body.stream_options is not None and body.stream_options.include_usage
        return Plan(
            chat, prompts, echoed, n, tuple(requests) if most else (), alternatives, bool(body.stream), usage
        )  # fmt: skip

    def _rules(self, body: Body, constraint: Callable[[], Constraint] | None) -> LogitRules | None:
        """Return how a request changes the logits; None if it doesn't."""
        bias = []
        for token, value in (body.logit_bias or {}).items():
            if not (token.isascii() and token.isdecimal() and int(token) < self._vocabulary):
                raise invalid(
                    f"logit_bias names {token[:40]!r}, which is no token; they are 0 to {self._vocabulary - 1}",
                    "logit_bias",
                )  # fmt: skip
            bias.append((int(token), value))
        rules = LogitRules(tuple(bias), body.presence_penalty or 0.0, body.frequency_penalty or 0.0, constraint)
        return None if rules == LogitRules() else rules


def _several(given: str | Sequence[Any] | None) -> Sequence[Any]:
    """Return the prompts of a body, each a text or token ids."""
    if given is None:
        return [""]
    return given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
